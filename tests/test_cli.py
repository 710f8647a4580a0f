"""Commands that need no training: what they refuse, and what they print."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftdocs import assets, hardware, runs
from ftdocs.cli import main, print_evaluation
from ftdocs.data.prepare import load_splits
from ftdocs.intervals import metric_intervals
from ftdocs.job import learning_rate
from ftdocs.new import counted
from ftdocs.recipe import Recipe

WITHOUT = """
import sys
for name in ("torch", "peft"):
    sys.modules[name] = None  # as if it were not installed: importing it raises ImportError
from ftdocs.cli import main
sys.exit(main(sys.argv[1:]))
"""

SLOW = """
import sys
from ftdocs.cli import main
code = main(sys.argv[1:])
print("slow modules:", [name for name in ("torch", "transformers", "datasets") if name in sys.modules])
sys.exit(code)
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


@pytest.mark.parametrize(
    ("number", "named", "says"),
    [
        (errno.EACCES, "home/models/minilm", "no permission; set FTDOCS_HOME to a folder of yours"),
        (errno.EROFS, "elsewhere/out", "elsewhere/out: no permission; choose another"),
        (errno.ENOSPC, "elsewhere/out", "elsewhere/out: the disk is full"),
        (errno.ENOSPC, None, "standard output, or a file: the disk is full"),
    ],
)
def test_what_the_system_refuses_is_one_line(number, named, says, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "home"))

    def refuse() -> None:
        raise OSError(number, "no", *([str(tmp_path / named)] if named else []))

    monkeypatch.setattr(assets, "catalogue", refuse)
    stdout = os.dup(1)
    try:
        assert main(["assets"]) == 2
    finally:
        os.dup2(stdout, 1)
    line = capfd.readouterr().err
    assert says in line and line.count("\n") == 1


def test_another_error_of_the_system_is_not_called_wrong_input(monkeypatch):
    monkeypatch.setattr(assets, "catalogue", lambda: os.read(-1, 1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["assets"])


def test_a_name_that_is_too_long_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert f"{'x' * 60}…: the name is too long" in refused(capsys, "evaluate", "x" * 300)
    Path("a.jsonl").write_text('{"text": "a"}\n' * 30)
    Path("a.yaml").write_text("model: minilm\ndata: {path: a.jsonl}\nmethod: {name: full}\n")
    assert "the name is too long" in refused(capsys, "train", "a.yaml", "--output", "x" * 300)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ftdocs.cli", "assets", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "the disk is full" in done.stderr


def test_doctor_says_that_the_cache_is_no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "file"))
    [cache] = [check for check in hardware.checks() if check.name == "cache"]
    assert not cache.ok and "is no folder that you may write to" in cache.found


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


NAMES = [
    "faq #2.jsonl",
    "a: b.jsonl",
    "- x.jsonl",
    "it's.jsonl",
    '"q".jsonl',
    "größe 😀.jsonl",
    "{a}.jsonl",
    "a\nb.jsonl",
]


