"""Run the pages: every fence of a page in order, Python cells in one kernel, the rest in the page's folder.

A page is run when something that it reaches has changed: its own fences, the modules of the package that they
import, the versions of the packages that those import, files of the repository that it names, the device, the
profile, the settings in ``FTDOCS_…`` variables. Otherwise what is stored of its last run stands. Sphinx then finds
each notebook, outputs included, in a jupyter-cache that is made of exactly the pages' current runs.
"""

import ast
import getpass
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path

import nbformat
from checks import CheckFailed, Outcome, Sandbox, check, environment, finish
from fences import EXTENSIONS, Fence, name, read
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from kernels import can_fork, forking_manager
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from regions import Reached, cells_through

from ftdocs import files
from ftdocs.fingerprint import distributions, imports, reached, requirements

HERE = Path(__file__).parent
CELL_TIMEOUT = 600  # seconds
LONGEST = 4000  # characters of a printed text that are kept as figures
LEAKS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)


@dataclass
class Checked:
    """What became of one fence in the run that is shown; a line of the ledger."""

    page: str
    line: int
    language: str
    status: str
    seconds: float | None = None
    reason: str | None = None
    problem: str | None = None


@dataclass
class Run:
    """What is kept of a page's last run. ``key`` is empty when the run failed."""

    page: str
    key: str
    code: str
    ran: str
    commit: str | None
    device: str
    profile: str
    versions: dict[str, str]
    seconds: float
    wall: float
    peak_bytes: int
    fences: list[Checked] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    modified: bool = False  # the files were not as in ``commit``

    @property
    def problems(self) -> list[Checked]:
        return [fence for fence in self.fences if fence.problem]


@dataclass(frozen=True)
class Book:
    """Where a book's pages and the traces of its runs are, and where and in what size it runs."""

    root: Path
    profile: str
    device: str

    @property
    def build(self) -> Path:
        return self.root / "docs" / "_build"

    @property
    def package(self) -> Path:
        return self.root / "ftdocs"

    def stored(self, page: str, suffix: str) -> Path:
        return self.build / "pages" / f"{page.replace('/', '-')}{suffix}"

    def load(self, page: str) -> Run | None:
        try:
            kept = json.loads(self.stored(page, ".json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Run(**{**kept, "fences": [Checked(**fence) for fence in kept["fences"]]})

    @cached_property
    def commit(self) -> str | None:
        command = ["git", "-C", str(self.root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    @cached_property
    def modified(self) -> bool:
        """Whether any file but the results differs from the commit; False where git knows nothing of the book."""
        command = ["git", "-C", str(self.root), "status", "--porcelain", "--", ".", ":(exclude)results"]
        return bool(subprocess.run(command, capture_output=True, text=True).stdout.strip())


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


# What a page depends on -----------------------------------------------------------------------------------------


def notebook(path: Path, fences: list[Fence]) -> NotebookNode:
    """A page as a notebook, read as myst-nb reads it; a page that is none gets its Python blocks as cells."""
    text = path.read_text(encoding="utf-8")
    config = MdParserConfig(enable_extensions=set(EXTENSIONS))
    if reader := create_nb_reader(str(path), config, NbParserConfig(), text):
        nb = reader.read(text)
        nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
        return nb
    cells = [fence for fence in fences if fence.runs]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.content) for cell in cells])
    book.metadata["source_map"] = [fence.line for fence in cells]
    return book


def sources(book: Book, fences: list[Fence]) -> tuple[str, set[str]]:
    """The Python that a page runs, as one source, and the distributions whose programs its shell blocks call."""
    python = "\n".join(fence.content for fence in fences if fence.runs)
    scripts = {script.name: script for script in entry_points(group="console_scripts")}
    tools = set()
    for fence in fences:
        if fence.kind in ("shell", "console"):
            words = set(re.findall(r"[\w.-]+", fence.content + fence.marks.get("validated by", "")))
            python += "".join(
                f"\nimport {book.package.name}.cli" for word in words if word == book.package.name
            )
            tools |= {scripts[word].dist.name for word in words & scripts.keys() if scripts[word].dist}
    try:
        ast.parse(python)
    except SyntaxError:  # a cell meant to fail, or broken: it may reach anything
        python = "".join(
            f"import {'.'.join(p.relative_to(book.root).with_suffix('').parts)}\n"
            for p in book.package.rglob("*.py")
        )
    return python, tools - {book.package.name}


def dependencies(
    book: Book, path: Path, fences: list[Fence], cells: list[NotebookNode]
) -> tuple[str, str, dict[str, str]]:
    """A page's key, the part of it that is the same on every machine, and the versions that it reaches."""
    python, tools = sources(book, fences)
    roots = [module for module in imports(python) if module.split(".")[0] == book.package.name]
    # The sources to the letter, comments too: pages print them, and which lines were reached is kept by number.
    texts = [python, *(file.read_text(encoding="utf-8") for file in reached(*roots, package=book.package))]
    versions = {**distributions(texts), **requirements({"ipykernel", "bash", *tools})}
    named = sorted(_named_files(book.root, fences))
    own = {
        "fences": [[f.kind, f.language, f.line, f.content, f.options, f.marks, f.lines] for f in fences],
        "cells": [[cell.source, cell.metadata] for cell in cells],
        "files": {str(file): files.sha256(book.root / file) for file in named},
        "code": texts[1:],
    }
    machinery = [
        files.sha256(path)
        for path in (
            HERE / "checks.py",
            HERE / "kernels.py",
            HERE / "regions.py",
            HERE / "matplotlibrc",
            *sorted(HERE.rglob("ipython/**/*.py")),
        )
    ]
    here = {
        **own,
        "versions": versions,
        "device": book.device,
        "profile": book.profile,
        "settings": settings(),
        "machinery": machinery,
    }
    return _digest(here), _digest(own), versions


def settings() -> dict[str, str]:
    """Variables by which a reader changes recipes and sources; no secret, no place, not the profile, which is known."""
    others = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|^FTDOCS_(HOME|RUNS|PROFILE)$")
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("FTDOCS_") and not others.search(name)
    }


