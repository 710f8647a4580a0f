"""How good is it: held-out loss and perplexity of a language model, classification metrics of a classifier."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ftdocs import calibration, files, hardware, loss, models, runs
from ftdocs.data import pack, prepare
from ftdocs.errors import InputError

# What classifiers alone need (scikit-learn, evaluate, scipy.stats) is imported where it is used: it takes seconds.

Encoded = Sequence[dict[str, Any]]


def held_out_loss(
    model: nn.Module,
    rows: Encoded,
    pad_token_id: int,
    batch_size: int = 8,
    progress: bool = False,
    precision: str = "auto",
) -> float:
    """Mean cross-entropy in nats over all trained tokens of ``rows``: every token counts the same.

    A mean of the batches' means would weight the tokens of a short batch more. ``rows`` are encoded rows
    (``input_ids``, ``labels`` with -100 where nothing is to be predicted), each seen alone, with padding.

    Args:
        model: a causal language model; its mode is put back as it was.
        rows: encoded rows, as from ``prepare.encode``.
        pad_token_id: fills up the shorter rows of a batch; it is masked and has no label.
        batch_size: rows at once; longest first, so that memory runs out at the start or not at all.
        progress: show a bar on standard error.
        precision: a recipe's ``train.precision``, so that evaluation computes as training did.
    """
    device = next(model.parameters()).device
    order = np.argsort(-pack.token_counts(rows), kind="stable")
    starts = tqdm(range(0, len(order), batch_size), desc="evaluating", disable=not progress, leave=False)
    total, tokens = 0.0, 0
    with models.evaluating(model), loss.chunked(model):
        for start in starts:
            chosen = [rows[index] for index in order[start : start + batch_size]]
            batch = pack.collate_padded(chosen, pad_token_id)
            labels = int((batch["labels"][:, 1:] != -100).sum())  # position t predicts token t + 1
            if labels == 0:
                continue
            with models.autocast(device, precision):
                mean = model(**pack.to(batch, device)).loss
            total += mean.item() * labels
            tokens += labels
    if tokens == 0:
        raise InputError("no token of the held-out rows has a label; raise train.seq_len")
    return total / tokens


def predict(
    model: nn.Module,
    rows: Encoded,
    pad_token_id: int,
    batch_size: int = 32,
    progress: bool = False,
    precision: str = "auto",
) -> np.ndarray:
    """Logits of a classifier for ``rows``, in their order: float32, (rows, classes)."""
    device = next(model.parameters()).device
    order = np.argsort(-pack.token_counts(rows), kind="stable")
    starts = tqdm(range(0, len(order), batch_size), desc="evaluating", disable=not progress, leave=False)
    logits: dict[int, np.ndarray] = {}
    with models.evaluating(model), models.autocast(device, precision):
        for start in starts:
            indices = order[start : start + batch_size]
            batch = pack.collate_padded([rows[index] for index in indices], pad_token_id)
            batch.pop("labels")
            output = model(**{key: value.to(device) for key, value in batch.items()}).logits
            logits.update(zip(indices, output.float().cpu().numpy(), strict=True))
    return np.stack([logits[index] for index in range(len(rows))])


def classification_metrics(logits: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
    """Accuracy, macro precision, recall and F1, and mean cross-entropy in nats.

    Args:
        logits: (rows, classes), as from :func:`predict`.
        labels: the right class of each row.
    """
    from ftdocs.metrics import Accuracy, PrecisionRecallF1

    predictions = logits.argmax(axis=1).tolist()
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(list(labels))).item()
    return {
        **Accuracy().compute(predictions=predictions, references=list(labels)),
        **PrecisionRecallF1().compute(predictions=predictions, references=list(labels)),
        "loss": loss,
    }


def confusion(predictions: Sequence[int], labels: Sequence[int], classes: int) -> np.ndarray:
    """How many rows of each class were given which class: int, (classes, classes), row right, column predicted.

    Raises:
        InputError: no rows, different lengths, or a number that is no class.
    """
    from sklearn.metrics import confusion_matrix

    if len(predictions) != len(labels) or not len(labels):
        raise InputError(
            f"{len(predictions)} predictions for {len(labels)} labels: give one for each row, and one row"
        )
    for name, values in (("prediction", predictions), ("label", labels)):
        for row, value in enumerate(values, 1):
            if not 0 <= value < classes:
                raise InputError(
                    f"row {row}: {name} {value} is none of the {classes} classes, counted from 0"
                )
    table: np.ndarray = confusion_matrix(labels, predictions, labels=range(classes))
    return table


def classifier_report(logits: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """All that is said about a classifier: its metrics with their intervals, and the confusion matrix.

    Args:
        logits: (rows, classes), as from :func:`predict`.
        labels: the right class of each row.
        names: of the classes.

    Returns:
        ``metrics``, those of :func:`classification_metrics` and ``expected_calibration_error``; ``intervals``, the
        low and the high end of the 95 % interval by metric, where rows can tell; ``confusion``, ``labels`` and
        ``counts``, a list for each right class, of how often each class was predicted.
    """
    from ftdocs import intervals

    predictions, answers = logits.argmax(axis=1).tolist(), list(labels)
    table = confusion(predictions, answers, len(names))
    tensor = torch.from_numpy(logits).float()
    losses = nn.functional.cross_entropy(tensor, torch.tensor(answers), reduction="none").numpy()
    found = intervals.metric_intervals(predictions, answers)
    if len(losses) > 1:
        found["loss"] = intervals.bootstrap_interval(losses)
    error = calibration.expected_calibration_error(tensor.softmax(dim=1).numpy(), answers)
    return {
        "metrics": {**classification_metrics(logits, answers), "expected_calibration_error": error},
        "intervals": {name: [interval.low, interval.high] for name, interval in found.items()},
        "confusion": {"labels": list(names), "counts": table.tolist()},
    }


def language_metrics(model: nn.Module, rows: Encoded, pad_token_id: int, **kwargs: Any) -> dict[str, float]:
    """Held-out loss in nats per token, and its exponential, the perplexity."""
    loss = held_out_loss(model, rows, pad_token_id, **kwargs)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


def metrics(
    model: nn.Module, rows: Encoded, tokenizer: PreTrainedTokenizerBase, kind: str, **kwargs: Any
) -> dict[str, float]:
    """The metrics for the kind of task: of a classifier for "label", of a language model for every other format."""
    pad = models.pad_token_id(tokenizer)
    if kind == "label":
        return classification_metrics(predict(model, rows, pad, **kwargs), [row["label"] for row in rows])
    return language_metrics(model, rows, pad, **kwargs)


def evaluate_run(folder: Path, split: str = "test", progress: bool = False) -> dict[str, Any]:
    """Evaluate a finished run on rows that its training never saw, beside what it started from.

    The model before training is a ``base_…`` metric of a language model; a classifier, whose head was random
    before, is compared with always answering the most frequent training label (``majority_accuracy``).
    The outcome is also written to ``evaluation.json`` in the folder.

    Returns:
        ``{"run", "split", "rows", "metrics": {name: number}}``; of a classifier also what :func:`classifier_report`
        gives: ``intervals`` and ``confusion``

    Raises:
        InputError: no finished run, its data file changed or is gone, or it held out no such rows.
    """
    runs.read_result(folder)
    recipe = runs.read_recipe(folder)
    runs.check_data(folder, prepare.source(recipe.data))
    runs.check_model(folder, recipe.model)
    splits = prepare.load_splits(recipe.data, recipe.train.seed)
    rows = getattr(splits, split)
    if not rows:
        raise InputError(f"{folder}: this run held out no {split} rows; train with data.{split}: 0.1")
    model, tokenizer = models.load_run(folder)
    length, where = recipe.train.seq_len, str(splits.path)
    encoded = prepare.encode(rows, splits.format, tokenizer, length, splits.labels, where=where)
    how: dict[str, Any] = {"progress": progress, "precision": recipe.train.precision}
    if splits.labels:
        with hardware.memory_kept():
            logits = predict(model, encoded, models.pad_token_id(tokenizer), **how)
        answers = [row["label"] for row in encoded]
        found = classifier_report(logits, answers, splits.labels)
        majority = files.read_kept(folder / runs.SPLITS, "majority")["majority"]
        found["metrics"]["majority_accuracy"] = answers.count(majority) / len(answers)
    else:
        base, _ = models.load(recipe)
        with hardware.memory_kept():
            tuned = metrics(model, encoded, tokenizer, splits.format, **how)
            untuned = metrics(base, encoded, tokenizer, splits.format, **how)
        found = {"metrics": tuned | {f"base_{name}": value for name, value in untuned.items()}}
    # A long text is several encoded rows, and a row that was cut before its reply is none.
    evaluated = len({row["row"] for row in encoded})
    outcome = {"run": str(folder), "split": split, "rows": evaluated, **found}
    content = {
        **outcome,
        "run": folder.name,
        "device": hardware.device_name(),
        "versions": hardware.versions(),
    }
    with files.explain_write_errors(folder):
        files.write_atomic(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
    return outcome
