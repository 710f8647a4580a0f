"""Intervals and paired tests, against references computed another way; coverage counted by simulation."""

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from ftdocs.errors import InputError
from ftdocs.intervals import (
    Interval,
    bootstrap_interval,
    mcnemar,
    mean_interval,
    metric_intervals,
    paired_interval,
    share_interval,
)

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(3, 300, p=[0.7, 0.2, 0.1])
PREDICTIONS = np.where(RANDOM.random(300) < 0.75, LABELS, RANDOM.integers(0, 3, 300))


def test_all_resamples_of_three_rows_by_hand():
    """Of three rows there are 27 resamples: the quantiles of their means are known."""
    scores = [0.0, 1.0, 5.0]
    means = np.sort([np.mean(drawn) for drawn in product(scores, repeat=3)])
    found = bootstrap_interval(scores, confidence=0.8)
    assert found.estimate == pytest.approx(2.0)
    assert found.low == pytest.approx(np.quantile(means, 0.1, method="inverted_cdf"))
    assert found.high == pytest.approx(np.quantile(means, 0.9, method="inverted_cdf"))


def test_the_interval_of_many_rows_is_that_of_the_normal_distribution():
    scores = RANDOM.normal(3, 2, 2000)
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    found = bootstrap_interval(scores)
    assert (found.low, found.high) == pytest.approx(
        (scores.mean() - half, scores.mean() + half), abs=0.1 * half
    )


def test_the_same_seed_gives_the_same_interval_and_more_confidence_a_wider_one():
    scores = RANDOM.random(50)
    assert bootstrap_interval(scores) == bootstrap_interval(scores)
    assert bootstrap_interval(scores) != bootstrap_interval(scores, seed=1)
    wide, narrow = bootstrap_interval(scores, 0.99), bootstrap_interval(scores, 0.5)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


@pytest.mark.parametrize("kind", ["bootstrap", "wilson", "f1"])
def test_it_holds_the_true_value_about_as_often_as_it_says(kind, monkeypatch):
    monkeypatch.setattr("ftdocs.intervals.RESAMPLES", 999)
    generator, held, times = np.random.default_rng(5), 0, 400
    for _ in range(times):
        right = generator.random(200) < 0.8  # in truth right in 80 % of the rows of each class
        labels = np.repeat([0, 1], 100)
        if kind == "bootstrap":
            found = bootstrap_interval(right)
        elif kind == "wilson":
            found = share_interval(int(right.sum()), 200)
        else:
            found = metric_intervals(np.where(right, labels, 1 - labels), labels)["f1"]
        held += found.low <= 0.8 <= found.high  # balanced and symmetric: the true F1 is 0.8 too
    assert 0.92 <= held / times <= 0.975  # the standard error of this share is 0.011


def test_near_one_the_bootstrap_is_too_sure_and_wilson_is_not(monkeypatch):
    monkeypatch.setattr("ftdocs.intervals.RESAMPLES", 999)
    generator, times = np.random.default_rng(1), 400
    samples = generator.random((times, 20)) < 0.95
    spans = [(bootstrap_interval(right), share_interval(int(right.sum()), 20)) for right in samples]
    held = np.array([[each.low <= 0.95 <= each.high for each in pair] for pair in spans]).mean(axis=0)
    assert held[0] < 0.75 < 0.9 < held[1]


def test_a_perfect_sample_still_leaves_doubt():
    assert bootstrap_interval([1.0] * 20) == Interval(
        1.0, 1.0, 1.0
    )  # which is why evaluation does not use it there
    # Wilson's bounds by their formula, with all of n right: n / (n + z²)
    assert share_interval(20, 20).low == pytest.approx(20 / (20 + 1.959964**2))
    assert set(metric_intervals([0, 1], [0, 1])) == {"accuracy"}


def test_a_pair_is_decided_where_two_intervals_alone_overlap():
    hard = RANDOM.random(400)
    a, b = hard + 0.02 + RANDOM.normal(0, 0.05, 400), hard
    alone = bootstrap_interval(a), bootstrap_interval(b)
    assert alone[0].low < alone[1].high
    found = paired_interval(a, b)
    assert found.decided and found.low > 0
    flipped = paired_interval(b, a)
    assert (flipped.estimate, flipped.decided) == (pytest.approx(-found.estimate), True)


