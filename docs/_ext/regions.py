"""Whether a page's own run went through the regions of Python files that the page includes."""

import ast
from collections.abc import Iterator

from fences import Fence

# file -> line -> the cells, by execution count, that reached it
Reached = dict[str, dict[str, list[str]]]


def cells_through(fence: Fence, reached: Reached) -> tuple[list[int], str]:
    """Counts of the cells that ran the bodies of what an included region shows, and how many of its statements ran.

    Raises:
        LookupError: names a function whose body no cell ran.
    """
    lines = {int(line): counts for line, counts in reached.get(str(fence.source), {}).items()}
    bodies = list(_bodies(fence))
    missing = [label for label, body in bodies if not lines.keys() & body]
    if missing or not bodies:
        raise LookupError(f"this page's run never reaches {', '.join(missing) or 'these lines'}")
    shown = set().union(*(body for _, body in bodies))
    cells = sorted({int(count) for line in shown for count in lines.get(line, []) if count})
    return cells, f"{len(shown & lines.keys())} of {len(shown)} lines"


def _bodies(fence: Fence) -> Iterator[tuple[str, set[int]]]:
    """For each function that a region shows, its name and the lines of its body that can run.

    A region without a function is one body. A function's first lines run when the file is imported; only its
    body tells that it was called.
    """
    shown = set(fence.lines)
    tree = ast.parse(fence.source.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = False
    for node in functions:
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        inner = {
            each.lineno for statement in body for each in ast.walk(statement) if isinstance(each, ast.stmt)
        }
        if inner & shown and node.lineno in shown:
            found = True
            yield node.name, inner & shown
    if not found:
        statements = {each.lineno for each in ast.walk(tree) if isinstance(each, ast.stmt)} & shown
        if statements:
            yield f"lines {min(shown)}–{max(shown)}", statements
