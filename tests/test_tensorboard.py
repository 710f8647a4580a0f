"""TensorBoard reads the figures that stand in metrics.jsonl, over a resume too."""

import sys
from pathlib import Path

import pytest
import test_runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ftdocs import checkpoints, runs

job, tiny_llama, run = test_runs.job, test_runs.tiny_llama, test_runs.run  # two of them are fixtures
SETTINGS = [
    "train.report_to=[tensorboard]",
    "train.max_steps=6",
    "train.save_every=2",
    "train.log_every=3",
]


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows for a run: step and value."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def figures(folder: Path, key: str) -> list[tuple[int, float]]:
    return [(row["step"], pytest.approx(row[key])) for row in runs.read_metrics(folder) if key in row]


def train(job: Path, *more: str) -> int:
    return run("train", job, *[f"--set={setting}" for setting in SETTINGS], "--output", "out", *more)


def test_tensorboard_shows_the_curve_of_a_finished_run(job):
    assert train(job) == 0
    for tag, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("eval/loss", "eval_loss")):
        assert events(Path("out/tensorboard"), tag) == figures(Path("out"), key) != []


@pytest.mark.parametrize("whole", [1, 0], ids=["from step 4", "from the beginning"])
def test_a_resumed_run_shows_each_step_once(job, monkeypatch, whole):
    """Checkpoints 6 and 4 lie there; the row of step 6 is a mean over steps before and after the resume."""
    with monkeypatch.context() as patch:
        patch.setattr("ftdocs.train.save", lambda *_: sys.exit("stopped"))
        with pytest.raises(SystemExit):
            train(job)
    for broken in checkpoints.newest_first(Path("out"))[: 2 - whole]:
        (broken / checkpoints.SEAL).unlink()
    assert train(job, "--resume") == 0
    for tag, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        assert events(Path("out/tensorboard"), tag) == figures(Path("out"), key) != []


def test_the_loop_refuses_loggers_with_one_line(job, capsys):
    assert train(job, "--set", "train.engine=loop") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "`report_to` needs `engine: trainer`" in line and not Path("out").exists()
