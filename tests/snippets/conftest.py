"""Sybil over the book: every fence of every page is a test, in the smallest size.

Where BOOK_BUILT says that the book has just been built in this size, pages that were run by it are not run again: on a
slow machine the time would not suffice for both (`.ci/run`).
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from sybil import Sybil

from ftdocs.hardware import give_back

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "docs" / "_ext")]

from examples import SMALL, parse  # noqa: E402
from execute import Book as Built  # noqa: E402
from fences import name, pages, read  # noqa: E402


class Book(pytest.Collector):
    """The pages, each a file of its own, so that ``--dist loadfile`` keeps a page's cells together."""

    def collect(self) -> Iterator[pytest.Collector]:
        hook = Sybil([parse], pattern="*.md", path=str(ROOT), teardown=forget).pytest()
        for page in pages(ROOT):
            if read(page, ROOT) and not was_built(page):
                yield hook(page, self)


def was_built(page: Path) -> bool:
    """Whether the build that BOOK_BUILT speaks of ran this page, in the smallest size and without a problem."""
    if os.environ.get("BOOK_BUILT") != SMALL["FTDOCS_PROFILE"]:
        return False
    run = Built(ROOT, "", "").load(name(page, ROOT))
    return run is not None and run.profile == SMALL["FTDOCS_PROFILE"] and bool(run.key)


def forget(namespace: dict[str, Any]) -> None:
    """Let go of a page's models when its last cell has run: all pages' together do not fit into memory."""
    namespace.clear()
    plt.close("all")
    gc.collect()
    give_back()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """The pages lie outside this folder: they are collected where pytest meets this file."""
    return Book.from_parent(parent, name="book") if file_path == Path(__file__) else None


@pytest.fixture(scope="session", autouse=True)
def small() -> Iterator[None]:
    """The smallest size, without progress bars, for what runs in this process too."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SMALL.items():
            patch.setenv(key, value)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many of the book's fences are exceptions."""
    fences = [fence for page in pages(ROOT) for fence in read(page, ROOT)]
    exempt = [fence for fence in fences if "exempt" in fence.marks or fence.kind == "windows"]
    if fences:
        share = len(exempt) / len(fences)
        terminalreporter.write_line(f"fences: {len(fences)}, exceptions: {len(exempt)} ({share:.1%})")
    if built := sum(was_built(page) for page in pages(ROOT)):
        terminalreporter.write_line(f"pages not run again, as the build has just run them so: {built}")
