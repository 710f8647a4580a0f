"""A folder of documents, one at a time: Markdown, reStructuredText, text, HTML, PDF, Word and Jupyter notebooks.

The packages that read them come with ``pip install ftdocs[documents]``.
"""

import logging
import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftdocs.data.blocks import Block, Read, clean_block, one_line, table
from ftdocs.data.markup import lines_of, markdown_blocks, read_html, read_markdown, read_rst
from ftdocs.data.read import DOCUMENTS
from ftdocs.errors import InputError

SEPARATOR = "\n\n"  # between the blocks of a document
LARGEST = {".pdf": 300, ".docx": 100}  # millions of bytes
LARGEST_TEXT = 20  # of the other kinds, which are parsed as a whole
PAGE = 3000  # characters
FEWEST = 3  # documents: one each to train on, to watch the training, and for the final figure


@dataclass(frozen=True)
class Document:
    """A file's blocks in their order, none of them empty.

    Attributes:
        source: the file's path from the folder that was read, with forward slashes.
        title: its first heading, or what the file gives as title, or its name.
        blocks: what is in it.
        pages: of a PDF or, at 3,000 characters each, of any other file; 1 at least.
        notes: how often something was left out, such as ``pages without text``.
    """

    source: str
    title: str
    blocks: list[Block]
    pages: int = 1
    notes: dict[str, int] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """All blocks, with an empty line between them."""
        return SEPARATOR.join(block.text for block in self.blocks)


def read_folder(folder: Path, report: dict[str, Any] | None = None) -> Iterator[Document]:
    """The documents of a folder and of those below it, by name, one in memory at a time.

    A file or folder that cannot be read is passed over, and so is what begins with a dot. ``report`` gets ``files`` and
    ``other_files`` (counts by ending; others are no documents), ``pages``, ``skipped`` (a line for each
    that should have been read, with the reason and the mend) and ``left_out`` (the sum of the documents' notes).

    Raises:
        InputError: there is no document in the folder, or none that can be read.
    """
    report = {} if report is None else report
    read, others, notes = Counter[str](), Counter[str](), Counter[str]()
    skipped: list[str] = []
    report |= {"files": read, "other_files": others, "pages": 0, "skipped": skipped, "left_out": notes}
    for path in visible_files(folder, skipped):
        if path.suffix.lower() not in DOCUMENTS:
            others[path.suffix.lower() or "no ending"] += 1
            continue
        try:
            document = read_document(path, path.relative_to(folder).as_posix())
        except InputError as error:
            skipped.append(str(error).removeprefix(f"{folder}/"))
            continue
        read[path.suffix.lower()] += 1
        report["pages"] += document.pages
        notes.update(document.notes)
        yield document
    if not read:
        first = f"none of its {len(skipped)} documents can be read; {skipped[0]}" if skipped else ""
        raise InputError(f"{folder}: {first or 'no document in it (' + ', '.join(DOCUMENTS) + ')'}")


