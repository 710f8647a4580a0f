"""What does each technique of a training loop bring, in speed and memory, when one is added to the others?

Held fixed: SmolLM2-135M, all of its weights, docstrings cut at 512 tokens, about 2,048 tokens a step,
one step to warm up. Every case has a process of its own, so that memory is its own too.
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import assets, attention, hardware, job, loss
from ftdocs.data import pack, prepare
from ftdocs.recipe import Data

SEEDS = [0]
TOLERANCE = {"tokens_per_second": 0.6, "peak_gb": 0.25, "first_loss": 0.02}  # other work takes its share
RUNGS = (
    "float32, padded",
    "matrix products in bfloat16",
    "documents packed",
    "attention by document",
    "loss in pieces",
    "memory kept",
)
LENGTH, TOKENS, STEPS = 512, 2048, 4


def cases() -> list[dict]:
    """The rungs from the lowest up, each three times in turns, so that a slow minute of the machine meets them all."""
    return [{"round": number, "rung": rung} for number in range(1, 4) for rung in range(len(RUNGS))]


def run(case: dict) -> dict:
    """Useful tokens a second (no padding), gigabytes of the process at most, and the loss of the first batch."""
    command = [sys.executable, "-m", "experiments.ladder", str(case["rung"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def climb(rung: int) -> dict:
    """Train a few steps with everything up to ``rung``."""
    with hardware.memory_kept() if rung >= 5 else nullcontext():
        return steps(rung)


def steps(rung: int) -> dict:
    """A few steps; speed, memory and loss."""
    folder = assets.model_path("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    model.config.use_cache = False
    if rung >= 3:
        attention.use(model)
    rows = prepare.load_splits(Data(name="docstrings", group="source", limit=600), seed=0).train
    encoded = prepare.encode(rows, "text", tokenizer, LENGTH)
    rows = pack.pack(encoded, LENGTH) if rung >= 2 else encoded
    random.Random(0).shuffle(rows)  # packing sorts by length
    batches = by_tokens(rows)
    optimizer = torch.optim.AdamW(job.decay_groups(model, 0.01), lr=1e-5, fused=True)
    rates, losses = [], []
    for rows in batches[: STEPS + 1]:
        began = time.perf_counter()
        batch = pack.collate_packed(rows) if rung >= 2 else pack.collate_padded(rows, tokenizer.pad_token_id)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=rung >= 1),
            loss.chunked(model) if rung >= 4 else nullcontext(),
        ):
            mean = model(**batch).loss
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean.item())
        rates.append(sum(len(row["input_ids"]) for row in rows) / (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_per_second": round(statistics.median(rates[1:]), 1),
        "peak_gb": round(peak / 1e9, 2),
        "first_loss": round(losses[0], 4),
    }


def by_tokens(rows: list[dict]) -> list[list[dict]]:
    """Rows in their order, as many a batch as make about ``TOKENS`` tokens."""
    batches: list[list[dict]] = [[]]
    for row in rows:
        batches[-1].append(row)
        if sum(len(each["input_ids"]) for each in batches[-1]) > TOKENS - LENGTH // 2:
            batches.append([])
    return batches


if __name__ == "__main__":
    print(json.dumps(climb(int(sys.argv[1]))))
