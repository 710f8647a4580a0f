"""Calibration against hand-computed cases, a simulation and scikit-learn's temperature scaling."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score

from ftdocs.calibration import best_threshold, expected_calibration_error, fit_temperature, reliability
from ftdocs.errors import InputError


def test_reliability_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.85, 0.15], [0.3, 0.7], [0.45, 0.55], [0.2, 0.8]])
    found = reliability(probabilities, [0, 1, 1, 0, 1], bins=10)
    assert found.count.tolist() == [
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        0,
    ]  # 0.7 and 0.8 and 0.9 lie in the bins that they end
    assert found.confidence[5:9] == pytest.approx([0.55, 0.7, 0.8, 0.875])
    assert found.accuracy[5:9] == pytest.approx([0, 1, 1, 0.5])
    gaps = [0.55, 0.3, 0.2, 2 * 0.375]
    assert expected_calibration_error(probabilities, [0, 1, 1, 0, 1]) == pytest.approx(sum(gaps) / 5)


def test_a_model_that_is_sure_and_right_has_no_error_and_one_that_is_wrong_all_of_it():
    sure = np.eye(3)[[0, 1, 2, 1]]
    assert expected_calibration_error(sure, [0, 1, 2, 1]) == 0
    assert expected_calibration_error(sure, [1, 2, 0, 0]) == 1


def simulated(rows: int, sharper: float, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``sharper`` times as large as those that the labels were drawn from."""
    generator = np.random.default_rng(4)
    logits = generator.normal(0, 1.5, (rows, classes))
    labels = [generator.choice(classes, p=row) for row in softmax(logits, axis=1)]
    return sharper * logits, np.array(labels)


def test_probabilities_that_the_labels_were_drawn_from_are_calibrated_and_sharper_ones_are_not():
    logits, labels = simulated(20_000, 1.0)
    assert expected_calibration_error(softmax(logits, axis=1), labels) < 0.015
    assert expected_calibration_error(softmax(3 * logits, axis=1), labels) > 0.1


@pytest.mark.parametrize("classes", [2, 5])
def test_the_temperature_that_sharpened_them_is_found(classes):
    logits, labels = simulated(20_000, 3.0, classes)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.05)


def test_the_temperature_is_scikit_learns():
    class Given(ClassifierMixin, BaseEstimator):
        """Answers with its input."""

        classes_ = np.array([0, 1, 2])

        def fit(self, X, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def predict(self, X):
            return X.argmax(axis=1)

        def decision_function(self, X):
            return X

    logits, labels = simulated(800, 2.0, 3)
    theirs = CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature").fit(logits, labels)
    ours = softmax(logits / fit_temperature(logits, labels), axis=1)
    assert theirs.predict_proba(logits) == pytest.approx(ours, abs=1e-3)


def test_no_other_temperature_has_a_lower_loss_and_no_prediction_changes():
    logits, labels = simulated(300, 0.4, 4)
    best = fit_temperature(logits, labels)
    losses = {
        t: -log_softmax(logits / t, axis=1)[np.arange(300), labels].mean()
        for t in (0.97 * best, best, 1.03 * best)
    }
    assert min(losses, key=losses.__getitem__) == best
    assert best < 1
    assert ((logits / best).argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[3.0, 0.0], [0.0, 3.0]], [0, 1], "every answer is right"),
        (np.zeros((0, 2)), [], "no rows"),
        ([[3.0, 0.0]], [0, 1], "2 labels"),
        ([[3.0, 0.0]], [2], "row 1: label 2 is none of the 2 classes"),
        ([[3.0, 0.0], [np.nan, 1.0]], [0, 1], "row 2"),
    ],
)
def test_rows_that_fit_no_temperature_are_refused(logits, labels, message):
    with pytest.raises(InputError, match=message):
        fit_temperature(np.array(logits), labels)


def test_logits_that_are_no_better_than_guessing_get_equal_probabilities():
    logits = np.array([[3.0, 0.0], [0.0, 3.0]])
    found = fit_temperature(logits, [1, 0])
    assert softmax(logits / found, axis=1) == pytest.approx(0.5, abs=0.01)


def test_logits_are_not_taken_for_probabilities():
    with pytest.raises(InputError, match="softmax's output"):
        expected_calibration_error(np.array([[3.0, -1.0]]), [0])
    with pytest.raises(InputError, match="at least 1"):
        reliability(np.array([[expit(1.0), 1 - expit(1.0)]]), [0], bins=0)


def test_the_best_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    labels = (generator.random(300) < 0.1).astype(int)
    scores = 1 / (
        1 + np.exp(-(generator.normal(size=300) + 1.5 * labels - 3))
    )  # the rare class seldom passes 0.5

    def macro_f1(threshold: float) -> float:
        return float(f1_score(labels, scores >= threshold, average="macro", zero_division=0))

    found = best_threshold(scores, labels)
    tried = [macro_f1(score) for score in scores]
    assert macro_f1(found) == pytest.approx(max(tried))
    assert macro_f1(found) > macro_f1(0.5)
    assert best_threshold([0.2, 0.4], [0, 1]) == pytest.approx(0.3)
    for scores, labels in (([0.1, 0.2], [0, 0]), ([0.1, float("nan")], [0, 1])):
        with pytest.raises(InputError, match="both classes"):
            best_threshold(scores, labels)
    with pytest.raises(InputError, match="2 scores for 1 labels"):
        best_threshold([0.1, 0.2], [1])
