"""How fast are documents prepared, and how much memory does it take, for a folder and for one four times as large?

    python benchmarks/documents.py [--pages 1000] [--rounds 3]

Documentation of installed packages is written as documents of about ten pages (3,000 characters each), as many of each
kind, no text twice. Each measurement is a process of its own that does what ``ftdocs new`` and ``ftdocs train`` do
before a tokenizer is needed: read, clean, find documents that are nearly the same, personal data and licences, cut into
chunks, make questions, remove duplicates, split. Printed are seconds by the clock and of the processor, pages a second,
the largest memory of the process, and how much of it came after the libraries were loaded; then how many pages of each
kind are read in a second.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PAGE = 3000  # characters
LENGTH = 10  # pages of a document
TIMES = 4
KINDS = (".md", ".rst", ".txt", ".html", ".pdf", ".docx", ".ipynb")


def documents(pages: int) -> Iterator[list[str]]:
    """Paragraphs of one document after the other, in an order that is random but always the same."""
    from ftdocs import assets
    from ftdocs.data.read import read_rows

    texts = [row["text"] for row in read_rows(assets.data_path("docstrings"))]
    random.Random(0).shuffle(texts)
    found, size, written = list[str](), 0, 0
    for text in texts:
        found.append(text)
        size += len(text)
        if size >= PAGE * LENGTH:
            written += LENGTH
            yield found
            found, size = [], 0
            if written >= pages:
                return
    sys.exit(f"--pages {pages // TIMES}: there is text for {written // TIMES} only")


def write(path: Path, parts: list[str]) -> None:
    """A document with a heading before each part."""
    titles = [f"Part {number}: {part.split(maxsplit=1)[0]}" for number, part in enumerate(parts, 1)]
    pairs = list(zip(titles, parts, strict=True))
    if path.suffix == ".md":
        path.write_text("".join(f"## {title}\n\n{part}\n\n" for title, part in pairs), "utf-8")
    elif path.suffix == ".rst":
        path.write_text("".join(f"{title}\n{'=' * 80}\n\n{part}\n\n" for title, part in pairs), "utf-8")
    elif path.suffix == ".txt":
        path.write_text("".join(f"{title}\n\n{part}\n\n" for title, part in pairs), "utf-8")
    elif path.suffix == ".html":
        from html import escape

        body = "".join(
            f"<h2>{escape(title)}</h2>" + "".join(f"<p>{escape(words)}</p>" for words in part.split("\n\n"))
            for title, part in pairs
        )
        path.write_text(f"<html><body><main>{body}</main></body></html>", "utf-8")
    elif path.suffix == ".pdf":
        write_pdf(path, "\n\n".join(f"{title}\n\n{part}" for title, part in pairs))
    elif path.suffix == ".docx":
        import docx

        document = docx.Document()
        for title, part in pairs:
            document.add_heading(title, 2)
            for words in part.split("\n\n"):
                document.add_paragraph("".join(sign for sign in words if sign.isprintable() or sign == "\n"))
        document.save(str(path))
    else:
        import nbformat

        cells = [nbformat.v4.new_markdown_cell(f"## {title}\n\n{part}") for title, part in pairs]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def write_pdf(path: Path, text: str) -> None:
    """Pages of 60 lines."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    lines = [line[:110].replace("$", "\\$") for line in text.split("\n") if line.isascii()]
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(path) as file:
        for start in range(0, len(lines), 60):
            figure = Figure(figsize=(8.27, 11.69))
            for place, line in enumerate(lines[start : start + 60]):
                figure.text(0.06, 0.96 - 0.015 * place, line, fontsize=7)
            file.savefig(figure)


def peak() -> int:
    """The largest memory of this process until now, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(where: Path, format: str) -> dict[str, float]:
    """Prepare a folder once, in this process."""
    import datasketch  # noqa: F401, loaded before the clock starts, as is what the first document of a kind needs

    from ftdocs.data import folder  # noqa: F401
    from ftdocs.data.documents import read_document
    from ftdocs.data.prepare import load_splits
    from ftdocs.recipe import Data

    for kind in KINDS:
        read_document(next(where.glob(f"*{kind}")))
    loaded, start, begun = peak(), time.perf_counter(), time.process_time()
    splits = load_splits(Data(path=where, format=format))
    seconds, busy = time.perf_counter() - start, time.process_time() - begun
    found = {"seconds": seconds, "cpu_seconds": busy, "peak_bytes": peak(), "loaded_bytes": loaded}
    return found | {name: splits.report[name] for name in ("pages", "rows", "chunks")}


def rate(folder: Path, kind: str) -> dict[str, float]:
    """Read the documents of one kind, in this process."""
    from ftdocs.data.documents import read_document

    paths = sorted(folder.glob(f"*{kind}"))
    read_document(paths[0])
    start = time.process_time()
    pages = sum(read_document(path).pages for path in paths)
    return {"pages": pages, "cpu_seconds": time.process_time() - start}


def child(*arguments: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--one", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Write the documents, measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, what = Path(options.one[0]), options.one[1]
        print(json.dumps(rate(folder, what) if what in KINDS else measure(folder, what)))
        return
    sizes = (options.pages, options.pages * TIMES)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as parent:
        for size in sizes:
            folder = Path(parent, str(size))
            folder.mkdir()
            for number, parts in enumerate(documents(size)):
                write(folder / f"{number:04}{KINDS[number % len(KINDS)]}", parts)
        print("| format | pages | rows | seconds | CPU seconds | pages/s | GB | GB after loading |")
        print("|" + " --- |" * 8)
        for format in ("messages", "text"):
            for size in sizes:
                runs = [child(str(Path(parent, str(size))), format) for _ in range(options.rounds)]
                seconds, busy = (
                    statistics.median(run[name] for run in runs) for name in ("seconds", "cpu_seconds")
                )
                most = max(run["peak_bytes"] for run in runs) / 1e9
                more = max(run["peak_bytes"] - run["loaded_bytes"] for run in runs) / 1e9
                pages, rows = runs[0]["pages"], runs[0]["rows"]
                print(
                    f"| {format} | {pages:.0f} | {rows:.0f} | {seconds:.1f} | {busy:.1f} | {pages / seconds:.0f} "
                    f"| {most:.2f} | {more:.2f} |",
                    flush=True,
                )
        print("\n| kind | pages | pages a CPU second |\n| --- | --- | --- |")
        for kind in KINDS:
            found = child(str(Path(parent, str(sizes[0]))), kind)
            print(
                f"| {kind} | {found['pages']:.0f} | {found['pages'] / found['cpu_seconds']:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
