"""Recorded runs: what takes too long for a page is run once, by a command that anyone can repeat, and kept.

An experiment is a file ``experiments/NAME.py``: a docstring (the question, and what is held fixed), ``SEEDS``,
``cases() -> list[dict]``, ``run(case) -> dict`` of flat numbers, and ``TOLERANCE``, the relative difference that
a repetition may show, by column; where it trains by a recipe, ``recipe(case) -> Recipe``, so that the record keeps
what it was resolved to. ``python -m experiments NAME`` makes ``results/NAME.json``.
"""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from ftdocs import files, hardware
from ftdocs.errors import InputError
from ftdocs.fingerprint import code_fingerprint, imports, meaning, reached

RESULTS = Path("results")


@dataclass(frozen=True)
class Record:
    """A finished experiment.

    Attributes:
        name: the experiment's file, without ``.py``.
        question: its docstring.
        command: what makes it again.
        seeds: seeds that its cases use.
        rows: one a case: the case's settings, what ``run`` gave, and its ``seconds``.
        tolerance: by column, the relative difference that a repetition may show; other columns are exact.
        date: when it was finished, with its zone.
        seconds: of all its cases.
        commit: the repository's commit, if known.
        device: in words.
        versions: of Python and of the packages that matter.
        fingerprint: of the experiment and of what it reaches.
        recipe: of the first case, as it was resolved; None where the experiment has none.
        confirmed: of the last :func:`confirm`, if there was one: ``fingerprint``, ``commit``, ``date``, ``device`` and
            the ``case`` that was run again.
    """

    name: str
    question: str
    command: str
    seeds: list[int]
    rows: list[dict[str, Any]]
    tolerance: dict[str, float]
    date: str
    seconds: float
    commit: str | None
    device: str
    versions: dict[str, str]
    fingerprint: str
    recipe: str | None = None
    confirmed: dict[str, Any] | None = None
    folder: Path = RESULTS

    @property
    def state(self) -> str:
        """``fresh``; ``confirmed``: code that it reaches has changed, and one case came out the same; or ``stale``."""
        now = fingerprint(source(self.name, self.folder))
        if now == self.fingerprint:
            return "fresh"
        return "confirmed" if self.confirmed and now == self.confirmed["fingerprint"] else "stale"


def load(name: str, folder: Path | str = RESULTS) -> Record:
    """Read ``results/NAME.json``.

    Raises:
        InputError: there is no such record.
    """
    path = Path(folder) / f"{name}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such record; `python -m experiments {name}` makes it") from None
    return Record(**kept, folder=Path(folder))


def source(name: str, folder: Path = RESULTS) -> Path:
    """The experiment's file: in ``experiments`` beside the folder of results."""
    return Path(folder).resolve().parent / "experiments" / f"{name}.py"


def names(folder: Path = RESULTS) -> list[str]:
    """Every experiment there is."""
    return sorted(path.stem for path in source("x", folder).parent.glob("[!_]*.py"))


def state(name: str, folder: Path = RESULTS) -> str:
    """:attr:`Record.state`, or ``missing``, or ``partial``: begun, and not finished."""
    if (Path(folder) / f"{name}.json").is_file():
        return load(name, folder).state
    return "partial" if (Path(folder) / f"{name}.partial.json").is_file() else "missing"


def fingerprint(experiment: Path) -> str:
    """A digest of what an experiment depends on: its code, the modules that it reaches, the recipes that it names."""
    if not experiment.is_file():
        return ""
    own = _with_others(experiment)
    recipes = [files.sha256(path) for each in own for path in _recipes(each)]
    return hashlib.sha256("\0".join([code_fingerprint(*own), *recipes]).encode()).hexdigest()


def _with_others(experiment: Path) -> list[Path]:
    """An experiment's file, and those of the experiments that it is made of."""
    found: list[Path] = []
    waiting = [experiment]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.append(path)
        named = (name.split(".") for name in imports(path.read_text(encoding="utf-8")))
        others = (
            experiment.with_name(f"{parts[1]}.py")
            for parts in named
            if parts[0] == experiment.parent.name and parts[1:]
        )
        waiting += [path for path in others if path.is_file()]
    return found


def _recipes(experiment: Path) -> list[Path]:
    """Recipes of the repository that an experiment names."""
    named = re.findall(r"recipes/[\w.-]+\.yaml", experiment.read_text(encoding="utf-8"))
    paths = (experiment.parents[1] / name for name in sorted(set(named)))
    return [path for path in paths if path.is_file()]


def make(name: str, folder: Path = RESULTS, progress: Callable[[str], None] = print) -> Record:
    """Run an experiment case by case, each kept as soon as it is done, and write its record.

    A killed one goes on where it stopped, as long as its code, this device and the versions are the same.

    Raises:
        InputError: there is no such experiment, or what it reaches is not committed.
    """
    module = experiment(name, folder)
    _refuse_uncommitted(name, folder)
    partial = Path(folder) / f"{name}.partial.json"
    origin = {
        "fingerprint": fingerprint(source(name, folder)),
        "device": hardware.device_name(),
        "versions": hardware.versions(),
    }
    done = json.loads(partial.read_text(encoding="utf-8")) if partial.is_file() else {}
    rows = done["rows"] if done.get("origin") == origin else []
    cases = module.cases()
    for number, case in enumerate(cases, 1):
        if number <= len(rows):
            continue
        started = time.monotonic()
        rows.append({**case, **module.run(case), "seconds": round(time.monotonic() - started, 2)})
        files.write_atomic(partial, json.dumps({"origin": origin, "rows": rows}))
        progress(f"{name} {number}/{len(cases)}: {rows[-1]}")
    record = Record(
        name=name,
        question=(module.__doc__ or "").strip(),
        command=f"python -m experiments {name}",
        seeds=list(module.SEEDS),
        rows=rows,
        tolerance=dict(module.TOLERANCE),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds=round(sum(row["seconds"] for row in rows), 1),
        commit=_commit(folder),
        device=hardware.device_name(),
        versions=hardware.versions(),
        fingerprint=origin["fingerprint"],
        recipe=_without_place(module.recipe(cases[0]).to_yaml(), folder)
        if hasattr(module, "recipe")
        else None,
        folder=Path(folder),
    )
    _write(record)
    partial.unlink(missing_ok=True)
    return record


