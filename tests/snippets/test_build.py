"""Planted faults: each is caught by the build of a small book, and nothing but what changed runs again."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from book import stamp
from build import execute
from execute import Book, Checked, Run, run_page
from kernels import can_fork
from verified import on_gpu, write_gpu

ROOT = Path(__file__).parents[2]
NOTEBOOK = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"
TOKEN = "hf_" + "a1B2" * 8

GOOD = {
    "docs/index.md": "# A book\n\n```{toctree}\none\ntwo\nstatus\n```\n",
    "docs/one.md": NOTEBOOK
    + """# One

```{literalinclude} ../ftdocs/first.py
:pyobject: double
```

```{code-cell} python
from ftdocs.first import double

print(double(21))
```

<!-- fence: output -->
```text
42
```

<!-- fence: file words.txt -->
```text
one
two
```

```bash
export NUMBER=2
wc -l words.txt
```

<!-- fence: exits 3 -->
```bash
exit $((NUMBER + 1))
```

<!-- fence: raises TypeError: unsupported operand -->
```{code-cell} python
:tags: [raises-exception]
double(None)
```
""",
    "docs/two.md": NOTEBOOK
    + "# Two\n\n::::{tab-set}\n:::{tab-item} A\n```console\n$ echo here\nhere\n```\n:::\n::::\n\n"
    + "```{code-cell} python\nfrom ftdocs import second\n\nprint(second.NAME)\n```\n",
    "docs/status.md": "# Status\n\n```{status}\n```\n",
    "ftdocs/__init__.py": "",
    "ftdocs/first.py": 'def double(number: int) -> int:\n    """Twice a number."""\n    return number * 2\n\n\n'
    "def never() -> None:\n    print('not called')\n\n\n"
    "def sign(number: int) -> int:\n    if number < 0:\n        text = f'{number} < 0'\n"
    "        raise ValueError(text)\n    if number == 0:\n        return 0\n    return 1\n\n\n"
    "def grade(number: int) -> str:\n    if number > 3:\n        name = 'high'\n        return name\n"
    "    return 'low'\n",
    "ftdocs/second.py": 'NAME = "second"\n',
}

FAULTS = {
    "docs/broken.md": (NOTEBOOK + "# Broken\n\n```{code-cell} python\n1 / 0\n```\n", "ZeroDivisionError"),
    "docs/silent.md": (
        NOTEBOOK
        + "# Silent\n\n<!-- fence: raises ValueError -->\n"
        + "```{code-cell} python\n:tags: [raises-exception]\nprint(1)\n```\n",
        "silent.md:9: was to raise `ValueError`, but raised nothing",
    ),
    "docs/leak.md": (
        NOTEBOOK + f"# Leak\n\n```{{code-cell}} python\nprint('{TOKEN[:5]}' + '{TOKEN[5:]}')\n```\n",
        "leak.md:8: the output holds something like an access token",
    ),
    "docs/home.md": (
        NOTEBOOK + "# Home\n\n```{code-cell} python\nimport sys\n\nprint(sys.prefix)\n```\n",
        "home.md:8: the output holds Python's folder",
    ),
    "docs/claimed.md": (
        NOTEBOOK
        + "# Claimed\n\n```{literalinclude} ../ftdocs/first.py\n:pyobject: never\n```\n\n"
        + "```{code-cell} python\nimport ftdocs.first\n```\n",
        "claimed.md:8: this page's run never reaches never",
    ),
    "docs/half.md": (
        NOTEBOOK
        + "# Half\n\n```{literalinclude} ../ftdocs/first.py\n:pyobject: grade\n```\n\n"
        + "```{code-cell} python\nfrom ftdocs.first import grade\n\ngrade(1)\n```\n",
        "half.md:8: this page's run reaches 2 of 4 lines of grade, not lines 21, 22",
    ),
    "docs/include.md": (
        "# Include\n\n```{include} one.md\n```\n",
        "include.md:3: {include} cannot be checked",
    ),
    "docs/nooption.md": (
        "# No option\n\n<!-- fence: validated by options -->\n```bash\npython -m pip list\n```\n",
        "nooption.md:4: there is no option to check",
    ),
    "docs/nested.md": (
        NOTEBOOK + "# Nested\n\n:::{note}\n```{code-cell} python\n1\n```\n:::\n",
        "nested.md:9: a cell inside another block never runs",
    ),
    "docs/unlisted.md": (
        "# Unlisted\n\n- item\n\n  ```text\n  what?\n  ```\n",
        "unlisted.md:5: nothing says how",
    ),
    "docs/plain.md": ("# Plain\n\n```python\nprint(1)\n```\n", "plain.md:3: make it a {code-cell} python"),
    "docs/differs.md": (
        "# Differs\n\n```bash\necho 1.00 s\n```\n\n<!-- fence: output within 20% -->\n```text\n1.30 s\n```\n",
        "differs.md:8: the output differs",
    ),
    "docs/recipe.md": (
        "# Recipe\n\n```yaml\nmodel: smollm2\ndata: {path: a.jsonl}\ntrian: {epochs: 1}\n```\n",
        "recipe.md:3: Recipe refuses it",
    ),
    "docs/documents.md": (
        "# Documents\n\n```yaml\na: 1\n---\nb: 2\n```\n",
        "documents.md:3: is not one YAML document",
    ),
    "docs/unread.md": ("# Unread\n\n```toml\na = 1\n```\n", "unread.md:3: nothing says what reads this toml"),
    "docs/unused.md": (
        "# Unused\n\n<!-- fence: file never.csv -->\n```csv\na,b\n```\n",
        "line 4 writes never.csv, and no later block names it",
    ),
    "docs/option.md": (
        "# Option\n\n<!-- fence: validated by options -->\n```bash\npython -m pip install --no-such-thing x\n```\n",
        "`python -m pip install --help` knows no --no-such-thing",
    ),
    "docs/fails.md": ("# Fails\n\n```bash\nfalse\ntrue\n```\n", "fails.md:3: ended with 1 instead of 0"),
    "docs/link.md": (
        "# Link\n\n[nowhere](missing.md)\n\n<a href='gone.html'>gone</a>\n",
        "no file for gone.html",
    ),
    "docs/xref.md": ("# Reference\n\n{doc}`absent`\n", "unknown document: 'absent'"),
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A small book that is in order, with a package of its own."""
    for path, text in GOOD.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    for shared in ("_ext", "_static"):
        (tmp_path / "docs" / shared).symlink_to(ROOT / "docs" / shared)
    return tmp_path


