"""Extractive summaries by the real encoder: within the budget, in the text's words and order, about its subject."""

import pytest

from ftdocs.data.chunks import estimate_tokens
from ftdocs.data.shorten import shorten
from ftdocs.embed import embed

ABOUT = [
    "The pump moves water from the well to the tank.",
    "The water pump stops by itself when the tank is full.",
    "A filter in front of the pump keeps sand out of the water.",
    "The pump needs new oil after each thousand hours.",
]
BESIDE = ["My cousin plays the violin in Vienna.", "Lunch was served at one."]
TEXT = " ".join([BESIDE[0], *ABOUT[:2], "The parts are these:\n\n" + BESIDE[1], *ABOUT[2:], ABOUT[0]])


@pytest.mark.parametrize("tokens", [14, 30, 50, 70])
def test_it_is_within_the_budget_and_in_the_words_and_order_of_the_text(tokens):
    short = shorten(TEXT, tokens, embed)
    assert 0 < estimate_tokens(short) <= tokens
    there, place = TEXT.replace("\n\n", "\n").replace(". ", ".\n").split("\n"), 0
    for sentence in short.replace(". ", ".\n").split("\n"):
        # ValueError: it is no sentence of the text, or not in their order
        place = there.index(sentence, place) + 1


def test_it_keeps_what_the_text_is_about_once_and_no_line_that_leads_elsewhere():
    short = shorten(TEXT, sum(map(estimate_tokens, ABOUT)), embed)
    assert all(sentence in short for sentence in ABOUT)
    assert not any(sentence in short for sentence in BESIDE)
    assert short.count(ABOUT[0]) == 1 and "these:" not in short


def test_what_fits_stays_and_where_no_sentence_fits_the_first_words_of_one_are_kept():
    assert shorten(TEXT, 1000, embed) == TEXT
    assert shorten("", 5, embed) == ""
    assert shorten("Press it. Wait.", 3, embed) in ("Press it.", "Wait."), "nothing but short lines"
    assert "Usage" not in shorten(f"Usage\n\n{TEXT}", 60, embed)
    for tokens in range(1, 8):
        short = shorten(" ".join(ABOUT), tokens, embed)
        assert short and estimate_tokens(short) <= tokens
        assert any(sentence.startswith(short) for sentence in ABOUT)
    assert ABOUT[0] in shorten("the pump moves water and " * 40 + "\n\n" + ABOUT[0], 20, embed)
    with pytest.raises(ValueError, match="must be 1 or more"):
        shorten(TEXT, 0, embed)
