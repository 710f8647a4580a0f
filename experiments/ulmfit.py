"""What does each part of ULMFiT add: reading the texts first, rates by layer, a slanted schedule, gradual unfreezing?

Held fixed: SmolLM2-135M, one-sentence reviews, `recipes/ulmfit.yaml` in its cpu size, which reviews are for training
and which for the test. The seed changes their order and the first weights of the head. Columns: accuracy and macro F1
on the test reviews.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from ftdocs import evaluate, models
from ftdocs.data import prepare
from ftdocs.recipe import Recipe
from ftdocs.train import train

RECIPE = Path(__file__).parents[1] / "recipes/ulmfit.yaml"
SEEDS = [0, 1, 2]
TOLERANCE = {"accuracy": 0.04, "f1": 0.05}
PARTS = {
    "reading first": ("method.language_epochs", "1", "0"),
    "rates by layer": ("method.discriminative", "2.6", "1"),
    "slanted schedule": ("train.schedule", "slanted", "linear"),
    "unfreezing": ("method.unfreeze", "true", "false"),
}
WAYS = {"nothing": set(), **{part: {part} for part in PARTS}, "everything": set(PARTS)}


def cases() -> list[dict]:
    """Nothing, each part alone, everything; every seed."""
    return [{"way": way, "seed": seed} for way in WAYS for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    chosen = [f"{key}={on if part in WAYS[case['way']] else off}" for part, (key, on, off) in PARTS.items()]
    return Recipe.load(RECIPE, [*chosen, f"train.seed={case['seed']}", "data.seed=0"], "cpu")


def run(case: dict) -> dict:
    """Train, and measure on reviews that no stage has seen."""
    asked = recipe(case)
    splits = prepare.load_splits(asked.data)
    with TemporaryDirectory() as name:
        model, tokenizer = models.load_run(train(asked, Path(name, "run")).run)
        rows = prepare.encode(splits.test, "label", tokenizer, asked.train.seq_len, splits.labels)
        logits = evaluate.predict(model, rows, models.pad_token_id(tokenizer))
        found = evaluate.classification_metrics(logits, [row["label"] for row in rows])
    return {"accuracy": found["accuracy"], "f1": found["f1"]}
