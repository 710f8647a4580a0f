"""Does a classifier know how often it is right: reliability, expected calibration error, temperature, threshold."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ftdocs.errors import InputError

LOG_TEMPERATURES = (-5.0, 5.0)  # from 1/148 to 148, at which any usual logits give nearly equal probabilities


class Reliability(NamedTuple):
    """Rows by the confidence of their prediction, in bins of equal width; an empty bin has zeros.

    Attributes:
        count: (bins,), rows in each bin.
        confidence: (bins,), their mean probability of the predicted class.
        accuracy: (bins,), the share of them whose prediction is right.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(probabilities: np.ndarray, labels: Sequence[int], bins: int = 10) -> Reliability:
    """What a reliability diagram shows (Guo et al., 2017): in each bin of confidence, how often the model is right.

    Args:
        probabilities: (rows, classes), each row with the sum 1.
        labels: (rows,), the right class of each row.
        bins: of equal width from 0 to 1, each with its upper edge in it.

    Raises:
        InputError: no rows, a label without a column, numbers that are no probabilities, or no bins.
    """
    given, answers = _checked(probabilities, labels)
    if (given < 0).any() or not np.allclose(given.sum(axis=1), 1, atol=1e-3):
        raise InputError(
            "probabilities: a row is negative or does not sum to 1; give softmax's output, not logits"
        )
    if bins < 1:
        raise InputError(f"bins is {bins}; give at least 1")
    top = given.max(axis=1).astype(float)
    places = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    below = np.maximum(count, 1)
    right = given.argmax(axis=1) == answers
    return Reliability(
        count,
        np.bincount(places, weights=top, minlength=bins) / below,
        np.bincount(places, weights=right, minlength=bins) / below,
    )


def expected_calibration_error(probabilities: np.ndarray, labels: Sequence[int], bins: int = 10) -> float:
    """The mean distance between confidence and accuracy over the bins, weighted by rows (Guo et al., 2017).

    It is above 0 even for a perfectly calibrated model, as the rows of a bin are few; the fewer, the more.

    Args:
        probabilities: as in :func:`reliability`, which says what is raised.
        labels: the right class of each row.
        bins: as in :func:`reliability`.
    """
    found = reliability(probabilities, labels, bins)
    return float((found.count * abs(found.accuracy - found.confidence)).sum() / found.count.sum())


def fit_temperature(logits: np.ndarray, labels: Sequence[int]) -> float:
    """The T for which ``softmax(logits / T)`` gives the labels the least cross-entropy (Guo et al., 2017).

    One number for all rows and classes, so no prediction changes, only how sure it is. Fit it on validation rows: on
    training rows the model is right too often, and on test rows the result would be measured where it was fitted.
    Logits that say no more than guessing get the largest T, 148: equal probabilities.

    Args:
        logits: (rows, classes).
        labels: (rows,), the right class of each row.

    Raises:
        InputError: no rows, a label without a column, or every prediction is right, so that no T is best.
    """
    given, answers = _checked(logits, labels)

    if (given.argmax(axis=1) == answers).all():
        raise InputError(
            f"no temperature is best on these {len(answers)} rows, as every answer is right; give more validation rows"
        )

    def loss(log_temperature: float) -> float:
        each = log_softmax(given / np.exp(log_temperature), axis=1)[np.arange(len(answers)), answers]
        return float(-each.mean())

    best = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6}).x
    return float(np.exp(best))


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The t for which "class 1 where its score is t or more, else 0" has the largest macro F1.

    Where classes are uneven it lies seldom at one half. Choose it on validation rows, as :func:`fit_temperature`; with
    few rows of the rare class it is itself uncertain.

    Args:
        scores: (rows,), of class 1, such as its probability.
        labels: (rows,), 0 or 1.

    Raises:
        InputError: different lengths, a score that is no number, or not both classes.
    """
    given, answers = np.asarray(scores, dtype=float), np.asarray(labels)
    if given.shape != answers.shape or given.ndim != 1:
        raise InputError(
            f"{len(given)} scores for {len(answers)} labels: give one score of class 1 for each row"
        )
    if set(answers.tolist()) != {0, 1} or not np.isfinite(given).all():
        raise InputError(
            "a threshold needs rows of both classes, labelled 0 and 1, with scores that are numbers"
        )
    cuts = np.unique(given)  # sorted; the threshold that lets a score in
    positive, negative = (np.sort(given[answers == label]) for label in (1, 0))
    missed, right = (np.searchsorted(part, cuts) for part in (positive, negative))  # those below each cut
    hits, wrong = len(positive) - missed, len(negative) - right
    f1 = hits / (2 * hits + missed + wrong) + right / (2 * right + missed + wrong)
    best = int(f1.argmax())
    return float(cuts[max(best - 1, 0) : best + 1].mean())  # halfway to the score that is left out


def _checked(values: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    given, answers = np.asarray(values, dtype=float), np.asarray(labels)
    if given.ndim != 2 or len(given) != len(answers):
        raise InputError(
            f"values of shape {given.shape} for {len(answers)} labels: give (rows, classes), a label each"
        )
    if not len(answers):
        raise InputError("there are no rows; give at least one")
    if len(wrong := np.flatnonzero(~np.isfinite(given).all(axis=1))):
        raise InputError(f"row {wrong[0] + 1}: a value is no number; leave the row out")
    if len(wrong := np.flatnonzero((answers < 0) | (answers >= given.shape[1]))):
        raise InputError(
            f"row {wrong[0] + 1}: label {answers[wrong[0]]} is none of the {given.shape[1]} classes, counted from 0"
        )
    return given, answers
