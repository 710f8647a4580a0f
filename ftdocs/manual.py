"""Documents to try things on: an installed package's own documentation as a folder; and what a model may read first."""

import ast
import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import Any

from ftdocs import files
from ftdocs.data.docstrings import modules
from ftdocs.data.folder import folder_rows
from ftdocs.data.prepare import Splits

# Parts of scikit-learn whose classes and functions are documented alike: what the book's questions are about.
DOCUMENTED = ("linear_model", "svm", "neighbors", "ensemble")


def write_manual(folder: Path, parts: tuple[str, ...], distribution: str = "scikit-learn") -> int:
    """Write a document for each class and function of an installed package that documents its parameters.

    A document is the docstring under its name, as ``PART.NAME.rst``. It is read with ``ast``; nothing is imported.

    Args:
        folder: is made, and filled.
        parts: of the package, such as ``("linear_model", "svm")``.
        distribution: as ``pip`` knows it.

    Returns: how many documents there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for module, path in modules(distribution):
        part = module.split(".")[1] if "." in module else ""
        if part not in parts:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # others' invalid escape sequences
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node) or ""
                if "Parameters\n----------" in text:
                    content = f"{node.name}\n{'=' * len(node.name)}\n\n{text}\n"
                    (folder / f"{part}.{node.name}.rst").write_text(content, encoding="utf-8")
                    count += 1
    return count


def stored_manual(parts: tuple[str, ...], distribution: str = "scikit-learn") -> Path:
    """:func:`write_manual` in the cache folder, written once: the same folder for whoever asks for the same."""
    version = importlib.metadata.version(distribution)
    folder = files.home() / "manuals" / "-".join([distribution, version, *parts])
    with files.lock(folder):
        if not folder.is_dir():
            with files.new_folder(folder) as aside:
                write_manual(aside, parts, distribution)
    return folder


def reading(folder: Path, splits: Splits, output: Path) -> int:
    """Write the text of the training documents, in chunks, as rows for continued pretraining.

    Splits are made of rows, and the same folder as text has others than as questions: a document whose questions are
    held out may be one that the text trains on. So the text is taken of the documents alone that ``splits`` trains on.

    Args:
        folder: of documents.
        splits: of the questions of that folder.
        output: a JSONL file, rows with ``text`` and ``document``.

    Returns: how many rows there are.
    """
    trained = {row["group"] for row in splits.train}
    rows: list[dict[str, Any]] = [
        {"text": row["text"], "document": row["document"]}
        for row in folder_rows(folder, "text")
        if row["document"] in trained
    ]
    files.write_atomic(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
