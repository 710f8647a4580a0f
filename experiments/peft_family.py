"""Which parameter-efficient method learns sentiment best, and how many weights does it move for that?

Held fixed: MiniLM (6 layers), one-sentence reviews without near-duplicates, `recipes/sentiment.yaml` on 1,500 of them,
the split, the rows of a step and the number of steps, so that every way reads the same tokens as often. Ways: every
method of `method.name` that leaves an adapter or a few moved weights, with the rate and the settings that a recipe gets
by its name alone: nothing was tuned for this task, and a method can do better than here with a rate of its own. Beside
them the head alone with the pooler below it (head), and every weight (full). The seed changes the order of the rows,
the first weights of the head and those of the adapter. Columns: accuracy on the test rows; trained parameters; bytes of
the weights that are kept for the task.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from experiments.sentiment_layers import write_sentences
from ftdocs import evaluate, models, runs
from ftdocs.data import prepare
from ftdocs.methods.adapters import RATES
from ftdocs.recipe import Recipe
from ftdocs.train import choose_weights, train

RECIPE = Path(__file__).parents[1] / "recipes/sentiment.yaml"
SEEDS = [0, 1, 2]
FIXED = ["data.limit=1500", "data.validation=0", "data.seed=0"]
TOLERANCE = {"accuracy": 0.03}


def cases() -> list[dict]:
    """Every way with every seed."""
    return [{"way": way, "seed": seed} for way in ["head", *RATES, "bitfit", "full"] for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    method = {"head": ["method.name=layers", "method.layers=0"]}.get(
        case["way"], [f"method.name={case['way']}"]
    )
    # Whole layers learn at the recipe's rate, the others at their own.
    rate = [] if case["way"] in ("head", "full") else ["train.learning_rate=null"]
    return Recipe.load(RECIPE, [*method, *rate, f"train.seed={case['seed']}", *FIXED], "cpu")


def run(case: dict) -> dict:
    """One case."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as name:
            return measure(Path(name), recipe(case))
    finally:
        torch.set_num_threads(threads)


def measure(folder: Path, asked: Recipe) -> dict:
    """Train in ``folder`` and look at the test rows."""
    (folder / "sentences.jsonl").write_text(sentences(), encoding="utf-8")
    data = asked.data.model_copy(update={"path": folder / "sentences.jsonl"})
    splits = prepare.load_splits(data)
    result = train(asked.model_copy(update={"data": data}), folder / "run")
    model, tokenizer = models.load_run(result.run)
    rows = prepare.encode(splits.test, "label", tokenizer, asked.train.seq_len, splits.labels)
    logits = evaluate.predict(model, rows, models.pad_token_id(tokenizer))
    metrics = evaluate.classification_metrics(logits, [row["label"] for row in rows])
    method = runs.read_recipe(result.run).method
    fresh, _ = models.load(runs.read_recipe(result.run), splits.labels)
    moved = choose_weights(fresh, method, result.steps)
    kept = [path for path in result.run.glob("*/*.safetensors") if path.parent.name in ("adapter", "model")]
    return {
        "accuracy": metrics["accuracy"],
        "trained": sum(weight.numel() for weight in moved.parameters() if weight.requires_grad),
        "kept_bytes": sum(path.stat().st_size for path in kept),
    }


@cache
def sentences() -> str:
    """The file of reviews; near-duplicates are looked for once."""
    with TemporaryDirectory() as name:
        path = Path(name) / "sentences.jsonl"
        write_sentences(path)
        return path.read_text(encoding="utf-8")