def build(root: Path, *options: str) -> subprocess.CompletedProcess:
    """Build a book whose package comes before the installed one in the kernels, and there alone."""
    # -E: the build itself does not look at PYTHONPATH, what it starts does
    command = [
        sys.executable,
        "-E",
        str(ROOT / "docs" / "_ext" / "build.py"),
        "--profile",
        "smoke",
        "--root",
        str(root),
    ]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )


def states(output: str) -> dict[str, str]:
    """What the build says of each page."""
    return dict(re.findall(r"^\[\d+/\d+, \d+ s\] (\S+): (\w+)", output, re.MULTILINE))


def test_a_good_book_is_built_and_only_what_changed_runs_again(book: Path):
    first = build(book)
    assert first.returncode == 0, first.stderr
    assert states(first.stdout)["docs/one"] == states(first.stdout)["docs/two"] == "run"
    site = book / "docs" / "_build" / "html"

    kept = json.loads((site / "verified.json").read_text())
    assert set(kept) >= {"commit", "built", "device", "versions", "fences"}
    by_place = {(fence["page"], fence["line"]): fence for fence in kept["fences"]}
    assert {fence["status"] for fence in kept["fences"]} == {"executed", "validated", "output"}
    lines = [
        number for number, line in enumerate(GOOD["docs/one.md"].splitlines(), 1) if "{code-cell}" in line
    ]
    assert (
        by_place["docs/one", 8]["reason"]
        == f"1 of 1 lines reached by the cells at lines {lines[0]}, {lines[1]}"
    )
    assert by_place["docs/two", 10]["language"] == "console"
    assert len(kept["fences"]) == 9

    one = (site / "one.html").read_text()
    assert "not yet run on a GPU" in one and "book-stamp" in one
    assert "TypeError" in one, "the error that is meant is shown"
    assert re.search(r"code-block-caption.{1,40}caption-text.{1,20}words.txt<", one, re.DOTALL)
    status = (site / "status.html").read_text()
    assert "one" in status and "ftdocs/first.py" in status

    run = json.loads((book / "docs" / "_build" / "pages" / "docs-one.json").read_text())
    assert run["figures"][f"line {lines[0]}"] == "42\n", "on a GPU these go into results/gpu.json"

    record = book / "docs" / "_build" / "build.json"
    assert json.loads(record.read_text())["cold"]

    again = build(book)
    assert set(states(again.stdout).values()) == {"unchanged"}
    assert again.returncode == 0 and not json.loads(record.read_text())["cold"]

    two = book / "docs" / "two.md"
    two.write_text(GOOD["docs/two.md"].replace("print(second.NAME)", "print(second.NAME, 1)"))
    command = [sys.executable, "-m", "sphinx", "-q", str(book / "docs"), str(book / "out")]
    alone = subprocess.run(command, capture_output=True, text=True)
    assert alone.returncode != 0, "Sphinx must not execute a page by itself"
    assert "two: not run as it stands" in alone.stderr
    two.write_text(GOOD["docs/two.md"])

    (book / "ftdocs" / "first.py").write_text(GOOD["ftdocs/first.py"].replace("number * 2", "number * 3"))
    changed = build(book)
    assert states(changed.stdout)["docs/two"] == "unchanged", "it does not reach the module"
    assert states(changed.stdout)["docs/one"] == "FAILED", "its output is no longer 42"
    assert "one.md:19: the output differs" in changed.stderr
    assert "-42" in changed.stderr and "+63" in changed.stderr
    assert changed.returncode == 1
    assert not (site / "verified.json").exists()


