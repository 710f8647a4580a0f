"""A run on disk: what was asked for, where it ran, how it went, and the weights; found again by fingerprint."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock

from ftdocs import assets, files, hardware, processes
from ftdocs.errors import InputError
from ftdocs.fingerprint import code_fingerprint
from ftdocs.recipe import Recipe

# What a run's folder holds. `result.json` is written last: a folder with it is a finished run.
RECIPE, ENVIRONMENT, METRICS, SPLITS, RESULT, CARD = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "splits.json",
    "result.json",
    "README.md",
)
# Keys that do not change the trained weights, so that a run is reused whatever they are.
IRRELEVANT = {"train": {"save_every", "report_to"}, "data": {"path", "name"}}
# How a step is carried out: its rows spread, whose number is what the weights depend on, and activations kept or not.
SPREAD = ("batch_size", "accumulation", "processes", "checkpointing")

FEW = 30  # held-out rows: with fewer, one answer more or less is over three points of accuracy

State = Literal["new", "unfinished", "finished"]


@dataclass(frozen=True)
class Result:
    """What ``ftdocs train --json`` prints.

    Attributes:
        run: the run's folder.
        steps: optimiser steps done.
        train_tokens: tokens that went through the model in training; padding is not counted.
        train_seconds: seconds of training and of writing checkpoints; validations are left out.
        loss: mean training loss of the last tenth of the steps, in nats per token (labels: per row).
    """

    run: Path
    steps: int
    train_tokens: int
    train_seconds: float
    loss: float


def fingerprint(recipe: Recipe, data_file: Path) -> dict[str, str]:
    """What the outcome of a run depends on, part by part: recipe, model, data, code, versions, device and spread.

    A step's rows are ``batch_size`` × ``accumulation`` × processes. Their number is a part of the recipe. How they are
    spread changes the rounding, and which numbers dropout draws: a run may be resumed with another spread, say by one
    process and twice the accumulation, but a finished one is not reused, since it also says how fast it was.
    """
    kept = relevant(recipe)
    rest = {key: value for key, value in kept["train"].items() if key not in SPREAD}
    return {
        "recipe": _digest({**kept, "train": {**rest, "rows_per_step": rows_per_step(recipe)}}),
        "spread": _digest([kept["train"][key] for key in SPREAD]),
        "model": folder_fingerprint(assets.model_path(recipe.model)),
        "data": data_fingerprint(data_file),
        "code": code_fingerprint("ftdocs.train"),
        "versions": _digest(hardware.versions()),
        "device": hardware.device_name(),
    }


def rows_per_step(recipe: Recipe, count: int | None = None) -> int:
    """Rows of an optimiser step, over all micro-batches of all processes: ``count``, or as many as there are."""
    return recipe.train.batch_size * recipe.train.accumulation * (count or processes.count())


def relevant(recipe: Recipe, count: int | None = None) -> dict[str, dict[str, Any]]:
    """The sections of a recipe without what changes no weights, and without the model, a part of its own.

    ``train`` has the number of processes too: ``count``, or as many as there are.
    """
    whole = dict.fromkeys(("profiles", "model", "search"), True)
    kept = recipe.model_dump(mode="json", exclude={**whole, **IRRELEVANT})
    return {**kept, "train": {**kept["train"], "processes": count or processes.count()}}


def folder_fingerprint(folder: Path) -> str:
    """A digest of a folder's files, their names and contents."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return _digest([[str(path.relative_to(folder)), files.sha256(path)] for path in paths])


def data_fingerprint(data: Path) -> str:
    """A digest of a data file or folder."""
    return folder_fingerprint(data) if data.is_dir() else files.sha256(data)


def check_data(folder: Path, data_file: Path) -> None:
    """Refuse a finished run whose data file or folder is not what it was trained on.

    Raises:
        InputError: names the run.
    """
    if data_fingerprint(data_file) != read_prints(folder)["data"]:
        raise InputError(
            f"{folder}: its data has changed since the training, so its test rows may have been trained on;"
            " restore the data, or train again"
        )


