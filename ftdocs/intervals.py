"""How sure is a figure: intervals by bootstrap, and two models compared on the same rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import confusion_matrix

from ftdocs.errors import InputError

RESAMPLES = 9999
BATCH = 500  # resamples at once: memory is BATCH × rows × 8 bytes


class Interval(NamedTuple):
    """An estimate, and the range that holds the true value in about ``confidence`` of all samples of such rows."""

    estimate: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Of a difference: whether the interval leaves out 0, so that the sign is not in doubt."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.estimate:.3f} ({self.low:.3f} to {self.high:.3f})"


class Discordant(NamedTuple):
    """Rows that only one of two models has right, and the p-value of McNemar's exact test."""

    only_a: int
    only_b: int
    p_value: float


def bootstrap_interval(scores: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean of per-row scores, with its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    Rows are drawn with replacement, as many as there are, 9999 times; the interval holds the middle ``confidence``
    of the means. It says how much another sample of rows would differ, not what another training seed would do. It
    is too narrow for a few dozen rows, and no interval at all where all scores are the same: for a share near 0 or 1
    take :func:`share_interval`.

    Args:
        scores: (rows,), one number a row, such as 1.0 where the answer is right and 0.0 where it is wrong.
        confidence: share of samples whose interval holds the true mean.
        seed: of the drawing.

    Raises:
        InputError: fewer than two scores, or one that is no number.
    """
    values = _scores(scores)
    if len(values) < 2:
        raise InputError(f"scores: there is {len(values)}; an interval needs at least two rows")
    if values.min() == values.max():  # SciPy would warn, and give the same
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=BATCH, confidence_level=_confidence(confidence),
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(float(values.mean()), float(found.low), float(found.high))


def paired_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean of ``a - b``, per-row scores of two models on the same rows, with its paired bootstrap interval.

    A drawn row brings the scores of both models. What makes a row hard for both cancels out, so the interval is
    narrower than that of two models on rows of their own. Where it holds 0 the rows do not decide between the two.

    Args:
        a: (rows,), scores of one model.
        b: (rows,), scores of the other, in the same order of rows.
        confidence: as in :func:`bootstrap_interval`.
        seed: of the drawing.

    Raises:
        InputError: the two are of different lengths, or as :func:`bootstrap_interval`.
    """
    first, second = _scores(a, "a"), _scores(b, "b")
    _same_rows(first, second)
    return bootstrap_interval(first - second, confidence, seed)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of a few independent values, such as one a seed, with Student's interval (1908).

    A bootstrap of three values can draw nothing but them, and is far too sure. This one takes them as drawn from a
    normal distribution, and with three of them it is wide: 2.5 standard deviations to each side.

    Args:
        values: (N,), two at least.
        confidence: as in :func:`bootstrap_interval`.

    Raises:
        InputError: fewer than two values, or one that is no number.
    """
    found = _scores(values, "values")
    if len(found) < 2:
        raise InputError("values: one alone says nothing of how much they differ; give two at least")
    reach = stats.t.ppf((1 + _confidence(confidence)) / 2, len(found) - 1) * stats.sem(found)
    return Interval(float(found.mean()), float(found.mean() - reach), float(found.mean() + reach))


def share_interval(count: int, rows: int, confidence: float = 0.95) -> Interval:
    """``count`` of ``rows`` as a share, with Wilson's interval (1927): also right near 0 and 1, and for few rows.

    Raises:
        InputError: no rows, or a count that is not among them.
    """
    if not 0 <= count <= rows or rows == 0:
        raise InputError(f"{count} of {rows} rows: a share needs at least one row, and a count from 0 to it")
    found = stats.binomtest(count, rows).proportion_ci(_confidence(confidence), method="wilson")
    return Interval(count / rows, float(found.low), float(found.high))


def mcnemar(a: ArrayLike, b: ArrayLike) -> Discordant:
    """McNemar's exact test (1947) of two classifiers on the same rows.

    Rows that both have right, or both wrong, say nothing about which is better. If the two are equally good, each of
    the others is as likely to be one's as the other's: a binomial test with p = ½. Where there are none, p is 1.

    Args:
        a: (rows,), 1 or True where one classifier is right.
        b: (rows,), the same of the other, in the same order of rows.

    Raises:
        InputError: different lengths, no rows, or a score that is neither 0 nor 1.
    """
    first, second = _scores(a, "a"), _scores(b, "b")
    _same_rows(first, second)
    for name, values in (("a", first), ("b", second)):
        if len(wrong := np.flatnonzero(~np.isin(values, (0, 1)))):
            raise InputError(
                f"{name}, row {wrong[0] + 1}: {values[wrong[0]]:g} is neither 0 nor 1; score a row as right or wrong"
            )
    only_a, only_b = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Discordant(only_a, only_b, p_value)


def metric_intervals(
    predictions: ArrayLike,
    labels: ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Accuracy with Wilson's interval; macro precision, recall and F1 with a stratified percentile bootstrap.

    Stratified: each class keeps its number of rows in every resample, as in a test set that was split by class, and a
    rare class never vanishes. The metrics need only the confusion matrix, and drawing rows of a class with
    replacement is drawing its row of that matrix from a multinomial distribution: no row has to be touched again.

    Where every prediction is right, resamples are all alike, and only accuracy gets an interval.

    Args:
        predictions: (rows,), the predicted class of each row.
        labels: (rows,), its right class.
        confidence: as in :func:`bootstrap_interval`.
        seed: of the drawing.

    Raises:
        InputError: different lengths, or no rows.
    """
    given, answers = np.asarray(predictions), np.asarray(labels)
    if given.shape != answers.shape or given.ndim != 1:
        raise InputError(f"{len(given)} predictions for {len(answers)} labels: give one for each row")
    if not len(answers):
        raise InputError("there are no predictions; give at least one row")
    classes = np.union1d(answers, given)
    table = confusion_matrix(
        answers, given, labels=classes
    )  # (C, C): row is the right class, column the predicted one
    right = int(table.trace())
    found = {"accuracy": share_interval(right, len(answers), confidence)}
    if right == len(answers):
        return found
    generator, rows = np.random.default_rng(seed), table.sum(axis=1)
    drawn = [generator.multinomial(n, row / max(n, 1), RESAMPLES) for n, row in zip(rows, table, strict=True)]
    resampled = _macro(np.stack(drawn, axis=1))  # (3, RESAMPLES)
    tail = (1 - _confidence(confidence)) / 2
    for name, value, sample in zip(("precision", "recall", "f1"), _macro(table), resampled, strict=True):
        low, high = np.quantile(sample, [tail, 1 - tail])
        found[name] = Interval(float(value), float(low), float(high))
    return found


def _macro(tables: np.ndarray) -> np.ndarray:
    """Macro precision, recall and F1, (3, …), of confusion matrices (…, C, C); what has no rows counts as 0."""
    hits = np.diagonal(tables, axis1=-2, axis2=-1).astype(float)
    guessed, there = tables.sum(axis=-2), tables.sum(axis=-1)  # (…, C)
    parts = (hits, guessed), (hits, there), (2 * hits, guessed + there)
    shares = [np.divide(top, below, out=np.zeros_like(hits), where=below > 0) for top, below in parts]
    return np.stack(shares).mean(axis=-1)


def _scores(scores: ArrayLike, name: str = "scores") -> np.ndarray:
    values = np.asarray(scores, dtype=float)
    if values.ndim != 1:
        raise InputError(f"{name}: has the shape {values.shape}; give one score a row")
    if not len(values):
        raise InputError(f"{name}: there are none; give at least one row")
    if len(wrong := np.flatnonzero(~np.isfinite(values))):
        raise InputError(
            f"{name}, row {wrong[0] + 1}: {values[wrong[0]]} is no number; leave the row out of both"
        )
    return values


def _same_rows(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise InputError(
            f"{len(a)} scores of one model and {len(b)} of the other: give both on the same rows"
        )


def _confidence(value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"confidence is {value}; give a share between 0 and 1, such as 0.95")
    return value
