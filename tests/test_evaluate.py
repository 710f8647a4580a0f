"""Held-out figures: every token counts the same, whatever the batches; metrics as computed by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftdocs import evaluate
from ftdocs.errors import InputError


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def rows() -> list[dict]:
    """Rows of very different lengths, so that a mean of means would be another number."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (3, 30, 5, 21, 2, 9):
        ids = torch.randint(0, 50, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100, *ids[1:]], "row": len(made) + 1})
    return made


def alone(model: LlamaForCausalLM, row: dict) -> tuple[float, int]:
    """Sum of the losses of one row seen alone, in float32, and the number of its predicted tokens."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
    return losses.item(), int((labels[1:] != -100).sum())


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_held_out_loss_weights_every_token_the_same(model, rows, batch_size, monkeypatch):
    monkeypatch.setattr(evaluate.hardware, "dtype", lambda: torch.float32)  # so that equal means equal
    sums = [alone(model, row) for row in rows]
    expected = sum(loss for loss, _ in sums) / sum(count for _, count in sums)
    assert evaluate.held_out_loss(model, rows, 0, batch_size) == pytest.approx(expected, rel=1e-5)
    mean_of_means = sum(loss / count for loss, count in sums) / len(sums)
    assert abs(mean_of_means - expected) > 1e-3 * expected  # else this test could not tell them apart


def test_masked_tokens_do_not_count_and_the_mode_is_put_back(model, rows):
    before = evaluate.held_out_loss(model, rows[:1], 0)
    padded = {
        **rows[0],
        "input_ids": [*rows[0]["input_ids"], 7, 7],
        "labels": [*rows[0]["labels"], -100, -100],
    }
    assert evaluate.held_out_loss(model, [padded], 0) == pytest.approx(before, rel=1e-2)
    model.train()
    evaluate.held_out_loss(model, rows, 0)
    assert model.training


@pytest.mark.parametrize("call", [evaluate.held_out_loss, evaluate.predict])
def test_the_mode_is_put_back_after_an_error_too(model, rows, call, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", fails)
    model.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        call(model, rows, pad_token_id=0)
    assert model.training


def test_nothing_to_predict_is_refused(model):
    with pytest.raises(InputError, match="no token"):
        evaluate.held_out_loss(model, [{"input_ids": [1, 2], "labels": [-100, -100], "row": 1}], 0)


def test_perplexity_is_the_exponential_of_the_loss(model, rows):
    found = evaluate.language_metrics(model, rows, 0)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_classification_metrics_by_hand():
    # Class 0: predicted 3 times, 2 rightly, 3 there. Class 1: predicted twice, once rightly, 2 there.
    logits = np.array([[2, 0], [2, 0], [0, 2], [2, 0], [0, 2]], dtype=np.float32)
    found = evaluate.classification_metrics(logits, [0, 0, 0, 1, 1])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["recall"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert found["loss"] == pytest.approx((3 * right + 2 * wrong) / 5)


def test_a_class_that_is_never_predicted_counts_as_zero():
    logits = np.array([[2, 0, 0], [2, 0, 0], [2, 0, 0]], dtype=np.float32)
    found = evaluate.classification_metrics(logits, [0, 1, 2])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx(1 / 9)


def test_predictions_come_back_in_the_order_of_the_rows(rows):
    class Echo(torch.nn.Module):
        """Answers with the first token, so that a row's answer is known."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask):
            return type("Output", (), {"logits": torch.nn.functional.one_hot(input_ids[:, 0], 50).float()})()

    labelled = [{"input_ids": row["input_ids"], "label": 0, "row": row["row"]} for row in rows]
    found = evaluate.predict(Echo(), labelled, 0, batch_size=2).argmax(axis=1)
    assert found.tolist() == [row["input_ids"][0] for row in rows]


LOGITS = np.array([[2, 0], [2, 0], [0, 2], [2, 0], [0, 2], [0, 1]], dtype=np.float32)


def test_a_report_has_metrics_intervals_and_who_was_taken_for_whom():
    found = evaluate.classifier_report(LOGITS, [0, 0, 0, 1, 1, 1], ["bad", "good"])
    assert found["confusion"] == {"labels": ["bad", "good"], "counts": [[2, 1], [1, 2]]}
    assert found["metrics"]["accuracy"] == pytest.approx(4 / 6)
    assert 0 < found["metrics"]["expected_calibration_error"] < 1
    for name in ("accuracy", "precision", "recall", "f1", "loss"):
        low, high = found["intervals"][name]
        assert low < found["metrics"][name] < high, name


def test_a_report_on_one_row_or_without_a_mistake_claims_no_interval_but_accuracys():
    assert set(evaluate.classifier_report(LOGITS[:1], [0], ["bad", "good"])["intervals"]) == {"accuracy"}
    perfect = evaluate.classifier_report(LOGITS[:2], [0, 0], ["bad", "good"])
    assert perfect["confusion"]["counts"] == [[2, 0], [0, 0]]
    assert perfect["intervals"]["accuracy"][0] < 0.5


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0, 2], "row 2: label 2 is none of the 2 classes"),
        ([0, -1], [0, 1], "row 2: prediction -1"),
        ([], [], "0 predictions"),
        ([0], [0, 1], "1 predictions for 2 labels"),
    ],
)
def test_a_confusion_matrix_takes_classes_only(predictions, labels, message):
    with pytest.raises(InputError, match=message):
        evaluate.confusion(predictions, labels, 2)
