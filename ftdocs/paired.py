"""Two models on the same questions: the difference with its interval, over documents where questions share one."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from ftdocs.errors import InputError
from ftdocs.intervals import RESAMPLES, Interval

Statistic = Callable[[np.ndarray], np.ndarray]  # from how often each row counts, (R, rows), to R values
BATCH = 500  # resamples at once


def clustered_interval(
    statistic: Statistic, groups: Sequence[Hashable], confidence: float = 0.95, seed: int = 0
) -> Interval:
    """A statistic of rows with its percentile interval, from drawing whole groups with replacement.

    Questions about one document are easy or hard together: ten about one are not ten witnesses. So documents are drawn,
    each with all of its questions (the cluster bootstrap; Cameron, Gelbach and Miller, 2008). Where every row is a
    group of its own it is the plain bootstrap. With a handful of groups the interval is too narrow.

    Args:
        statistic: gets how often each row was drawn, (R, rows) integers, and gives R values.
        groups: (rows,), what each row belongs to.
        confidence: share of samples of such groups whose interval holds the true value.
        seed: of the drawing.

    Raises:
        InputError: fewer than two groups.
    """
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(group, len(numbers)) for group in groups])  # (rows,)
    count = len(numbers)
    if count < 2:
        raise InputError(f"an interval needs two groups of rows at least, and there is {count}")
    generator, values = np.random.default_rng(seed), []
    for start in range(0, RESAMPLES, BATCH):
        size = min(BATCH, RESAMPLES - start)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size)  # (size, groups)
        values.append(statistic(drawn[:, member]))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.concatenate(values), [tail, 1 - tail])
    return Interval(float(statistic(np.ones((1, len(member)), int))[0]), float(low), float(high))


def mean_of(scores: Sequence[float], weights: Sequence[float] | None = None) -> Statistic:
    """The mean of per-row scores, (rows,), as a statistic; with ``weights``, such as a row's tokens, a weighted one."""
    values = np.asarray(scores, float)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, float)

    def statistic(counts: np.ndarray) -> np.ndarray:
        total = counts @ shares
        return np.divide(counts @ (shares * values), total, out=np.full(len(total), np.nan), where=total > 0)

    return statistic


def macro_f1_of(predictions: Sequence[int], labels: Sequence[int], classes: int) -> Statistic:
    """F1 of each class, averaged over the classes that a resample has or predicts."""
    given, right = (np.eye(classes)[np.asarray(each)] for each in (predictions, labels))  # (rows, classes)

    def statistic(counts: np.ndarray) -> np.ndarray:
        hits, there, guessed = (counts @ each for each in (given * right, right, given))  # (R, classes)
        present = there + guessed
        f1 = np.divide(2 * hits, present, out=np.zeros_like(hits), where=present > 0)
        return f1.sum(axis=1) / (present > 0).sum(axis=1)

    return statistic


def less(a: Statistic, b: Statistic) -> Statistic:
    """The first statistic minus the second, on the same resamples: what is hard for both cancels out."""
    return lambda counts: a(counts) - b(counts)
