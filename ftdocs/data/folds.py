"""k-fold cross-validation: every row is held out once, and each fold has the classes in the same proportion."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

from ftdocs.errors import InputError


def stratified_folds(
    labels: Sequence[Any], k: int = 5, seed: int = 0, groups: Sequence[Any] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """``k`` pairs of row numbers (train, test), from 0; scikit-learn takes the list as its ``cv``.

    Args:
        labels: (rows,), the class of each row.
        k: how many folds.
        seed: of the shuffling before the rows are dealt out.
        groups: (rows,), rows of a value stay in one fold: repeats of a text, parts of a document.

    Raises:
        InputError: k is below 2, a class has fewer rows (or groups) than there are folds, or there is one class only.
    """
    if k < 2:
        raise InputError(f"k is {k}; cross-validation needs at least 2 folds")
    if groups is not None and len(groups) != len(labels):
        raise InputError(f"{len(groups)} groups for {len(labels)} labels: give one a row")
    there = (
        labels if groups is None else [label for label, _ in dict.fromkeys(zip(labels, groups, strict=True))]
    )
    counts = Counter(there)
    if len(counts) < 2:
        raise InputError(f"the labels hold {len(counts)} class; a classifier needs two or more")
    name, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < k:
        what = "rows" if groups is None else "groups"
        raise InputError(
            f"class {name!r} has {fewest} {what}, fewer than the {k} folds; set k to {fewest} or less, or add {what}"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    dealt = kind(n_splits=k, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups)
    return list(dealt)


def cross_validated_loss(
    classifier: BaseEstimator, features: np.ndarray, labels: Sequence[int], k: int = 5, seed: int = 0
) -> np.ndarray:
    """How improbable each row's label is to a classifier fitted on the other folds: (rows,), nats.

    The largest losses are where to look for wrong labels (Northcutt et al., 2021, call it self-confidence); among them
    are also right labels of rows that are hard.

    Args:
        classifier: of scikit-learn, with ``predict_proba``; it is fitted anew for each fold.
        features: (rows, D).
        labels: (rows,), class numbers from 0, every one of which occurs.
        k: folds, as in :func:`stratified_folds`, which says what is raised.
        seed: of the shuffling.
    """
    folds = stratified_folds(labels, k, seed)
    probabilities = cross_val_predict(classifier, features, labels, cv=folds, method="predict_proba")
    chosen = probabilities[np.arange(len(labels)), np.asarray(labels)]
    return -np.log(np.maximum(chosen, np.finfo(chosen.dtype).tiny))
