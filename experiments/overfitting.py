"""Which cure for overfitting helps a small encoder that sees few rows often, and by how much?

Held fixed: MiniLM with every weight trained, `recipes/pitfalls.yaml`, its split (every case has the same test rows),
the rate, 64 training rows and 20 passes over them at most. Ways: no cure (the model's own dropout switched off); early
stopping; more dropout; weight decay, usual and strong; all three; and ten times as many rows, seen a tenth as often.
The seed chooses the training rows, the first weights of the head, the order of the rows and dropout. Columns: accuracy
and mean loss on the test rows, and passes over the training rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftdocs import early_stopping, evaluate, models
from ftdocs.data import prepare
from ftdocs.recipe import Recipe

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
TOLERANCE = {"accuracy": 0.05, "loss": 0.25, "epochs": 1.0}


def cases() -> list[dict]:
    """Every way with every seed."""
    return [{"way": way, "seed": seed} for way in WAYS for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return Recipe.load(RECIPE, [f"train.seed={case['seed']}"], "cpu")


def run(case: dict) -> dict:
    """Train one case and measure it on the test rows."""
    asked, way = recipe(case), dict(WAYS[case["way"]])
    splits = prepare.load_splits(asked.data, seed=0)
    model, tokenizer = models.load(asked, splits.labels)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = way.get("dropout", 0.0)
    pad = models.pad_token_id(tokenizer)
    train, validation, test = (
        prepare.encode(rows, "label", tokenizer, asked.train.seq_len, splits.labels)
        for rows in (splits.train, splits.validation, splits.test)
    )
    times = way.get("times", 1)
    chosen = np.random.default_rng(case["seed"]).permutation(len(train))[: times * ROWS]
    curve = early_stopping.fit(
        model,
        [train[place] for place in chosen.tolist()],
        validation[:200],
        pad,
        epochs=EPOCHS // times,
        learning_rate=asked.train.learning_rate or 1e-4,
        weight_decay=way.get("weight_decay", 0.0),
        batch_size=asked.train.batch_size,
        patience=way.get("patience"),
        seed=case["seed"],
    )
    logits = evaluate.predict(model, test, pad)
    found = evaluate.classification_metrics(logits, [row["label"] for row in test])
    return {"accuracy": found["accuracy"], "loss": found["loss"], "epochs": len(curve)}
