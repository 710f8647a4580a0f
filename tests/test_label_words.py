"""Scores of label words on the real model: against a plain computation, whatever stands beside them in a batch."""

import numpy as np
import pytest
import torch

from ftdocs import evaluate, label_words, models
from ftdocs.errors import InputError
from ftdocs.recipe import Data, Recipe, Train

WORDS = ["negative", "positive", "wonderful"]  # the last one is three tokens
TASK = "Say whether a film review is positive or negative."


@pytest.fixture(scope="module")
def loaded():
    recipe = Recipe(
        model="smollm2-135m-instruct", data=Data(name="movie-reviews"), train=Train(precision="fp32")
    )
    return models.load(recipe)


def plain(model, tokenizer, prompt: str, word: str) -> float:
    """The log-likelihood of the word's tokens, by one text alone and no filling."""
    before = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + word)["input_ids"]], device=model.device)
    with torch.no_grad():
        nats = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return sum(nats[at - 1, ids[0, at]].item() for at in range(before, ids.shape[1]))


def test_scores_are_those_of_each_text_alone(loaded):
    prompts = label_words.ask(loaded[1], ["dull", "a long and lovely film about a lighthouse keeper"], TASK)
    found = label_words.score_words(*loaded, prompts, WORDS, precision="fp32")
    alone = [[plain(*loaded, prompt, word) for word in WORDS] for prompt in prompts]
    assert found == pytest.approx(np.array(alone), abs=2e-3)
    assert not loaded[0].training


def test_few_shot_examples_come_before_as_turns(loaded):
    shown = label_words.ask(loaded[1], ["dull"], TASK, [("lovely", "positive"), ("a bore", "negative")])[0]
    assert shown.index(TASK) < shown.index("lovely") < shown.index("positive<") < shown.index("a bore")
    assert shown.endswith("assistant\n") and shown.count("<|im_start|>assistant") == 3


def test_bfloat16_does_not_tie_two_words():
    recipe = Recipe(
        model="smollm2-135m-instruct", data=Data(name="movie-reviews"), train=Train(precision="bf16")
    )
    model, tokenizer = models.load(recipe)
    prompts = label_words.ask(tokenizer, [f"film number {n}" for n in range(6)], TASK)
    found = label_words.score_words(model, tokenizer, prompts, WORDS[:2], precision="bf16")
    apart = found[:, 1] - found[:, 0]
    assert (
        abs(apart * 8 - np.round(apart * 8)) > 1e-3
    ).all()  # no multiples of 1/8, as the model's own logits are
    assert not model.get_output_embeddings()._forward_hooks


def test_calibration_by_hand():
    scores = np.log([[0.2, 0.6], [0.1, 0.1]])
    content_free = np.log([[0.1, 0.3], [0.2, 0.6]])  # among the words: 1/4 and 3/4, twice
    found = label_words.calibrate(scores, content_free)
    assert found == pytest.approx(np.log([[1, 1], [0.5 / 0.25, 0.5 / 0.75]]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["positive"], "at least two"),
        (["positive", " "], "none of them empty"),
        (["good", "goodness"], "'goodness' begins with 'good'"),
        (["good", "good"], "begins with"),
    ],
)
def test_words_that_cannot_be_compared_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        label_words.check_words(words)


def test_a_decoders_head_reads_the_last_token_that_is_no_filling(loaded):
    """And the wrong one, without a word, where the model is told of another filling than the batch has."""
    recipe = Recipe(
        model="smollm2-135m-instruct", data=Data(name="movie-reviews"), train=Train(precision="fp32")
    )
    model, tokenizer = models.load(recipe, ["negative", "positive"])
    texts = ["dull", "a long and lovely film about a lighthouse keeper and his daughter"]
    rows = [{"input_ids": ids, "label": 0, "row": 1} for ids in tokenizer(texts)["input_ids"]]
    pad = models.pad_token_id(tokenizer)
    alone = np.concatenate([evaluate.predict(model, [row], pad, precision="fp32") for row in rows])
    together = evaluate.predict(model, rows, pad, precision="fp32")
    assert together == pytest.approx(alone, abs=1e-3)
    model.config.pad_token_id = pad + 5
    assert evaluate.predict(model, rows, pad, precision="fp32")[0] != pytest.approx(alone[0], abs=1e-2)
