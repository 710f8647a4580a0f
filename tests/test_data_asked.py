"""Questions of the real model about passages: each is kept, or left out for a reason that holds."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import answer, assets, hardware
from ftdocs.data.asked import asked, wrong
from ftdocs.data.chunks import chunk
from ftdocs.data.documents import read_document
from ftdocs.data.questions import Pair

PASSAGE = "The pump moves water from the well to the tank, and stops by itself when the tank is full."


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("What stops the pump in the well?", ""),
        ("How many rows does the data set of irises have?", ""),
        ("What is in the dataset of faces?", ""),
        ("The pump moves water to the tank.", "no question"),
        ("What stops the pump? And why does it?", "more than one question"),
        ("How many rows does this table have?", "points at the passage"),
        ("What is the purpose of the passage?", "points at the passage"),
        ("How large is the dataset?", "points at the passage"),
        ("Why?", "unclear question"),
    ],
)
def test_what_is_wrong_with_a_question(question, reason):
    assert wrong(Pair(question, PASSAGE, "model", "line 1")) == reason


def test_what_is_wrong_with_a_passage_is_said_and_a_question_is_asked_once(tmp_path):
    numbers = "| " + " | ".join("0123456789") + " |\n"
    (tmp_path / "pump.md").write_text(f"# One\n\n{PASSAGE}\n\n# Two\n\n{PASSAGE}\n\n# Three\n\n{numbers * 9}")
    chunks = list(chunk(read_document(tmp_path / "pump.md"), tokens=24, overlap=0))
    told = []

    def write(prompts):
        told.extend(prompts)
        return ["What stops the pump\nin the well?"] * len(prompts)

    reasons = [reason for _, reason in asked(chunks, write)]
    assert reasons[:2] == ["", "repeated question"] and "short answer" in reasons[2]
    assert all(prompt.startswith(one.text) for prompt, one in zip(told, chunks, strict=True))


def test_the_real_model_asks_about_each_passage(tmp_path):
    (tmp_path / "pump.txt").write_text(
        f"{PASSAGE}\n\nA filter keeps sand out of the water of the pump; clean it in May."
    )
    chunks = list(chunk(read_document(tmp_path / "pump.txt"), tokens=24, overlap=0))
    folder = assets.model_path("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=hardware.dtype(), use_safetensors=True)

    def write(prompts):
        rows = [answer.question({"prompt": each, "completion": ""}) for each in prompts]
        texts = [answer.prompt(tokenizer, row) for row in rows]
        return [each.text for each in answer.generate(model, tokenizer, texts, 24)]

    found = list(asked(chunks, write))
    assert len(found) == len(chunks) == 2
    for (pair, reason), one in zip(found, chunks, strict=True):
        assert (pair.answer, pair.where, pair.kind) == (one.text, one.where, "model")
        assert reason in (wrong(pair), "repeated question") and pair.question == " ".join(
            pair.question.split()
        )
    assert all(pair.question for pair, _ in found)