@pytest.mark.parametrize("name", [*NAMES, "1e3/faq.jsonl", "plain.jsonl"])
def test_new_writes_a_recipe_that_finds_the_file_whatever_its_name(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(
        "".join(json.dumps({"prompt": f"p{n}", "completion": f"c{n}"}) + "\n" for n in range(20))
    )
    assert main(["new", name, "--output", "job.yaml"]) == 0, capsys.readouterr().err
    assert Recipe.load("job.yaml").data.path == tmp_path.resolve() / name
    if name == "plain.jsonl":
        assert "  path: plain.jsonl\n" in Path("job.yaml").read_text()


def test_new_keeps_class_names_in_the_comment_and_shortens_the_list(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with open("mail.csv", "w", newline="") as file:
        rows = [[f"text {n}", f"class {n % 20}\nmodel: evil {'x' * 50}"] for n in range(200)]
        csv.writer(file).writerows([["text", "label"], *rows])
    assert main(["new", "mail.csv"]) == 0
    assert Recipe.load("mail.yaml").model == "minilm"
    first = Path("mail.yaml").read_text().splitlines()[0]
    assert "20 classes: class 0 model: evil xxxxxxxxx…, " in first and first.endswith(", ….")
    assert len(first) < 350


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (40, "0.1                    # share held out for the final figure; `ftdocs evaluate` uses it"),
        (10, "uses it; with 0.1 there are no two rows to compare on"),
        (3, "uses it; too few rows for `ftdocs compare`"),
    ],
)
def test_new_holds_out_enough_to_compare_on(rows, line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    faq = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(rows)]
    Path("faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in faq))
    assert main(["new", "faq.jsonl"]) == 0
    written = Path("faq.yaml").read_text().splitlines()
    assert next(each for each in written if each.startswith("  test: ")).endswith(line)
    held_out = load_splits(Recipe.load("faq.yaml", environment=False).data).test
    assert len(held_out) == {40: 4, 10: 2, 3: 1}[rows]


@pytest.mark.parametrize(("label", "kind"), [("mood", "text"), ("label", "label")])
def test_new_leaves_the_rate_to_the_method_and_its_comment_says_which_that_is(
    label, kind, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    labelled_by(label)
    assert main(["new", "reviews.csv"]) == 0
    recipe = Recipe.load("reviews.yaml")
    assert recipe.train.learning_rate is None  # so that --set method.name=ia3 trains with the rate of ia3
    line = next(line for line in Path("reviews.yaml").read_text().splitlines() if "learning_rate" in line)
    said = line.partition("method's own (")[2].partition(")")[0]
    assert said.startswith(recipe.method.name)
    assert float(said.rpartition(": ")[2]) == learning_rate(recipe, kind)


def test_new_writes_no_recipe_that_cannot_be_read(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("faq.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    assert "let the name end in .yaml" in refused(capsys, "new", "faq.jsonl", "--output", "job.json")
    assert not Path("job.json").exists()


def labelled_by(column: str) -> None:
    """A file reviews.csv of 40 rows: id, text, and a column of two values."""
    with open("reviews.csv", "w", newline="") as file:
        csv.writer(file).writerow(["id", "text", column])
        csv.writer(file).writerows([n, f"text {n}", ["good", "bad"][n % 2]] for n in range(40))


def test_new_says_which_columns_it_leaves_and_which_may_be_the_label(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    labelled_by("sentiment")
    assert main(["new", "reviews.csv", "--json"]) == 0
    out, note = capsys.readouterr()
    assert json.loads(out) == {"recipe": "reviews.yaml"}
    assert (
        note.count("\n") == 1 and "reviews.csv: columns that format text does not use: id, sentiment;" in note
    )
    assert "sentiment has 2 different values: rename it to label" in note
    first = Path("reviews.yaml").read_text().splitlines()[0]
    assert first.endswith("format text; not used: id, sentiment.")
    labelled_by("label")
    assert main(["new", "reviews.csv", "--output", "label.yaml"]) == 0
    note = capsys.readouterr().err
    assert "format label does not use: id\n" in note and "rename" not in note
    assert Path("label.yaml").read_text().splitlines()[0].endswith("classes: bad, good; not used: id.")


@pytest.mark.parametrize("column", ["label", "sentiment"])
def test_inspect_looks_through_the_model_that_new_chooses(column, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    labelled_by(column)
    assert main(["data", "inspect", "reviews.csv", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["new", "reviews.csv"]) == 0
    monkeypatch.setenv("FTDOCS_PROFILE", "cpu")
    capsys.readouterr()
    assert main(["data", "inspect", "reviews.csv", "--recipe", "reviews.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plain
    assert (plain["model"] == "minilm") == (column == "label")
    assert plain["ignored"] == (["id"] if column == "label" else ["id", "sentiment"])
    assert main(["data", "inspect", "reviews.csv"]) == 0
    assert f"ignored {' '.join(plain['ignored'])}" in " ".join(
        capsys.readouterr().out.replace(",", "").split()
    )


def test_a_file_given_to_the_wrong_command_names_the_right_one(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    labelled_by("label")
    Path("reviews.yaml").write_text("model: minilm\ndata: {path: reviews.csv}\n")
    assert "is data, not a recipe; write a recipe for it: ftdocs new reviews.csv" in refused(
        capsys, "train", "reviews.csv"
    )
    assert "did you mean `ftdocs data inspect reviews.csv`?" in refused(capsys, "data", "reviews.csv")
    for verb in (["new"], ["data", "inspect"]):
        line = refused(capsys, *verb, "reviews.yaml")
        assert "is a recipe, not data; give the data file, and train with: ftdocs train reviews.yaml" in line
    assert "did you mean reviews.csv?" in refused(capsys, "new", "review.csv")
    assert "a run's folder is wanted, not a file; `ftdocs train" in refused(
        capsys, "evaluate", "reviews.yaml"
    )
    Path("runs/reviews").mkdir(parents=True)
    assert "wanted, not a file; did you mean runs/reviews?" in refused(capsys, "evaluate", "reviews.yaml")


def test_what_is_no_run_gets_the_nearest_one_and_no_option_that_the_command_lacks(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/my-docs", "runs/faq", "elsewhere/trial"):
        Path(run, "model").mkdir(parents=True)
        Path(run, runs.ENVIRONMENT).write_text("{}")
    Path("my-docs").mkdir()
    Path("my-docs/a.md").write_text("text")
    for command in (["evaluate"], ["chat"], ["serve"], ["merge", "--output", "o"], ["compare"],
                    ["feedback", "--output", "o.jsonl"]):  # fmt: skip
        line = refused(capsys, *command, "my-docs")
        assert line == "ftdocs: my-docs: is not a run; did you mean runs/my-docs?\n", command
    assert "runs/my-doc: no such run; did you mean runs/my-docs?" in refused(capsys, "serve", "runs/my-doc")
    assert "did you mean elsewhere/trial?" in refused(capsys, "evaluate", "elsewhere")
    assert "did you mean elsewhere/trial?" in refused(capsys, "evaluate", "elsewhere/tril")
    assert "did you mean runs/faq?" in refused(capsys, "evaluate", "runs/faq/model")
    assert "no such run; `ftdocs train RECIPE.yaml` makes one" in refused(capsys, "evaluate", "other")
    line = refused(capsys, "chat", "smollm2-135m-instuct")
    assert "no such run or model; did you mean smollm2-135m-instruct?" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("new faq --outptu x", "--outptu: no such option; did you mean --output?; see ftdocs new --help"),
        ("new faq --outptu=x", "--outptu=x: no such option; did you mean --output?; see ftdocs new --help"),
        (
            "data inspect faq --sample 3",
            "--sample: no such option; did you mean --samples?; see ftdocs data inspect --help",
        ),
        (
            "plan faq.yaml --set a=b",
            "--set: no such option; write the value into the recipe, or into a copy of it; see ftdocs plan --help",
        ),
        ("doctor --qqqqqq", "--qqqqqq: no such option; see ftdocs doctor --help"),
        ("--versoin doctor", "--versoin: no such option; did you mean --version?; see ftdocs --help"),
        (
            "merge runs/qa other --output x",
            "other: one argument too many; put a name with blanks into quotes; see",
        ),
        ("chat runs/qa Hello?", "Hello?: chat takes no question here; type it when chat asks, or send it to"),
    ],
)
def test_an_unknown_option_gets_the_nearest_of_its_command_and_that_ones_help(arguments, says, capsys):
    assert refused(capsys, *arguments.split()).startswith(f"ftdocs: {says}")


def test_what_is_no_recipe_gets_the_nearest_one(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in ("my-docs", "other", "single", "several"):
        Path(folder).mkdir()
    for recipe in ("my-docs.yaml", "single/a.yaml", "several/a.yaml", "several/b.yml"):
        Path(recipe).write_text("model: x\n")
    for command in ("train", "plan"):
        line = refused(capsys, command, "my-docs")
        assert line == "ftdocs: my-docs: is a folder, not a recipe; did you mean my-docs.yaml?\n"
    assert "no such recipe; did you mean my-docs.yaml?" in refused(capsys, "train", "mydocs.yml")
    assert "did you mean single/a.yaml?" in refused(capsys, "train", "single")
    assert "give one of the files inside it" in refused(capsys, "train", "several")
    assert "`ftdocs new other` writes one for the data in it" in refused(capsys, "train", "other")


def test_a_wrong_data_path_says_where_it_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("faq.jsonl").write_text('{"text": "a"}\n')
    Path("job.yaml").write_text("model: minilm\ndata: {path: faqs.jsonl}\n")
    wrong = f"data.path: {tmp_path.resolve()}/faqs.jsonl: no such file or folder; did you mean "
    for command in (["train"], ["search", "--trials", "2"]):
        assert refused(capsys, *command, "job.yaml").startswith(f"ftdocs: job.yaml: {wrong}")
    line = refused(capsys, "train", "job.yaml", "--set", "data.path=faqs.jsonl")
    assert line.startswith(f"ftdocs: --set {wrong}")
    monkeypatch.setenv("FTDOCS_DATA__PATH", "faqs.jsonl")
    assert refused(capsys, "train", "job.yaml").startswith(f"ftdocs: FTDOCS_DATA__PATH: {wrong}")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("new faq.csv", 0),
        ("new nowhere.csv", 2),
        ("data inspect nowhere.csv", 2),
        ("data inspect bad.csv", 2),
        ("train faq.csv", 2),
        ("evaluate faq.csv", 2),
        ("serve nowhere", 2),
    ],
)
def test_what_needs_no_model_imports_no_torch(arguments, code, run_python, tmp_path):
    (tmp_path / "faq.csv").write_text("text\n" + "".join(f"text {n}\n" for n in range(9)))
    (tmp_path / "bad.csv").write_text("words\nx\n")
    verb = arguments.replace("faq.csv", str(tmp_path / "faq.csv")).replace(
        "bad.csv", str(tmp_path / "bad.csv")
    )
    output = ("--output", str(tmp_path / "job.yaml")) if arguments.startswith("new") else ()
    done = run_python(SLOW, *verb.split(), *output)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "slow modules: []"


def test_an_interval_without_width_is_not_shown_as_one(capsys):
    found = metric_intervals([0, 0], [0, 1])  # one row of each class: every resample is the same
    metrics = {name: interval.estimate for name, interval in found.items()}
    spans = {name: [interval.low, interval.high] for name, interval in found.items()}
    print_evaluation({"run": "x", "rows": 2, "split": "test", "metrics": metrics, "intervals": spans})
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "0.5000  (95 % interval: 0.0945 to 0.9055)" in lines["accuracy"]
    for name in ("precision", "recall", "f1"):
        assert lines[name].endswith("  (95 % interval: none, these rows cannot tell)")


def test_one_row_is_one_row(capsys):
    print_evaluation({"run": "x", "rows": 1, "split": "test", "metrics": {}})
    assert capsys.readouterr().out == "x: 1 test row\n"
    assert [counted(count, "chunk") for count in (0, 1, 2)] == ["0 chunks", "1 chunk", "2 chunks"]


def test_training_without_pytorch_is_one_line(run_python, tmp_path):
    recipe = tmp_path / "job.yaml"
    recipe.write_text("model: minilm\ndata: {path: x.jsonl}\n")
    done = run_python(WITHOUT, "train", str(recipe))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "torch is not installed" in done.stderr and "doctor" in done.stderr


def test_what_training_imports_says_nothing(run_python):
    done = run_python("import ftdocs.train")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