def test_a_paired_interval_is_scipys():
    a, b = RANDOM.random(40), RANDOM.random(40)
    reference = stats.bootstrap((a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, method="percentile",
                                n_resamples=20000, rng=np.random.default_rng(9)).confidence_interval  # fmt: skip
    assert paired_interval(a, b)[1:] == pytest.approx(tuple(reference), abs=0.01)


def test_no_difference_is_undecided_in_all_but_a_few_samples(monkeypatch):
    monkeypatch.setattr("ftdocs.intervals.RESAMPLES", 999)
    generator = np.random.default_rng(3)
    wrong = sum(paired_interval(*(generator.random((2, 150)) < 0.7)).decided for _ in range(300))
    assert 0.01 <= wrong / 300 <= 0.09


def test_mcnemar_by_hand():
    a = [1] * 9 + [0] * 2 + [1] * 30 + [0] * 5
    b = [0] * 9 + [1] * 2 + [1] * 30 + [0] * 5
    tail = sum(comb(11, k) for k in range(3)) / 2**11  # 2 or fewer of 11, and the same at the other end
    assert mcnemar(a, b) == (9, 2, pytest.approx(2 * tail))
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_metrics_are_scikit_learns_and_so_are_their_resamples():
    found = metric_intervals(PREDICTIONS, LABELS)
    macro = {"average": "macro", "zero_division": 0.0}
    references = {
        "accuracy": accuracy_score,
        "precision": lambda y, p: precision_score(y, p, **macro),
        "recall": lambda y, p: recall_score(y, p, **macro),
        "f1": lambda y, p: f1_score(y, p, **macro),
    }
    generator = np.random.default_rng(7)
    strata = [np.flatnonzero(value == LABELS) for value in range(3)]
    draws = [np.concatenate([generator.choice(rows, len(rows)) for rows in strata]) for _ in range(1500)]
    for name, reference in references.items():
        assert found[name].estimate == pytest.approx(reference(LABELS, PREDICTIONS)), name
        sample = [reference(LABELS[rows], PREDICTIONS[rows]) for rows in draws]
        assert found[name][1:] == pytest.approx(tuple(np.quantile(sample, [0.025, 0.975])), abs=0.015), name


def test_classes_that_are_never_predicted_or_never_there_count_as_zero():
    found = metric_intervals([0, 0, 2, 0], [0, 0, 1, 1])
    assert found["recall"].estimate == pytest.approx((1 + 0 + 0) / 3)
    assert all(np.isfinite(value) for interval in found.values() for value in interval)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "none"),
        (lambda: bootstrap_interval([1.0]), "at least two"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "row 2"),
        (lambda: bootstrap_interval([[1.0, 0.0]]), "shape"),
        (lambda: bootstrap_interval([0.0, 1.0], confidence=95), "0.95"),
        (lambda: paired_interval([1.0, 0.0], [1.0]), "same rows"),
        (lambda: mcnemar([1, 0], [1, 0, 1]), "same rows"),
        (lambda: mcnemar([1, 0], [1, 0.5]), "b, row 2"),
        (lambda: mcnemar([], []), "none"),
        (lambda: share_interval(0, 0), "at least one"),
        (lambda: share_interval(3, 2), "3 of 2"),
        (lambda: metric_intervals([], []), "no predictions"),
        (lambda: metric_intervals([0], [0, 1]), "1 predictions for 2"),
    ],
)
def test_wrong_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_interval_of_three_seeds_is_students():
    values = [0.70, 0.72, 0.77]
    found, reference = mean_interval(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((np.mean(values), reference.low, reference.high))
    drawn = RANDOM.normal(5, 2, (4000, 3))
    held = np.mean([low <= 5 <= high for _, low, high in map(mean_interval, drawn)])
    assert 0.94 < held < 0.96


@pytest.mark.parametrize(
    ("values", "message"), [([0.5], "give two at least"), ([0.5, float("nan")], "values")]
)
def test_too_few_values_for_the_interval_of_a_mean(values, message):
    with pytest.raises(InputError, match=message):
        mean_interval(values)
