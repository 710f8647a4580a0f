"""A search goes on where it was killed, draws the same sequence, survives failed trials, refuses what cannot work."""

import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import make_repositories
import pytest
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from transformers import BertConfig, BertForSequenceClassification

from ftdocs import runs, search
from ftdocs.cli import main
from ftdocs.errors import InputError
from ftdocs.progress import Interrupted
from ftdocs.recipe import Recipe
from ftdocs.search_ray import by_ray

SPACE = """
  space:
    train.learning_rate: {low: 1e-4, high: 1e-1, log: true}
    train.batch_size: [4, 8]
    train.epochs: {low: 1, high: 3}
"""
GRID = "\n  sampler: grid\n  space: {train.learning_rate: [1e-3, 1e-2], train.batch_size: [4, 8]}\n"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repositories.tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose label is a word in them."""
    path, words = tmp_path_factory.mktemp("rows") / "rows.jsonl", make_repositories.WORDS
    chosen = random.Random(0)
    with open(path, "w") as file:
        for number in range(80):
            text = " ".join([["good", "bad"][number % 2], *chosen.choices(words, k=6), str(number)])
            file.write(json.dumps({"text": text, "label": ["yes", "no"][number % 2]}) + "\n")
    return path


@pytest.fixture
def recipe(tmp_path: Path, bert: Path, rows: Path, monkeypatch: pytest.MonkeyPatch):
    """``recipe("search:…")`` writes a recipe file of the tiny classifier and gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(section: str = SPACE, train: str = "", data: str = "") -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(
            f"model: {bert}\ndata: {{path: {rows}, validation: 0.3, test: 0.1{data}}}\nmethod: {{name: full}}\n"
            f"train: {{batch_size: 8, seq_len: 16, engine: loop, precision: fp32{train}}}\n"
            + (f"search:{section}" if section else "")
        )
        return path

    return write


def settings(found: search.Result) -> list[dict]:
    return [{key: row[key] for key in found.best} for row in found.rows]


def weights(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in (folder / "trials").glob("*/model"))


