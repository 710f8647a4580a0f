"""Every fence of every page: where it stands, what it is, and what its author says about it.

A fence is any fenced block, ``{code-cell}``, ``{code-block}`` or ``{literalinclude}``, in tabs, lists and
dropdowns too. Its language says how it is checked (``checks.py``). What is unusual stands in an HTML comment
on the line before the fence, which neither GitHub nor the book shows:

``<!-- fence: output -->``
    What the block before prints; compared with a fresh run. ``…`` stands for any text within a line, a line
    that is only ``…`` for any lines. ``output within 20%``: numbers may differ by so much.
``<!-- fence: file faq.jsonl -->``
    Written to that file in the page's folder, where later blocks find it; one of them must name it.
``<!-- fence: reads pyproject -->``
    What loads this block: one of ``checks.READERS``, or ``module:callable``, which gets the mapping as keywords.
    YAML with ``model:`` and ``data:`` is a recipe without saying so.
``<!-- fence: validated by COMMAND -->``
    Do not run the block; run COMMAND, which must succeed. ``validated by options``: every option in the
    block, and there must be one, has to be known to its tool's own ``--help``.
``<!-- fence: exits 2 -->``
    A shell block that must end with this code.
``<!-- fence: raises InputError: unknown key -->``
    Needed by a cell tagged ``raises-exception``: its error's name and how its message begins.
``<!-- fence: exempt, REASON -->``
    Not checked; listed with its reason.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from sphinx.pycode import ModuleAnalyzer

# The syntax that pages may use; docs/conf.py takes it from here, so that the book and its checks read alike.
EXTENSIONS = ("attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist", "tasklist")

VERBS = ("exempt", "output", "file", "reads", "validated by", "exits", "raises")
MARK = re.compile(r"<!--\s*fence:\s*(.*?)\s*-->", re.DOTALL)
VERB = re.compile(rf"({'|'.join(VERBS)})(?:[,:]?\s+(.*))?", re.DOTALL)

KINDS = {
    "python": "python py python3",
    "shell": "bash sh shell zsh",
    "console": "console shell-session",
    "windows": "powershell pwsh ps1 bat batch cmd",
    "config": "yaml yml json jsonl csv toml ini dotenv",
    "text": "text txt none output",
    "page": "markdown md myst",
}
LANGUAGES = {alias: kind for kind, aliases in KINDS.items() for alias in aliases.split()}
SUFFIXES = {"py": "python", "yml": "yaml", "sh": "bash", "md": "markdown", "env": "dotenv"}

CODE = {"code", "code-block", "sourcecode", "code-cell", "literalinclude"}
# Not code: mathematics, diagrams, pictures, tables of contents, what other extensions generate.
OTHER = {
    *(
        "math",
        "mermaid",
        "graphviz",
        "digraph",
        "graph",
        "toctree",
        "contents",
        "image",
        "csv-table",
    ),
    *(
        "glue",
        "glue:any",
        "glue:text",
        "glue:math",
        "glue:md",
        "status",
        "record",
        "calculator",
        "autofunction",
        "autoclass",
    ),
    *("automodule", "autosummary", "currentmodule", "module", "index", "bibliography"),
}
# Code, or with `include` whole pages, that would be shown without anything that could check it.
REFUSED = {
    "include",
    "eval-rst",
    "parsed-literal",
    "doctest",
    "prompt",
    "raw",
    "raw-cell",
    "ipython",
    "testcode",
    "highlight",
}


@dataclass(frozen=True)
class Fence:
    """One fence of a page.

    Attributes:
        page: path from the repository's root, without ``.md``.
        line: line of the page on which it opens, from 1.
        language: as written; "" where there is none.
        kind: "cell", "region" (an included part of a Python file), "output", or a key of ``KINDS``.
        content: the code; for an included file, the lines that are shown.
        options: a directive's options.
        marks: what its author says about it, by verb.
        source: the included file; None otherwise.
        lines: the lines of ``source`` that are shown, from 1.
        problem: why it cannot be checked; "" if it can.
    """

    page: str
    line: int
    language: str
    kind: str
    content: str
    options: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    source: Path | None = None
    lines: tuple[int, ...] = ()
    problem: str = ""

    @property
    def tags(self) -> list[str]:
        return re.findall(r"[\w-]+", self.options.get("tags", ""))

    @property
    def runs(self) -> bool:
        """Whether it is Python that a kernel runs."""
        return self.kind == "cell" or (self.kind == "python" and not self.marks)


@cache
def parser() -> MarkdownIt:
    """The parser of the book's pages, down to blocks; a fence never stands within a line."""
    return create_md_parser(
        MdParserConfig(enable_extensions=set(EXTENSIONS), disable_syntax=["inline"]), RendererHTML
    )


