"""Does LoRA learn as well as full fine-tuning, and does it want the same settings?

The findings of *LoRA Without Regret* (Schulman et al., 2025), each looked at with MiniLM (22 million weights) on the
sentiment of sentences. Held fixed: `recipes/sentiment.yaml` on 640 of them cut at 32 tokens, two passes, the split, and
an alpha of 32 as in the study. Around a centre (adapters of rank 8 on all linear layers, 32 rows a step) one thing
changes at a time. *rate*: the learning rate, for every weight and for ranks 1, 8 and 64. *place*: adapters in the
attention alone and in the MLP alone, of ranks that give both the same number of weights. *batch*: 8 and 128 rows a
step, for both; the rows that are read stay the same, so that steps get fewer. The new head is trained whole in every
way; the pooler below it moves with every weight, has an adapter where all linear layers have one, and stays with
*place*. The seed changes the order of the rows, and the first weights of the head and of the adapter. Columns: loss and
accuracy on the validation rows, by which a rate may be chosen, and on the test rows, by which nothing is; trained
weights. Where the loss grew beyond all measure there is only ``diverged``.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.sentiment_layers import write_sentences
from ftdocs import evaluate, loop, models
from ftdocs.data import prepare
from ftdocs.job import Job, steps
from ftdocs.progress import Diverged, Progress
from ftdocs.recipe import Recipe
from ftdocs.train import choose_weights

RECIPE = Path(__file__).parents[1] / "recipes/sentiment.yaml"
SEEDS = [0, 1, 2]
FIXED = ["data.limit=1800", "data.validation=0.2", "data.seed=0", "train.seq_len=32"]
TOLERANCE = {
    **dict.fromkeys(("validation_loss", "test_loss"), 0.05),
    **dict.fromkeys(("validation_accuracy", "test_accuracy"), 0.03),
}
ROWS = 640  # whole steps of 8, of 32 and of 128
FULL_RATES = [3e-5, 1e-4, 3e-4, 1e-3]
LORA_RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
ATTENTION = "query,key,value,attention.output.dense"
# By its layer, since the end of a name is compared, and attention.output.dense has the same one.
MLP = ",".join(["intermediate.dense", *(f"{layer}.output.dense" for layer in range(6))])


def cases() -> list[dict]:
    """One factor at a time around the centre, with every seed."""
    centre: dict[str, Any] = {"way": "lora", "rank": 8, "targets": "all-linear", "batch": 32}
    full = {"way": "full", "rank": 0, "targets": "none", "batch": 32}
    asked = [{"factor": "rate", **full, "rate": rate} for rate in FULL_RATES]
    asked += [
        {"factor": "rate", **centre, "rank": rank, "rate": rate} for rank in (1, 8, 64) for rate in LORA_RATES
    ]
    # A layer of 384 has 4 × 768 r weights in its attention, and 2 × 1,920 r in its MLP.
    for targets, rank in (("attention", 10), ("mlp", 8)):
        place = {"factor": "place", **centre, "targets": targets, "rank": rank}
        asked += [{**place, "rate": rate} for rate in LORA_RATES[1:4]]
    for batch, first in ((8, 0), (128, 1)):  # fewer steps bear a higher rate
        asked += [
            {"factor": "batch", **full, "batch": batch, "rate": rate}
            for rate in FULL_RATES[first : first + 3]
        ]
        asked += [
            {"factor": "batch", **centre, "batch": batch, "rate": rate}
            for rate in LORA_RATES[first : first + 3]
        ]
    return [{**case, "seed": seed} for case in asked for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    method = ["method.name=full"]
    if case["way"] == "lora":
        method = [
            "method.name=lora",
            f"method.rank={case['rank']}",
            "method.alpha=32",
            "method.targets=" + {"attention": ATTENTION, "mlp": MLP}.get(case["targets"], "all-linear"),
        ]
    return Recipe.load(
        RECIPE,
        [
            *method,
            f"train.learning_rate={case['rate']}",
            f"train.batch_size={case['batch']}",
            f"train.seed={case['seed']}",
            *FIXED,
        ],
        "cpu",
    )


def run(case: dict) -> dict:
    """One case, on one thread, so that another record may be made beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fit(recipe(case), ROWS)
    finally:
        torch.set_num_threads(threads)


def fit(asked: Recipe, first: int) -> dict:
    """Train a classifier by a recipe, on the first so many sentences, and look at the validation and the test rows."""
    splits = sentences(asked.data.limit or 0, asked.data.validation, asked.data.test)
    model, tokenizer = models.load(asked, splits.labels)
    encoded = {
        part: prepare.encode(getattr(splits, part), "label", tokenizer, asked.train.seq_len, splits.labels)
        for part in ("train", "validation", "test")
    }
    encoded["train"] = encoded["train"][:first]  # type: ignore
    torch.manual_seed(asked.train.seed)
    trained = choose_weights(model, asked.method)
    count = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    with TemporaryDirectory() as name:
        folder, total = Path(name), steps(asked, len(encoded["train"]))
        work = Job(
            asked,
            folder,
            "label",
            trained,
            tokenizer,
            encoded["train"],
            [],
            False,
            total,
            None,
            Progress.start(folder, None),
        )
        try:
            loop.run(work)
        except Diverged:
            return {"trained": count, "diverged": True}
    found: dict[str, Any] = {"trained": count}
    for part in ("validation", "test"):
        if encoded[part]:
            scores = evaluate.metrics(
                trained, encoded[part], tokenizer, "label", precision=asked.train.precision
            )
            found |= {f"{part}_loss": scores["loss"], f"{part}_accuracy": scores["accuracy"]}
    return found


@cache
def sentences(limit: int, validation: float, test: float) -> prepare.Splits:
    """The split of so many sentences, the same for all seeds; near-duplicates are looked for once."""
    with TemporaryDirectory() as name:
        path = Path(name) / "sentences.jsonl"
        path.write_text(_file(), encoding="utf-8")
        data = Recipe.load(RECIPE, FIXED, "cpu").data.model_copy(
            update={"path": path, "limit": limit, "validation": validation, "test": test}
        )
        return prepare.load_splits(data)


@cache
def _file() -> str:
    with TemporaryDirectory() as name:
        path = Path(name) / "all.jsonl"
        write_sentences(path)
        return path.read_text(encoding="utf-8")