def check_model(folder: Path, name: str) -> None:
    """Refuse a finished run whose base model, by its recipe's name for it, is not the one that was tuned.

    Raises:
        InputError: names both.
    """
    if folder_fingerprint(assets.model_path(name)) != read_prints(folder)["model"]:
        raise InputError(
            f"{folder}: its base model {name} is not the one that was tuned; restore it"
            " (is FTDOCS_SOURCE another one?), or train again"
        )


def read_prints(folder: Path) -> dict[str, str]:
    """The fingerprint of a run, part by part, as it was when it was trained."""
    prints: dict[str, str] = files.read_kept(folder / ENVIRONMENT, "fingerprint")["fingerprint"]
    return prints


def weights(folder: Path) -> Path:
    """Where a finished run keeps what it has trained: its ``adapter``, else its whole ``model``."""
    return folder / ("adapter" if (folder / "adapter").is_dir() else "model")


def stored(prints: dict[str, str]) -> Path:
    """The folder for a run that nobody named: by fingerprint, under ``$FTDOCS_RUNS`` or the cache folder."""
    root = Path(os.environ.get("FTDOCS_RUNS") or files.home() / "runs")
    return root / _digest(prints)[:16]


def state(folder: Path) -> State:
    """Whether ``folder`` is free, holds a run that did not reach its end, or a finished one.

    Raises:
        InputError: it holds something that is not a run.
    """
    if not folder.exists():
        return "new"
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another --output")
    if (folder / RESULT).is_file():
        return "finished"
    if (folder / ENVIRONMENT).is_file():
        return "unfinished"
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and not a run; choose another --output")
    return "new"


def check_same(folder: Path, recipe: Recipe, prints: dict[str, str], resume: bool = False) -> None:
    """Refuse to reuse or resume a run of something else.

    A run may be resumed on another machine or with newer versions; it is reused only where they are the same.

    Raises:
        InputError: names the parts that differ, and of the recipe its keys.
    """
    environment = files.read_kept(folder / ENVIRONMENT, "fingerprint")
    before = environment["fingerprint"]
    matter = {"recipe", "model", "data"} if resume else set(prints)
    differing = [part for part in prints if part in matter and before.get(part) != prints[part]]
    if "recipe" in differing and "spread" in differing:
        differing.remove("spread")  # its keys are named with the recipe's
    count = environment.get("processes", 1)
    then = rows_per_step(read_recipe(folder), count)
    changed = changes(read_recipe(folder), recipe, count, spread=not resume)
    if not changed and then == rows_per_step(recipe):  # a newer version knows a key more, and it is not set
        differing = [part for part in differing if part not in ("recipe", "spread")]
    if resume and differing == ["recipe"] and not changed:
        raise InputError(
            f"{folder}: its steps have {then} rows (train.batch_size × train.accumulation × processes), these would"
            f" have {rows_per_step(recipe)}; start {count} process{'es' * (count > 1)} as before, or set"
            f" train.accumulation so that it stays {then}"
        )
    if differing:
        size = "a smoke run (profile smoke)" if environment.get("profile") == "smoke" else "a run"
        parts = ", ".join(
            f"recipe ({changes(read_recipe(folder), recipe, count)})"
            if part in ("recipe", "spread")
            else {"data": "state of the data"}.get(part, part)
            for part in differing
        )
        raise InputError(
            f"{folder}: holds {size} of another {parts}; choose another --output, or remove the folder"
        )


