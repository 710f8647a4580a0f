"""Metrics of a classifier as ``evaluate.Metric``, computed by scikit-learn, so that none is fetched from a hub."""

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


class Accuracy(evaluate.Metric):
    """Share of rows whose predicted class is the labelled one. Needs no hub: the metric is scikit-learn's."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("Share of rows whose predicted class is the labelled one.")

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class PrecisionRecallF1(evaluate.Metric):
    """Precision, recall and F1 of each class, averaged over the classes that occur (macro average).

    A class that is never predicted has precision 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info("Macro-averaged precision, recall and F1.")

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="macro", zero_division=0.0
        )
        return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def _info(description: str) -> evaluate.MetricInfo:
    features = datasets.Features(
        {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
    )
    return evaluate.MetricInfo(description=description, citation="", features=features)
