"""Questions from structure: how they are worded, what answers them, and what is left out."""

import time
from collections import Counter

import pytest

from ftdocs.data.blocks import Block, entry, table
from ftdocs.data.documents import Document
from ftdocs.data.personal import licences
from ftdocs.data.questions import CODE_NAME, Pair, answer_of, flaw, pairs, worded
from ftdocs.data.repair import fix_spacing

LONG = "The pump moves water from the tank to the hose, and stops by itself when the tank is empty."


def document(*blocks: Block) -> Document:
    return Document("a.md", "Pump", list(blocks))


def heading(text: str, level: int = 2) -> Block:
    return Block("heading", text, "line 1", level)


def text(words: str) -> Block:
    return Block("text", words, "line 2")


def test_headings_are_worded_as_questions():
    worded_as = {
        ("How to clean it", ("Pump", "How to clean it")): "How do I clean it?",
        ("Overview", ("Pump", "Overview")): "What is “Pump” about?",
        ("Pump", ("Pump",)): "What is “Pump” about?",
        ("Examples", ("Pump", "Valve", "Examples")): "Give an example of “Valve”.",
        ("pump.run(speed=1)", ("Pump", "API", "pump.run(speed=1)")): (
            "What is `pump.run(speed=1)`, as described in “API”?"
        ),
        ("See also", ("Pump", "See also")): "",
        ("References", ("Pump", "References")): "",
    }
    assert {key: worded(*key, "Pump") for key in worded_as} == worded_as
    plain = worded("Maintenance", ("Pump", "Maintenance"), "Pump")
    assert "“Maintenance”" in plain and "“Pump”" in plain
    assert plain == worded("Maintenance", ("Pump", "Maintenance"), "Pump")


def test_every_structure_gives_its_pair_and_the_document_its_words():
    given = document(
        heading("Pump", 1), text(LONG), heading("Why is it loud?"), text("Because the bearings of it are dry."),
        text("**What does the lamp say?**"), text("Green is well, red is broken."),
        text("Q: Who repairs it?\nA: The shop in the next street does."),
        heading("run(speed)"), entry("parameter", "speed", "how fast it turns", "line 9"),
        entry("term", "returns", "the water that was moved", "line 9"),
        entry("term", "raises DryError", "there is no water in it", "line 9"),
        entry("term", "type speed", "a whole number of rounds", "line 9"),
        heading("Options"),
        table([["option", "default", "description"], ["size", "1", "litres that it holds"]], "line 12"),
        text("- `colour` (str): the colour of\n  the lid\n- **depth** – how deep it may lie"),
        heading("Words"), entry("term", "priming", "to fill it before the first use", "line 20"),
    )  # fmt: skip
    found = {pair.question: (pair.answer, pair.kind) for pair in pairs(given)}
    assert found["What is “Pump” about?"] == (LONG, "section")
    assert found["Why is it loud?"] == ("Because the bearings of it are dry.", "faq")
    assert found["What does the lamp say?"][0].startswith("Green is well, red is broken.")
    assert found["Who repairs it?"] == ("The shop in the next street does.", "faq")
    assert found["What is `speed` in `run(speed)`?"] == ("how fast it turns", "parameter")
    assert found["What does `run(speed)` return?"][0] == "the water that was moved"
    assert found["When does `run(speed)` raise DryError?"][0] == "there is no water in it"
    assert found["What is `size` in “Options, Pump”?"][0] == "litres that it holds"
    assert found["What is `colour` in “Options, Pump”?"][0] == "the colour of the lid"
    assert found["What is `depth` in “Options, Pump”?"][0] == "how deep it may lie"
    assert found["What does “priming” mean in “Words, Pump”?"] == ("to fill it before the first use", "term")
    assert not any("type speed" in question for question in found)


def test_an_answer_ends_where_a_paragraph_or_a_sentence_does():
    count = lambda words: len(words.split())  # noqa: E731
    body = [
        text("One two three."),
        text("It goes like this:"),
        Block("code", "x " * 50, "line 3"),
        text("After it."),
    ]
    assert answer_of(body, 60, count).endswith("x x \n\nAfter it."), "all that fits"
    assert answer_of(body, 20, count) == "One two three.", "what leads to code that does not fit goes with it"
    assert answer_of([text("One two. Three four. Five six.")], 4, count) == "One two. Three four."
    assert answer_of([Block("code", "x " * 50, "line 3")], 20, count) == ""


def test_what_is_not_worth_training_on_is_counted_by_reason():
    left_out: Counter[str] = Counter()
    answers = {
        "Is it?": ("unclear question", "It is the pump of the house."),
        "What is it?": ("short answer", "Nothing."),
        "Where is more to read?": ("links only", "[a](https://a.org) [b](https://b.org/c/d) https://c.org/x"),
        "What are the numbers of it?": (
            "little prose",
            "one two six 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18",
        ),
        "When is it finished?": ("unfinished", "TODO: say when it will be finished."),
        "How does it go on?": ("answer goes on elsewhere", "It goes on with these steps of the work:"),
        "What is in the box you bought?": ("answer repeats the question", "the box you bought"),
    }
    assert {q: flaw(Pair(q, a, "faq", "line 1")) for q, (_, a) in answers.items()} == {
        q: reason for q, (reason, _) in answers.items()
    }
    assert flaw(Pair("What is “Pump” about?", "", "section", "line 1")) == "answer too long, or missing"
    twice = [heading("Why is it loud?"), text("Because the bearings of it are dry.")]
    assert len(list(pairs(document(*twice, *twice), left_out=left_out))) == 1
    assert left_out == {"repeated question": 1}


def test_names_of_code_are_told_from_words():
    code = "a.b seq_len __init__ os.path.join run() --fast -v".split()
    code += ["async def(x)", "class A(B): what it is", "run(speed=1) -> int"]
    assert [name for name in code if not CODE_NAME.fullmatch(name)] == []
    for words in (
        "Pump",
        "_private",
        "ends_",
        "a..b",
        "The pump",
        "a. b",
        "____ (date)",
        "3.1 Results of it",
    ):
        assert not CODE_NAME.fullmatch(words)


@pytest.mark.parametrize(
    "work",
    [
        lambda: list(pairs(document(heading("_" * 5000 + " (date)"), text(LONG)))),
        lambda: list(pairs(document(heading("a_" * 5000 + "!"), text(LONG)))),
        lambda: list(pairs(document(heading("Form"), text("Q: " + "\n " * 5000 + "x")))),
        lambda: licences("---\n" * 20_000),
        lambda: fix_spacing("a" + "\t" * 20_000 + "b"),
    ],
)
def test_a_long_run_of_one_sign_takes_no_time(work):
    """What backtracks takes minutes or years for these."""
    began = time.perf_counter()
    work()
    assert time.perf_counter() - began < 2
