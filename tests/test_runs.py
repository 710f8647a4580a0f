"""A run from a user's own file: every format trains, evaluates, is reused, resumed, or refused with one line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pandas
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ftdocs import assets, checkpoints, runs
from ftdocs.cli import main
from ftdocs.recipe import Recipe
from ftdocs.train import Diverged, train

WORDS = "river stone cloud amber falcon meadow copper lantern harbour willow saffron thunder".split()


def rows(format: str, count: int = 40) -> list[dict]:
    """Different rows of one format, with nothing repeated."""
    made = []
    for number in range(count):
        first, second = WORDS[number % 12], WORDS[(number * 5 + number // 12 + 1) % 12]
        question, answer = f"What follows {first} {number}?", f"The {second} follows {first} {number}."
        made.append(
            {
                "messages": {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                },
                "prompt": {"prompt": question, "completion": answer},
                "instruction": {"instruction": question, "input": "", "output": answer},
                "text": {"text": f"{question} {answer} " * 3},
                "label": {"text": f"{question} {answer}", "label": ["calm", "storm"][number % 2]},
            }[format]
        )
    return made


def write(path: Path, content: list[dict]) -> Path:
    """The rows as a file of the kind that the ending names."""
    frame = pandas.DataFrame(content)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        case ".json":
            path.write_text(json.dumps(content))
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            datasets.Dataset.from_list(content).save_to_disk(path)
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A LLaMA of random weights with SmolLM2's tokenizer, for what does not depend on how good a model is."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
                         eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_file(folder: Path, data: Path, model: object = "smollm2-135m-instruct", **train: object) -> Path:
    """A recipe that takes a second or two: a few short steps."""
    settings = {"max_steps": 2, "batch_size": 2, "seq_len": 64, "learning_rate": 1e-3, **train}
    path = folder / "job.yaml"
    path.write_text(
        json.dumps(
            {
                "model": "smollm2-135m-instruct",
                "data": {"path": data.name},
                "train": settings,
                "method": {"name": "lora", "rank": 2},
            }
        )
    )
    return path


@pytest.fixture
def job(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for a small file of prompts and a tiny model, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return recipe_file(tmp_path, write(tmp_path / "faq.jsonl", rows("prompt")), tiny_llama)


def run(*arguments: str) -> int:
    """The command line, in this process."""
    return main([str(argument) for argument in arguments])


def last_json(text: str) -> dict:
    """The one JSON object that standard output must consist of."""
    assert text.count("\n") == 1, text
    return json.loads(text)


REAL = {("messages", ".jsonl"), ("label", ".csv")}  # with the model that `ftdocs new` chooses


@pytest.mark.parametrize(
    ("format", "ending"),
    [
        ("messages", ".jsonl"),
        ("prompt", ".csv"),
        ("instruction", ".json"),
        ("text", ".parquet"),
        ("label", ".csv"),
        ("messages", ""),
        ("prompt", ".parquet"),
    ],
)
def test_a_users_file_from_recipe_to_figures(format, ending, tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    if (format, ending) not in REAL:
        monkeypatch.setenv("FTDOCS_MODEL", str(tiny_llama))
    write(tmp_path / f"mine{ending}", rows(format))
    assert run("new", f"mine{ending}", "--json") == 0
    assert last_json(capsys.readouterr().out) == {"recipe": "mine.yaml"}
    assert run("data", "inspect", f"mine{ending}", "--recipe", "mine.yaml", "--json") == 0
    assert last_json(capsys.readouterr().out)["format"] == format
    assert run("train", "mine.yaml", "--json") == 0
    result = last_json(capsys.readouterr().out)
    assert set(result) == {"run", "steps", "train_tokens", "train_seconds", "loss"}
    assert result["run"] == "runs/mine" and result["steps"] == 2 and math.isfinite(result["loss"])
    assert result["train_tokens"] > 0 and result["train_seconds"] > 0

    folder = Path("runs/mine")
    assert (folder / ("model" if format == "label" else "adapter")).is_dir()
    assert all(
        (folder / name).is_file()
        for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "README.md")
    )
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    steps = [row for row in runs.read_metrics(folder) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert set(steps[0]) >= {"step", "loss", "learning_rate", "tokens", "seconds", "time"}
    assert steps[-1]["tokens"] == result["train_tokens"]
    validations = [row["step"] for row in runs.read_metrics(folder) if "eval_loss" in row]
    assert validations == [0, 2]

    assert run("evaluate", folder, "--json") == 0
    outcome = last_json(capsys.readouterr().out)
    assert outcome["split"] == "test" and outcome["rows"] == 4
    wanted = (
        {"accuracy", "f1", "majority_accuracy"} if format == "label" else {"perplexity", "base_perplexity"}
    )
    assert wanted <= set(outcome["metrics"])


def test_training_moves_held_out_loss_and_evaluation_agrees_with_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = recipe_file(tmp_path, write(tmp_path / "faq.jsonl", rows("prompt")))
    result = train(Recipe.load(job, ["train.max_steps=12", "data.validation=0.2"]), Path("out"))
    before, after = (row["eval_loss"] for row in runs.read_metrics(result.run) if "eval_loss" in row)
    assert after < 0.8 * before
    assert run("evaluate", "out", "--json") == 0
    metrics = last_json(capsys.readouterr().out)["metrics"]
    assert metrics["loss"] < 0.8 * metrics["base_loss"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_a_finished_run_is_reused_and_another_recipe_is_refused(job, capsys):
    assert run("train", job, "--output", "out", "--json") == 0
    first = capsys.readouterr().out
    written = (Path("out") / runs.METRICS).read_text()
    assert run("train", job, "--output", "out", "--json") == 0
    assert run("train", job, "--output", "out", "--json", "--resume") == 0
    assert capsys.readouterr().out == first * 2
    assert run("train", job, "--output", "out", "--set", "train.max_steps=3") == 2
    assert "another recipe" in capsys.readouterr().err
    Path("faq.jsonl").write_text(Path("faq.jsonl").read_text().replace("river", "brook"))
    assert run("train", job, "--output", "out") == 2
    assert "another data" in capsys.readouterr().err
    assert (Path("out") / runs.METRICS).read_text() == written
    assert run("evaluate", "out") == 2  # its test rows may be other ones now
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("mine")
    assert run("train", job, "--output", "notes") == 2
    assert "not a run" in capsys.readouterr().err and Path("notes/diary.txt").read_text() == "mine"


def command(*arguments: str) -> subprocess.Popen:
    """The command line in a process of its own, which can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "ftdocs.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has logged ``step``."""
    for _ in range(1200):
        if (folder / runs.METRICS).is_file() and any(r["step"] >= step for r in runs.read_metrics(folder)):
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended early: {process.stderr.read()}")
        time.sleep(0.05)
    pytest.fail(f"step {step} was not reached")