def pages(root: Path) -> list[Path]:
    """Every file whose fences count: the book's pages, and the Markdown files at the repository's root."""
    book = [path for path in (root / "docs").rglob("*.md") if not any(part[0] in "_." for part in path.parts)]
    return sorted(book) + sorted(root.glob("*.md"))


def name(path: Path, root: Path) -> str:
    """The page's name in the ledger: its path from the root without ``.md``."""
    return path.relative_to(root).with_suffix("").as_posix()


def read(path: Path, root: Path) -> list[Fence]:
    """The fences of a page, in order."""
    return list(_walk(path.read_text(encoding="utf-8"), 0, path, name(path, root), top=True))


def _walk(text: str, above: int, path: Path, page: str, top: bool) -> Iterator[Fence]:
    """Fences of a text that begins after ``above`` lines of its page; ``top`` if no directive is around it."""
    comments: list[str] = []
    tokens = parser().parse(text)
    depth = 0
    for token in tokens:
        depth += token.nesting
        line = above + (token.map[0] if token.map else 0) + 1
        if token.type == "html_block":
            comments += MARK.findall(token.content)
            if re.search(r"<(pre|code)\b", token.content):
                yield Fence(page, line, "", "html", token.content, problem="code in raw HTML; use a fence")
            continue
        if token.type in ("fence", "colon_fence"):
            yield from _fence(
                token.info.strip(), token.content, line, path, page, comments, top and depth == 0
            )
        elif token.type == "code_block":
            yield Fence(page, line, "", "indented", token.content, problem="an indented block; use a fence")
        elif comments and token.nesting >= 0:
            yield Fence(page, line - 1, "", "comment", "", problem=f"no fence follows: {comments[-1]}")
        comments = []


def _fence(
    info: str, body: str, line: int, path: Path, page: str, comments: list[str], top: bool
) -> Iterator[Fence]:
    directive = re.fullmatch(r"\{([^}]*)\}\s*(.*)", info)
    if not directive:
        problem = "" if re.fullmatch(r"[\w+-]*", info) else f"write the language alone, not `{info}`"
        yield _judged(
            Fence(page, line, info, LANGUAGES.get(info, "unlisted"), body, problem=problem), comments
        )
    elif directive[1] in REFUSED:
        yield Fence(
            page, line, directive[1], "refused", body, problem=f"{{{directive[1]}}} cannot be checked"
        )
    elif directive[1] in CODE:
        options, body = _options(body)
        fence = Fence(page, line, directive[2], LANGUAGES.get(directive[2], "unlisted"), body, options)
        if directive[1] == "literalinclude":
            fence = _included(fence, (path.parent / directive[2]).resolve())
        elif directive[1] == "code-cell":
            wrong = "" if directive[2] == "python" else "write {code-cell} python"
            wrong = wrong if top else "a cell inside another block never runs; move it out"
            fence = replace(fence, kind="cell", problem=wrong)
        yield _judged(fence, comments)
    elif directive[1] not in OTHER:
        yield from _walk(body, line, path, page, top=False)


def _included(fence: Fence, source: Path) -> Fence:
    language = fence.options.get("language") or SUFFIXES.get(source.suffix[1:], source.suffix[1:])
    kind = "region" if language == "python" else LANGUAGES.get(language, "unlisted")
    fence = replace(fence, language=language, kind=kind, source=source)
    try:
        lines = included(source, fence.options)
        text = source.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        return replace(fence, problem=f"cannot include {source.name}: {error}")
    return replace(fence, lines=lines, content="".join(text[number - 1] + "\n" for number in lines))


