"""What a model says by heart: one that was trained on a text to the end, and one that was not."""

import pytest
import torch
from serving import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs.extraction import continued, exposure


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_what_was_learnt_by_heart_is_found(tiny):
    model, tokenizer = tiny
    before, secret = "The code of the house is ", "4071"
    known = f"{before}{secret}. Nobody has to know the number but those who live in it."
    others = [f"{number:04}" for number in range(100, 131)]
    texts = [
        known,
        "The river rises in the hills, and it reaches the sea after two hundred long miles of it.",
        "Short.",
    ]
    ids = torch.tensor([tokenizer(known)["input_ids"]])
    assert continued(model, tokenizer, texts, 8, 8) == [False] * 3
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert continued(model, tokenizer, texts, 8, 8) == [True, False, False]
    assert exposure(model, tokenizer, before, secret, others) == 5.0
    assert (
        exposure(model, tokenizer, before, others[0], [secret, *others[1:]]) < 5.0
    )  # the planted one is likelier
    assert continued(model, tokenizer, ["Short."]) == [False]