def test_a_setting_in_the_environment_runs_pages_again(book: Path, monkeypatch: pytest.MonkeyPatch):
    page = book / "docs" / "one.md"
    assert states(build(book, str(page)).stdout) == {"docs/one": "run"}
    monkeypatch.setenv("FTDOCS_HF_TOKEN", "another secret")
    monkeypatch.setenv("FTDOCS_HOME", str(book / "home"))
    assert states(build(book, str(page)).stdout) == {"docs/one": "unchanged"}
    monkeypatch.setenv("FTDOCS_TRAIN__SEED", "7")
    assert states(build(book, str(page)).stdout) == {"docs/one": "run"}
    assert "another secret" not in (book / "docs/_build/pages/docs-one.json").read_text()


def test_a_page_waits_for_the_one_whose_runs_it_takes_from_the_store(book: Path):
    kept = "import os\nfrom pathlib import Path\n\nkept = Path(os.environ['FTDOCS_RUNS']) / 'kept'\n"
    cell = f"```{{code-cell}} python\n{kept}%s\n```\n"
    first, then = book / "docs" / "a.md", book / "docs" / "b.md"
    # The second one makes what the first one reads.
    first.write_text(NOTEBOOK.replace("\n", "\nafter: b\n", 1) + "# A\n\n" + cell % "print(kept.read_text())")
    made = "import time\n\ntime.sleep(1)\nkept.parent.mkdir(exist_ok=True)\nkept.write_text('made');"
    then.write_text(NOTEBOOK + "# B\n\n" + cell % made)
    small = Book(book, "smoke", "A CPU")
    assert [run.problems for run in execute(small, [first, then], workers=2)] == [[], []]

    first.write_text(NOTEBOOK.replace("\n", "\nafter: c\n", 1) + "# A\n")
    with pytest.raises(FileNotFoundError, match="comes after c, and there is no such page"):
        execute(small, [first, then], workers=2)
    for page, other in ((first, "b"), (then, "a")):
        page.write_text(NOTEBOOK.replace("\n", f"\nafter: {other}\n", 1) + "# A\n")
    with pytest.raises(ValueError, match="`after` goes round in a circle"):
        execute(small, [first, then], workers=2)


BEGINS = """import json, os, sys
from pathlib import Path

import numpy as np
import torch

about = {"path": sys.path, "folder": os.getcwd(), "package": sorted(m for m in sys.modules if m.startswith("ftdocs"))}
environment = {**os.environ, "JPY_PARENT_PID": "", "OMP_NUM_THREADS": ""}
about |= {"environment": environment}
about |= {"arguments": len(sys.argv), "input": sys.stdin.read(), "draws": [torch.rand(1).item(), np.random.rand()]}
sys.path.append("of this page alone")
torch.manual_seed(1)
Path(os.environ["FTDOCS_RUNS"], f"{NAME}.json").write_text(json.dumps(about))
os.environ["LEFT"] = "behind"
"""


