"""The trials of a search side by side, by Ray Tune: on the cores or GPUs of this machine."""

import logging
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

# Read when Ray starts: nothing is sent to its makers, no tables are printed, trials are no background work.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_worker_niceness": "0"}

import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ftdocs.errors import InputError
from ftdocs.progress import Interrupted
from ftdocs.recipe import Recipe
from ftdocs.search import Plan, ask, attempt, tell

OBJECT_STORE = 100_000_000  # bytes; trials exchange nothing but a few numbers


class Asked(Searcher):
    """Ray Tune asks here what to try next, and tells how it went; the study is the one that works without Ray.

    Ray's own ``OptunaSearch`` does as much, but counts a trial that was stopped early as a complete one.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.running: dict[str, optuna.Trial] = {}
        self.refused: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The values of the next trial, or that there is none."""
        if self.refused or self.plan.begun >= self.plan.trials:
            return Searcher.FINISHED
        self.running[trial_id] = ask(self.plan)
        return {"values": self.running[trial_id].params}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Write down how a trial ended. One that was stopped has said nothing of its end."""
        trial, result = self.running.pop(trial_id), result or {}
        self.refused = self.refused or result.get("refused")
        if error:
            result = {"state": "failed", "reason": "its process has died, perhaps without memory"}
        tell(
            self.plan,
            trial,
            {key: result[key] for key in ("value", "reason", "seconds", "folder") if key in result}
            | {"state": result.get("state", "pruned")},
        )


class Stopping(FIFOScheduler):
    """Stops a trial when the study's pruner says so."""

    def __init__(self, asked: Asked):
        super().__init__()
        self.asked = asked

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What becomes of a trial after a validation."""
        running = self.asked.running.get(trial.trial_id)
        if running is None or "so_far" not in result:
            return self.CONTINUE
        running.report(result["so_far"], result["validation"])
        return self.STOP if running.should_prune() else self.CONTINUE


def trial(config: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """One trial, in a process of Ray's."""

    def watch(number: int, value: float) -> None:
        tune.report({"validation": number, "so_far": value})

    try:
        tune.report(attempt(recipe, folder, config["values"], watch))
    except InputError as error:
        tune.report({"state": "failed", "reason": str(error), "refused": str(error)})


def start(gpus: int, tries: int = 3) -> None:
    """Start Ray on this machine. It gives its own processes half a minute, which is too little on a busy one."""
    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if "timed out during startup" not in str(error) or not left:
                raise


def by_ray(plan: Plan) -> None:
    """Run the trials that are left, each on a core of its own, or on a GPU where there are some.

    Raises:
        Interrupted: Ctrl-C.
        InputError: what was wrong with a trial would be wrong with others.
    """
    gpus = torch.cuda.device_count()
    start(gpus)
    asked = Asked(plan)
    try:
        with tempfile.TemporaryDirectory() as scratch:  # Ray's own notes: ours are in the study
            tune.Tuner(
                tune.with_resources(
                    partial(trial, recipe=plan.recipe, folder=plan.folder.resolve()),
                    {"cpu": 1, "gpu": 1 if gpus else 0},
                ),
                tune_config=tune.TuneConfig(
                    search_alg=asked,
                    scheduler=Stopping(asked),
                    num_samples=-1,
                    reuse_actors=True,  # or each trial imports everything anew
                ),
                run_config=tune.RunConfig(storage_path=scratch, verbose=0),
            ).fit()
    finally:
        ray.shutdown()
    if asked.refused:
        raise InputError(asked.refused)
    if asked.running or plan.begun < plan.trials:
        raise Interrupted("stopped")
