"""TRL's SFTTrainer on the very same rows: the losses and gradient norms of both engines, step by step."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_engines import STEPS, curve, documents, same, work
from trl import SFTConfig, SFTTrainer

from ftdocs import loop, trainer
from ftdocs.data import pack
from ftdocs.job import Job

# What changes the losses and is another thing in TRL when it is left out; each is set below.
DEFAULTS = {
    "bf16": True,  # here fp32
    "gradient_checkpointing": True,  # here off
    "learning_rate": 2e-5,  # here 1e-3
    "logging_steps": 10,  # here 1
    "max_length": 1024,  # here None: the rows are cut already
    "per_device_train_batch_size": 8,  # here 2
    "seed": 42,  # here 0; the order of the rows comes from it
    "warmup_steps": 0,  # here 1, a twentieth
    "weight_decay": 0.0,  # here 0.01
}
# What is the same when it is left out, and would change the losses if it were not.
SHARED = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "loss_type": "nll",
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "packing": False,
    "padding_free": False,
    "shuffle_dataset": False,
}


def arguments(each: Job, **others) -> SFTConfig:
    """The job in TRL's words, written out and not taken from ours."""
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": each.recipe.train.accumulation,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "weight_decay": 0.01,
        "seed": 0,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
    }
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return SFTConfig(str(each.folder / "trl"), **quiet, **{**SHARED, **settings, **others})


def sft(each: Job, **others) -> dict[str, torch.Tensor]:
    """The curve of TRL on the rows of a job: packed ones flattened by their lengths, others padded by TRL."""
    columns = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in each.rows]
    if each.packed:
        for row, packed in zip(columns, each.rows, strict=True):
            starts = [place for place, position in enumerate(packed["position_ids"]) if position == 0]
            ends = [*starts[1:], len(packed["position_ids"])]
            row["seq_lengths"] = [end - start for start, end in zip(starts, ends, strict=True)]
    trl = SFTTrainer(
        model=each.model,
        args=arguments(each, padding_free=each.packed, **others),
        train_dataset=Dataset.from_list(columns),
        processing_class=each.tokenizer,
    )
    trl.train()
    logs = [row for row in trl.state.log_history if "loss" in row]
    return {
        key: torch.tensor([float(row[name]) for row in logs])
        for key, name in (
            ("loss", "loss"),
            ("grad_norm", "grad_norm"),
            ("learning_rate", "learning_rate"),
            ("tokens", "num_tokens"),
        )
    }


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_both_engines_and_trl_give_the_same_losses(tmp_path, method, accumulation, packing):
    """59 rows of different lengths are no whole number of steps, so an epoch ends with a smaller one."""
    rows = pack.pack(documents(59), 64) if packing else documents(59)
    assert len({len(row["input_ids"]) for row in rows}) > 3 and len(rows) % (2 * accumulation)
    jobs = {name: work(tmp_path / name, rows=rows, method=method, accumulation=accumulation) for name in
            ("loop", "trainer", "trl")}  # fmt: skip
    assert loop.run(jobs["loop"]) == trainer.run(jobs["trainer"]) == STEPS
    theirs = sft(jobs["trl"])
    for name in ("loop", "trainer"):
        same(curve(tmp_path / name), theirs["loss"], 2e-5)
        same(curve(tmp_path / name, "grad_norm"), theirs["grad_norm"], 2e-4)
        torch.testing.assert_close(curve(tmp_path / name, "learning_rate"), theirs["learning_rate"])
        assert torch.equal(curve(tmp_path / name, "tokens"), theirs["tokens"])


def test_trls_defaults_are_those_that_are_named_here(tmp_path: Path):
    """When a release moves one, this fails first and says which; the test above says whether it mattered."""
    default = SFTConfig(str(tmp_path), use_cpu=True)
    ours = arguments(work(tmp_path))
    assert {name: getattr(default, name) for name in DEFAULTS} == DEFAULTS
    assert {name: getattr(default, name) for name in SHARED} == SHARED
    assert all(getattr(ours, name) != value for name, value in DEFAULTS.items())


@pytest.mark.parametrize("left_out", ["seed", "warmup_steps"])
def test_a_setting_that_is_left_at_trls_default_gives_other_losses(tmp_path, left_out):
    """So the comparison above can fail."""
    loop.run(work(tmp_path / "loop", rows=documents(59)))
    theirs = sft(work(tmp_path / "trl", rows=documents(59)), **{left_out: DEFAULTS[left_out]})
    with pytest.raises(AssertionError):
        same(curve(tmp_path / "loop"), theirs["loss"], 2e-5)
