"""What was meant: the run, the model or the recipe that is nearest to a path that is none."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from ftdocs import assets, runs
from ftdocs.errors import InputError
from ftdocs.recipe import environment_overrides


def check_run(folder: Path) -> None:
    """Refuse what holds no run. A file in its place is left to :func:`ftdocs.runs.read_result`.

    Raises:
        InputError: names the nearest run that there is.
    """
    if is_run(folder) or folder.is_file() or (folder.suffix in (".yaml", ".yml") and not folder.exists()):
        return
    near = nearest_run(folder)
    mend = f"did you mean {near}?" if near else "`ftdocs train RECIPE.yaml` makes one"
    raise InputError(f"{folder}: {'is not a run' if folder.exists() else 'no such run'}; {mend}")


def check_model(given: Path) -> None:
    """Refuse what is neither a run, nor a folder with a model, nor the name of one; whether it fits is not looked at.

    Raises:
        InputError: names the nearest run or model that there is.
    """
    names = [asset.name for asset in assets.catalogue() if asset.kind == "model"]
    if (given / "config.json").is_file() or (str(given) in names and not given.exists()):
        return
    like = nearest(str(given), names)
    if like and not given.exists() and not nearest_run(given):
        raise InputError(f"{given}: no such run or model; did you mean {like}?")
    check_run(given)


def check_recipe(path: Path) -> None:
    """Refuse a folder in a recipe's place, and a recipe that is not there where another one has almost its name.

    Raises:
        InputError: names the nearest recipe that there is.
    """
    if path.exists() and not path.is_dir():
        return
    inside, beside = recipes_in(path), recipes_in(path.parent)
    like = nearest(path.name if path.is_dir() else path.stem, [each.stem for each in beside])
    near = next((each for each in beside if each.stem == like), None)
    if path.is_dir():
        near = near or (inside[0] if len(inside) == 1 else None)
        mend = f"did you mean {near}?" if near else f"`ftdocs new {path}` writes one for the data in it"
        if len(inside) > 1 and not near:
            mend = "give one of the files inside it"
        raise InputError(f"{path}: is a folder, not a recipe; {mend}")
    if near:
        raise InputError(f"{path}: no such recipe; did you mean {near}?")


def origin_of(key: str, recipe: Path, overrides: list[str]) -> str:
    """Where a key of a recipe has its value from, as the beginning of a message: --set, a variable, or the file."""
    named = {name: origin for origin, name, _ in environment_overrides()}
    named |= {override.partition("=")[0].strip(): "--set " for override in overrides}
    return named.get(key) or named.get(key.partition(".")[0]) or f"{recipe}: "


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (folder / runs.RESULT).is_file() or (folder / runs.ENVIRONMENT).is_file()


def nearest_run(given: Path) -> Path | None:
    """The run that a path is a part of, or that lies inside it; else one of about its name, beside it or in runs/."""
    if is_run(given.parent):  # runs/faq/model
        return given.parent
    inside = sorted(filter(is_run, given.glob("*")))
    if inside:
        return inside[0]
    others = [each for place in (Path("runs"), given.parent) for each in place.glob("*") if is_run(each)]
    by_name = {each.name: each for each in others}
    like = nearest(given.resolve().name, by_name)
    return by_name[like] if like else None


def recipes_in(folder: Path) -> list[Path]:
    """The recipes that lie in a folder, by their ending."""
    return sorted(each for ending in ("yaml", "yml") for each in folder.glob(f"*.{ending}"))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """What is most like a name, if anything is."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)
