"""Commands that need no training: what they refuse, and what they print."""

import json

import pytest

from ftdocs import assets
from ftdocs.cli import main

WITHOUT = """
import sys
for name in ("torch", "peft"):
    sys.modules[name] = None  # as if it were not installed: importing it raises ImportError
from ftdocs.cli import main
sys.exit(main(sys.argv[1:]))
"""


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command refuses wrong input."""
    assert main(list(arguments)) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1
    return line


def test_a_negative_number_of_samples_is_refused(capsys):
    assert "--samples -1: must be 0 or more" in refused(capsys, "data", "inspect", "x.csv", "--samples", "-1")


def test_doctor_works_without_pytorch_and_says_what_installs_it(run_python):
    done = run_python(WITHOUT, "doctor", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith((" ok", " no"))}
    for name in ("torch", "peft"):
        assert lines[name].startswith(" no") and f'-c requirements/constraints.txt "{name}"' in lines[name]
    assert lines["transformers"].startswith(" ok")
    done = run_python(WITHOUT, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"torch", "peft"} <= {check["name"] for check in report["checks"] if not check["ok"]}
    assert "device" not in report and report["memory_bytes"] > 0


def test_doctor_names_the_command_for_models_and_data_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    missing = assets.Package("not-there==1", "not_there", "x.gguf", ())
    monkeypatch.setattr(
        assets, "CATALOGUE", (*assets.CATALOGUE, assets.Asset("x", "model", "x", "none", 0, (missing,)))
    )
    checks = {check["name"]: check for check in assets.checks()}
    assert checks["minilm"]["ok"] and checks["minilm"]["found"] == "installed"
    assert not checks["x"]["ok"] and "not-there==1" in checks["x"]["found"]
    assert "--no-deps --require-hashes -r requirements/assets.txt" in checks["x"]["mend"]


def test_assets_shows_the_order_that_is_used_and_what_is_cached(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    assets.model_path("minilm")
    for forced, order in (("", "package, hub"), ("hub", "hub, package")):
        monkeypatch.setenv("FTDOCS_SOURCE", forced)
        assert main(["assets"]) == 0
        out = capsys.readouterr().out
        line = next(line for line in out.splitlines() if "minilm" in line)
        assert line.split(maxsplit=5)[5].split() == [*order.split(), "package"]
        assert main(["assets", "--json"]) == 0
        row = json.loads(capsys.readouterr().out)["assets"][1]
        assert [words.split()[0] for words in row["sources"]] == order.split(", ")
        assert row["cached"][0]["source"].startswith("package ")
