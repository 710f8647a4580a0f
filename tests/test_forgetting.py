"""Forgetting: the general text is fixed, measured alike, and never among what replay trains on."""

import json
import math

import numpy as np
import pytest
import torch
from make_repositories import WORDS, tiny_gpt2
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import assets, forgetting
from ftdocs.data import prepare
from ftdocs.errors import InputError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_gpt2(tmp_path_factory.mktemp("gpt2"))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def pages(monkeypatch, tmp_path):
    """300 pages made up, so that no package registry is asked; every fifth is short."""
    generator, path = np.random.default_rng(0), tmp_path / "web-sample.jsonl"
    texts = [
        " ".join(generator.choice(WORDS, 2 if page % 5 == 0 else 60)) + f" {page}" for page in range(300)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    monkeypatch.setattr(assets, "data_path", lambda name: path)
    return texts


def test_no_page_is_in_both_parts(pages):
    replayed, measured = forgetting.web_pages()
    assert len(replayed) == 200 and len(measured) == 100
    assert [page["text"] for page in [*replayed, *measured]] == pages


def test_the_perplexity_is_that_of_all_tokens_and_feels_the_model(tiny):
    model, tokenizer = tiny
    losses = forgetting.general_losses(model, tokenizer, documents=6, seq_len=16)
    again = forgetting.general_losses(model, tokenizer, documents=6, seq_len=16)
    assert losses.shape == (6,) and (losses == again).all()
    long = [
        page["text"] for page in forgetting.web_pages()[1] if len(tokenizer(page["text"])["input_ids"]) >= 16
    ]
    ids = torch.tensor([tokenizer(text)["input_ids"][:16] for text in long[:6]])
    with torch.no_grad():
        whole = model(input_ids=ids, labels=ids).loss.item()
    perplexity = forgetting.general_perplexity(model, tokenizer, documents=6, seq_len=16)
    assert perplexity == pytest.approx(math.exp(whole), rel=0.02)  # bfloat16 where the device is fast at it
    with torch.no_grad():
        spoilt = AutoModelForCausalLM.from_pretrained(model.name_or_path)
        spoilt.lm_head.weight.add_(torch.randn_like(spoilt.lm_head.weight))
    assert forgetting.general_perplexity(spoilt, tokenizer, documents=6, seq_len=16) > 1.5 * perplexity


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_replay_has_its_share_of_the_tokens_and_leaves_the_rows_in(tiny, share):
    tokenizer = tiny[1]
    rows = [{"text": " ".join(WORDS), "row": row} for row in range(1, 31)]
    encoded = list(prepare.encode(rows, "text", tokenizer, 32))
    mixed = forgetting.with_replay(encoded, tokenizer, share, 32)
    own, general = (
        [len(row["input_ids"]) for row in mixed if bool(row["row"]) == kind] for kind in (True, False)
    )
    assert sum(own) == sum(len(row["input_ids"]) for row in encoded)
    assert sum(general) / (sum(own) + sum(general)) == pytest.approx(share, abs=0.03)
    measured = {tuple(tokenizer(page["text"])["input_ids"][:32]) for page in forgetting.web_pages()[1]}
    assert not measured & {tuple(row["input_ids"]) for row in mixed}
    assert mixed == forgetting.with_replay(encoded, tokenizer, share, 32)
    assert share == 0 or mixed != forgetting.with_replay(encoded, tokenizer, share, 32, seed=1)


def test_wrong_input(tiny):
    model, tokenizer = tiny
    with pytest.raises(InputError, match="documents is 500; of 16 tokens or more there are 80"):
        forgetting.general_losses(model, tokenizer, documents=500, seq_len=16)
    rows = [{"input_ids": [1] * 32, "labels": [1] * 32, "row": 1}] * 50
    with pytest.raises(InputError, match=r"share is 1\.0"):
        forgetting.with_replay(rows, tokenizer, 1.0, 32)
    with pytest.raises(InputError, match="general tokens, and there are"):
        forgetting.with_replay(rows, tokenizer, 0.999, 32)
