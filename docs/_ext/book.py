"""The book's Sphinx extension: no page without a run, a stamp at each page's end, and what was verified.

Directives: ``{status}`` lists pages, exceptions, slowest cells and records; ``{record} NAME`` says where a
recorded run comes from.
"""

import html
import re
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from execute import Book, Checked, Run, notebook
from fences import name, pages, read
from jupyter_cache import get_cache
from pygments.lexers import BashLexer, JsonLexer, TextLexer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from verified import on_gpu

from ftdocs import records
from ftdocs.errors import InputError

# Shown in a page's stamp, where the page reaches them; the ledger has all versions.
SHOWN = ("python", "torch", "transformers", "peft", "accelerate", "datasets")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what this extension does; called by Sphinx."""
    app.add_lexer("jsonl", JsonLexer)
    app.add_lexer("dotenv", BashLexer)
    app.add_lexer("csv", TextLexer)
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", refuse_without_run)
    app.connect("doctree-read", name_files)
    app.connect("html-page-context", add_stamp)
    app.add_directive("status", Status)
    app.add_directive("record", RecordDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def run_of(docs: Path, docname: str) -> Run | None:
    """What is kept of a page's last run."""
    return Book(docs.parent, "", "").load(f"docs/{docname}")


# What Sphinx may read -----------------------------------------------------------------------------------------


def refuse_without_run(app: Sphinx, docname: str, content: list[str]) -> None:
    """Stop where myst-nb would find no run in its cache: it would execute the page itself, unseen and unchecked.

    Raises:
        ExtensionError: names the page.
    """
    path = Path(app.env.doc2path(docname))
    if app.config.nb_execution_mode != "cache" or path.suffix != ".md":
        return
    try:
        get_cache(app.config.nb_execution_cache_path).match_cache_notebook(notebook(path, []))
    except KeyError:
        raise ExtensionError(f"{docname}: not run as it stands; use python docs/_ext/build.py") from None


def outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Pages to read again though their text is the same: those that ran again, and those that show others' runs."""
    docs = Path(app.srcdir)
    before = getattr(env, "book_runs", {})
    env.book_runs = {docname: _state(docs, docname) for docname in env.found_docs}
    newer = {docname for docname, state in env.book_runs.items() if before.get(docname) != state}
    return sorted((newer | getattr(env, "book_lists", set())) & env.found_docs)


def _state(docs: Path, docname: str) -> tuple[str, str]:
    run = run_of(docs, docname)
    return (run.ran if run else "", on_gpu(docs.parent).get(f"docs/{docname}", {}).get("ran", ""))


def name_files(app: Sphinx, doctree: nodes.document) -> None:
    """Put the name above a block that the page uses as a file, which a comment says: a reader has to save it so."""
    for block in list(doctree.findall(nodes.literal_block)):
        place = block.parent.index(block)
        if place and (found := re.search(r"fence: file (\S+)", block.parent[place - 1].rawsource)):
            named = nodes.container("", classes=["literal-block-wrapper"])
            block.replace_self(named)
            words = nodes.inline("", found[1], classes=["caption-text"])
            named += [nodes.container("", words, classes=["code-block-caption"]), block]


# Stamps -------------------------------------------------------------------------------------------------------