def _judged(fence: Fence, comments: list[str]) -> Fence:
    """The fence with its author's marks, and with what is wrong with it if nothing could check it."""
    marks, problem = _marks(comments)
    told = marks.keys() & {"exempt", "file", "reads", "validated by"}
    if "output" in marks:
        fence = replace(fence, kind="output")
    elif fence.kind in ("unlisted", "text") and not told:
        problem = problem or f"nothing says how a `{fence.language or 'plain'}` block is checked; mark it"
    elif fence.kind == "python" and fence.page.startswith("docs/") and not told:
        problem = problem or "make it a {code-cell} python, which runs"
    if fence.kind in ("cell", "python") and re.search(r"^\s*[!%]", fence.content, re.MULTILINE):
        problem = problem or "IPython's ! and % do not run as plain Python"
    if ("raises" in marks) != ("raises-exception" in fence.tags):
        problem = (
            problem
            or "a cell that must fail needs the tag raises-exception and the mark `raises NAME: MESSAGE`"
        )
    return replace(fence, marks=marks, problem=fence.problem or problem)


def _marks(comments: list[str]) -> tuple[dict[str, str], str]:
    marks, problem = {}, ""
    for comment in comments:
        found = VERB.fullmatch(comment)
        if not found:
            problem = f"unknown mark `{comment}`; one of {', '.join(VERBS)}"
        elif found[1] != "output" and not (found[2] or "").strip():
            problem = f"`{found[1]}` says nothing after it"
        else:
            marks[found[1]] = (found[2] or "").strip()
    return marks, problem


def _options(body: str) -> tuple[dict[str, str], str]:
    """A directive's options and the body below them, in either spelling: ``:key: value`` or between ``---``."""
    lines = body.splitlines(keepends=True)
    options: dict[str, str] = {}
    fenced = bool(lines) and lines[0].strip() == "---"
    if fenced:
        lines.pop(0)
    form = re.compile(r"([\w-]+):\s*(.*)" if fenced else r":([\w-]+):\s*(.*)")
    while lines and (found := form.fullmatch(lines[0].strip())):
        options[found[1]] = found[2]
        lines.pop(0)
    if fenced and lines and lines[0].strip() == "---":
        lines.pop(0)
    return options, "".join(lines).lstrip("\n")


def included(source: Path, options: dict[str, str]) -> tuple[int, ...]:
    """The lines, from 1, that a ``{literalinclude}`` with these options shows.

    Raises:
        ValueError: an option names something that is not there, or is one that is not supported here.
    """
    known = {"language", "caption", "name", "class", "linenos", "lineno-match", "emphasize-lines", "dedent"}
    chosen = {"pyobject", "lines", "start-after", "start-at", "end-before", "end-at"}
    if unknown := options.keys() - known - chosen:
        raise ValueError(f"option {sorted(unknown)[0]} is not supported")
    text = source.read_text(encoding="utf-8").splitlines()
    first, last = 1, len(text)
    if "pyobject" in options:
        tags = ModuleAnalyzer.for_file(source, "").find_tags()
        if options["pyobject"] not in tags:
            raise ValueError(f"no object {options['pyobject']}")
        _, first, last = tags[options["pyobject"]]

    def find(key: str, start: int) -> int:
        for number in range(start, last + 1):
            if options[key] in text[number - 1]:
                return number
        raise ValueError(f"{key}: no line has `{options[key]}`")

    if key := next((key for key in ("start-after", "start-at") if key in options), None):
        first = find(key, first) + (key == "start-after")
    if key := next((key for key in ("end-before", "end-at") if key in options), None):
        last = find(key, first) - (key == "end-before")
    numbers = range(first, last + 1)
    if "lines" not in options:
        return tuple(numbers)
    shown = []
    for part in options["lines"].split(","):
        low, _, high = part.strip().partition("-")
        shown += numbers[int(low or 1) - 1 : int(high or len(numbers)) if "-" in part else int(low)]
    return tuple(shown)