def visible_files(folder: Path, skipped: list[str] | None = None) -> list[Path]:
    """Files below a folder, sorted, and links that lead nowhere; what begins with a dot (``.git``) is left alone.

    ``skipped`` gets a line for each folder that cannot be opened.
    """
    found = list[Path]()

    def locked(error: OSError) -> None:
        if skipped is not None:
            where = Path(error.filename).relative_to(folder)
            skipped.append(f"{where}/: cannot be opened ({error.strerror}); check its permissions")

    for place, folders, names in os.walk(folder, onerror=locked):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def read_document(path: Path, source: str = "") -> Document:
    """One document; ``source`` is what it is called, its file's name when left out.

    Raises:
        InputError: its kind is not known, it is too large, empty, damaged, locked or no text, its encoding is
            unknown, or it is a scan. The line says what mends it.
    """
    ending = path.suffix.lower()
    if ending not in READERS:
        raise InputError(f"{path}: no document that can be read ({', '.join(READERS)})")
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: a link to what is not there; put that back, or remove the link")
    try:
        size, limit = path.stat().st_size, LARGEST.get(ending, LARGEST_TEXT)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    if size > limit * 1_000_000:
        raise InputError(
            f"{path}: {size / 1e6:,.0f} MB, and a {ending} of at most {limit} MB is read; split it"
        )
    if not size:
        raise InputError(f"{path}: empty; fill it or remove it")
    if ending not in LARGEST and is_binary(path):
        raise InputError(f"{path}: not text but binary; give it the ending of what it is, or remove it")
    try:
        title, blocks, extra = READERS[ending](path)
    except ModuleNotFoundError as error:
        raise InputError(
            f'{path}: {error.name} is not installed; python -m pip install "ftdocs[documents]"'
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply; save it again in a plainer form") from error
    blocks = [cleaned for block in blocks if (cleaned := clean_block(block)).text]
    if not blocks:
        raise InputError(f"{path}: no text in it; fill it or remove it")
    first = next((block.text for block in blocks if block.kind == "heading"), "")
    name = re.sub(r"[-_]+", " ", path.stem)
    pages = extra.pop("pages", 0) or max(1, -(-sum(len(block.text) for block in blocks) // PAGE))
    notes = {name: count for name, count in extra.items() if count}
    return Document(source or path.name, one_line(title or first) or name, blocks, pages, notes)


def is_binary(path: Path) -> bool:
    """Whether a file begins as no text file does: with NUL bytes, but not as UTF-16 does."""
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    return b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff"))


def read_text(path: Path) -> Read:
    """Paragraphs of a text file, which blank lines keep apart."""
    blocks, start, text = [], 1, lines_of(path)
    for part in re.split(r"(\n(?:[ \t]*\n)+)", text):
        if part.strip():
            blocks.append(Block("text", part, f"line {start}"))
        start += part.count("\n")
    return "", blocks, {}


def read_notebook(path: Path) -> Read:
    """The Markdown and the code of a Jupyter notebook; what cells have printed is left out."""
    import nbformat

    text = lines_of(path)
    try:
        notebook: Any = nbformat.reads(text, as_version=4)
        cells = [(cell["cell_type"], cell["source"], cell.get("outputs", [])) for cell in notebook["cells"]]
    except Exception as error:  # what is wrong with a notebook comes as many kinds of error
        raise InputError(f"{path}: not a notebook ({brief(error)}); save it again in Jupyter") from error
    blocks: list[Block] = []
    for number, (kind, source, _) in enumerate(cells, 1):
        if kind == "markdown":
            blocks += markdown_blocks(source, f"cell {number}")
        elif kind == "code":
            blocks.append(Block("code", source, f"cell {number}"))
    return "", blocks, {"outputs of cells": sum(len(outputs) for *_, outputs in cells)}


def brief(error: Exception) -> str:
    """The first line of a library's error, cut short."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]


def read_pdf(path: Path) -> Read:
    """A PDF's text, page by page; headings are the entries of its outline, or else lines with a number such as 2.1.

    What stands at the head or foot of most pages, such as the page's number, is left out, and a word that was
    hyphenated at the end of a line is put together. Columns and tables come as the file draws them.
    """
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is wrong with a file is said in one line
    try:
        with pypdf.PdfReader(path) as reader:
            if reader.is_encrypted and not reader.decrypt(""):
                raise InputError(f"{path}: locked by a password; save it without one")
            pages = [page.extract_text() for page in reader.pages]
            outline = outline_of(reader)
            title = str((reader.metadata or {}).get("/Title") or "")
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise InputError(
            f"{path}: a damaged PDF ({brief(error)}); save it again, or print it into a PDF"
        ) from error
    empty = sum(not page.strip() for page in pages)
    if empty == len(pages):
        raise InputError(
            f"{path}: no text in its {len(pages)} pages, so it is a scan; "
            f"recognise its text first, for example: ocrmypdf {path.name} text-{path.name}"
        )
    signs = [sign for page in pages for sign in page if not sign.isspace()]
    unknown = sum(sign == "\ufffd" or unicodedata.category(sign) in ("Co", "Cn", "Cs") for sign in signs)
    if unknown > 0.2 * len(signs):
        raise InputError(
            f"{path}: its fonts do not say which letters they draw; recognise its text first, for example: "
            f"ocrmypdf --force-ocr {path.name} text-{path.name}"
        )
    pages, running = without_running_lines(pages)
    blocks = [
        block
        for number, page in enumerate(pages, 1)
        for block in pdf_blocks(page, number, outline.get(number, {}) if outline else None)
    ]
    notes = {"pages without text": empty, "lines at the head or foot of pages": running}
    return title, blocks, {"pages": len(pages), **notes}


def outline_of(reader: Any) -> dict[int, dict[str, int]]:
    """The titles of a PDF's outline and their levels, by page; empty where it has none or it is damaged."""
    found: dict[int, dict[str, int]] = {}

    def walk(items: list[Any], level: int) -> None:
        for item in items:
            if isinstance(item, list):
                walk(item, level + 1)
            elif (number := reader.get_destination_page_number(item)) is not None:
                found.setdefault(number + 1, {})[one_line(str(item.title)).casefold()] = level

    try:
        walk(reader.outline, 1)
    except Exception:  # its text is worth reading all the same
        return {}
    return found


def without_running_lines(pages: list[str]) -> tuple[list[str], int]:
    """Pages without the first and last lines that most of them share but for numbers, and how many lines those were."""
    split = [[line for line in page.split("\n") if line.strip()] for page in pages]
    split = [lines for lines in split if len(lines) > 6]
    alike = Counter(key for lines in split for key in {line_key(line) for line in (*lines[:2], *lines[-2:])})
    running = {key for key, count in alike.items() if count >= 4 and count > 0.6 * len(split)}
    removed, kept = 0, []
    for page in pages:
        lines = page.split("\n")
        there = [place for place, line in enumerate(lines) if line.strip()]
        drop = {place for place in {*there[:2], *there[-2:]} if line_key(lines[place]) in running}
        removed += len(drop)
        kept.append("\n".join(line for place, line in enumerate(lines) if place not in drop))
    return kept, removed


def line_key(line: str) -> str:
    """A line as the heads and feet of pages share it: the numbers in it are put aside."""
    return re.sub(r"\d+", "0", one_line(line))


# A line such as `2.1 Results`, or `3 Results`: no item of a list, which has a dot, and no sentence.
NUMBERED = re.compile(
    r"(?:(\d{1,2}(?:\.\d{1,2})*)\.?|Chapter \d+:?|Appendix [A-Z]:?)[ \t]+[A-Z].{2,70}[\w?)]"
)


def pdf_blocks(page: str, number: int, titles: dict[str, int] | None) -> Iterator[Block]:
    """A page's paragraphs, which blank lines keep apart, and its headings.

    ``titles`` are those of its part of the outline; None: the PDF has none, and lines with a number are headings.
    """
    where, lines = f"page {number}", list[str]()
    for line in [*re.sub(r"(?<=[a-zà-ÿ])[-\u00ad]\n(?=[a-zà-ÿ])", "", page).split("\n"), ""]:
        level = heading_level(line.strip(), titles)
        if line.strip() and not level:
            lines.append(line.rstrip())
            continue
        if lines:
            yield Block("text", "\n".join(lines), where)
            lines.clear()
        if level:
            yield Block("heading", line, where, level=level)


def heading_level(line: str, titles: dict[str, int] | None) -> int:
    """The level of a line that is a heading, else 0."""
    if titles is not None:
        words = one_line(line).casefold()
        return titles.get(words) or titles.get(re.sub(r"^[\d.]+\s+", "", words)) or 0
    found = NUMBERED.fullmatch(line)
    if not found or ". ." in line or "..." in line or re.match(r"\d+\.\s", line):
        return 0
    return 1 + (found[1] or "").count(".")


def read_docx(path: Path) -> Read:
    """A Word document: its headings by their style, lists, tables, and paragraphs whose style is one for code."""
    import docx
    from docx.table import Table

    try:
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist() if part.filename.endswith(".xml"))
        if size > LARGEST[".docx"] * 1_000_000:
            raise InputError(f"{path}: {size / 1e6:,.0f} MB of text when unpacked; split it")
        document = docx.Document(str(path))
        names = {style.style_id: style.name for style in document.styles}
        blocks: list[Block] = []
        for number, item in enumerate(document.iter_inner_content(), 1):
            where = f"paragraph {number}"
            if isinstance(item, Table):
                blocks.append(table([[cell.text for cell in row.cells] for row in item.rows], where))
            else:
                # What `item.style` is takes a search through all styles: as long as all the rest, ten times.
                style = names.get(item.paragraph_format.element.style) or ""
                add_paragraph(blocks, item.text, style, where)
        title = document.core_properties.title
    except InputError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise InputError(
            f"{path}: a damaged Word document ({brief(error)}); save it again as .docx"
        ) from error
    return "" if title == "Word Document" else title, blocks, {}


def add_paragraph(blocks: list[Block], text: str, style: str, where: str) -> None:
    """Append a Word paragraph by its style: consecutive lines of code, or items of a list, are one block."""
    heading = re.fullmatch(r"(?:Heading (\d)|Title)", style)
    if heading:
        return blocks.append(Block("heading", text, where, level=int(heading[1] or 1)))
    kind = "code" if re.search(r"code|preformatted|macro|listing", style, re.IGNORECASE) else "text"
    is_item = style.startswith("List")
    if is_item and text.strip():
        text = f"- {text}"
    last = blocks[-1] if blocks else None
    if last and last.kind == kind and (kind == "code" or (is_item and last.text.startswith("- "))):
        blocks[-1] = Block(last.kind, f"{last.text}\n{text}", last.where)
    else:
        blocks.append(Block(kind, text, where))


READERS: dict[str, Callable[[Path], Read]] = {
    ".md": read_markdown,
    ".rst": read_rst,
    ".txt": read_text,
    ".html": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".ipynb": read_notebook,
}
