"""Chunks of documents: nothing lost, nothing invented, whole where they can be, within the limit."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ftdocs import assets
from ftdocs.data.blocks import Block
from ftdocs.data.chunks import Chunk, chunk, counter, estimate_tokens
from ftdocs.data.docstrings import collect
from ftdocs.data.documents import Document

WORDS = st.lists(
    st.sampled_from("a be Pump valve3 x_y é 漢字 ok. end! (so.) - 1. `c`".split()), min_size=1, max_size=30
)
TEXT = st.one_of(
    st.builds(" ".join, WORDS),
    st.builds("\n".join, st.lists(st.builds(" ".join, WORDS), min_size=1, max_size=6)),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=300),
)
KINDS = st.sampled_from(["heading", "text", "text", "code", "table", "term"])


def build(parts: list[tuple[str, str, int]]) -> Document:
    blocks = [
        Block(
            kind,
            " ".join(text.split()) if kind == "heading" else text.strip("\n").rstrip(),
            f"line {n}",
            level,
        )
        for n, (kind, text, level) in enumerate(parts)
        if text.strip()
    ]
    return Document("a.md", "A", blocks)


DOCUMENTS = st.lists(st.tuples(KINDS, TEXT, st.integers(1, 3)), max_size=12).map(build)


@given(DOCUMENTS, st.integers(1, 60), st.integers(0, 20))
@example(build([("heading", "A", 1), ("code", "x " * 30, 0), ("text", "One. Two. Three.", 0)]), 30, 5)
@settings(max_examples=300, deadline=None)
def test_chunks_hold_the_whole_text_within_the_limit_with_the_right_overlap(document, tokens, overlap):
    overlap = min(overlap, tokens - 1)
    chunks = list(chunk(document, tokens, overlap))
    assert bool(chunks) == bool(document.blocks)
    end = begin = 0
    for number, one in enumerate(chunks, 1):
        assert one.number == number and one.source == "a.md"
        assert one.text == document.text[one.start : one.end], "nothing is invented"
        assert not document.text[end : one.fresh].strip(), "nothing but white space lies between two chunks"
        assert one.start <= one.fresh < one.end
        assert one.tokens == estimate_tokens(one.text)
        assert one.tokens <= tokens or len(one.text) == 1
        assert one.start == one.fresh or begin < one.start < end, (
            "what is said again is the end of the one before"
        )
        assert estimate_tokens(document.text[one.start : min(end, one.fresh)]) <= overlap
        begin, end = one.start, one.end
    assert not document.text[end:].strip(), "the end is there"
    check_whole_blocks(document, chunks, tokens)


def check_whole_blocks(document: Document, chunks: list[Chunk], tokens: int) -> None:
    """A block that fits into a chunk lies in one as a whole, as what is new in it."""
    start = 0
    for block in document.blocks:
        end = start + len(block.text)
        first = start + len(block.text) - len(block.text.lstrip())
        if estimate_tokens(block.text) <= tokens and block.kind != "heading":
            assert any(one.fresh <= first and end <= one.end for one in chunks), block
        start = end + 2


def test_sections_begin_chunks_and_headings_stay_with_what_follows():
    sentence = "The pump is cleaned with warm water and a soft brush. "
    document = build(
        [
            ("heading", "Pump", 1), ("text", "Short words.", 0), ("heading", "Clean", 2), ("text", sentence * 3, 0),
            ("heading", "Mount", 2), ("text", sentence * 7, 0), ("heading", "End", 1), ("text", "Bye.", 0),
        ]
    )  # fmt: skip
    chunks = list(chunk(document, tokens=60, overlap=15))
    assert [one.headings for one in chunks] == [
        ("Pump",), ("Pump", "Mount"), ("Pump", "Mount"), ("End",),
    ]  # fmt: skip
    assert chunks[0].text.startswith("Pump\n\nShort words.\n\nClean\n\nThe pump"), (
        "a section of few words is joined"
    )
    assert chunks[1].text.startswith("Mount\n\nThe pump") and chunks[1].start == chunks[1].fresh
    again = document.text[chunks[2].start : chunks[2].fresh]
    assert again.strip() == sentence.strip(), "it goes on with the last sentence said again"
    assert chunks[3].text == "End\n\nBye."
    assert [one.where for one in chunks] == ["line 0", "line 4", "line 5", "line 6"]


def test_long_code_is_cut_at_lines_and_short_code_never():
    code = "\n".join(f"value_{n} = compute(argument_{n})" for n in range(40))
    document = build([("text", "Do this:", 0), ("code", code, 0), ("code", "a = 1\nb = 2", 0)])
    chunks = list(chunk(document, tokens=64, overlap=20))
    for one in chunks:
        assert all(line in document.text.split("\n") for line in one.text.split("\n")), "whole lines only"
    assert sum("a = 1\nb = 2" in one.text for one in chunks) == 1


def test_wrong_sizes_are_refused():
    for tokens, overlap in ((0, 0), (10, 10), (10, -1)):
        with pytest.raises(ValueError, match="overlap"):
            list(chunk(build([("text", "x", 0)]), tokens, overlap))


def test_the_estimate_is_near_what_tokenizers_count_and_their_count_keeps_the_limit():
    texts = [row["text"] for _, row in zip(range(400), collect(["peft"]), strict=False)][::4]
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))
    count = counter(tokenizer)
    estimated, real = sum(map(estimate_tokens, texts)), sum(map(count, texts))
    assert 0.85 < estimated / real < 1.2
    document = Document("a.txt", "A", [Block("text", text, "line 1") for text in texts])
    chunks = list(chunk(document, 128, 16, count))
    assert max(len(tokenizer(one.text)["input_ids"]) for one in chunks) <= 128
    assert "".join("".join(document.text[one.fresh : one.end].split()) for one in chunks) == "".join(
        document.text.split()
    )