def _write(record: Record) -> None:
    kept = {
        key: value
        for key, value in asdict(record).items()
        if key != "folder" and not (key == "confirmed" and value is None)
    }
    files.write_atomic(record.folder / f"{record.name}.json", json.dumps(kept, indent=1) + "\n")


def check(name: str, folder: Path | str = RESULTS, row: int | None = None) -> dict[str, Any]:
    """Run one case of a record again and compare it with what is stored.

    On another device than the record's, columns of seconds (``…seconds``) are not compared: it takes its own time.

    Args:
        row: which row, from 0; the one that took the least time when left out.

    Returns: the new row.

    Raises:
        AssertionError: a column differs by more than the experiment's tolerance.
    """
    record = load(name, Path(folder))
    kept = record.rows[row] if row is not None else min(record.rows, key=lambda each: each["seconds"])
    module = experiment(name, Path(folder))
    case = next(case for case in module.cases() if case.items() <= kept.items())
    again = module.run(case)
    elsewhere = record.device != hardware.device_name()
    for column, value in again.items():
        if elsewhere and column.endswith("seconds"):
            continue
        allowed = record.tolerance.get(column, 0.0) * abs(kept[column])
        assert abs(value - kept[column]) <= allowed, (
            f"{name}, {case}: {column} is {value:.6g} now, {kept[column]:.6g} in the record; allowed ± {allowed:.3g}"
        )
    return {**case, **again}


def confirm(name: str, folder: Path | str = RESULTS) -> Record:
    """:func:`check` a record whose code has changed since it was made; it is no longer stale if it holds.

    One case is not all of them: the record keeps its date and its commit, and says which case was run again, and when.

    Raises:
        AssertionError: the case did not come out as recorded.
        InputError: the experiment itself or its recipe has changed, so that there is nothing to compare; or code that
            is not committed.
    """
    record, path = load(name, folder), source(name, Path(folder))
    _refuse_uncommitted(name, Path(folder))
    root = path.parents[1]
    made_at = _known_commit(record)
    for own in (path, *_recipes(path)):
        before = _git(root, "show", f"{made_at}:{own.relative_to(root).as_posix()}")
        if before is None or _changed(before, own):
            raise InputError(f"{own.relative_to(root)}: not as in the record's commit: make the record anew")
    case = check(name, folder)
    now = {
        "fingerprint": fingerprint(path),
        "commit": _commit(Path(folder)),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": hardware.device_name(),
        "case": case,
    }
    record = replace(record, confirmed=now)
    _write(record)
    return record


def _known_commit(record: Record) -> str | None:
    """The record's commit, or, where history was written anew and has it no more, the one that brought the record."""
    root = record.folder.resolve().parent
    if record.commit and _git(root, "cat-file", "-e", f"{record.commit}^{{commit}}") is not None:
        return record.commit
    brought = _git(
        root, "log", "--format=%H", "-S", record.date, "--", str(record.folder / f"{record.name}.json")
    )
    return brought.split()[-1] if brought else None


def experiment(name: str, folder: Path = RESULTS) -> ModuleType:
    """The experiment as a module.

    Raises:
        InputError: there is no such file.
    """
    path = source(name, folder)
    if not path.is_file():
        known = ", ".join(names(folder)) or "none yet"
        raise InputError(f"experiments/{name}.py: no such experiment; there is {known}")
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that what it defines can be pickled to other processes
    spec.loader.exec_module(module)
    return module


def _changed(before: str, path: Path) -> bool:
    """Whether a file differs from an earlier text of it; of Python, in more than comments and layout."""
    now = path.read_text(encoding="utf-8")
    return meaning(before) != meaning(now) if path.suffix == ".py" else before != now


def _refuse_uncommitted(name: str, folder: Path) -> None:
    if changed := _uncommitted(source(name, folder)):
        raise InputError(
            f"{changed[0]}: changed since the last commit, which the record would name: commit it first"
        )


def _without_place(text: str, folder: Path) -> str:
    """The text with paths that begin at the repository, wherever it lies."""
    return text.replace(f"{Path(folder).resolve().parent}/", "")


def _commit(folder: Path) -> str | None:
    return (_git(Path(folder).resolve().parent, "rev-parse", "HEAD") or "").strip() or None


def _uncommitted(experiment: Path) -> list[str]:
    """Of the files that an experiment reaches, those that git does not have as they are; none without git."""
    root = experiment.parents[1]
    own = [
        path
        for path in (*_with_others(experiment), *reached(*_with_others(experiment)), *_recipes(experiment))
        if path.is_relative_to(root)
    ]
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *map(str, own)) or ""
    return [line[3:] for line in changed.splitlines()]


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no repository."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None