def _named_files(root: Path, fences: list[Fence]) -> Iterator[str]:
    """Files of the repository that a page's blocks name, as a path or as a record's name."""
    for fence in fences:
        for word in re.findall(r"[\w.-]+(?:/[\w.-]+)*", fence.content):
            for candidate in (word, f"results/{word}.json"):
                if ("." in word or "/" not in word) and (root / candidate).is_file():
                    yield candidate


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# Running a page ---------------------------------------------------------------------------------------------------


def run_page(book: Book, path: Path, threads: int | None = None) -> Run:
    """Run every fence of a page, and keep what came of it beside the notebook with its outputs.

    Args:
        threads: of each process that the page starts, where another page runs beside it.
    """
    page = name(path, book.root)
    fences = read(path, book.root)
    nb = notebook(path, fences)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    key, code, versions = dependencies(book, path, fences, cells)
    kept = book.load(page)
    if kept and kept.key == key and book.stored(page, ".ipynb").is_file():
        return kept
    folder = book.build / "work" / page
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for shared in ("recipes", "results", "benchmarks"):
        if (book.root / shared).is_dir():
            (folder / shared).symlink_to(book.root / shared)
    started = time.monotonic()
    report = book.stored(page, ".reached")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    env = environment(book.profile, book.build / "runs")
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    kernel = _kernel_environment(book, fences, report)
    # A page that runs alone measures time or memory: its process begins with nothing, as a reader's does.
    forked = set(versions) if threads and can_fork() else None
    checked = _run_fences(fences, nb, Sandbox(folder, env), kernel, forked)
    seen = json.loads(report.read_text()) if report.is_file() else {"peak_bytes": 0, "reached": {}}
    if len(checked) == len(fences):  # else a cell has failed, and what came after it never ran
        _judge_regions(fences, checked, seen["reached"])
        _judge_outputs(book, nb, checked)
    failed = any(each.problem for each in checked)
    run = Run(
        page=page,
        key="" if failed else key,
        code=code,
        ran=now(),
        commit=book.commit,
        device=book.device,
        profile=book.profile,
        versions={"python": platform.python_version(), **versions},
        seconds=round(
            sum(c.seconds or 0 for f, c in zip(fences, checked, strict=False) if f.kind != "region"), 2
        ),
        wall=round(time.monotonic() - started, 2),
        peak_bytes=seen["peak_bytes"],
        fences=checked,
        figures={} if failed else dict(_figures(nb)),
        modified=book.modified,
    )
    files.write_atomic(book.stored(page, ".ipynb"), nbformat.writes(nb))
    files.write_atomic(book.stored(page, ".json"), json.dumps(asdict(run), indent=1))
    return run


