"""Cleaning that loses nothing a model should learn, and keys by which repeated rows are found."""

import hashlib
import re
import unicodedata
from typing import Any

Row = dict[str, Any]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]+")  # all but tab and newline; and the byte-order mark
TRAILING = re.compile(r"(?<![ \t])[ \t]+\n")
SENTENCE_MARKS = re.compile(r"[.,;:!?…]+(?=\s|$)")  # not inside 3.5, a.b or 10:30, which mean something


def clean_text(text: str) -> str:
    """Return text in NFC with ``\\n`` line ends, without control characters and trailing blanks.

    Indentation, blank lines and the spaces at both ends stay: code and completions need them.
    """
    text = CONTROL.sub("", unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")))
    return TRAILING.sub("\n", text)


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
    """Text as near-identical rows share it: case, runs of white space and sentence marks put aside."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(SENTENCE_MARKS.sub(" ", folded).split()) or text


def digest(*parts: str) -> bytes:
    """16 bytes of BLAKE2b over several texts, kept apart by their lengths."""
    content = b"".join(len(part).to_bytes(8, "big") + part for part in (text.encode() for text in parts))
    return hashlib.blake2b(content, digest_size=16).digest()


def text_key(row: Row) -> bytes:
    """The key that near-identical rows share: all that is trained on, normalised, the label included."""
    if "messages" in row:
        return digest(*(part for turn in row["messages"] for part in (turn["role"], normalise(turn["content"]))))
    fields = ("prompt", "completion", "instruction", "input", "output", "text", "label")
    return digest(*(normalise(row[name]) for name in fields if name in row))


def prompt_key(row: Row) -> bytes:
    """The key of what the model is given: two rows that share it must not lie in two splits.

    It is the prompt, the instruction with its input, the first user message, or the text.
    """
    if "messages" in row:
        return digest(next(normalise(turn["content"]) for turn in row["messages"] if turn["role"] == "user"))
    given = ("prompt", "instruction", "input", "text")
    return digest(*(normalise(row[name]) for name in given if name in row))


def deduplicate(rows: list[Row]) -> list[Row]:
    """Keep one row of each key, the one whose text sorts first, so that the file's order decides nothing."""
    kept: dict[bytes, tuple[str, Row]] = {}
    for row in rows:
        key = text_key(row)
        written = repr([value for name, value in row.items() if name != "row"])
        if key not in kept or written < kept[key][0]:
            kept[key] = (written, row)
    return [row for _, row in kept.values()]
