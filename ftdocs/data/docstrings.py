"""Documentation as a corpus: the docstrings of installed packages, read with ``ast``, never imported."""

import ast
import importlib.metadata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

MINIMUM_WORDS = 20  # shorter ones ("See base class.") say nothing and repeat everywhere


def collect(distributions: Iterable[str]) -> Iterator[dict[str, str]]:
    """Docstrings of installed distributions, each text once.

    The order is the same on every machine with the same versions: distributions as given, files by
    name, docstrings by line. Of texts that are equal but for white space the first is kept.

    Args:
        distributions: names as ``pip`` knows them, such as ``"scikit-learn"``.

    Yields:
        ``{"text": docstring, "source": module path, "package": distribution}``.

    Raises:
        importlib.metadata.PackageNotFoundError: a distribution is not installed.
    """
    seen = set()
    for distribution in distributions:
        for module, path in modules(distribution):
            for text in docstrings(path.read_text(encoding="utf-8", errors="replace")):
                words = text.split()
                if len(words) >= MINIMUM_WORDS and tuple(words) not in seen:
                    seen.add(tuple(words))
                    yield {"text": text, "source": module, "package": distribution}


def modules(distribution: str) -> list[tuple[str, Path]]:
    """Module path and file of every Python module that a distribution installed, tests left out."""
    found = []
    for file in importlib.metadata.files(distribution) or []:
        parts = file.with_suffix("").parts
        if file.suffix == ".py" and file.parts[0] != ".." and not {"tests", "test", "testing"} & set(parts):
            module = ".".join(parts).removesuffix(".__init__")
            found.append((module, Path(str(file.locate()))))
    return sorted(found)


def docstrings(source: str) -> list[str]:
    """Docstrings of a Python module, its classes and its functions, by line, indentation removed.

    Args:
        source: the module's text. What does not parse in this Python has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # others' invalid escape sequences are not the reader's business
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    texts = [ast.get_docstring(node) or "" for node in _definitions(tree)]
    # A lone surrogate or a NUL is legal in a string literal but not in a text file.
    return [
        text for text in texts if text and "\0" not in text and text == text.encode(errors="ignore").decode()
    ]


def _definitions(
    tree: ast.AST,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Everything that may have a docstring, in the order of the text.

    Only statements are visited: most nodes of a module are expressions, which define nothing.
    """
    if isinstance(tree, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _definitions(child)
