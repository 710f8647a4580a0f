"""What a document is made of: headings, text, code, tables, parameters and terms, each with its place in the file."""

from dataclasses import dataclass
from typing import Literal

from ftdocs.data.clean import clean_text

Kind = Literal["heading", "text", "code", "table", "parameter", "term"]
# A reader gives the title that the file states ("" where it does not), its blocks, and counts: `pages`, and notes.
Read = tuple[str, list["Block"], dict[str, int]]


@dataclass(frozen=True)
class Block:
    """A heading, a paragraph or list, a code block, a table, or what a parameter or a term means.

    Attributes:
        kind: what it is; a table's rows are lines ``| cell | cell |``, its header the first one.
        text: as it is trained on and searched.
        where: its place in the file, such as ``line 3``, ``page 2``, ``cell 4`` or ``paragraph 5``.
        level: of a heading, from 1.
        name: of a parameter or a term; ``text`` is then the name and its ``meaning``.
        meaning: what is said of it.
    """

    kind: Kind
    text: str
    where: str
    level: int = 0
    name: str = ""
    meaning: str = ""


def clean_block(block: Block) -> Block:
    """A block with clean text and no blank lines around it; a heading and a name are one line."""
    # PDFs give halves of surrogate pairs, which no file can hold.
    text, name, meaning = (
        clean_text(words.encode(errors="ignore").decode())
        for words in (block.text, block.name, block.meaning)
    )
    text = one_line(text) if block.kind == "heading" else text.lstrip("\n").rstrip()
    return Block(block.kind, text, block.where, block.level, one_line(name), meaning.strip())


def one_line(text: str) -> str:
    """Text with one space wherever it has white space."""
    return " ".join(text.split())


def entry(kind: Kind, name: str, meaning: str, where: str) -> Block:
    """The block of a parameter or a term."""
    return Block(kind, f"{name}: {meaning}" if meaning else name, where, name=name, meaning=meaning)


def table(rows: list[list[str]], where: str) -> Block:
    """The block of a table, given its cells."""
    lines = [" | ".join(one_line(cell).replace("|", "\\|") for cell in row) for row in rows if any(row)]
    return Block("table", "\n".join(f"| {line} |" for line in lines), where)
