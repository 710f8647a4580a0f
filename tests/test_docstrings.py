"""The docstring corpus: every docstring once, in an order that repeats, from text that is never run."""

import sys
from pathlib import Path

import pytest

from ftdocs.data import docstrings

LONG = "word " * docstrings.MINIMUM_WORDS

MODULE = f'''"""Module. {LONG}"""
raise SystemExit("importing this would end the tests")
class Thing:
    """Class. {LONG}"""
    def method(self):
        """Method.

            {LONG}
        """
        if self:
            def inner():
                """Inner. {LONG}"""
    async def later(self):
        """Short."""
    def surrogate(self):
        "\\ud800 {LONG}"
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """An installed distribution: a package folder, and metadata that lists its files."""
    contents = {
        "madeup/__init__.py": MODULE,
        "madeup/again.py": MODULE.replace("Method.", "Another."),
        "madeup/broken.py": "def (:",
        "madeup/tests/test_x.py": f'"""Test. {LONG}"""',
        "madeup/data.txt": f'"""Text. {LONG}"""',
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    metadata = tmp_path / "madeup-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: madeup\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("".join(f"{name},,\n" for name in reversed(contents)))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def test_every_docstring_once_in_the_order_of_the_text(package):
    rows = list(docstrings.collect(["madeup"]))
    assert [(row["source"], row["text"].split()[0]) for row in rows] == [
        ("madeup", "Module."),
        ("madeup", "Class."),
        ("madeup", "Method."),
        ("madeup", "Inner."),
        ("madeup.again", "Another."),
    ]
    assert {row["package"] for row in rows} == {"madeup"}
    assert rows[2]["text"].startswith("Method.\n\nword word")  # the indentation is gone


def test_a_real_package_gives_the_same_rows_twice_and_none_twice():
    first, second = list(docstrings.collect(["peft"])), list(docstrings.collect(["peft"]))
    assert first == second
    assert len({" ".join(row["text"].split()) for row in first}) == len(first) > 100
    assert any(row["source"] == "peft.tuners.lora.config" for row in first)