def curve(folder: Path) -> list[tuple]:
    """The figures of a run that must be the same to the last bit when it is repeated."""
    return [
        tuple(row.get(key) for key in ("step", "loss", "eval_loss", "grad_norm", "tokens", "learning_rate"))
        for row in runs.read_metrics(folder)
    ]


def test_a_killed_run_resumes_bitwise(job, capsys):
    settings = ("--set", "train.max_steps=8", "--set", "train.save_every=2", "--set", "method.dropout=0.1")
    assert run("train", job, *settings, "--output", "whole", "--json") == 0
    process = command("train", job, *settings, "--output", "killed")
    wait_for_step(Path("killed"), 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run("train", job, *settings, "--output", "killed") == 2  # unfinished: it says how to go on
    assert "--resume" in capsys.readouterr().err
    # The newest checkpoint loses a byte, so the one before it is used.
    newest = checkpoints.last_good(Path("killed"))
    assert newest is not None
    victim = newest / "optimizer.pt"
    victim.write_bytes(victim.read_bytes()[:-1])
    older = checkpoints.last_good(Path("killed"))
    assert older is not None and older != newest
    assert run("train", job, *settings, "--output", "killed", "--resume", "--json") == 0
    assert curve(Path("killed")) == curve(Path("whole"))
    weights = [next(Path(name, "adapter").glob("*.safetensors")).read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_ctrl_c_saves_and_says_how_to_go_on(job):
    settings = ("--set", "train.max_steps=200", "--set", "train.save_every=100")
    process = command("train", job, *settings, "--output", "out")
    wait_for_step(Path("out"), 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "--resume" in errors.splitlines()[-1] and "Traceback" not in errors
    saved = checkpoints.last_good(Path("out"))
    assert saved is not None and int(saved.name.split("-")[1]) >= 2


def test_two_processes_cannot_write_one_run(job):
    with runs.hold(Path("out")):
        process = command("train", job, "--output", "out")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "another process" in errors


def test_a_loss_that_is_no_number_stops_the_run(job):
    with pytest.raises(Diverged, match="step"):
        train(
            Recipe.load(job, ["method.name=full", "train.learning_rate=1e30", "train.max_steps=6"]),
            Path("out"),
        )


def test_packing_changes_the_batches_and_not_the_held_out_loss_before_training(job):
    first = [
        runs.read_metrics(train(Recipe.load(job, [f"train.packing={packing}"]), Path(packing)).run)[0]
        for packing in ("true", "false")
    ]
    assert first[0]["eval_loss"] == first[1]["eval_loss"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "job.yaml", "--set", "model=smollm3"], "smollm2-135m-instruct"),
        (["train", "job.yaml", "--set", "method.targets=[queries]"], "q_proj"),
        (["train", "job.yaml", "--set", "data.name=docstring", "--set", "data.path=null"], "docstrings"),
        (["train", "job.yaml", "--set", "train.max_stepz=1"], "max_steps"),
        (["train", "job.yaml", "--set", "model=minilm"], "generate text"),
        (["trian", "job.yaml"], "train"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "."], "not"),
        (["new", "nowhere.jsonl"], "nowhere.jsonl"),
        (["train"], "RECIPE.yaml"),
        ([], "COMMAND"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, says, job, capsys):
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and "Traceback" not in err
    assert not Path("runs").exists() or not any(Path("runs/job").glob("[!.]*"))


def test_a_full_disk_is_one_line_and_loses_nothing(job, tmp_path):
    """A file system so small that the checkpoint does not fit."""
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small]).returncode
    ):
        pytest.skip("a small file system can only be mounted as root")
    try:
        process = command("train", job, "--output", small / "out")
        _, errors = process.communicate(timeout=60)
        assert (
            process.returncode == 2
            and "disk is full" in errors.splitlines()[-1]
            and "Traceback" not in errors
        )
        subprocess.run(["mount", "-o", "remount,size=300m", small], check=True)
        process = command("train", job, "--output", small / "out", "--resume", "--json")
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        process = command("train", job, "--output", small / "other")
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2 and "no permission" in errors
    finally:
        subprocess.run(["umount", small], check=True)
