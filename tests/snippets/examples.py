"""What Sybil does with a fence of the book: run it in the smallest size, or check it as the build does.

The fences come from the book's own reader, so that a test and the build never differ about what a page holds;
``test_complete.py`` proves against a second, independent reading that it misses none.
"""

import ast
import atexit
import contextlib
import io
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from IPython.lib.pretty import pretty
from sybil import Document, Example, Region

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from checks import QUIET, CheckFailed, Sandbox, check, environment  # noqa: E402
from fences import Fence, read  # noqa: E402

WORK = Path(tempfile.mkdtemp(prefix="snippets-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
ENV = environment("smoke", WORK / "runs")
SMALL = {**QUIET, "MPLBACKEND": "agg", "FTDOCS_PROFILE": "smoke", "FTDOCS_RUNS": str(WORK / "runs")}
sandboxes: dict[str, Sandbox] = {}


def parse(document: Document) -> Iterator[Region]:
    """Every fence of a page as a Sybil region."""
    path = Path(document.path)
    starts = [0]
    for line in document.text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for fence in read(path, ROOT):
        yield Region(starts[fence.line - 1], starts[fence.line], parsed=fence, evaluator=evaluate)


def evaluate(example: Example) -> str | None:
    """Run or check one fence; what is wrong with it, if anything."""
    fence: Fence = example.parsed
    if fence.page not in sandboxes:
        sandboxes[fence.page] = sandbox(fence.page)
    place = sandboxes[fence.page]
    try:
        if fence.problem:
            raise CheckFailed(fence.problem)
        if fence.runs:
            run_python(fence, example, place)
        elif fence.kind == "region" and not fence.marks:
            compile(textwrap.dedent(fence.content), str(fence.source), "exec")
        else:
            check(fence, place)
    except CheckFailed as problem:
        return str(problem)
    return None


def sandbox(page: str) -> Sandbox:
    folder = WORK / page
    folder.mkdir(parents=True)
    for shared in ("recipes", "results", "benchmarks"):
        if (ROOT / shared).is_dir():
            (folder / shared).symlink_to(ROOT / shared)
    return Sandbox(folder, ENV)


def run_python(fence: Fence, example: Example, place: Sandbox) -> None:
    """Run a cell as plain Python in its page's namespace, showing a last expression as a notebook would."""
    namespace = example.namespace
    namespace["__name__"] = "__main__"
    tree = ast.parse("\n" * fence.line + fence.content, example.path)
    shown = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not fence.content.rstrip().endswith(";"):
        shown = ast.Expression(tree.body.pop().value)
    printed = io.StringIO()
    wanted, raised = fence.marks.get("raises"), None
    with contextlib.chdir(place.folder), contextlib.redirect_stdout(printed):
        try:
            exec(compile(tree, example.path, "exec"), namespace)
            value = eval(compile(shown, example.path, "eval"), namespace) if shown else None
            if value is not None:
                print(pretty(value))
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
            if wanted is None:
                raise
    if wanted is not None and not (raised or "").startswith(wanted):
        raise CheckFailed(f"was to raise `{wanted}`, but raised {raised or 'nothing'}")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    place.output = printed.getvalue()