def changes(before: Recipe, now: Recipe, count: int, spread: bool = True) -> str:
    """The first three keys in which two recipes differ, with both values, and how many more there are.

    ``count`` processes trained by the earlier one. Without ``spread``, what spreads a step's rows is left out.
    """
    old, new = relevant(before, count), relevant(now)
    differing = [
        f"{section}.{key}: {_shown(old[section][key])} there, {_shown(value)} now"
        for section, keys in new.items()
        for key, value in keys.items()
        if old[section][key] != value and (spread or key not in SPREAD)
    ]
    more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
    return "; ".join(differing[:3] + more)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(json.dumps(value, ensure_ascii=False))


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep ``folder`` for this process alone, or for those that train one model together.

    Raises:
        InputError: another process is writing to it; or it cannot be made.
    """
    mine = filelock.FileLock(folder / ".lock", timeout=0)

    def take() -> None:
        with files.explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                mine.acquire()
            except filelock.Timeout:
                raise InputError(
                    f"{folder}: another process is writing this run; wait, or choose another --output"
                ) from None

        for left_behind in folder.glob(f".*{files.WRITING}"):  # by a process that was killed
            left_behind.unlink()

    processes.from_main(take)
    try:
        yield
    finally:
        if processes.is_main() and [path.name for path in folder.iterdir()] == [".lock"]:
            shutil.rmtree(folder)  # nothing was begun, so nothing is left behind
        mine.release()


def start(folder: Path, recipe: Recipe, prints: dict[str, str]) -> None:
    """Write down what is about to run, and where: ``recipe.yaml`` and ``environment.json``."""
    environment = here(recipe, prints)
    files.write_atomic(
        folder / ENVIRONMENT, json.dumps(environment, indent=1) + "\n"
    )  # first: it says "a run"
    files.write_atomic(folder / RECIPE, recipe.kept_in(folder).to_yaml())
    files.write_atomic(folder / METRICS, "")


def here(recipe: Recipe, prints: dict[str, str]) -> dict[str, Any]:
    """What ``environment.json`` says: when, on what device, with which versions and weights."""
    made_from = assets.model_path(recipe.model) / "source.json"
    source = json.loads(made_from.read_text()) if made_from.is_file() else {}
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": hardware.device_name(),
        "processes": processes.count(),
        "profile": hardware.profile(),
        "versions": hardware.versions(),
        "model_source": {
            key: source[key] for key in ("source", "id", "commit", "converted") if key in source
        },
        "fingerprint": prints,
    }


def go_on(folder: Path, recipe: Recipe, prints: dict[str, str]) -> None:
    """Write down that the run is resumed, maybe elsewhere: the newest facts, and those from before."""
    before = files.read_kept(folder / ENVIRONMENT)
    earlier = [*before.pop("resumed_from", []), before]
    content = {**here(recipe, prints), "resumed_from": earlier}
    files.write_atomic(folder / ENVIRONMENT, json.dumps(content, indent=1) + "\n")
    files.write_atomic(folder / RECIPE, recipe.kept_in(folder).to_yaml())  # the spread may be another one


def finish(folder: Path, result: Result) -> None:
    """Write ``result.json``, which marks the run as finished."""
    content = {key: value for key, value in asdict(result).items() if key != "run"}
    files.write_atomic(folder / RESULT, json.dumps(content, indent=1) + "\n")


def read_result(folder: Path) -> Result:
    """The result of the finished run in ``folder``.

    Raises:
        InputError: there is no finished run.
    """
    if folder.is_file() or (folder.suffix in (".yaml", ".yml") and not folder.exists()):
        made = Path("runs") / folder.stem
        mend = f"did you mean {made}?" if made.is_dir() else "`ftdocs train RECIPE.yaml` makes one"
        raise InputError(f"{folder}: a run's folder is wanted, not a file; {mend}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run; `ftdocs train RECIPE.yaml` makes one")
    if state(folder) != "finished":
        raise InputError(
            f"{folder}: this run has not finished; go on with"
            f" `ftdocs train {folder / RECIPE} --output {folder} --resume`"
        )
    keys = [each.name for each in fields(Result) if each.name != "run"]
    kept = files.read_kept(folder / RESULT, *keys)
    return Result(run=folder, **{key: kept[key] for key in keys})


def rough(count: int, split: str) -> str:
    """A warning that figures come from few held-out rows, else ""."""
    return f"only {count} {split} row{'s' * (count != 1)}: the figures are rough" if count < FEW else ""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``: training rows with ``loss``, evaluation rows with ``eval_loss``, by step.

    A last line that a killed process left unfinished is skipped.
    """
    rows = []
    for line in (folder / METRICS).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def kept(validations: list[dict[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The validation of the weights that a run keeps: of early stopping the one of lowest loss, else the last."""
    if not recipe.train.patience:
        return validations[-1]
    return min((row for row in validations if row["step"]), key=lambda row: row["eval_loss"])


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe that the run in ``folder`` was made with."""
    return Recipe.load(folder / RECIPE, environment=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
