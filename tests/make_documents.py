"""Documents of every kind, written by the programs' own writers, for the tests."""

import json
from pathlib import Path

QUESTION = "How is the pump cleaned?"
ANSWER = "Take off the lid, rinse the pump with warm water and let it dry for an hour."
CODE = "def clean(pump):\n    pump.open()\n\n    return pump.rinse()"
TABLE = [["option", "description"], ["speed", "how fast the pump turns, in rounds a minute"]]


def markdown(path: Path) -> None:
    rows = "\n".join(f"| {' | '.join(row)} |" for row in [TABLE[0], ["---", "---"], TABLE[1]])
    path.write_text(
        f"# Pump\n\n## {QUESTION}\n\n{ANSWER}\n\n```python\n{CODE}\n```\n\n## Options\n\n{rows}\n", "utf-8"
    )


def rst(path: Path) -> None:
    indented = "\n".join(f"   {line}".rstrip() for line in CODE.split("\n"))
    width = max(len(cell) for row in TABLE for cell in row)
    rule = f"{'=' * width}  {'=' * width}"
    rows = "\n".join("  ".join(cell.ljust(width) for cell in row) for row in TABLE)
    head, _, rest = rows.partition("\n")
    path.write_text(
        f"Pump\n====\n\n{QUESTION}\n{'-' * len(QUESTION)}\n\n{ANSWER}\n\n.. code-block:: python\n\n{indented}\n\n"
        f"Options\n-------\n\n{rule}\n{head}\n{rule}\n{rest}\n{rule}\n",
        "utf-8",
    )


def text(path: Path) -> None:
    path.write_text(f"Pump\n\nQ: {QUESTION}\nA: {ANSWER}\n", "utf-8")


def html(path: Path) -> None:
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in TABLE)
    path.write_text(
        f"<html><head><title>x</title><script>var hidden = 1</script></head><body><nav>Home</nav><main><h1>Pump</h1>"
        f"<h2>{QUESTION}</h2><p>{ANSWER}</p><pre>{CODE}</pre><h2>Options</h2><table>{rows}</table></main></body></html>",
        "utf-8",
    )


def pdf(path: Path, pages: list[str] | None = None, header: str = "") -> None:
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    pages = pages or [f"1 Pump\n1.1 {QUESTION}\n{ANSWER.replace(' with ', chr(10) + 'with ')}"]
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(path) as file:
        for number, page in enumerate(pages, 1):
            figure = Figure(figsize=(8.27, 11.69))
            for place, line in enumerate([*([header] * bool(header)), *page.split("\n")]):
                figure.text(0.1, 0.95 - 0.02 * place, line, fontsize=9)
            if header:
                figure.text(0.5, 0.03, f"page {number} of {len(pages)}", fontsize=9)
            file.savefig(figure)


def scan(path: Path) -> None:
    """A PDF with an image and no text, as a scanner makes it."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (600, 800), 255)
    ImageDraw.Draw(image).text((50, 50), ANSWER, fill=0)
    image.save(path)


def docx(path: Path) -> None:
    import docx as word

    document = word.Document()
    document.add_heading("Pump", 1)
    document.add_heading(QUESTION, 2)
    document.add_paragraph(ANSWER)
    document.styles.add_style("Source Code", 1)
    for line in CODE.split("\n"):
        document.add_paragraph(line, style="Source Code")
    document.add_heading("Options", 2)
    table = document.add_table(len(TABLE), 2)
    for row, cells in enumerate(TABLE):
        for column, cell in enumerate(cells):
            table.cell(row, column).text = cell
    document.save(str(path))


def notebook(path: Path) -> None:
    import nbformat

    rows = "\n".join(f"| {' | '.join(row)} |" for row in [TABLE[0], ["---", "---"], TABLE[1]])
    cells = [
        nbformat.v4.new_markdown_cell(f"# Pump\n\n## {QUESTION}\n\n{ANSWER}"),
        nbformat.v4.new_code_cell(CODE, outputs=[nbformat.v4.new_output("stream", text="printed by a cell")]),
        nbformat.v4.new_markdown_cell(f"## Options\n\n{rows}"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


WRITERS = {
    "pump.md": markdown,
    "pump.rst": rst,
    "pump.txt": text,
    "pump.html": html,
    "pump.pdf": pdf,
    "pump.docx": docx,
    "pump.ipynb": notebook,
}

THINGS = "pump valve hose filter lamp motor switch sensor battery cable wheel brake fan heater tank".split()


def manual(folder: Path, documents: int = 12) -> Path:
    """A folder of different Markdown documents, each with a few questions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, thing in enumerate(THINGS[:documents]):
        parts = [
            f"# The {thing}\n\nThe {thing} is part number {number} and does what a {thing} is for, day and night."
        ]
        for verb in ("clean", "mount", "order", "test", "store"):
            parts.append(
                f"## How do I {verb} the {thing}?\n\nTo {verb} the {thing} take tool {number}, "
                f"open the {THINGS[number - 3]} cover first and {verb} it slowly, as page {number * 7} shows."
            )
        (folder / f"{thing}.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    return folder


def bad(folder: Path) -> dict[str, str]:
    """A document of every kind that cannot be read, and words of the line that says so."""
    (folder / "binary.md").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "latin.txt").write_bytes("Größe und Maß".encode("latin-1"))
    (folder / "wide.txt").write_bytes("Größe".encode("utf-16"))
    (folder / "empty.md").touch()
    (folder / "blank.rst").write_text(" \n\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\nrubbish")
    (folder / "broken.docx").write_bytes(b"PK\x03\x04rubbish")
    (folder / "broken.ipynb").write_text('{"cells": 3')
    (folder / "cells.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": "none"}))
    (folder / "code.html").write_bytes(b'<meta charset="utf-8"><p>\xff\xfe</p>')
    scan(folder / "scan.pdf")
    with open(folder / "huge.txt", "wb") as file:
        file.truncate(500_000_000)
    with open(folder / "huge.pdf", "wb") as file:
        file.truncate(500_000_000)
    return {
        "binary.md": "not text but binary",
        "latin.txt": "line 1: not UTF-8 .* convert it: iconv -f cp1252",
        "wide.txt": "UTF-16, not UTF-8; convert it: iconv",
        "empty.md": "empty; fill it or remove it",
        "blank.rst": "no text in it; fill it or remove it",
        "broken.pdf": "a damaged PDF .*; save it again",
        "broken.docx": "a damaged Word document .*; save it again as .docx",
        "broken.ipynb": "not a notebook .*; save it again in Jupyter",
        "cells.ipynb": "not a notebook .*; save it again in Jupyter",
        "code.html": "not in the encoding that it names, utf-8; save it as UTF-8",
        "scan.pdf": "no text in its 1 pages, so it is a scan; .*ocrmypdf scan.pdf text-scan.pdf",
        "huge.txt": "500 MB, and a .txt of at most 20 MB is read; split it",
        "huge.pdf": "500 MB, and a .pdf of at most 300 MB is read; split it",
    }
