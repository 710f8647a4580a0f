"""Folds: every row held out once, classes in proportion, groups whole; what cannot be split says why."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ftdocs.data.folds import cross_validated_loss, stratified_folds
from ftdocs.errors import InputError

LABELS = ["dull"] * 60 + ["fine"] * 30 + ["rare"] * 10


def test_every_row_is_held_out_once_and_classes_keep_their_proportion():
    folds = stratified_folds(LABELS, 5)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(100))
    for train, test in folds:
        assert not set(train) & set(test)
        assert [[LABELS[row] for row in test].count(name) for name in ("dull", "fine", "rare")] == [12, 6, 2]


def test_the_seed_decides_the_folds():
    same, again, other = (stratified_folds(LABELS, 5, seed)[0][1].tolist() for seed in (0, 0, 1))
    assert same == again != other


def test_groups_stay_whole():
    groups = [row // 2 for row in range(100)]
    for train, test in stratified_folds(LABELS, 5, groups=groups):
        assert not {groups[row] for row in train} & {groups[row] for row in test}


@pytest.mark.parametrize(
    ("labels", "k", "groups", "message"),
    [
        (LABELS, 11, None, "class 'rare' has 10 rows, fewer than the 11 folds; set k to 10"),
        (LABELS, 5, [0] * 90 + [1, 2, 3, 4] * 2 + [1, 2], "class 'dull' has 1 groups"),
        (["dull"] * 9, 3, None, "1 class;"),
        ([], 3, None, "0 class;"),
        (LABELS, 1, None, "k is 1"),
        (LABELS, 2, [0], "1 groups for 100 labels"),
    ],
)
def test_what_cannot_be_split_says_why(labels, k, groups, message):
    with pytest.raises(InputError, match=message):
        stratified_folds(labels, k, groups=groups)


def test_flipped_labels_have_the_largest_losses_and_no_row_judges_itself():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    features = generator.normal(size=(200, 5)) + 2 * labels[:, None]
    noisy = labels.copy()
    noisy[:20] = 1 - noisy[:20]
    losses = cross_validated_loss(LogisticRegression(), features, noisy)
    assert losses.shape == (200,) and (losses >= 0).all()
    assert np.isin(np.argsort(-losses)[:20], np.arange(20)).mean() > 0.9
    # A nearest neighbour that had seen the row would find its own label certain.
    assert cross_validated_loss(KNeighborsClassifier(1), features, noisy)[:20].max() > 100
