"""Which cure for overfitting helps a small encoder that sees few rows often, and by how much?

Held fixed: MiniLM with every weight trained, `recipes/pitfalls.yaml`, its split (every case has the same test rows),
the rate, 64 training rows and 20 passes over them at most. Ways: no cure (the model's own dropout switched off); early
stopping; more dropout; weight decay, usual and strong; all three; and ten times as many rows, seen a tenth as often.
The seed chooses the training rows, the first weights of the head, the order of the rows and dropout. Columns: accuracy
and mean loss on the test rows, and steps of training, of four each pass over 64 rows.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ftdocs import evaluate, models
from ftdocs.data import prepare
from ftdocs.job import Job
from ftdocs.methods.full import train_all
from ftdocs.progress import Progress
from ftdocs.recipe import Recipe
from ftdocs.train import complete

RECIPE = Path(__file__).parents[1] / "recipes/pitfalls.yaml"
SEEDS = [0, 1, 2, 3, 4]
ROWS, EPOCHS = 64, 20
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "early stopping": {"patience": 3},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.3": {"dropout": 0.3},
    "weight decay 0.01": {"weight_decay": 0.01},
    "weight decay 1": {"weight_decay": 1.0},
    "all three": {"patience": 3, "dropout": 0.3, "weight_decay": 1.0},
    "ten times the rows": {"times": 10},
}
TOLERANCE = {"accuracy": 0.05, "loss": 0.25, "steps": 1.0}


def cases() -> list[dict]:
    """Every way with every seed."""
    return [{"way": way, "seed": seed} for way in WAYS for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    way = WAYS[case["way"]]
    asked = Recipe.load(RECIPE, [f"train.seed={case['seed']}", "data.seed=0"], "cpu")
    return asked.changed({f"train.{key}": value for key, value in way.items() if key != "times"})


def run(case: dict) -> dict:
    """Train one case and measure it on the test rows."""
    asked, way = recipe(case), WAYS[case["way"]]
    splits = prepare.load_splits(asked.data)
    model, tokenizer = models.load(asked, splits.labels)
    train, validation, test = (
        prepare.encode(rows, "label", tokenizer, asked.train.seq_len, splits.labels)
        for rows in (splits.train, splits.validation, splits.test)
    )
    times = way.get("times", 1)
    chosen = np.random.default_rng(case["seed"]).permutation(len(train))[: times * ROWS]
    few = [train[place] for place in chosen.tolist()]
    steps = EPOCHS * ROWS // asked.train.batch_size
    with TemporaryDirectory() as name:
        folder = Path(name)
        progress = Progress.start(folder, None)
        work = Job(
            asked, folder, "label", train_all(model), tokenizer, few, validation, False, steps, None, progress
        )
        done = complete(work)
    logits = evaluate.predict(model, test, models.pad_token_id(tokenizer))
    found = evaluate.classification_metrics(logits, [row["label"] for row in test])
    return {"accuracy": found["accuracy"], "loss": found["loss"], "steps": done}