def refused(capsys, *arguments) -> str:
    """The one line with which a command refuses wrong input."""
    assert main([str(each) for each in arguments]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1, line
    return line


def test_a_search_finds_the_best_keeps_its_weights_alone_and_writes_a_recipe(recipe, capsys):
    assert main(["search", str(recipe()), "--trials", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"search", "trials", "failed", "pruned", "best", "metric", "value"}
    folder = Path(result["search"])
    assert folder == Path("runs/job-search") and result["trials"] == 4 and result["metric"] == "eval_loss"
    assert set(result["best"]) == {"train.learning_rate", "train.batch_size", "train.epochs"}

    again = search.search(Recipe.load("job.yaml"), folder, 4)  # nothing is trained: the result is read
    assert again.value == result["value"] == min(row["value"] for row in again.rows)
    [best] = [row for row in again.rows if row["value"] == result["value"]]
    assert weights(folder) == [Path(best["folder"]).name]
    for row in again.rows:  # each trial is a run, whose last validation is the trial's value
        assert runs.read_metrics(folder / row["folder"])[-1]["eval_loss"] == row["value"]
        assert not (folder / row["folder"] / "checkpoints").exists()

    chosen = Recipe.load(folder / "best.yaml")
    for key, value in result["best"].items():
        assert getattr(chosen.train, key.partition(".")[2]) == value
    assert main(["train", str(folder / "best.yaml"), "--output", "best", "--json"]) == 0
    assert runs.read_metrics(Path("best"))[-1]["eval_loss"] == pytest.approx(result["value"], rel=1e-6)


def test_the_table_ranks_the_trials(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = recipe(SPACE + "  metric: eval_accuracy\n")
    assert main(["search", str(path), "--trials", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split()[1]) for line in lines[1:4]]
    assert values == sorted(values, reverse=True)
    assert lines[-1] == "Next: ftdocs train runs/job-search/best.yaml"


@pytest.mark.parametrize("sampler", ["random", "bayes"])
def test_a_search_in_two_parts_draws_the_sequence_of_a_whole_one(recipe, sampler, monkeypatch):
    monkeypatch.setattr(search, "STARTUP", 2)  # so that TPE chooses within a few trials
    asked = Recipe.load(recipe(f"{SPACE}  sampler: {sampler}\n  seed: 3\n"))
    whole = search.search(asked, Path("whole"), 4)
    search.search(asked, Path("parts"), 3)
    parts = search.search(asked, Path("parts"), 4)
    assert settings(parts) == settings(whole)
    assert [row["value"] for row in parts.rows] == [row["value"] for row in whole.rows]
    assert len({row["train.learning_rate"] for row in whole.rows}) == 4
    other = asked.model_copy(update={"search": asked.search.model_copy(update={"seed": 4})})
    assert settings(search.search(other, Path("other"), 1)) != settings(whole)[:1]


def test_a_grid_is_tried_point_by_point_in_an_order_of_the_seeds(recipe, capsys):
    asked = Recipe.load(recipe(GRID))
    found = search.search(asked, Path("grid"), 9)
    assert found.trials == 4 and "the grid has 4 points" in capsys.readouterr().err
    points = {(row["train.learning_rate"], row["train.batch_size"]) for row in found.rows}
    assert points == set(itertools.product([1e-3, 1e-2], [4, 8]))
    assert settings(search.search(asked, Path("part"), 2)) == settings(found)[:2]


def start(path: Path, *options: str) -> subprocess.Popen:
    """The command in a process of its own, and of its own group."""
    command = [sys.executable, "-m", "ftdocs.cli", "search", str(path), "--json", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait for a condition while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_a_killed_search_goes_on_and_repeats_no_finished_trial(recipe):
    path = recipe(train=", save_every: 4")
    whole = search.search(Recipe.load(path), Path("whole"), 4)
    trials = Path("runs/job-search/trials")
    process = start(path, "--trials", "4")
    # In the middle of the second trial, after a checkpoint.
    until(
        lambda: (
            len(list(trials.glob("*/result.json"))) >= 1
            and any(trials.glob("*/checkpoints/checkpoint-*/progress.json"))
        ),
        process,
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in trials.glob("*/result.json")}
    done = start(path, "--trials", "4")
    out, error = done.communicate(timeout=300)
    assert done.returncode == 0, error
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) < 4
    result = json.loads(out)
    assert (result["trials"], result["failed"]) == (4, 0)
    again = search.search(Recipe.load(path), Path("runs/job-search"), 4)
    assert settings(again) == settings(whole)
    assert [row["value"] for row in again.rows] == pytest.approx([row["value"] for row in whole.rows])
    assert len(list(trials.glob("*/result.json"))) == 4  # the place of the killed one was tried again


def test_a_trial_killed_again_and_again_is_tried_until_it_ends(recipe, monkeypatch):
    asked = Recipe.load(recipe())
    whole = search.search(asked, Path("whole"), 3)
    trained, calls = search.train, itertools.count()

    def killed(*arguments, **options):
        if next(calls) in (1, 2):
            raise SystemExit  # passes everything that a trial catches, as a kill does
        return trained(*arguments, **options)

    monkeypatch.setattr(search, "train", killed)
    for _ in range(2):
        with pytest.raises(SystemExit):
            search.search(asked, Path("parts"), 3)
    assert settings(search.search(asked, Path("parts"), 3)) == settings(whole)


def test_ctrl_c_ends_a_search_with_one_line_and_the_same_command_goes_on(recipe, capsys, monkeypatch):
    path, trained, calls = recipe(), search.train, itertools.count()

    def stopped(*arguments, **options):
        if next(calls) == 1:
            raise Interrupted("stopped after step 1")
        return trained(*arguments, **options)

    monkeypatch.setattr(search, "train", stopped)
    assert main(["search", str(path), "--trials", "3", "--json"]) == 1
    line = "ftdocs: runs/job-search: stopped after 1 of 3 trials; the same command goes on\n"
    assert capsys.readouterr() == ("", line)
    assert main(["search", str(path), "--trials", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 3


def test_failed_trials_are_counted_and_all_failing_is_an_error(recipe, capsys, monkeypatch):
    rates = [1e30, 1e-2]
    section = f"\n  sampler: grid\n  space: {{train.learning_rate: {rates}, train.batch_size: [8]}}\n"
    assert main(["search", str(recipe(section)), "--trials", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["trials"], result["failed"]) == (2, 1)
    assert result["best"]["train.learning_rate"] == 1e-2
    found = search.search(Recipe.load("job.yaml"), Path("runs/job-search"), 2)
    [failed] = [row for row in found.rows if row["state"] == "failed"]
    assert failed["train.learning_rate"] == 1e30 and failed["value"] is None
    assert any(words in failed["reason"] for words in ("loss is", "gradient norm is"))

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(search, "train", full)
    assert main(["search", str(recipe()), "--trials", "2", "--output", "full", "--json"]) == 1
    assert (
        "none of 2 trials reached its end; the first one failed: CUDA out of memory"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_pruner_stops_what_does_badly(recipe, pruner):
    rates = [1e-2, 1e-2 + 1e-5, 1e-2 + 2e-5, 1e-7, 1e-7 + 1e-12]
    section = f"\n  sampler: grid\n  pruner: {pruner}\n  space: {{train.learning_rate: {rates}}}\n"
    found = search.search(
        Recipe.load(recipe(section, ", epochs: 4, eval_every: 3, log_every: 1")), Path("s"), 5
    )
    assert found.pruned >= 1 and found.failed == 0
    assert found.best["train.learning_rate"] > 1e-3
    for row in found.rows:
        steps = [each["step"] for each in runs.read_metrics(Path("s") / row["folder"]) if "loss" in each]
        assert (len(steps) < 24) == (row["state"] == "pruned")
        assert not (Path("s") / row["folder"] / "checkpoints").exists()


def test_trials_of_all_batch_sizes_are_validated_after_as_many_rows(recipe):
    asked = Recipe.load(recipe(train=", eval_every: 6, accumulation: 2"))
    for size, steps in ((4, 12), (8, 6), (16, 3), (96, 1)):
        assert search.trial_recipe(asked, {"train.batch_size": size}).train.eval_every == steps


def test_a_space_is_read_as_it_is_meant(recipe):
    found = Recipe.load(
        recipe("\n  space: {train: {epochs: {low: 1, high: 3}, learning_rate: [1e-4, 1e-3]}}\n")
    )
    assert found.search.space is not None
    kinds = search.distributions(found.search.space)
    assert kinds["train.epochs"] == IntDistribution(1, 3)
    assert kinds["train.learning_rate"].choices == (1e-4, 1e-3)  # YAML reads 1e-4 as text
    log = Recipe.load(
        recipe("\n  space: {train.weight_decay: {low: 1e-4, high: 1, log: true}}\n")
    ).search.space
    assert log and search.distributions(log)["train.weight_decay"] == FloatDistribution(1e-4, 1, log=True)


def test_without_a_space_rate_batch_size_and_epochs_are_searched(recipe):
    space = search.with_space(Recipe.load(recipe(""))).search.space
    assert space and list(space) == ["train.learning_rate", "train.batch_size", "train.epochs"]
    assert space["train.learning_rate"].low == pytest.approx(5e-6) and space["train.batch_size"] == [4, 8, 16]
    space = search.with_space(Recipe.load(recipe("\n  sampler: grid\n", ", max_steps: 3"))).search.space
    assert space and list(space) == ["train.learning_rate", "train.batch_size"]


def test_the_space_that_nobody_wrote_is_named_beside_the_result(recipe, capsys):
    path = recipe("", ", max_steps: 3")
    for _ in range(2):  # the second time nothing is left to train
        assert main(["search", str(path), "--trials", "1", "--json"]) == 0
        out, line = capsys.readouterr()
        assert json.loads(out)["trials"] == 1 and line.count("\n") == 1
    space = "{train.learning_rate: {low: 5e-06, high: 0.0005, log: true}, train.batch_size: [4, 8, 16]}"
    assert line.startswith(
        f"ftdocs: {path}: no search.space, so this one is searched: {space}; to change it, "
    )
    assert "a section search:" in line
    written = Recipe.load(recipe(f" {{space: {space}}}\n", ", max_steps: 3"))  # as it stands in the line
    assert search.with_space(Recipe.load(recipe("", ", max_steps: 3"))).search.space == written.search.space
    path = recipe(SPACE)
    assert main(["search", str(path), "--trials", "1", "--json", "--output", "own"]) == 0
    assert capsys.readouterr().err == ""


def test_a_search_given_to_evaluate_names_its_best_trial(recipe, capsys):
    assert main(["search", str(recipe()), "--trials", "2", "--json"]) == 0
    capsys.readouterr()
    line = refused(capsys, "evaluate", "runs/job-search")
    found = search.search(Recipe.load("job.yaml"), Path("runs/job-search"), 2)
    [best] = [row["folder"] for row in found.rows if row["value"] == found.value]
    assert "runs/job-search: is a search, not a run; evaluate its best trial: ftdocs evaluate" in line
    assert line.endswith(f" runs/job-search/{best}\n")
    assert main([*line.split("ftdocs ")[-1].split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == f"runs/job-search/{best}"
    shutil.rmtree(Path("runs/job-search", best))
    assert "has not finished; the same `ftdocs search` command" in refused(
        capsys, "evaluate", "runs/job-search"
    )


def test_the_search_section_changes_no_run(recipe):
    plain, searching = Recipe.load(recipe("")), Recipe.load(recipe())
    assert runs.relevant(plain) == runs.relevant(searching)
    assert "search" not in plain.to_yaml() and "search" in searching.to_yaml()
    assert searching.kept_in(Path()).to_yaml() == plain.kept_in(Path()).to_yaml()


BAD = {
    "{space: {train.learning_rat: [1e-4, 1e-3]}}": "train.learning_rat: no key of method or train; did you mean",
    "{space: {learning_rate: [1e-4, 1e-3]}}": "did you mean train.learning_rate?",
    "{space: {train.learning_rate: {low: 1e-3, high: 1e-3}}}": "low 0.001 must be below high 0.001",
    "{space: {train.learning_rate: {low: 0, high: 1e-3, log: true}}}": "low 0 has no logarithm; set low above 0",
    "{space: {train.learning_rate: {low: 1e-5, hihg: 1e-3}}}": "hihg: unknown key; did you mean high?",
    "{space: {train.learning_rate: 1e-3}}": "search.space.train.learning_rate: must be a list, such as [a, b]",
    "{space: {train.batch_size: []}}": "search.space.train.batch_size: must have an item at least",
    "{space: {train.batch_size: [8, 0]}}": "search.space.train.batch_size: must be greater than or equal to 1, got 0",
    "{space: {train.batch_size: [8, many]}}": "search.space.train.batch_size: must be a whole number, got 'many'",
    "{space: {data.limit: [100, 200]}}": "trials must be compared on the same rows",
    "{space: {train.seed: [1, 2]}}": "decides which rows are held out",
    "{sampler: grid, space: {train.epochs: {low: 1, high: 9}}}": "train.epochs: a grid wants a list, such as [1, 5, 9]",
    "{sampler: gid}": "did you mean grid?",
    "{metric: eval_perplexity}": "data of format label has no eval_perplexity; choose eval_loss or eval_accuracy",
    "{metric: test_loss}": "search.metric: must be",
    "{pruner: median}": "search.pruner: median stops trials at their validations; set train.eval_every",
}  # fmt: skip


@pytest.mark.parametrize("section", BAD)
def test_what_cannot_be_searched_is_refused_with_the_mend(recipe, capsys, section):
    assert BAD[section] in refused(capsys, "search", recipe(f" {section}\n"), "--trials", "3")
    assert not Path("runs").exists()


def test_other_wrong_input_is_refused(recipe, capsys):
    assert "--trials 0: must be 1 or more" in refused(capsys, "search", recipe(), "--trials", "0")
    assert "--trials" in refused(capsys, "search", recipe())
    line = refused(capsys, "search", recipe(), "--trials", "2", "--set", "data.validation=0")
    assert "data.validation is 0" in line and "set it to 0.1" in line
    line = refused(capsys, "search", recipe(), "--trials", "2", "--set", "train.max_steps=3")
    assert "train.max_steps is set and wins over epochs" in line
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("x")
    line = refused(capsys, "search", recipe(), "--trials", "2", "--output", "notes")
    assert "is not empty and not a search" in line


def test_an_engine_that_is_not_installed_is_named(recipe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(capsys, "search", recipe(), "--trials", "2", "--engine", "ray")
    assert 'ray is not installed; python -m pip install "ftdocs[search]"' in line
    assert "did you mean optuna?" in refused(capsys, "search", recipe(), "--trials", "2", "--engine", "optun")


def test_a_folder_of_another_search_is_refused_and_the_difference_named(recipe, capsys):
    path = recipe()
    assert main(["search", str(path), "--trials", "1", "--json"]) == 0
    capsys.readouterr()
    line = refused(
        capsys, "search", path, "--trials", "1", "--set", "train.warmup=0.2", "--set", "search.seed=1"
    )
    assert "train.warmup: 0.05 there, 0.2 now" in line and "search.seed: 0 there, 1 now" in line
    path = recipe(SPACE.replace("1e-1", "1e-2"))
    assert '"high": 0.01' in refused(capsys, "search", path, "--trials", "1")
    path = recipe()
    assert main(["search", str(path), "--trials", "2", "--json"]) == 0  # more of the same goes on


def test_values_that_the_model_cannot_have_are_a_failed_trial_once_another_has_ended(recipe):
    section = "\n  sampler: grid\n  space: {method.layers: [1, 2, 9]}\n"
    asked = Recipe.load(recipe(section).rename("layers.yaml"), ["method.name=layers"])
    first = {
        seed: search.grid(asked.search.space, seed)[0]["method.layers"] for seed in range(20)
    }  # tried first, by the search's seed
    wrong, right = (
        next(seed for seed, layers in first.items() if (layers == 9) == is_wrong)
        for is_wrong in (True, False)
    )
    with pytest.raises(InputError, match=r"method\.layers: 9"):  # it may be wrong for every setting
        search.search(asked.changed({"search.seed": wrong}), Path("refused"), 3)
    found = search.search(asked.changed({"search.seed": right}), Path("s"), 3)
    assert (found.trials, found.failed) == (3, 1)
    assert "method.layers: 9" in next(row["reason"] for row in found.rows if row["state"] == "failed")


def test_ray_finds_what_optuna_finds_and_leaves_nothing_running(recipe):
    path = recipe(GRID)
    alone = search.search(Recipe.load(path), Path("alone"), 4)
    begun = time.time()
    done = start(path, "--trials", "4", "--engine", "ray")
    out, error = done.communicate(timeout=300)
    assert done.returncode == 0, error
    result = json.loads(out)
    assert (result["trials"], result["failed"]) == (4, 0)
    side_by_side = search.search(
        Recipe.load(path), Path("runs/job-search"), 4
    )  # the study is in the same format
    assert settings(side_by_side) == settings(alone)
    for mine, theirs in zip(alone.rows, side_by_side.rows, strict=True):
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4)
        assert mine["folder"] == theirs["folder"]
    assert len(weights(Path("runs/job-search"))) == 1
    assert not left(done.pid, begun)


def left(session: int, begun: float) -> list[str]:
    """Processes of a session that are still there after a few seconds."""
    for _ in range(50):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == session and stat[0] != "Z":
                    found.append((folder / "cmdline").read_text()[:80])
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.2)
    return found


def test_ray_counts_failures_and_prunes(recipe):
    rates = [1e-2, 1e-2 + 1e-5, 1e-2 + 2e-5, 1e-7, 1e30]
    section = f"\n  sampler: grid\n  pruner: median\n  space: {{train.learning_rate: {rates}}}\n"
    found = search.search(Recipe.load(recipe(section, ", epochs: 4, eval_every: 3")), Path("s"), 5, by_ray)
    states = {row["train.learning_rate"]: row["state"] for row in found.rows}
    assert (found.trials, found.failed) == (5, 1) and states[1e30] == "failed"
    assert found.best["train.learning_rate"] > 1e-3
    assert all((row["value"] is None) == (row["state"] != "complete") for row in found.rows)


def test_the_range_test_finds_where_the_loss_explodes():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
    ids = torch.arange(40).view(8, 5)
    batch = {"input_ids": ids, "labels": ids[:, 0] % 2}
    found = search.range_test(model, itertools.repeat(batch), 1e-5, 1e2, 60)
    rates, losses = zip(*found, strict=True)
    assert rates[0] == 1e-5 and rates[1] / rates[0] == pytest.approx((1e7) ** (1 / 59))
    assert losses[0] == pytest.approx(math.log(2), abs=0.3) and min(losses) < 0.5 * losses[0]
    assert len(found) < 60 and not losses[-1] < 4 * min(losses)  # ended early, where it explodes


def test_ray_is_started_again_where_it_was_too_slow(monkeypatch):
    from ftdocs import search_ray

    slow, tried = Exception("The current node timed out during startup. This could happen because …"), []

    def begin(**settings):
        tried.append(settings)
        if len(tried) < 3:
            raise slow

    monkeypatch.setattr(search_ray.ray, "init", begin)
    search_ray.start(0)
    assert len(tried) == 3 and all(each == tried[0] for each in tried)
    tried.clear()
    with pytest.raises(Exception, match="timed out during startup"):
        search_ray.start(0, tries=2)
    monkeypatch.setattr(search_ray.ray, "init", lambda **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # whatever else it is, is said at once
        search_ray.start(0)
