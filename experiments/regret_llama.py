"""Do findings of *LoRA Without Regret* hold for a decoder of 135 million weights that reads documentation?

As in `regret`, with SmolLM2-135M-Instruct in the place of MiniLM. Held fixed: `recipes/first-fine-tune.yaml` with
sequences of 256 tokens, 32 of them, each read once in 16 steps of two; the split, by module, so that nobody is tested
on a module that was read; an alpha of 32. What changes is the learning rate, for every weight and for adapters of
ranks 1, 8 and 64 on all linear layers. The seed changes the order of the sequences and the first weights of the
adapters. Columns: loss on the validation documents, by which a rate may be chosen, and on the test documents, by which
nothing is; trained weights. Where the loss grew beyond all measure there is
only ``diverged``.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ftdocs import evaluate, loop, models
from ftdocs.data import pack, prepare
from ftdocs.job import Job
from ftdocs.progress import Diverged, Progress
from ftdocs.recipe import Recipe
from ftdocs.train import choose_weights

RECIPE = Path(__file__).parents[1] / "recipes/first-fine-tune.yaml"
SEEDS = [0, 1, 2]
SEQUENCES, STEPS, LENGTH = 32, 16, 256
FIXED = [
    *("data.limit=1000", "data.validation=0.02", "data.test=0.02", "data.seed=0"),
    *(f"train.seq_len={LENGTH}", f"train.max_steps={STEPS}", "train.engine=loop"),
]
TOLERANCE = dict.fromkeys(("validation_loss", "test_loss"), 0.05)
FULL_RATES = [3e-5, 1e-4, 3e-4]
LORA_RATES = [3e-4, 1e-3, 3e-3, 1e-2]
PLACES = {"attention": "q_proj,k_proj,v_proj,o_proj", "mlp": "gate_proj,up_proj,down_proj"}


def cases() -> list[dict]:
    """Every way at every rate, with every seed."""
    asked = [
        {"factor": "rate", "way": "full", "rank": 0, "targets": "none", "rate": rate} for rate in FULL_RATES
    ]
    adapters = {"factor": "rate", "way": "lora", "targets": "all-linear"}
    asked += [{**adapters, "rank": rank, "rate": rate} for rank in (8, 1, 64) for rate in LORA_RATES]
    return [{**case, "seed": seed} for case in asked for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    method = ["method.name=full"]
    if case["way"] == "lora":
        targets = PLACES.get(case["targets"], "all-linear")
        method = [
            "method.name=lora",
            f"method.rank={case['rank']}",
            "method.alpha=32",
            f"method.targets={targets}",
        ]
    chosen = [*method, f"train.learning_rate={case['rate']}", f"train.seed={case['seed']}"]
    return Recipe.load(RECIPE, [*chosen, *FIXED], "cpu")


def run(case: dict) -> dict:
    """One case, on one thread, so that another record may be made beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return read(recipe(case))
    finally:
        torch.set_num_threads(threads)


def read(asked: Recipe) -> dict:
    """Train by a recipe on the sequences, and look at the validation and the test documents."""
    model, tokenizer = models.load(asked)
    splits = documents()
    train, *held_out = (
        prepare.encode(rows, "text", tokenizer, LENGTH)
        for rows in (splits.train, splits.validation, splits.test)
    )
    torch.manual_seed(asked.train.seed)
    model = choose_weights(model, asked.method)
    found: dict[str, Any] = {
        "trained": sum(each.numel() for each in model.parameters() if each.requires_grad)
    }
    with TemporaryDirectory() as name:
        folder, rows = Path(name), pack.pack(train, LENGTH)[:SEQUENCES]
        progress = Progress.start(folder, None)
        try:
            loop.run(Job(asked, folder, "text", model, tokenizer, rows, [], True, STEPS, None, progress))
        except Diverged:
            return {**found, "diverged": True}
    for part, rows in zip(("validation", "test"), held_out, strict=True):
        found[f"{part}_loss"] = evaluate.held_out_loss(model, rows, models.pad_token_id(tokenizer))
    return found


@cache
def documents() -> prepare.Splits:
    """The split, the same for all seeds."""
    return prepare.load_splits(Recipe.load(RECIPE, FIXED, "cpu").data)
