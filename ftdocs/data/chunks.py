"""Documents in pieces that a model can read: by structure first, then by tokens, with some overlap."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftdocs.data.documents import SEPARATOR, Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Count = Callable[[str], int]  # the tokens of a text
TOKEN = re.compile(r"[A-Za-z0-9_]{1,6}|[^\sA-Za-z0-9_]")
SENTENCES = re.compile(
    r"\n\s*\n|(?<=[.!?…])\s+|(?<=[.!?…][\"')\]])\s+|\n(?=[ \t]*(?:[-*+]|\d+\.)[ \t])"
)  # or the items of a list
LINES = [re.compile(pattern) for pattern in (r"\n[ \t]*\n", r"\n", r"\s+")]  # the better place to cut first
PROSE = ("text", "parameter", "term")


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes:
        source: the document's.
        number: from 1, in the document's order.
        text: ``document.text[start:end]``.
        start: the first character.
        fresh: the first character that is in no chunk before; what stands before it is overlap.
        end: one past the last character.
        headings: titles of the sections that ``fresh`` lies in, outermost first.
        where: the place in the file of the block in which ``fresh`` lies.
        tokens: of the text.
    """

    source: str
    number: int
    text: str
    start: int
    fresh: int
    end: int
    headings: tuple[str, ...]
    where: str
    tokens: int


@dataclass(frozen=True)
class Piece:
    """What is not divided any more: a sentence, a code block, a row of a long table; a span of the document's text."""

    start: int
    end: int
    block: int  # its number in the document
    kind: str


def estimate_tokens(text: str) -> int:
    """About the tokens of a text, without a tokenizer: every six letters of a word are one, and every other sign."""
    return sum(1 for _ in TOKEN.finditer(text))


def counter(tokenizer: "PreTrainedTokenizerBase") -> Count:
    """What counts a text's tokens exactly, special ones left out."""
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def chunk(
    document: Document, tokens: int = 256, overlap: int = 32, count: Count = estimate_tokens
) -> Iterator[Chunk]:
    """Cut a document into chunks of at most ``tokens``, in which all of its text stands.

    A chunk ends before a heading, once it is a quarter full, else between blocks. A block that is longer than a chunk
    is divided: text after a sentence, code and tables after a line. All other blocks stay whole. A heading goes with
    what follows it. A chunk that goes on within a section begins with the last sentences, or whole blocks of code, of
    the one before, of at most ``overlap`` tokens.

    Args:
        count: of a text's tokens; :func:`counter` gives that of a tokenizer. A single character may have more than
            ``tokens``, and is then a chunk of its own.

    Raises:
        ValueError: ``tokens`` below 1, or ``overlap`` not in [0, tokens).
    """
    if tokens < 1 or not 0 <= overlap < tokens:
        raise ValueError(f"tokens {tokens} must be 1 or more, and overlap {overlap} from 0 to less than that")
    text, outlines = document.text, sections(document)
    for number, (pieces, shared) in enumerate(packed(document, tokens, overlap, count), 1):
        first, start, end = pieces[shared], pieces[0].start, pieces[-1].end
        yield Chunk(
            document.source, number, text[start:end], start, first.start, end,
            outlines[first.block], document.blocks[first.block].where, count(text[start:end]),
        )  # fmt: skip


def sections(document: Document) -> list[tuple[str, ...]]:
    """For each block the titles of the sections that it lies in, outermost first; a heading lies in its own."""
    found, path = [], list[tuple[int, str]]()
    for block in document.blocks:
        if block.kind == "heading":
            path = [(level, title) for level, title in path if level < block.level]
            path.append((block.level, block.text))
        found.append(tuple(title for _, title in path))
    return found


def block_pieces(document: Document, tokens: int, count: Count) -> Iterator[list[Piece]]:
    """The pieces of each block: sentences, or a block of another kind as a whole, divided where they are too long."""
    text, start = document.text, 0
    for number, block in enumerate(document.blocks):
        end = start + len(block.text)
        spans = between(SENTENCES, text, start, end) if block.kind in PROSE else [(start, end)]
        pieces = [
            Piece(first, last, number, block.kind)
            for span in spans
            for first, last in divide(text, *span, tokens, count)
        ]
        if pieces:
            yield pieces
        start = end + len(SEPARATOR)


def between(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The spans of ``text[start:end]`` between the matches of a pattern, none of them empty."""
    for found in pattern.finditer(text, start, end):
        if found.start() > start:
            yield start, found.start()
        start = found.end()
    if start < end:
        yield start, end


def divide(
    text: str, start: int, end: int, tokens: int, count: Count, depth: int = 0
) -> Iterator[tuple[int, int]]:
    """Spans of ``text[start:end]`` of at most ``tokens``, with nothing but white space between them.

    It is cut at blank lines; what is still too long at line ends, then between words, and a long word in halves.
    """
    if end - start <= 1 or count(text[start:end]) <= tokens:
        yield start, end
    elif depth < len(LINES):
        for span in between(LINES[depth], text, start, end):
            yield from divide(text, *span, tokens, count, depth + 1)
    else:
        middle = (start + end) // 2
        yield from divide(text, start, middle, tokens, count, depth)
        yield from divide(text, middle, end, tokens, count, depth)


def packed(document: Document, tokens: int, overlap: int, count: Count) -> Iterator[tuple[list[Piece], int]]:
    """The pieces of each chunk, and how many of the first ones were the last ones of the chunk before."""
    text, current, shared = document.text, list[Piece](), 0

    def size(pieces: list[Piece]) -> int:
        return count(text[pieces[0].start : pieces[-1].end]) if pieces else 0

    def tail(pieces: list[Piece], following: list[Piece]) -> list[Piece]:
        """The last pieces, not all of them, that are small enough to be said again before ``following``."""
        place = len(pieces)
        while (
            place > 1
            and pieces[place - 1].kind != "heading"
            and size(pieces[place - 1 :]) <= overlap
            and size([*pieces[place - 1 :], *following]) <= tokens
        ):
            place -= 1
        return pieces[place:]

    for pieces in block_pieces(document, tokens, count):
        whole = size(pieces) <= tokens
        at_heading = pieces[0].kind == "heading" and current and current[-1].kind != "heading"
        if at_heading and size(current) >= tokens / 4:
            yield current, shared
            current, shared = [], 0
        for unit in [pieces] if whole else [[piece] for piece in pieces]:
            if not current or size([*current, *unit]) <= tokens:
                current = [*current, *unit]
                continue
            body = len(current)
            while body > shared and current[body - 1].kind == "heading":
                body -= 1
            if body < len(current) and size([*current[body:], *unit]) <= tokens:
                if body > shared:
                    yield current[:body], shared
                current, shared = [*current[body:], *unit], 0
                continue
            yield current, shared
            again = tail(current, unit)
            current, shared = [*again, *unit], len(again)
    if current:
        yield current, shared
