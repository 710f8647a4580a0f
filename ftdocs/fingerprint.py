"""What code a result depends on: the modules of a package that a piece of code reaches, as one digest.

Results are reused only as long as the code they came from is the same. "The code" is not the whole package:
it is the sources that imports lead to, so that a change elsewhere throws nothing away.
"""

import ast
import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = Path(__file__).parent


def code_fingerprint(*roots: str | Path, package: Path = PACKAGE) -> str:
    """A digest of what every module of ``package`` that ``roots`` reach does, and the roots that are files.

    Comments, docstrings and layout are not in it: they change no result.

    Args:
        roots: names of modules (``"ftdocs.train"``) or paths of Python files.
        package: folder of the package that is followed; other imports are left alone.
    """
    digest = hashlib.sha256()
    for path in sorted(
        {*reached(*roots, package=package), *(root for root in roots if isinstance(root, Path))}
    ):
        digest.update(f"{path.name}\0{meaning(_read(path))}\0".encode())
    return digest.hexdigest()


@cache
def meaning(source: str) -> str:
    """A module's syntax tree without docstrings, written in a way that is the same in every Python version."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return _written(tree)


def _written(node: object) -> str:
    """A syntax tree as text. ``ast.dump`` differs between versions, by fields that are empty where they are new."""
    if isinstance(node, list):
        return "[" + " ".join(map(_written, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [
        f" {name}={_written(value)}"
        for name, value in sorted(ast.iter_fields(node))
        if name == "value" or (value is not None and value != [])  # None is a value in a constant alone
    ]
    return f"({type(node).__name__}{''.join(parts)})"


def reached(*roots: str | Path, package: Path = PACKAGE) -> list[Path]:
    """The files of ``package`` that ``roots`` import, directly or not, wherever in a file the import stands."""
    found: set[Path] = set()
    waiting = [path for root in roots for path in _files(root, package)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [
            file for name in imports(_read(path), _name(path, package)) for file in _files(name, package)
        ]
    return sorted(path for path in found if path.is_relative_to(package))


@cache
def imports(source: str, module: str = "") -> list[str]:
    """Dotted names that a source imports; ``from a import b`` gives ``a.b``, which may be a module or not.

    Args:
        module: the source's own dotted name, from which relative imports start.
    """
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def distributions(sources: Iterable[str]) -> dict[str, str]:
    """Names and versions of the installed distributions that ``sources`` import, with all that those require."""
    owners = _owners()
    waiting = [
        owner
        for source in sources
        for name in imports(source)
        for owner in owners.get(name.split(".")[0], [])
    ]
    return requirements(waiting)


def requirements(names: Iterable[str]) -> dict[str, str]:
    """Versions of the named installed distributions and of all that they require, extras left out."""
    versions: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in versions and (installed := _installed(name)):
            versions[name], needed = installed
            waiting += needed
    return dict(sorted(versions.items()))


@cache
def _installed(name: str) -> tuple[str, tuple[str, ...]] | None:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    parsed = [Requirement(text) for text in distribution.requires or []]
    return distribution.version, tuple(
        each.name for each in parsed if not each.marker or each.marker.evaluate({"extra": ""})
    )


@cache
def _owners() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _files(root: str | Path, package: Path) -> Iterator[Path]:
    """The files that importing a name runs: its module's, and the ``__init__.py`` of every package above."""
    if isinstance(root, Path):
        yield root
        return
    parts = root.split(".")
    if parts[0] != package.name:
        return
    for depth in range(1, len(parts) + 1):
        place = package.parent.joinpath(*parts[:depth])
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                yield file


def _name(path: Path, package: Path) -> str:
    """The dotted name by which relative imports of ``path`` are resolved."""
    if not path.is_relative_to(package):
        return ""
    return ".".join(path.relative_to(package.parent).with_suffix("").parts)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
