"""A decoder as a classifier: does a new head do better than answering by a word, before and after the same training?

Held fixed: SmolLM2-135M-Instruct, `recipes/decoder-classifier.yaml` with 300 training and 300 test sentences, LoRA of
rank 8, one pass in steps of 8. The seed changes the order of the rows, the first weights, and which two training
sentences, one of each class, are shown in the prompt of the few-shot way. Columns: accuracy and macro F1 on the test
sentences with their 95 % intervals; the difference in accuracy, head less words, row by row, with the p-value of
McNemar's test; seconds of training and of answering; parameters that are trained.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ftdocs import evaluate, intervals, label_words, models
from ftdocs.data import prepare
from ftdocs.recipe import Data, Recipe
from ftdocs.train import train

RECIPE = Path(__file__).parents[1] / "recipes/decoder-classifier.yaml"
SEEDS = [0, 1, 2]
TASK = "Say whether a film review is positive or negative."
WAYS = ("zero_shot", "zero_shot_calibrated", "few_shot", "few_shot_calibrated", "head", "words")
# Another CPU rounds bfloat16 sums otherwise, and a few of 300 answers turn; how long it takes is its own affair.
TOLERANCE = {
    **{
        f"{way}_{what}": 0.1
        for way in WAYS
        for what in ("accuracy", "low", "high", "f1", "f1_low", "f1_high")
    },
    **{f"{way}_positive": 0.3 for way in WAYS},
    **dict.fromkeys(("head_seconds", "words_seconds", "zero_shot_seconds", "few_shot_seconds"), 100.0),
    **dict.fromkeys(("difference", "difference_low", "difference_high"), 2.0),
    **dict.fromkeys(("p_value", "only_head", "only_words"), 1000.0),
}


def cases() -> list[dict]:
    """One case a seed."""
    return [{"seed": seed} for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return Recipe.load(RECIPE, ["data.limit=600", f"train.seed={case['seed']}"], "cpu")


def run(case: dict) -> dict:
    """All ways on the same test sentences."""
    asked = recipe(case)
    splits = prepare.load_splits(asked.data, seed=0)
    words = splits.labels or []
    texts = [row["text"] for row in splits.test]
    labels = np.array([words.index(row["label"]) for row in splits.test])
    scores: dict[str, np.ndarray] = {}
    found: dict[str, Any] = {}

    model, tokenizer = models.load(asked)
    for way, examples in {"zero_shot": [], "few_shot": shown(splits.train, words, case["seed"])}.items():
        started = time.monotonic()
        prompts = label_words.ask(tokenizer, texts, TASK, examples)
        scores[way] = label_words.score_words(model, tokenizer, prompts, words)
        empty = label_words.ask(tokenizer, label_words.CONTENT_FREE, TASK, examples)
        prior = label_words.score_words(model, tokenizer, empty, words)
        scores[f"{way}_calibrated"] = label_words.calibrate(scores[way], prior)
        found[f"{way}_seconds"] = time.monotonic() - started

    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {
                "messages": [
                    *label_words.conversation(row["text"], TASK),
                    {"role": "assistant", "content": row["label"]},
                ]
            }
            for row in splits.train
        ]
        (folder / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = Data(path=folder / "words.jsonl", format="messages", validation=0, test=0)  # type: ignore[call-arg]
        # The head's own splits would be others with another seed: it gets the same training rows.
        labelled = [{"text": row["text"], "label": row["label"]} for row in splits.train]
        (folder / "head.jsonl").write_text("\n".join(map(json.dumps, labelled)))
        own = data.model_copy(update={"path": folder / "head.jsonl", "format": "label"})
        for way, source in {"head": own, "words": data}.items():
            result = train(asked.model_copy(update={"data": source}), folder / way)
            model, tokenizer = models.load_run(folder / way)
            if way == "head":
                encoded = prepare.encode(splits.test, "label", tokenizer, asked.train.seq_len, words)
                scores[way] = evaluate.predict(model, encoded, models.pad_token_id(tokenizer))
            else:
                prompts = label_words.ask(tokenizer, texts, TASK)
                scores[way] = label_words.score_words(model, tokenizer, prompts, words)
            found[f"{way}_seconds"] = result.train_seconds
            found[f"{way}_trained"] = trained(folder / way)

    for way in WAYS:
        answers = scores[way].argmax(axis=1)
        metrics = intervals.metric_intervals(answers, labels)
        found[f"{way}_accuracy"], found[f"{way}_low"], found[f"{way}_high"] = metrics["accuracy"]
        found[f"{way}_f1"], found[f"{way}_f1_low"], found[f"{way}_f1_high"] = metrics["f1"]
        found[f"{way}_positive"] = float(answers.mean())
    right = {way: scores[way].argmax(axis=1) == labels for way in ("head", "words")}
    difference = intervals.paired_interval(right["head"], right["words"])
    found["difference"], found["difference_low"], found["difference_high"] = difference
    found["only_head"], found["only_words"], found["p_value"] = intervals.mcnemar(
        right["head"], right["words"]
    )
    return found


def shown(rows: Any, words: list[str], seed: int) -> list[tuple[str, str]]:
    """One training sentence of each class, by the seed, in an order by the seed."""
    generator = np.random.default_rng(seed)
    chosen = []
    for word in generator.permutation(words).tolist():
        own = [row["text"] for row in rows if row["label"] == word]
        chosen.append((own[generator.integers(len(own))], word))
    return chosen


def trained(folder: Path) -> int:
    """How many numbers a run's adapter holds, the new head among them."""
    from safetensors import safe_open

    with safe_open(folder / "adapter/adapter_model.safetensors", "np") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
