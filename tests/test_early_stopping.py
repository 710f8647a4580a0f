"""Early stopping on a tiny BERT: it stops, it goes back to the best weights, and it is repeatable."""

import numpy as np
import pytest
import torch
from make_repositories import tiny_bert
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from ftdocs import evaluate
from ftdocs.early_stopping import fit
from ftdocs.errors import InputError

PAD = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"))


def classifier(folder):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def rows(count: int, seed: int) -> list[dict]:
    """Random tokens with random labels: what is learnt of some is of no use for others."""
    generator = np.random.default_rng(seed)
    return [
        {
            "input_ids": generator.integers(1000, 2000, 8).tolist(),
            "label": int(generator.integers(2)),
            "row": row,
        }
        for row in range(count)
    ]


def test_it_stops_and_puts_the_best_weights_back(folder):
    model, held_out = classifier(folder), rows(24, seed=1)
    curve = fit(model, rows(16, seed=0), held_out, PAD, epochs=30, learning_rate=1e-2, patience=2)
    losses = [row["eval_loss"] for row in curve]
    best = losses.index(min(losses))
    assert len(curve) == best + 3 < 30  # two epochs of patience after the best one
    logits = torch.from_numpy(evaluate.predict(model, held_out, PAD))
    found = cross_entropy(logits, torch.tensor([row["label"] for row in held_out])).item()
    assert found == pytest.approx(min(losses), rel=1e-4) and found != pytest.approx(losses[-1], rel=1e-4)


def test_without_patience_it_trains_to_the_end_and_the_same_seed_gives_the_same(folder):
    curves = []
    for seed in (0, 0, 1):
        model = classifier(folder)
        curves.append(
            fit(
                model,
                rows(8, seed=0),
                rows(8, seed=1),
                PAD,
                epochs=3,
                learning_rate=1e-3,
                batch_size=4,
                seed=seed,
            )
        )
        assert not any(row["loss"] != row["loss"] for row in curves[-1])
    assert curves[0] == curves[1] != curves[2]
    assert [row["epoch"] for row in curves[0]] == [1, 2, 3]


def test_what_is_frozen_stays(folder):
    model = classifier(folder)
    for weight in model.base_model.parameters():
        weight.requires_grad = False
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fit(model, rows(8, seed=0), rows(8, seed=1), PAD, epochs=1, learning_rate=1e-2)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_wrong_input(folder):
    model = classifier(folder)
    with pytest.raises(InputError, match="0 validation rows"):
        fit(model, rows(2, 0), [], PAD, epochs=1, learning_rate=1e-3)
    with pytest.raises(InputError, match="patience is 0"):
        fit(model, rows(2, 0), rows(2, 1), PAD, epochs=1, learning_rate=1e-3, patience=0)
