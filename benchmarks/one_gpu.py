"""What does each means of using one GPU well cost and save? A ladder, measured beside the planner's figures.

    python benchmarks/one_gpu.py [--model HuggingFaceTB/SmolLM2-1.7B] [--batch-size 4] [--seq-len 1024] [--steps 8]
                                 [--ways "float32" "bf16 products" …]

Every way trains all weights of the same model on the same documents, from the same start; each of the first ones adds
one thing to the way before it, and what is lettered with + is added to "fused AdamW" alone. Tokens are useful ones:
padding does not count. Peak is the most bytes of tensors at once in a step; beside it what `ftdocs plan` says for the
same setting. A first step warms up and is not timed. On a CPU the same runs with a small model, and says what a CPU's
kernels make of it: nothing about a GPU.
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import assets, hardware, loss, memory, models, shapes
from ftdocs.data import pack, prepare
from ftdocs.measure import allocated_peak
from ftdocs.memory import Setting
from ftdocs.recipe import Data


@dataclass(frozen=True)
class Way:
    """How the steps are made; the rest is the same for all ways."""

    tf32: bool = False
    bf16: bool = False
    packed: bool = False
    chunked: bool = False
    fused: bool = False
    checkpointing: bool = False
    compiled: bool = False


WAYS = {"float32": Way()}
for name, further in {
    "TF32 products": {"tf32": True},
    "bf16 products": {"bf16": True},
    "packed rows": {"packed": True},
    "loss in pieces": {"chunked": True},
    "fused AdamW": {"fused": True},
}.items():
    WAYS[name] = replace(list(WAYS.values())[-1], **further)
WAYS["+ checkpointing"] = replace(WAYS["fused AdamW"], checkpointing=True)
WAYS["+ torch.compile"] = replace(WAYS["fused AdamW"], compiled=True)


def main() -> None:
    """Measure one way after the other, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="that are timed; default: %(default)s")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="of the ladder"
    )
    options = parser.parse_args()
    rows, tokenizer = documents(options.model, options.seq_len)
    print(
        f"{hardware.device_name()}: {options.model}, {options.batch_size} × {options.seq_len} tokens a step"
    )
    print(f"{'way':18} {'tokens/s':>9} {'peak GB':>8} {'planned GB':>11} {'loss':>6}")
    for name in options.ways:
        way = WAYS[name]
        if way.tf32 and not way.bf16 and hardware.device().type != "cuda":
            print(f"{name:18} left out: TF32 is a format of NVIDIA's tensor cores")
            continue
        found = measure(way, options, rows, tokenizer)
        planned = memory.need(shapes.find(options.model), setting(way, options)).peak.total
        print(
            f"{name:18} {found['rate']:9.0f} {found['peak'] / 1e9:8.2f} {planned / 1e9:11.2f} {found['loss']:6.3f}"
        )


def setting(way: Way, options: argparse.Namespace) -> Setting:
    """The planner's words for a way."""
    return Setting(
        dtype="bf16" if way.bf16 else "fp32",
        master_weights=way.bf16,
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        checkpointing=way.checkpointing,
        fused_loss=way.chunked,
        loss_chunk=loss.CHUNK if way.chunked else 0,
        optimizer="adamw-fused" if way.fused else "adamw",
    )


def documents(model: str, seq_len: int) -> tuple[list[dict[str, Any]], Any]:
    """Encoded documentation texts and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path(model))
    splits = prepare.load_splits(Data(name="docstrings", limit=1000, validation=0, test=0), seed=0)
    return list(prepare.encode(splits.train, "text", tokenizer, seq_len)), tokenizer


def batches(
    way: Way, options: argparse.Namespace, rows: list, pad: int, device: torch.device
) -> Iterator[dict]:
    """A step's rows at a time, as tensors on the device."""
    chosen = pack.pack(rows, options.seq_len) if way.packed else rows
    for start in range(0, len(chosen) - options.batch_size, options.batch_size):
        part = list(chosen[start : start + options.batch_size])
        yield pack.to(pack.collate_packed(part) if way.packed else pack.collate_padded(part, pad), device)


def measure(way: Way, options: argparse.Namespace, rows: list, tokenizer: Any) -> dict[str, float]:
    """Useful tokens a second, peak memory in bytes, and the last step's loss."""
    device = hardware.device()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if way.tf32 else "highest")  # high: TF32 on CUDA
    folder = assets.model_path(options.model)
    batch_of = batches(way, options, rows, models.pad_token_id(tokenizer), device)
    tokens, last = 0, 0.0

    def one_step() -> None:
        nonlocal tokens, last
        batch = next(batch_of)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=way.bf16):
            found = model(**batch, use_cache=False).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int((batch["labels"] != -100).sum())
        last = found.item()  # waits for the device

    def all_of_it() -> None:
        nonlocal model, optimizer
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).train()
        if (
            device.type == "cpu"
        ):  # a file's weights are mapped into memory, which the allocator does not count
            model = copy.deepcopy(model)
        if way.checkpointing:
            model.activation_checkpointing_enable()
        if way.compiled:
            model.compile()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=way.fused, foreach=not way.fused)
        with loss.chunked(model) if way.chunked else nullcontext():
            one_step()  # warms up, and makes the optimiser's state
            one_step()

    model: Any = None
    optimizer: Any = None
    try:
        peak = allocated_peak(all_of_it)
        with loss.chunked(model) if way.chunked else nullcontext():
            tokens, begun = 0, time.perf_counter()
            for _ in range(options.steps):
                one_step()
            seconds = time.perf_counter() - begun
    finally:
        torch.set_float32_matmul_precision(before)
    return {"rate": tokens / seconds, "peak": peak, "loss": last}


if __name__ == "__main__":
    main()
