"""Does tuning on documents answer questions about other documents, by adapters or by every weight, read before or not?

Held fixed: SmolLM2-135M-Instruct, `recipes/documents.yaml` on the documentation of scikit-learn's classes and
functions, its split by documents, which keeps all seeds' test documents the same; 16 steps of 512 tokens. Ways:
adapters or every weight, each from the model as it is, or after all weights have read the training documents as plain
text (16 steps of 256 tokens, once for each seed). Beside them the same model untuned: as it is, with examples, and with
passages found in all documents, those of the test too. The seed changes the order of the rows and the adapters' first
weights. Columns: scores of greedy answers of at most 48 tokens to the first 32 test questions; loss and perplexity of
the wanted answers; answers that the rules call right and wrong; perplexity on web pages, for what was forgotten.
"""

from pathlib import Path
from typing import Any

from ftdocs import files, manual, models
from ftdocs.compare import compare
from ftdocs.data import prepare
from ftdocs.forgetting import general_perplexity
from ftdocs.manual import DOCUMENTED
from ftdocs.recipe import Data, Recipe
from ftdocs.train import train

RECIPE = Path(__file__).parents[1] / "recipes/documents.yaml"
SEEDS = [0, 1, 2]
BASELINES = ["base", "few-shot", "retrieval"]
METHODS = {
    "adapters": {"method.name": "lora"},
    "every weight": {"method.name": "full", "train.learning_rate": 1e-4},
}
WAYS = [f"{method}{read}" for read in ("", ", read before") for method in METHODS]
# Another CPU rounds bfloat16 sums otherwise: single answers turn.
TOLERANCE = {
    **dict.fromkeys(("f1", "rouge_l", "similarity"), 0.25),
    **dict.fromkeys(("loss", "perplexity", "general"), 0.05),
    **dict.fromkeys(("right", "wrong", "exact_match", "ran_on"), 2.0),
}


def cases() -> list[dict]:
    """Every way with every seed, and the baselines once."""
    tuned = [{"way": way, "seed": seed} for way in WAYS for seed in SEEDS]
    return [*({"way": name, "seed": 0} for name in BASELINES), *tuned]


def recipe(case: dict) -> Recipe:
    """The recipe of a case; a baseline has that of the first way, beside which it is asked."""
    way = WAYS[0] if case["way"] in BASELINES else case["way"]
    long = ["train.max_steps=16", "train.eval_every=16", f"train.seed={case['seed']}"]
    return Recipe.load(RECIPE, long, "cpu").changed(METHODS[way.partition(",")[0]])


def run(case: dict) -> dict:
    """Train, answer, and measure what was forgotten."""
    asked = recipe(case).changed({"data.path": str(manual.stored_manual(DOCUMENTED))})
    if case["way"].endswith("read before"):
        asked = asked.changed({"model": str(read(asked) / "model")})
    folder = train(asked).run
    baselines = [case["way"]] if case["way"] in BASELINES else []
    found: dict[str, Any] = compare([folder], baselines, limit=32, max_new_tokens=48)
    name = baselines[0] if baselines else found["runs"][-1]
    model, tokenizer = models.load(asked) if baselines else models.load_run(folder)
    wrong = found["errors"][name]
    return {
        **{metric: value for metric, value in found["metrics"][name].items() if value is not None},
        "right": wrong["right"],
        "wrong": wrong["wrong fact"],
        "ran_on": wrong["ran on"],
        "general": general_perplexity(model, tokenizer),
    }


def read(asked: Recipe) -> Path:
    """The run in which the model reads the training documents, every weight moving."""
    splits, folder = prepare.load_splits(asked.data, asked.train.seed), manual.stored_manual(DOCUMENTED)
    texts = files.home() / "manuals" / "reading.jsonl"
    manual.reading(folder, splits, texts)
    way = {"method.name": "full", "train.learning_rate": 1e-4, "train.max_steps": 16, "train.seq_len": 256}
    plain = asked.model_copy(
        update={"data": Data(path=texts, format="text", group="document", validation=0.02, test=0)}
    )
    return train(plain.changed(way | {"train.engine": "loop", "train.patience": 50})).run
