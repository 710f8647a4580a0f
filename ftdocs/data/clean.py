"""Cleaning that loses nothing a model should learn, and keys by which repeated rows are found."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ftdocs.data.store import keys_of, take

Row = dict[str, Any]
# Control characters other than tab and newline, and the byte-order mark.
CONTROL = {code: None for code in [*range(32), *range(127, 160), 0xFEFF] if chr(code) not in "\t\n"}
# Whole runs only (the look-behind), or a page of dots would take a time that grows with its square.
SENTENCE_MARKS = re.compile(r"(?<![.,;:!?…])[.,;:!?…]+(?=\s|$)")


def clean_text(text: str) -> str:
    """Return text in NFC with ``\\n`` line ends, without control characters and trailing blanks.

    Indentation, blank lines and the spaces at both ends stay: code and completions need them.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).translate(CONTROL)
    *lines, last = text.split("\n")
    return "\n".join([line.rstrip(" \t") for line in lines] + [last])


def clean_row(row: Row) -> Row:
    """Clean every text field of a checked row; blank lines around a message, document or reply go too."""
    if "messages" in row:
        turns = [{**turn, "content": _trim(clean_text(turn["content"]))} for turn in row["messages"]]
        return {**row, "messages": turns}
    cleaned = {name: clean_text(value) if isinstance(value, str) else value for name, value in row.items()}
    if "completion" in row:  # where the prompt ends and the completion begins, a space matters
        return cleaned
    return {name: _trim(value) if isinstance(value, str) else value for name, value in cleaned.items()}


def _trim(text: str) -> str:
    return text.lstrip("\n").rstrip()


def normalise(text: str) -> str:
    """Text as near-identical rows share it: case, runs of white space and marks that end a word put aside.

    Marks within a word stay: 3.5 is not 35, and ``a.b`` not ``ab``.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(SENTENCE_MARKS.sub("", folded).split()) or text


def digest(*parts: bytes) -> bytes:
    """16 bytes of BLAKE2b over several pieces of bytes, kept apart by their lengths."""
    content = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.blake2b(content, digest_size=16).digest()


@lru_cache(maxsize=64)  # both keys of a row ask for the same texts; whole texts are kept, so only a few
def normal_digest(text: str) -> bytes:
    """The digest of a normalised text."""
    return digest(normalise(text).encode())


def text_key(row: Row) -> bytes:
    """The key that near-identical rows share: all that is trained on, normalised, the label included."""
    if "messages" in row:
        return digest(
            *(normal_digest(part) for turn in row["messages"] for part in (turn["role"], turn["content"]))
        )
    fields = ("prompt", "completion", "instruction", "input", "output", "text", "label")
    return digest(*(normal_digest(row[name]) for name in fields if name in row))


def prompt_key(row: Row) -> bytes:
    """The key of what the model is given: two rows that share it must not lie in two splits.

    It is the prompt, the instruction with its input, the first user message, or the text.
    """
    if "messages" in row:
        return next(normal_digest(turn["content"]) for turn in row["messages"] if turn["role"] == "user")
    given = ("prompt", "instruction", "input", "text")
    return digest(*(normal_digest(row[name]) for name in given if name in row))


def deduplicate(rows: Sequence[Row]) -> Sequence[Row]:
    """Keep one row of each key, the one whose text sorts first, so that the file's order decides nothing."""
    import numpy as np  # here, as broken rows are to be refused before it has been loaded

    _, first, numbers, counts = np.unique(
        keys_of(rows, text_key), return_index=True, return_inverse=True, return_counts=True
    )
    kept = first.copy()
    for place in map(int, np.flatnonzero(counts[numbers] > 1)):
        best = int(kept[numbers[place]])
        if place != best and _written(rows[place]) < _written(rows[best]):
            kept[numbers[place]] = place
    return take(rows, kept[np.argsort(first)])


def _written(row: Row) -> str:
    return repr([value for name, value in row.items() if name != "row"])
