"""Whether a page's own run went through the regions of Python files that the page includes."""

import ast
from collections.abc import Iterator

from fences import Fence

# file -> line -> the cells, by execution count, that reached it
Reached = dict[str, dict[str, list[str]]]
# A page need not go wrong in every way: what refuses an input (a block that ends with `raise`) may stay unreached,
# and so may what only another device does. But of the rest of each function so much must have run:
ENOUGH = 0.8


def cells_through(fence: Fence, reached: Reached) -> tuple[list[int], str]:
    """Counts of the cells that ran what an included region shows, and how many of its statements ran and which not.

    Raises:
        LookupError: names a function of which this page's run reached too little.
    """
    lines = {int(line): counts for line, counts in reached.get(str(fence.source), {}).items()}
    bodies = list(_bodies(fence))
    if not bodies:
        raise LookupError("this page's run never reaches these lines")
    ran: set[int] = set()
    shown: set[int] = set()
    cells: set[int] = set()
    for label, statements, refusing in bodies:
        here = {first for first, span in statements.items() if lines.keys() & set(span)}
        wanted = statements.keys() - (refusing - here)
        if not here:
            raise LookupError(f"this page's run never reaches {label}")
        if len(here) < ENOUGH * len(wanted):
            left = _numbers(wanted - here)
            raise LookupError(
                f"this page's run reaches {len(here)} of {len(wanted)} lines of {label}, not {left}"
            )
        cells |= {
            int(count)
            for first in here
            for line in statements[first]
            for count in lines.get(line, [])
            if count
        }
        ran |= here
        shown |= statements.keys()
    missed = f" (all but {_numbers(shown - ran)} of {fence.source.name})" if shown - ran else ""
    return sorted(cells), f"{len(ran)} of {len(shown)} lines{missed}"


def _bodies(fence: Fence) -> Iterator[tuple[str, dict[int, range], set[int]]]:
    """Each function that a region shows: its name, the statements of its body, and which of them only refuse.

    A region without a function is one body. A function's first lines run when the file is imported; only its
    body tells that it was called.
    """
    shown = set(fence.lines)
    tree = ast.parse(fence.source.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    refusing = set(_refusing(tree))
    found = False
    for node in functions:
        statements = {line: span for part in node.body for line, span in _statements(part) if line in shown}
        if statements and node.lineno in shown:
            found = True
            yield node.name, statements, refusing & statements.keys()
    if not found and (statements := {line: span for line, span in _statements(tree) if line in shown}):
        yield f"lines {min(shown)}–{max(shown)}", statements, refusing & statements.keys()


def _statements(tree: ast.AST) -> Iterator[tuple[int, range]]:
    """First lines of the statements that can run, with all the lines on which each could be seen to."""
    for node in ast.walk(tree):
        silent = isinstance(node, ast.Global | ast.Nonlocal) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        )
        if isinstance(node, ast.stmt) and not silent:
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            yield node.lineno, range(node.lineno, max(last or 0, node.lineno) + 1)


def _refusing(tree: ast.AST) -> Iterator[int]:
    """First lines of the statements of every block that ends with ``raise``."""
    for node in ast.walk(tree):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(block, list) and block and isinstance(block[-1], ast.Raise):
                yield from (
                    each.lineno for part in block for each in ast.walk(part) if isinstance(each, ast.stmt)
                )


def _numbers(lines: set[int]) -> str:
    return ("line " if len(lines) == 1 else "lines ") + ", ".join(map(str, sorted(lines)))
