"""From how much data on is it worth to train every weight instead of adapters, and what does either forget?

Held fixed: the models, the split, the number of steps, so that few rows are read often and many rows seldom, and the
rates that the recipes give, 1e-4 for every weight and 1e-3 for adapters of rank 8; nothing was tuned for a size.
*sentiment*: MiniLM (22M), `recipes/sentiment.yaml` with sentences cut at 32 tokens, 100 steps of 32 rows.
*documentation*: SmolLM2-135M-Instruct, `recipes/first-fine-tune.yaml`, 24 steps of 2 sequences of 256 tokens. The seed
changes the order of the rows, and the first weights of the adapters and of the head. Columns: loss on the test rows,
on sentiment their accuracy too; on documentation, perplexity on web pages, which were not trained on, for what was
forgotten.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from experiments import regret
from ftdocs import evaluate, loop, models
from ftdocs.data import pack, prepare
from ftdocs.forgetting import general_perplexity
from ftdocs.job import Job
from ftdocs.progress import Progress
from ftdocs.recipe import Recipe
from ftdocs.train import choose_weights

DOCUMENTATION = Path(__file__).parents[1] / "recipes/first-fine-tune.yaml"
SEEDS = [0, 1, 2]
SENTENCES = [100, 400, 1600, 3200]
SEQUENCES = [4, 16, 48]
STEPS = {"sentiment": 100, "documentation": 24}
METHODS = {
    "every weight": ["method.name=full", "train.learning_rate=1e-4"],
    "adapters": ["method.name=lora", "train.learning_rate=1e-3"],
}
TOLERANCE = {"loss": 0.05, "accuracy": 0.03, "general": 0.05}


def cases() -> list[dict]:
    """Both tasks, every size, both ways, every seed; and the decoder untuned."""
    sizes = [("sentiment", rows) for rows in SENTENCES] + [("documentation", rows) for rows in SEQUENCES]
    tuned = [
        {"task": task, "rows": rows, "way": way, "seed": seed}
        for task, rows in sizes
        for way in METHODS
        for seed in SEEDS
    ]
    return [{"task": "documentation", "rows": 0, "way": "untuned", "seed": 0}, *tuned]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    chosen = [*METHODS.get(case["way"], []), f"train.seed={case['seed']}", "data.seed=0", "data.validation=0"]
    chosen += [f"train.max_steps={STEPS[case['task']]}", "train.engine=loop"]
    if case["task"] == "documentation":
        return Recipe.load(
            DOCUMENTATION, [*chosen, "train.seq_len=256", "data.limit=1000", "data.test=0.02"], "cpu"
        )
    # Of 4,800, the first 3,200 to train on; the others are the test, the same for every size.
    return Recipe.load(
        regret.RECIPE, [*chosen, "train.seq_len=32", "data.limit=4800", f"data.test={1 / 3}"], "cpu"
    )


def run(case: dict) -> dict:
    """One case, on one thread, so that another record may be made beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return read(case) if case["task"] == "documentation" else feel(case)
    finally:
        torch.set_num_threads(threads)


def feel(case: dict) -> dict:
    """Sentiment from the first so many sentences."""
    found = regret.fit(recipe(case), case["rows"])
    return {"loss": found["test_loss"], "accuracy": found["test_accuracy"]}


def read(case: dict) -> dict:
    """Documentation: the first so many sequences."""
    asked = recipe(case)
    length, steps = asked.train.seq_len, STEPS["documentation"]
    model, tokenizer = models.load(asked)
    train, test = (prepare.encode(rows, "text", tokenizer, length) for rows in documents())
    if case["rows"]:
        torch.manual_seed(case["seed"])
        model = choose_weights(model, asked.method)
        with TemporaryDirectory() as name:
            folder, rows = Path(name), pack.pack(train, length)[: case["rows"]]
            progress = Progress.start(folder, None)
            loop.run(Job(asked, folder, "text", model, tokenizer, rows, [], True, steps, None, progress))
    return {
        "loss": evaluate.held_out_loss(model, test, models.pad_token_id(tokenizer)),
        "general": general_perplexity(model, tokenizer),
    }


@cache
def documents() -> tuple[list[dict], list[dict]]:
    """Documents to read, and others to be tested on; no module is in both."""
    splits = prepare.load_splits(
        recipe({"task": "documentation", "rows": 2, "way": "adapters", "seed": 0}).data
    )
    return splits.train, splits.test  # type: ignore
