"""How much do learning rate, batch size and epochs matter, how much of that is noise, and what does pruning save?

Held fixed: `recipes/search.yaml` in its cpu size, MiniLM with LoRA on sentences of film reviews, and which of them are
for training and for validation. Part *table*: every point of a grid, trained once. Part *noise*: some of its points
again with other seeds, of the order of the rows and of the first weights. Part *pruning*: a whole search by
`ftdocs.search` with each pruner: the optimiser steps of all trials, the best validation loss, and the seconds, in which
the time for the validations is counted.
"""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ftdocs import evaluate, job, loop, models, runs, search
from ftdocs.data import prepare
from ftdocs.job import Job
from ftdocs.methods.lora import add_lora
from ftdocs.progress import Progress
from ftdocs.recipe import Recipe

RECIPE = Path(__file__).parents[1] / "recipes/search.yaml"
SEEDS = [0, 1, 2]
RATES, SIZES, EPOCHS = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], [8, 32], [1, 2, 3]
TRIALS = 6
TOLERANCE = {"eval_loss": 0.1, "eval_accuracy": 0.1, "steps": 0.4, "value": 0.1, "pruned": 1.0}


def cases() -> list[dict]:
    """The table, its points with other seeds, and the searches."""
    table = [
        {"part": "table", "learning_rate": rate, "batch_size": size, "epochs": epochs, "seed": 0}
        for rate, size, epochs in itertools.product(RATES, SIZES, EPOCHS)
    ]
    noise = [
        {**case, "part": "noise", "seed": seed}
        for case in table
        if case["learning_rate"] in RATES[1:4] and (case["batch_size"], case["epochs"]) == (8, 2)
        for seed in SEEDS[1:]
    ]
    pruning = [{"part": "pruning", "pruner": pruner, "seed": 0} for pruner in ("none", "median", "halving")]
    return table + noise + pruning


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    if case["part"] == "pruning":
        own = {"search.pruner": case["pruner"], "search.seed": case["seed"], "train.eval_every": 10}
    else:
        own = {f"train.{key}": case[key] for key in ("learning_rate", "batch_size", "epochs")}
    return Recipe.load(RECIPE, profile="cpu").changed(own)


def run(case: dict) -> dict:
    """Train a point, or search."""
    asked = recipe(case)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if case["part"] == "pruning":
            found = search.search(asked, folder / "search", TRIALS)
            curves = [runs.read_metrics(found.search / row["folder"]) for row in found.rows]
            steps = sum(max(row["step"] for row in curve) for curve in curves)
            return {"trials": found.trials, "pruned": found.pruned, "steps": steps, "value": found.value}
        return train_point(asked, folder, case["seed"])


def train_point(asked: Recipe, folder: Path, seed: int) -> dict:
    """Validation loss in nats and accuracy after training with a seed."""
    splits = prepare.load_splits(asked.data, seed=0)
    asked = asked.changed({"train.seed": seed})
    model, tokenizer = models.load(asked, splits.labels)
    rows, held_out = (
        prepare.encode(part, splits.format, tokenizer, asked.train.seq_len, splits.labels)
        for part in (splits.train, splits.validation)
    )
    torch.manual_seed(seed)
    model = add_lora(model, asked.method.rank, asked.method.alpha, asked.method.targets)
    total = job.steps(asked, len(rows))
    progress = Progress.start(folder, None)
    loop.run(Job(asked, folder, "label", model, tokenizer, rows, [], False, total, None, progress))
    found = evaluate.metrics(model, held_out, tokenizer, "label", precision=asked.train.precision)
    return {"eval_loss": found["loss"], "eval_accuracy": found["accuracy"]}