def _kernel_environment(book: Book, fences: list[Fence], report: Path) -> dict[str, str]:
    ipython = book.build / "ipython"  # a copy: IPython writes beside its configuration
    shutil.copytree(HERE / "ipython", ipython, dirs_exist_ok=True)
    traced = {str(fence.source) for fence in fences if fence.kind == "region" and fence.source}
    return {
        "IPYTHONDIR": str(ipython),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses ipywidgets, though its bars are off
        "MATPLOTLIBRC": str(HERE / "matplotlibrc"),
        "BOOK_REPORT": str(report),
        "BOOK_TRACE": os.pathsep.join(sorted(traced)),
    }


def _run_fences(
    fences: list[Fence],
    nb: NotebookNode,
    sandbox: Sandbox,
    kernel: dict[str, str],
    forked: set[str] | None,
) -> list[Checked]:
    """Run a page's fences in order; after a Python cell that failed, no further one.

    Args:
        forked: for a kernel that is forked from one that knows these distributions; None to start Python anew.
    """
    client = NotebookClient(
        nb,
        timeout=CELL_TIMEOUT,
        record_timing=False,  # it would go into cell metadata, which the cache's keys are made of
        kernel_name="python3",
        resources={"metadata": {"path": str(sandbox.folder)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning that loopback is not encrypted
    )
    if forked is not None:
        client.km = forking_manager(forked)
    cells = {nb.metadata["source_map"][i]: i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"}
    checked: list[Checked] = []
    with client.setup_kernel(env={**sandbox.env, **kernel}) if cells else nullcontext():
        for fence in fences:
            entry = Checked(fence.page, fence.line, fence.language, "executed")
            checked.append(entry)
            started = time.monotonic()
            try:
                if fence.line in cells:
                    outcome = _cell(client, fence, cells[fence.line], sandbox)
                elif fence.kind != "region" or fence.marks or fence.problem:
                    outcome = check(fence, sandbox)
                else:  # judged when all cells have run
                    outcome = Outcome("executed")
                entry.status, entry.reason = outcome.status, outcome.reason
            except CheckFailed as error:
                entry.problem = str(error)
            entry.seconds = None if entry.status == "exempt" else round(time.monotonic() - started, 3)
            if entry.problem and fence.runs:
                return checked
    try:
        finish(sandbox)
    except CheckFailed as error:
        checked[-1].problem = checked[-1].problem or str(error)
    return checked


def _cell(client: NotebookClient, fence: Fence, index: int, sandbox: Sandbox) -> Outcome:
    if fence.problem:
        raise CheckFailed(fence.problem)
    sandbox.keep_promises(fence)
    cell = client.nb.cells[index]
    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        raise CheckFailed(re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)) from None
    except CellTimeoutError:
        raise CheckFailed(f"did not end within {CELL_TIMEOUT} s") from None
    except DeadKernelError:
        raise CheckFailed("the kernel died; out of memory?") from None
    for output in cell.outputs:
        if output.output_type == "error":  # meant; its frames and words name files of this machine
            output.evalue = _within_package(output.evalue)
            output.traceback = [_within_package(line) for line in output.traceback]
    sandbox.output = printed(cell)
    wanted = fence.marks.get("raises")
    if wanted is None:
        return Outcome("executed")
    errors = [f"{output.ename}: {output.evalue}" for output in cell.outputs if output.output_type == "error"]
    if not errors or not errors[0].startswith(wanted):
        raise CheckFailed(
            f"was to raise `{wanted}`, but {'raised ' + errors[0] if errors else 'raised nothing'}"
        )
    return Outcome("executed", f"raises {wanted}, as meant")


def _within_package(text: str) -> str:
    """The text with paths of files that begin at their package."""
    return re.sub(r"/\S*/(?=site-packages/|ftdocs/)", "", text)


def printed(cell: NotebookNode) -> str:
    """What a reader sees under a cell as text."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}\n")
        else:
            texts.append(output.data.get("text/plain", "") + "\n")
    return "".join(texts)


def _figures(nb: NotebookNode) -> Iterator[tuple[str, str]]:
    """By the line of its cell in the page, each printed text that has a figure in it."""
    for cell, line in zip(nb.cells, nb.metadata["source_map"], strict=True):
        if cell.cell_type == "code" and re.search(r"\d", text := printed(cell)):
            yield f"line {line}", text[:LONGEST]


def _leak(book: Book, outputs: list[NotebookNode]) -> str:
    """What of this machine or of its secrets stands in a cell's outputs; "" if nothing."""
    text = json.dumps(outputs)
    if LEAKS.search(text):
        return "something like an access token"
    for variable, value in os.environ.items():
        if re.search(r"TOKEN|SECRET|PASSWORD|API_KEY", variable) and len(value) >= 8 and value in text:
            return f"the value of ${variable}"
    places = {
        "the home folder": Path.home(),
        "the repository's folder": book.root,
        "Python's folder": Path(sys.prefix),
    }
    for what, place in places.items():
        found = re.search(rf".{{0,40}}{re.escape(str(place))}(?![\w-]).{{0,40}}", text)
        if found and len(str(place)) > 1:
            return f"{what}: …{found[0]}…"
    user = getpass.getuser()
    if user != "root" and re.search(rf"\b{re.escape(user)}\b", text):
        return "the user's name"
    return ""


def _judge_outputs(book: Book, nb: NotebookNode, checked: list[Checked]) -> None:
    """Refuse outputs that would publish something of this machine or its owner."""
    of_line = {each.line: each for each in checked}
    for cell, line in zip(nb.cells, nb.metadata["source_map"], strict=True):
        if cell.cell_type == "code" and (leak := _leak(book, cell.outputs)):
            of_line[line].problem = f"the output holds {leak}"


def _judge_regions(fences: list[Fence], checked: list[Checked], reached: Reached) -> None:
    """Say of each included region which cells ran through it, and how long those took."""
    ran = [entry for fence, entry in zip(fences, checked, strict=False) if fence.runs]
    for fence, entry in zip(fences, checked, strict=False):
        if fence.kind == "region" and entry.status == "executed" and not entry.problem:
            try:
                counts, share = cells_through(fence, reached)
            except LookupError as error:
                entry.problem = str(error)
                continue
            used = [ran[count - 1] for count in counts]
            entry.seconds = round(sum(each.seconds or 0 for each in used), 3)
            entry.reason = (
                f"{share} reached by the cells at lines {', '.join(str(each.line) for each in used)}"
            )


# What Sphinx reads ------------------------------------------------------------------------------------------------


def fill_cache(book: Book, runs: list[Run]) -> None:
    """Make the jupyter-cache anew from the pages' current runs, so that it holds nothing stale."""
    folder = book.build / "jupyter_cache"
    shutil.rmtree(folder, ignore_errors=True)
    cache = get_cache(str(folder))
    _ = cache.db  # makes the database, before anybody reads it
    for run in runs:
        nb = nbformat.read(book.stored(run.page, ".ipynb"), as_version=4)
        bundle = CacheBundleIn(nb, f"{run.page}.md", data={"execution_seconds": run.seconds})
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
