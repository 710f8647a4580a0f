"""Commands that need no training: what they refuse, and what they print."""

import pytest

from ftdocs.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command refuses wrong input."""
    assert main(list(arguments)) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1
    return line


def test_a_negative_number_of_samples_is_refused(capsys):
    assert "--samples -1: must be 0 or more" in refused(capsys, "data", "inspect", "x.csv", "--samples", "-1")
