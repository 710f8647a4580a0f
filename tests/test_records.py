"""Records: resumable, stale when the code they reach changes, and checked by repeating a case."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftdocs import records
from ftdocs.errors import InputError
from ftdocs.fingerprint import code_fingerprint, distributions, reached

PINNED = "6c801de93c61bcf323d4fbd6a312937782d891cd79a54405d6247ea38230bd34"  # computed once

EXPERIMENT = '''"""Does a square grow?

Held fixed: nothing."""

from ftdocs import files

SEEDS = [0, 1]
TOLERANCE = {"square": 0.1}


def cases():
    return [{"seed": seed, "side": side} for seed in SEEDS for side in (2, 3)]


def run(case):
    import pathlib, time
    log = pathlib.Path(__file__).parent / "log.txt"
    with log.open("a") as file:
        file.write(f"{case}\\n")
    time.sleep(SLEEP)
    return {"square": case["side"] ** 2 * FACTOR}


SLEEP, FACTOR = 0, 1
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "squares.py").write_text(EXPERIMENT)
    return tmp_path / "results"


def edit(folder: Path, old: str, new: str) -> None:
    path = folder.parent / "experiments" / "squares.py"
    path.write_text(path.read_text().replace(old, new))


def test_a_record_says_where_it_comes_from(folder: Path):
    assert records.state("squares", folder) == "missing"
    made = records.make("squares", folder, progress=lambda line: None)
    again = records.load("squares", folder)
    assert again == made
    assert [row["square"] for row in again.rows] == [4, 9, 4, 9]
    assert again.command == "python -m experiments squares"
    assert again.question.startswith("Does a square grow?")
    assert again.versions["torch"]
    assert again.seeds == [0, 1]
    assert records.state("squares", folder) == "fresh"
    assert [path.name for path in folder.iterdir()] == ["squares.json"]


def test_a_record_is_stale_once_its_code_has_changed(folder: Path):
    records.make("squares", folder, progress=lambda line: None)
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 2")
    assert records.state("squares", folder) == "stale"


def test_comments_and_layout_make_no_record_stale(folder: Path):
    records.make("squares", folder, progress=lambda line: None)
    edit(folder, "SEEDS = [0, 1]", "# Two are enough.\nSEEDS = [\n    0,\n    1,\n]")
    edit(folder, "Held fixed: nothing.", "Held fixed: nothing at all.")
    assert records.state("squares", folder) == "fresh"


def test_a_record_is_stale_once_a_recipe_that_it_names_has_changed(folder: Path):
    recipe = folder.parent / "recipes" / "square.yaml"
    recipe.parent.mkdir()
    recipe.write_text("side: 2\n")
    edit(folder, "SLEEP, FACTOR = 0, 1", "SLEEP, FACTOR = 0, 1\nRECIPE = 'recipes/square.yaml'")
    records.make("squares", folder, progress=lambda line: None)
    assert records.state("squares", folder) == "fresh"
    recipe.write_text("side: 3\n")
    assert records.state("squares", folder) == "stale"


def test_a_record_keeps_the_recipe_as_it_was_resolved(folder: Path):
    recipes = folder.parent / "recipes"
    recipes.mkdir()
    (recipes / "square.yaml").write_text("model: gpt2\ndata: {path: a.jsonl}\ntrain: {seed: 3}\n")
    with (folder.parent / "experiments" / "squares.py").open("a") as file:
        file.write(
            "\nfrom pathlib import Path\nfrom ftdocs.recipe import Recipe\n\n"
            "def recipe(case):\n"
            "    path = Path(__file__).parents[1] / 'recipes/square.yaml'\n"
            "    return Recipe.load(path, [f'train.seed={case[\"seed\"]}'], 'cpu')\n"
        )
    kept = records.make("squares", folder, progress=lambda line: None).recipe
    assert "model: gpt2" in kept and "seed: 0" in kept


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def test_no_record_is_made_of_what_is_not_committed(folder: Path):
    root = folder.parent
    git(root, "init")
    with pytest.raises(InputError, match=r"experiments/squares\.py: changed since the last commit"):
        records.make("squares", folder, progress=lambda line: None)
    git(root, "add", "experiments")
    git(root, "commit", "-m", "squares")
    (root / "notes.txt").write_text("what the experiment does not reach does not matter")
    assert len(records.make("squares", folder, progress=lambda line: None).commit) == 40
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 2")
    with pytest.raises(InputError, match="commit it first"):
        records.make("squares", folder, progress=lambda line: None)


def test_a_repetition_is_compared_within_the_stated_tolerance(folder: Path):
    records.make("squares", folder, progress=lambda line: None)
    assert records.check("squares", folder, row=1) == {"seed": 0, "side": 3, "square": 9}
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 1.05")
    records.check("squares", folder)
    edit(folder, "FACTOR = 0, 1.05", "FACTOR = 0, 1.2")
    with pytest.raises(AssertionError, match=r"square is 4\.8 now, 4 in the record"):
        records.check("squares", folder, row=0)


def test_seconds_are_compared_on_the_records_own_device_alone(folder: Path, monkeypatch):
    edit(folder, '"square": case["side"] ** 2 * FACTOR', '"train_seconds": case["side"] * FACTOR')
    records.make("squares", folder, progress=lambda line: None)
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 10")  # another length, or Python takes what it has compiled
    with pytest.raises(AssertionError, match=r"train_seconds is 20 now, 2 in the record"):
        records.check("squares", folder, row=0)
    monkeypatch.setattr(records.hardware, "device_name", lambda: "another")
    assert records.check("squares", folder, row=0)["train_seconds"] == 20


def test_a_stale_record_is_confirmed_by_one_case_and_no_longer_than_its_code_stays(folder: Path, monkeypatch):
    git(folder.parent, "init")
    git(folder.parent, "add", "experiments")
    git(folder.parent, "commit", "-m", "squares")
    made = records.make("squares", folder, progress=lambda line: None)
    code = records.fingerprint
    monkeypatch.setattr(records, "fingerprint", lambda path: code(path) + "the package has changed")
    assert records.state("squares", folder) == "stale"
    confirmed = records.confirm("squares", folder)
    assert records.state("squares", folder) == "confirmed"
    assert confirmed.confirmed["case"] in [
        {k: row[k] for k in ("seed", "side", "square")} for row in made.rows
    ]
    assert (confirmed.date, confirmed.rows) == (made.date, made.rows)
    monkeypatch.setattr(records, "fingerprint", lambda path: code(path) + "and once more")
    assert records.state("squares", folder) == "stale"


def test_a_record_depends_on_the_experiments_that_it_is_made_of(folder: Path):
    cubes = folder.parent / "experiments" / "cubes.py"
    cubes.write_text(
        '"""Squares, and once more."""\n\nfrom experiments import squares\n\nSEEDS = squares.SEEDS\n'
    )
    before = records.fingerprint(cubes)
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 2")
    assert records.fingerprint(cubes) != before


def test_a_record_whose_commit_is_gone_is_held_to_the_commit_that_brought_it(folder: Path, monkeypatch):
    git(folder.parent, "init")
    git(folder.parent, "add", "experiments")
    git(folder.parent, "commit", "-m", "squares")
    records.make("squares", folder, progress=lambda line: None)
    path = folder / "squares.json"
    path.write_text(path.read_text().replace(records.load("squares", folder).commit or "", "0" * 40))
    git(folder.parent, "add", "results")
    git(folder.parent, "commit", "-m", "history, written anew")
    code = records.fingerprint
    monkeypatch.setattr(records, "fingerprint", lambda path: code(path) + "the package has changed")
    assert records.confirm("squares", folder).confirmed
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 1.05")
    git(folder.parent, "commit", "-am", "another question")
    with pytest.raises(InputError, match="make the record anew"):
        records.confirm("squares", folder)


def test_a_record_is_not_confirmed_when_its_case_comes_out_otherwise_or_when_it_asks_something_else(
    folder: Path,
):
    git(folder.parent, "init")
    git(folder.parent, "add", "experiments")
    git(folder.parent, "commit", "-m", "squares")
    records.make("squares", folder, progress=lambda line: None)
    edit(folder, "FACTOR = 0, 1", "FACTOR = 0, 1.05")
    with pytest.raises(InputError, match="commit it first"):
        records.confirm("squares", folder)
    git(folder.parent, "commit", "-am", "another question")
    with pytest.raises(
        InputError, match=r"experiments/squares\.py: not as in the record's commit: make the record anew"
    ):
        records.confirm("squares", folder)
    assert records.state("squares", folder) == "stale"


def test_a_killed_experiment_goes_on_where_it_stopped(folder: Path):
    edit(folder, "SLEEP, FACTOR = 0, 1", "SLEEP, FACTOR = 0.5, 1")
    code = f"from pathlib import Path; from ftdocs import records; records.make('squares', Path({str(folder)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code])
    partial = folder / "squares.partial.json"
    while not (partial.is_file() and len(json.loads(partial.read_text())["rows"]) >= 2):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert records.state("squares", folder) == "partial"
    done = json.loads(partial.read_text())["rows"]
    log = folder.parent / "experiments" / "log.txt"
    before = len(log.read_text().splitlines())
    made = records.make("squares", folder, progress=lambda line: None)
    assert made.rows[: len(done)] == done, "finished cases are not run again"
    assert len(log.read_text().splitlines()) == before + 4 - len(done)
    assert not partial.exists()


def test_a_half_made_record_of_other_code_is_not_gone_on_with(folder: Path):
    folder.mkdir()
    stranger = {
        "origin": {"fingerprint": "other"},
        "rows": [{"seed": 0, "side": 2, "square": -1, "seconds": 0}],
    }
    (folder / "squares.partial.json").write_text(json.dumps(stranger))
    assert records.make("squares", folder, progress=lambda line: None).rows[0]["square"] == 4


def test_an_unknown_name_is_refused_in_one_line(folder: Path):
    with pytest.raises(InputError, match="no such experiment; there is squares"):
        records.make("circles", folder)
    with pytest.raises(InputError, match="python -m experiments circles"):
        records.load("circles", folder)


def test_a_fingerprint_covers_what_is_reached_and_nothing_else(tmp_path: Path):
    package = tmp_path / "thing"
    (package / "sub").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "a.py": "from . import b\n",
        "b.py": "def late():\n    from thing.sub import c\n",
        "d.py": "import thing.a\n",
        "sub/__init__.py": "",
        "sub/c.py": "from ..b import late\n",
    }.items():
        (package / name).write_text(text)
    names = [str(path.relative_to(package)) for path in reached("thing.a", package=package)]
    assert names == ["__init__.py", "a.py", "b.py", "sub/__init__.py", "sub/c.py"]
    before = code_fingerprint("thing.a", package=package)
    (package / "d.py").write_text("import thing.b\n")
    assert code_fingerprint("thing.a", package=package) == before
    (package / "sub" / "c.py").write_text("x = 1\n")
    assert code_fingerprint("thing.a", package=package) != before


def test_versions_are_of_what_is_imported_with_all_it_requires():
    found = distributions(["import torch"])
    assert {"torch", "sympy", "mpmath"} <= found.keys()
    assert "transformers" not in found


def test_a_fingerprint_is_of_the_meaning_and_the_same_in_every_python(tmp_path: Path):
    package = tmp_path / "thing"
    package.mkdir()
    module = package / "__init__.py"

    def of(source: str) -> str:
        module.write_text(source)
        return code_fingerprint("thing", package=package)

    written = 'def f(x=None):\n    """Says."""\n\n\ndef g():\n    return f"{1:>3}", None\n'
    # Another Python version would give another digest if the way of writing a tree depended on it.
    assert of(written) == PINNED
    assert of("# why\n" + written.replace("Says.", "Tells.").replace("\n\n\n", "\n")) == PINNED
    assert of(written.replace("None\n", "0\n")) != PINNED
    assert of(written.replace("x=None", "x=0")) != PINNED
    assert of(written.replace("x=None", "x")) != PINNED
