"""Early stopping: a run ends where its held-out loss has stopped falling, and keeps the weights of its lowest."""

import json

import numpy as np
import pytest
import torch
from make_repositories import tiny_bert
from safetensors.torch import load_file

from ftdocs import models, runs
from ftdocs.errors import InputError
from ftdocs.evaluate import evaluate_run
from ftdocs.recipe import Data, Method, Recipe, Train
from ftdocs.train import train

ENGINES = pytest.mark.parametrize("engine", ["trainer", "loop"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT, and texts whose labels are chance: what is learnt of some is of no use for others."""
    folder, draw = tmp_path_factory.mktemp("patience"), np.random.default_rng(0)
    tiny_bert(folder / "bert")
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    rows = [
        {"text": " ".join("".join(draw.choice(letters, 5)) for _ in range(8)), "label": f"class {row % 2}"}
        for row in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(folder, engine="loop", method="full", **train_keys) -> Recipe:
    asked = {"learning_rate": 1e-2, "epochs": 30, "batch_size": 10, "eval_every": 3, "patience": 2}
    return Recipe(
        model=str(folder / "bert"),
        data=Data(path=folder / "rows.jsonl", validation=0.4, test=0.2),
        method=Method(name=method, targets=["query", "value"]),
        train=Train(seq_len=32, precision="fp32", schedule="constant", engine=engine, **asked | train_keys),
    )


def losses(run) -> dict[int, float]:
    """Held-out loss by step, after training has begun."""
    return {
        row["step"]: row["eval_loss"]
        for row in runs.read_metrics(run)
        if row.get("step") and "eval_loss" in row
    }


def weights(run) -> dict[str, torch.Tensor]:
    [file] = [*run.glob("model/*.safetensors"), *run.glob("adapter/*.safetensors")]
    return load_file(file)


class Killed(Exception):
    pass


@ENGINES
@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_stops_and_keeps_the_best_weights(folder, tmp_path, engine, method, capsys):
    asked = recipe(folder, engine, method, learning_rate=1e-2 if method == "full" else 0.3)
    result = train(asked, tmp_path / "run")
    curve = losses(tmp_path / "run")
    best = min(curve, key=lambda step: curve[step])
    assert result.steps == best + 2 * 3 < 3 * 30  # two validations of patience after the best one
    assert f"kept the weights of step {best} of {result.steps}" in capsys.readouterr().err
    again = evaluate_run(tmp_path / "run", split="validation")["metrics"]["loss"]
    assert again == pytest.approx(curve[best], rel=1e-4) and again != pytest.approx(
        curve[result.steps], rel=1e-3
    )
    card = (tmp_path / "run/README.md").read_text()
    assert f"those of step {best}" in card and f"→ {curve[best]:.3f} |" in card
    assert train(asked, tmp_path / "run") == result  # reused


@ENGINES
@pytest.mark.parametrize("late", [False, True])
def test_killed_and_resumed_it_ends_with_the_same_weights(folder, tmp_path, engine, late):
    asked = recipe(folder, engine, save_every=4)
    whole = train(asked, tmp_path / "whole")
    curve = losses(tmp_path / "whole")
    steps = sorted(curve)
    best = min(curve, key=lambda step: curve[step])
    at = (
        steps[steps.index(best) + 1] if late else best
    )  # where it is killed: after the best checkpoint, or before it

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train(asked, tmp_path / "killed", watch=kill)
    assert train(asked, tmp_path / "killed", resume=True).steps == whole.steps
    assert losses(tmp_path / "killed") == curve
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)


@ENGINES
def test_a_run_that_gets_better_to_its_end_keeps_its_last_weights(folder, tmp_path, engine, capsys):
    result = train(recipe(folder, engine, learning_rate=1e-6, max_steps=3, patience=1), tmp_path / "run")
    assert result.steps == 3 and "kept the weights" not in capsys.readouterr().err
    model, _ = models.load_run(tmp_path / "run")
    assert model.config.num_labels == 2


def test_a_damaged_best_checkpoint_is_no_result(folder, tmp_path):
    best: list[int] = []

    def damage(step: int, metrics: dict[str, float]) -> None:
        curve = losses(tmp_path / "run")
        lowest = min(curve, key=lambda step: curve[step])
        if lowest != step:  # before the second validation without a new lowest loss
            best.append(lowest)
            (tmp_path / f"run/checkpoints/checkpoint-{lowest}/seal.json").unlink()

    with pytest.raises(InputError, match="best weights were in it; train again"):
        train(recipe(folder, max_steps=90, patience=1), tmp_path / "run", watch=damage)
    assert best


def test_wrong_input(folder, tmp_path):
    with pytest.raises(ValueError, match="counts validations; set `eval_every`"):
        recipe(folder, eval_every=None)
    nothing = recipe(folder)
    nothing = nothing.model_copy(update={"data": nothing.data.model_copy(update={"validation": 0.0})})
    with pytest.raises(InputError, match=r"no row is held out to watch; set data\.validation"):
        train(nothing, tmp_path / "run")
    with pytest.raises(InputError, match="features has no steps to stop after"):
        train(recipe(folder, method="features"), tmp_path / "run")
    with pytest.raises(InputError, match=r"set method\.unfreeze to false"):
        train(recipe(folder, method="ulmfit"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