def add_stamp(
    app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Put at a page's end when it last ran, where, with what, and for how long."""
    run = run_of(Path(app.srcdir), pagename) if doctree else None
    if run and any(fence.status == "executed" for fence in run.fences):
        context["body"] += stamp(run, on_gpu(Path(app.srcdir).parent).get(run.page))


def stamp(run: Run, gpu: dict | None) -> str:
    """A page's stamp, as HTML."""
    versions = " · ".join(
        f"{package} {run.versions[package]}" for package in SHOWN if package in run.versions
    )
    facts = [
        ("Ran", f'<time datetime="{run.ran}">{datetime.fromisoformat(run.ran):%d %B %Y, %H:%M %Z}</time>'),
        (
            "Took",
            f"{run.seconds:.1f} s" + (f", {run.peak_bytes / 1e9:.1f} GB at most" if run.peak_bytes else ""),
        ),
        ("On", html.escape(run.device)),
        ("Size", run.profile),
        ("With", html.escape(versions)),
    ]
    if run.commit:
        changed = ", with changes that are not in it" if run.modified else ""
        facts.append(("Commit", f"<code>{run.commit[:12]}</code>{changed}"))
    if run.profile != "gpu" and gpu is None:
        facts.append(("GPU", "not yet run on a GPU"))
    elif gpu:
        older = "" if gpu["code"] == run.code else ", before its last change"
        facts.append(("GPU", f"ran on {html.escape(gpu['device'])}, {gpu['ran'][:10]}{older}"))
    items = "".join(f"<div><dt>{term}</dt><dd>{text}</dd></div>" for term, text in facts)
    return f'<footer class="book-stamp" aria-label="When this page last ran"><dl>{items}</dl></footer>'


# Directives ---------------------------------------------------------------------------------------------------


class RecordDirective(SphinxDirective):
    """``{record} NAME``: a recorded run's question, command, device, date and duration, and whether it is stale."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        folder = Path(self.env.srcdir).parent / "results"
        try:
            record = records.load(self.arguments[0], folder)
        except InputError as error:
            if not records.source(self.arguments[0], folder).is_file():
                raise self.error(str(error)) from None
            text = f"**Not recorded yet:** `python -m experiments {self.arguments[0]}` makes the record."
            return [nodes.container("", *self.parse_text_to_nodes(text), classes=["book-record"])]
        self.env.note_dependency(str(folder / f"{record.name}.json"))
        self.env.note_dependency(str(records.source(record.name, folder)))
        count = len(record.seeds)
        seeds = f"{count} seed{'s' * (count > 1)}, " if count else ""
        state = {
            "stale": " **Stale:** its code has changed since.",
            "confirmed": " Code that it reaches has changed since; one case of it, run again"
            f" {(record.confirmed or {}).get('date', '')[:10]}, came out as recorded.",
        }.get(record.state, "")
        text = (
            f"**Recorded run** `{record.command}`: {len(record.rows)} cases, {seeds}{duration(record.seconds)} on "
            f"{record.device}, {record.date[:10]}, commit `{(record.commit or 'unknown')[:12]}`.{state}"
        )
        box = nodes.container("", *self.parse_text_to_nodes(text), classes=["book-record"])
        return [box]


def duration(seconds: float) -> str:
    """``95 s``; from an hour on ``1.2 h``."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


class Status(SphinxDirective):
    """``{status}``: every page with its run, fences by status, exceptions, the slowest cells, and the records.

    With ``:summary:`` only the first line, and when and on what the pages ran.
    """

    option_spec: ClassVar = {"summary": directives.flag}

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir).parent
        listing = getattr(self.env, "book_lists", set())
        self.env.book_lists = listing | {self.env.docname}
        runs = [run for path in pages(root) if (run := Book(root, "", "").load(name(path, root)))]
        summary, *sections = status(root, runs)
        if "summary" in self.options:
            dates = sorted(run.ran[:10] for run in runs)
            when = f" Run on {dates[-1]} on {runs[-1].device}." if dates else ""
            return self.parse_text_to_nodes(summary + when)
        boxes = [
            nodes.container("", *self.parse_text_to_nodes(part), classes=["book-status"])
            for part in sections[1::2]
        ]
        found = self.parse_text_to_nodes(summary)
        for title, box in zip(sections[::2], boxes, strict=True):
            section = nodes.section("", nodes.title("", title), box, ids=[nodes.make_id(title)])
            self.state.document.note_explicit_target(section)
            found.append(section)
        return found


def status(root: Path, runs: list[Run]) -> list[str]:
    """The status page as Markdown: a summary, then titles and tables in turn."""
    runs = [run for run in runs if run.fences]  # pages of prose have nothing to verify
    fences = [fence for run in runs for fence in run.fences]
    kinds = ("executed", "validated", "output", "exempt")
    exempt = [fence for fence in fences if fence.status == "exempt"]
    slowest = sorted((f for f in fences if f.status == "executed"), key=lambda f: -(f.seconds or 0))[:10]
    return [
        f"{len(fences)} blocks on {len(runs)} pages: "
        + ", ".join(f"{_count(fences, kind)} {kind}" for kind in kinds)
        + ".",
        "Pages",
        _table(
            ("Page", "Blocks", "Seconds", "GB", "Size", "Ran"),
            [
                (
                    _link(run.page),
                    ", ".join(f"{n} {kind}" for kind in kinds if (n := _count(run.fences, kind))),
                    f"{run.seconds:.1f}",
                    f"{run.peak_bytes / 1e9:.1f}" if run.peak_bytes else "",
                    run.profile,
                    run.ran[:10],
                )
                for run in runs
            ],
        ),
        "Where the code of a page lives",
        _table(
            ("Page", "Files that it prints from"),
            [(_link(run.page), found) for run in runs if (found := _sources(root, run.page))],
        ),
        "Slowest blocks",
        _table(
            ("Page", "Line", "Seconds"), [(_link(f.page), f.line, f"{f.seconds or 0:.1f}") for f in slowest]
        ),
        "Exceptions",
        _table(
            ("Page", "Line", "Language", "Reason"),
            [(_link(f.page), f.line, f.language, f.reason) for f in exempt],
        ),
        "Recorded runs",
        _table(("Record", "State", "Took", "Device", "Date"), _records(root / "results")),
    ]


def _count(fences: list[Checked], kind: str) -> int:
    return sum(fence.status == kind for fence in fences)


def _sources(root: Path, page: str) -> str:
    """The files of which a page prints functions or parts."""
    regions = [fence.source for fence in read(root / f"{page}.md", root) if fence.kind == "region"]
    inside = {path.resolve().relative_to(root.resolve()).as_posix() for path in regions if path}
    return ", ".join(f"`{path}`" for path in sorted(inside))


def _records(folder: Path) -> list[tuple]:
    rows = []
    for each in records.names(folder):
        state = records.state(each, folder)
        record = records.load(each, folder) if state not in ("missing", "partial") else None
        known = (duration(record.seconds), record.device, record.date[:10]) if record else ("", "", "")
        rows.append((f"`{each}`", state, *known))
    return rows


def _table(head: tuple, rows: list[tuple]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _link(page: str) -> str:
    return f"{{doc}}`/{page.removeprefix('docs/')}`" if page.startswith("docs/") else f"`{page}.md`"
