"""DeepSpeed's own class reads the book's files for ZeRO-2 and ZeRO-3: `nox -s deepspeed`.

Runs in an environment with DeepSpeed, which the book's has not. No GPU is needed to read a file.
"""

import copy
import json
import logging
from pathlib import Path

import deepspeed
from deepspeed.runtime.config import DeepSpeedConfig

FOLDER = Path(__file__).parents[1] / "recipes" / "accelerate"
PROCESSES, MICRO, ACCUMULATION = 1, 4, 8  # none have been started, so DeepSpeed counts one
FILLED = {
    "train_micro_batch_size_per_gpu": MICRO,
    "gradient_accumulation_steps": ACCUMULATION,
    "train_batch_size": PROCESSES * MICRO * ACCUMULATION,
    "gradient_clipping": 1.0,
}


def filled(stage: int) -> dict:
    """A file of the book with Trainer's values in the place of "auto"."""
    found = json.loads((FOLDER / f"zero{stage}.json").read_text(encoding="utf-8"))
    for key in FILLED:
        assert found[key] == "auto", key
    found["bf16"]["enabled"] = False  # DeepSpeed asks the device whether it can, and a CPU may say no
    return found | FILLED


def refused(config: dict) -> str:
    """The error's beginning for a file that DeepSpeed does not take, or nothing."""
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def main() -> None:
    logging.disable(logging.INFO)
    for stage in (2, 3):
        good = filled(stage)
        read = DeepSpeedConfig(copy.deepcopy(good))
        assert read.zero_optimization_stage == stage and read.world_size == PROCESSES
        assert read.train_batch_size == PROCESSES * MICRO * ACCUMULATION and read.gradient_clipping == 1.0
        assert read.zero_config.contiguous_gradients and read.zero_config.overlap_comm
        assert read.zero_config.gather_16bit_weights_on_model_save == (stage == 3)
        print(f"DeepSpeed {deepspeed.__version__} reads zero{stage}.json")
        for broken in (
            good | {"train_batch_size": 33},
            good | {"zero_optimization": {"stage": stage, "overlap_com": True}},
            good | {"zero_optimization": {"stage": 4}},
        ):
            assert refused(broken), broken
            print(f"  refused: {refused(broken)}")
        assert not refused(good | {"gradient_cliping": 1.0})  # a misspelt key of the outermost ones is taken
        print("  not found: a misspelt key of the outermost ones")


main()
