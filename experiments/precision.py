"""Does training lose quality when the weights themselves are bfloat16, without a float32 copy?

Held fixed: SmolLM2-135M, every weight trained by the loop, 12 steps of 2 × 512 tokens, the documents and, for a seed,
their order. ``auto`` keeps the weights in float32 and multiplies in bfloat16; ``bf16`` keeps weights, gradients and
AdamW's averages in bfloat16. Columns: the held-out loss in nats before and after, and the share of the weights that are
after the training exactly what they were: an update smaller than half the distance to the next bfloat16 number changes
nothing.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ftdocs import evaluate, hardware, loop, models
from ftdocs.data import pack, prepare
from ftdocs.job import Job
from ftdocs.methods.full import train_all
from ftdocs.progress import Progress
from ftdocs.recipe import Data, Method, Recipe, Train

SEEDS = [0, 1]
STEPS = 12
TOLERANCE = {"loss_before": 0.005, "loss_after": 0.01, "unchanged_share": 0.2}


def cases() -> list[dict]:
    """A usual learning rate and a small one, both precisions, every seed."""
    return [
        {"learning_rate": rate, "precision": precision, "seed": seed}
        for rate in (1e-4, 1e-5)
        for precision in ("auto", "bf16")
        for seed in SEEDS
    ]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return Recipe(
        model="smollm2-135m-instruct",
        data=Data(name="docstrings", group="source", limit=2000, validation=0, test=0.01),
        method=Method(name="full"),
        train=Train(max_steps=STEPS, batch_size=2, seq_len=512, engine="loop", **case),
    )


def run(case: dict) -> dict:
    """Train, and measure on documents that the training does not see."""
    asked = recipe(case)
    splits = prepare.load_splits(asked.data, seed=0)
    model, tokenizer = models.load(asked)
    test, encoded = (
        prepare.encode(rows, "text", tokenizer, asked.train.seq_len) for rows in (splits.test, splits.train)
    )
    pad = models.pad_token_id(tokenizer)
    before = evaluate.held_out_loss(model, test, pad, precision=asked.train.precision)
    torch.manual_seed(case["seed"])
    train_all(model)
    old = [weight.detach().clone() for weight in model.parameters()]
    rows = pack.pack(encoded, asked.train.seq_len)
    with TemporaryDirectory() as name, hardware.memory_kept():
        progress = Progress.start(Path(name), None)
        loop.run(Job(asked, Path(name), "text", model, tokenizer, rows, [], True, STEPS, None, progress))
    same = sum((a == b).sum().item() for a, b in zip(old, model.parameters(), strict=True))
    return {
        "loss_before": before,
        "loss_after": evaluate.held_out_loss(model, test, pad, precision=asked.train.precision),
        "unchanged_share": same / sum(weight.numel() for weight in old),
    }