@pytest.mark.skipif(not can_fork(), reason="kernels are forked on Linux alone")
def test_a_forked_kernel_begins_as_one_does_that_was_started(book: Path):
    places = [book / "docs" / name for name in ("a.md", "b.md")]
    for path in places:
        cell = BEGINS.replace("{NAME}", path.stem)
        path.write_text(f"{NOTEBOOK}# A\n\n```{{code-cell}} python\n{cell}```\n")
    small = Book(book, "smoke", "A CPU")
    (small.build / "runs").mkdir(parents=True)
    found = {}
    for workers in (1, 2):
        shutil.rmtree(small.build / "pages", ignore_errors=True)
        # Both by one process, one after the other: what the first one leaves behind, the second one would find.
        runs = [run_page(small, path, threads=workers - 1) for path in places]
        assert [run.problems for run in runs] == [[], []]
        for path in places:
            found[workers, path.stem] = json.loads((small.build / "runs" / f"{path.stem}.json").read_text())
    for name in ("a", "b"):
        for key in ("path", "folder", "package", "environment", "arguments", "input"):
            assert found[2, name][key] == found[1, name][key], key
    draws = [each["draws"] for each in found.values()]
    assert all(len(set(generator)) == 4 for generator in zip(*draws, strict=True)), (
        "each has numbers of its own"
    )


def test_a_region_may_leave_out_what_refuses_and_says_what_it_left_out(book: Path):
    page = book / "docs" / "sign.md"
    text = "# Sign\n\n```{literalinclude} ../ftdocs/first.py\n:pyobject: sign\n```\n\n"
    page.write_text(
        NOTEBOOK + text + "```{code-cell} python\nfrom ftdocs.first import sign\n\nsign(1), sign(0)\n```\n"
    )
    assert build(book, str(page)).returncode == 0
    fences = json.loads((book / "docs/_build/pages/docs-sign.json").read_text())["fences"]
    assert fences[0]["reason"].startswith(
        "4 of 6 lines (all but lines 12, 13 of first.py) reached by the cells"
    )


def test_a_failed_import_that_is_meant_names_no_folder_of_this_machine(book: Path):
    page = book / "docs" / "gone.md"
    fence = "<!-- fence: raises ImportError: cannot import name 'triple' -->\n"
    cell = "```{code-cell} python\n:tags: [raises-exception]\nfrom ftdocs.first import triple\n```\n"
    page.write_text(f"{NOTEBOOK}# Gone\n\n{fence}{cell}")
    done = build(book, str(page))
    assert done.returncode == 0, done.stderr
    shown = (book / "docs/_build/pages/docs-gone.ipynb").read_text()
    assert "(ftdocs/first.py)" in shown and str(book) not in shown


def test_a_book_that_is_not_as_committed_says_so(book: Path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(book), *identity, *arguments], check=True, capture_output=True)

    (book / ".gitignore").write_text("_build/\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "a book")
    here = Book(book, "smoke", "A CPU")
    assert len(here.commit) == 40 and not here.modified
    (book / "results").mkdir()
    (book / "results" / "new.json").write_text("{}")
    assert not Book(book, "smoke", "A CPU").modified, (
        "records are made from a commit, and kept in the next one"
    )
    (book / "ftdocs" / "first.py").write_text("")
    assert Book(book, "smoke", "A CPU").modified


def test_planted_faults_are_all_caught(book: Path):
    for path, (text, _) in FAULTS.items():
        (book / path).write_text(text)
    (book / "docs" / "index.md").write_text("# Faults\n\n```{toctree}\n:glob:\n*\n```\n")
    done = build(book)
    assert done.returncode == 1
    missed = [path for path, (_, wanted) in FAULTS.items() if wanted not in done.stderr]
    assert not missed, done.stderr
    blamed = set(re.findall(r"docs/(\w+)\.md", done.stderr))
    assert not blamed & {"one", "two", "status"}, "what is in order is not blamed"
    assert TOKEN not in done.stdout + done.stderr


def test_a_gpu_run_takes_the_mark_away(book: Path):
    run = Run(
        "docs/one",
        "key",
        "code",
        "2026-11-01T10:00:00+00:00",
        None,
        "A GPU",
        "gpu",
        {"python": "3.11"},
        1.0,
        1.0,
        0,
    )
    run.fences.append(Checked("docs/one", 1, "python", "executed", 1.0))
    run.figures["line 8"] = "loss 2.345\n"
    write_gpu(Book(book, "gpu", "A GPU"), [run])
    assert on_gpu(book)["docs/one"]["figures"] == {"line 8": "loss 2.345\n"}
    cpu = Run(**{**vars(run), "profile": "cpu", "device": "A CPU"})
    assert "not yet run on a GPU" in stamp(cpu, None)
    assert "ran on A GPU, 2026-11-01" in stamp(cpu, on_gpu(book)["docs/one"])
    cpu.code = "changed"
    assert "before its last change" in stamp(cpu, on_gpu(book)["docs/one"])
