"""Search: the same recipe with other hyperparameters, trial after trial; Optuna chooses and remembers."""

import difflib
import hashlib
import itertools
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from ftdocs import files, job, models, processes, runs
from ftdocs.data import prepare
from ftdocs.errors import InputError
from ftdocs.progress import Interrupted
from ftdocs.recipe import Choices, Method, Range, Recipe, Search, Train
from ftdocs.train import train

PLAN, STUDY, BEST = "search.json", "study.db", "best.yaml"
LESS_IS_BETTER = ("eval_loss", "eval_perplexity")
SEARCHED = {"method": Method, "train": Train}
FIXED = {
    "train.seed": "which rows are held out",
    "train.eval_every": "where trials are compared",
}  # and must be the same in all trials
STARTUP = 5  # trials drawn at random before the Bayesian sampler has seen enough to choose
STOPPABLE_AFTER = 3  # trials that are never stopped, for the others to be compared with


class AllFailed(RuntimeError):
    """No trial of a search reached its end; its message has the first one's reason."""


@dataclass(frozen=True)
class Result:
    """What ``ftdocs search --json`` prints, and ``rows``.

    Attributes:
        search: the search's folder.
        trials: how many were tried; ``failed`` and ``pruned`` (stopped early) of them did not reach their end.
        best: the values of the best trial, by dotted key.
        metric: of the validation rows; ``value`` is the best trial's.
        rows: one a trial, with ``trial``, ``state``, ``value``, ``seconds``, ``folder``, its values by key, and
            ``reason`` where it failed.
    """

    search: Path
    trials: int
    failed: int
    pruned: int
    best: dict[str, Any]
    metric: str
    value: float
    rows: list[dict[str, Any]] = field(repr=False)


@dataclass
class Plan:
    """A search made ready: the recipe, its space in Optuna's words, how many trials, and where they go."""

    recipe: Recipe
    folder: Path
    trials: int
    space: dict[str, BaseDistribution]
    study: optuna.Study
    bar: tqdm

    @property
    def begun(self) -> int:
        """How many trials are under way or finished, which is the place of the next one in the sequence."""
        return len(begun(self.study))


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are under way or finished. One that failed without a reason was killed, and does not count."""
    return [
        trial
        for trial in study.trials
        if trial.state != TrialState.WAITING
        and not (trial.state == TrialState.FAIL and "reason" not in trial.user_attrs)
    ]


def search(
    recipe: Recipe,
    output: Path,
    trials: int,
    engine: Callable[[Plan], None] | None = None,
    progress: bool = False,
) -> Result:
    """Try ``trials`` settings of the recipe's ``search.space`` and keep the best one's weights.

    Each trial is a run in ``output/trials``. The study is an SQLite file that is written after each trial, so the same
    call goes on after Ctrl-C or a kill: what is finished is not repeated, what was under way is tried again from its
    last checkpoint. More ``trials`` than before go on as well. A trial that diverges, for which there is not enough
    memory, or whose values the model cannot have, is counted as failed.

    Args:
        recipe: what is held fixed, and how to search.
        output: the search's folder.
        trials: how many, those of an earlier call counted.
        engine: what runs them; :func:`one_by_one` when left out.
        progress: show a bar on standard error.

    Raises:
        InputError: the space, the metric, the data or the folder is not right.
        Interrupted: Ctrl-C.
        AllFailed: no trial reached its end.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recipe = with_space(recipe)
    space, asked = recipe.search.space or {}, recipe.search
    check(recipe, space, trials)
    if asked.sampler == "grid" and trials > (size := len(grid(space, asked.seed))):
        print(f"ftdocs: the grid has {size} points; that many are tried", file=sys.stderr)
        trials = size
    check_folder(output)
    with runs.hold(output), files.explain_write_errors(output):
        begin(recipe, output)
        study = optuna.create_study(
            storage=f"sqlite:///{output.resolve() / STUDY}",
            study_name="search",
            direction="minimize" if asked.metric in LESS_IS_BETTER else "maximize",
            pruner=pruner(asked.pruner),
            load_if_exists=True,
        )
        for trial in study.get_trials(states=[TrialState.RUNNING]):  # nobody runs it: it was killed
            study.tell(trial.number, state=TrialState.FAIL)
        with tqdm(desc="trials", total=trials, disable=not progress) as bar:
            plan = Plan(recipe, output, trials, distributions(space), study, bar)
            bar.update(plan.begun)
            try:
                (engine or one_by_one)(plan)
            except Interrupted:
                finished = sum(trial.state.is_finished() for trial in begun(study))
                raise Interrupted(
                    f"{output}: stopped after {finished} of {trials} trials; the same command goes on"
                ) from None
        return finish(plan)


def one_by_one(plan: Plan) -> None:
    """Run the trials that are left, one after the other, in this process."""
    while plan.begun < plan.trials:
        trial = ask(plan)

        def watch(number: int, value: float, trial: optuna.Trial = trial) -> None:
            trial.report(value, number)
            if trial.should_prune():
                raise optuna.TrialPruned

        tell(plan, trial, attempt(plan.recipe, plan.folder, trial.params, watch))


def ask(plan: Plan) -> optuna.Trial:
    """The next trial of the sequence.

    The sampler is made anew for each, from the seed and the place in the sequence: a search that goes on draws what
    it would have drawn. A grid's points come in an order that the seed decides, so that a part of it is a fair sample.
    """
    asked, place = plan.recipe.search, plan.begun
    if asked.sampler == "grid" and not plan.study.get_trials(states=[TrialState.WAITING]):
        plan.study.enqueue_trial(grid(plan.recipe.search.space or {}, asked.seed)[place])
    plan.study.sampler = sampler(asked.sampler, asked.seed, place)
    return plan.study.ask(plan.space)


def sampler(name: str, seed: int, place: int) -> optuna.samplers.BaseSampler:
    """What chooses the trial at a place: by chance, or by TPE.

    TPE (Bergstra et al. 2011, as in Akiba et al. 2019, https://arxiv.org/abs/1907.10902) models the densities of the
    good and of the other trials so far, and takes the values whose ratio of the two is largest.
    """
    own = random.Random(f"{seed} {place}").getrandbits(32)
    if name != "bayes":
        return optuna.samplers.RandomSampler(seed=own)
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=STARTUP, constant_liar=True)


def pruner(name: str) -> optuna.pruners.BasePruner:
    """What stops a trial: worse than the median of those before it at the same validation, or not of the best half."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=STOPPABLE_AFTER)
    if name == "halving":  # https://arxiv.org/abs/1810.05934
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.NopPruner()


def grid(space: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """All combinations of the listed values, in an order of the seed's."""
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    random.Random(seed).shuffle(points)
    return points


def attempt(
    recipe: Recipe, folder: Path, values: dict[str, Any], watch: Callable[[int, float], None]
) -> dict[str, Any]:
    """Train one setting; how it ended: ``{"state", "value", "seconds", "folder"}``, and ``reason`` where it failed.

    Args:
        recipe: of the search.
        folder: of the search; the run's own is named by its values, so that a setting is never trained twice.
        values: by dotted key.
        watch: is told the number of each validation after the first step, from 1, and the metric.
    """
    metric, chosen = recipe.search.metric, trial_recipe(recipe, values)
    name = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    run, began = folder / "trials" / name, time.perf_counter()
    every = chosen.train.eval_every

    def validated(step: int, metrics: dict[str, float]) -> None:
        if step and every and step % every == 0:
            watch(step // every, metrics[metric])

    ended: dict[str, Any] = {"folder": f"trials/{name}"}
    try:
        with files.lock(run.parent / f".{name}"):  # two trials of the same values at once
            train(chosen, run, resume=runs.state(run) == "unfinished", watch=validated)
        found = runs.kept([row for row in runs.read_metrics(run) if metric in row], chosen)
        ended |= {"state": "complete", "value": found[metric]}
    except optuna.TrialPruned:
        ended |= {"state": "pruned"}
    # Diverged is a RuntimeError; so is what PyTorch says without memory.
    except (RuntimeError, MemoryError, InputError) as error:
        if isinstance(error, InputError) and not any_finished(run.parent):
            raise  # it may be wrong with every setting
        ended |= {"state": "failed", "reason": " ".join(str(error).split())[:300]}
    return {**ended, "seconds": round(time.perf_counter() - began, 3)}


def any_finished(trials: Path) -> bool:
    """Whether any trial has reached its end, so that what is wrong with another one is wrong with its values."""
    return any(runs.state(run) == "finished" for run in trials.iterdir() if run.is_dir())


def tell(plan: Plan, trial: optuna.Trial, ended: dict[str, Any]) -> None:
    """Write down how a trial ended, and remove the weights of all but the best."""
    for key in ("folder", "reason", "seconds"):
        if key in ended:
            trial.set_user_attr(key, ended[key])
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    plan.study.tell(trial, ended.get("value"), states[ended["state"]])
    if ended["state"] != "complete":
        shutil.rmtree(plan.folder / ended.get("folder", "trials/none") / "checkpoints", ignore_errors=True)
    keep_best(plan)
    plan.bar.update()


def keep_best(plan: Plan) -> None:
    """Remove the weights of all finished trials but the best one's."""
    done = plan.study.get_trials(states=[TrialState.COMPLETE])
    kept = plan.study.best_trial.user_attrs["folder"] if done else None
    for folder in {trial.user_attrs["folder"] for trial in done} - {kept}:
        for weights in ("model", "adapter"):
            shutil.rmtree(plan.folder / folder / weights, ignore_errors=True)


def trial_recipe(recipe: Recipe, values: dict[str, Any], lead: str = "") -> Recipe:
    """The recipe of a trial. It is validated after as many rows as the recipe's own batch size would give.

    So that trials of other batch sizes are compared after the same amount of data.
    """
    chosen = recipe.changed(values, lead).model_copy(update={"search": Search(), "profiles": {}})
    if every := recipe.train.eval_every:
        rows = runs.rows_per_step(recipe) / runs.rows_per_step(chosen)
        chosen = chosen.changed({"train.eval_every": max(1, round(every * rows))})
    return chosen


def with_space(recipe: Recipe) -> Recipe:
    """The recipe with a space to search in: its own, else one around its learning rate, batch size and epochs."""
    if recipe.search.space is not None:
        return recipe
    size, epochs = recipe.train.batch_size, recipe.train.epochs
    rate = job.learning_rate(recipe, prepare.load_splits(recipe.data, recipe.train.seed).format)
    rates = [rate / 10, rate / 3, rate, rate * 3, rate * 10]
    space: dict[str, Any] = {
        "train.learning_rate": [float(f"{each:.2g}") for each in rates]
        if recipe.search.sampler == "grid"
        else {"low": rate / 10, "high": rate * 10, "log": True},
        "train.batch_size": sorted({max(1, size // 2), size, size * 2}),
        "train.epochs": [epochs, epochs * 2, epochs * 3],
    }
    if recipe.train.max_steps:  # it wins over epochs
        del space["train.epochs"]
    return recipe.changed({"search.space": space})


def distributions(space: dict[str, Range | Choices]) -> dict[str, BaseDistribution]:
    """A space in Optuna's words."""
    return {
        key: CategoricalDistribution(values)
        if isinstance(values, list)
        else IntDistribution(int(values.low), int(values.high), log=values.log)
        if isinstance(values.low, int) and isinstance(values.high, int)
        else FloatDistribution(values.low, values.high, log=values.log)
        for key, values in space.items()
    }


def check(recipe: Recipe, space: dict[str, Range | Choices], trials: int) -> None:
    """Refuse a search that cannot work, before anything is trained.

    Raises:
        InputError: says what to change.
    """
    asked = recipe.search
    if trials < 1:
        raise InputError(f"--trials {trials}: must be 1 or more")
    if processes.count() > 1:
        raise InputError("ftdocs search is one process; start it without a launcher, or use --engine ray")
    for key, values in space.items():
        check_key(recipe, key, values)
    if asked.pruner != "none" and not recipe.train.eval_every:
        raise InputError(
            f"search.pruner: {asked.pruner} stops trials at their validations; set train.eval_every, such as 10"
        )
    if not recipe.data.validation:
        raise InputError("data.validation is 0: trials are compared by validation rows; set it to 0.1 or so")
    splits = prepare.load_splits(recipe.data, recipe.train.seed)
    if not splits.validation:
        raise InputError(f"{splits.path}: no row is left for validation; raise data.validation or data.limit")
    names = ("loss", "accuracy", "precision", "recall", "f1")
    known = [f"eval_{name}" for name in (names if splits.format == "label" else ("loss", "perplexity"))]
    if asked.metric not in known:
        raise InputError(
            f"search.metric: data of format {splits.format} has no {asked.metric}; choose {' or '.join(known)}"
        )


def check_key(recipe: Recipe, key: str, values: Range | Choices) -> None:
    """Refuse a key that is none or may not differ between trials, and values that it cannot have.

    Raises:
        InputError: names the key and the mend.
    """
    where, (section, _, name) = f"search.space.{key}: ", key.partition(".")
    known = [f"{each}.{inner}" for each, kind in SEARCHED.items() for inner in kind.model_fields]
    if section in ("data", "search", "profiles"):
        raise InputError(f"{where}trials must be compared on the same rows; search keys of method and train")
    if key not in known:
        by_name = {each.partition(".")[2]: each for each in known}
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
        like = difflib.get_close_matches(name or key, by_name, n=1)
        nearest = near[0] if near else by_name[like[0]] if like else ""
        hint = f"did you mean {nearest}?" if nearest else "such as train.learning_rate"
        raise InputError(f"{where}no key of method or train; {hint}")
    if key in FIXED:
        raise InputError(f"{where}decides {FIXED[key]}, which must be the same in all trials; remove it")
    if key == "train.epochs" and recipe.train.max_steps:
        raise InputError(f"{where}train.max_steps is set and wins over epochs; remove one of the two")
    if isinstance(values, Range) and recipe.search.sampler == "grid":
        middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
        listed = ", ".join(f"{each:.3g}" for each in (values.low, middle, values.high))
        raise InputError(
            f"{where}a grid wants a list, such as [{listed}]; or set search.sampler to random or bayes"
        )
    for value in values if isinstance(values, list) else (values.low, values.high):
        trial_recipe(recipe, {key: value}, "search.space.")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a search, before anything is put into it.

    Raises:
        InputError: it is a file, or not empty and no search.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; choose another --output")
    others = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if others and PLAN not in others:
        raise InputError(f"{folder}: is not empty and not a search; choose another --output")


def begin(recipe: Recipe, folder: Path) -> None:
    """Write down what is searched; or, where a search was begun here, make sure that it is the same.

    Raises:
        InputError: names what differs.
    """
    prints = runs.fingerprint(recipe, prepare.source(recipe.data))
    now = {"model": prints["model"], "data": prints["data"], **flat(recipe)}
    path = folder / PLAN
    if not path.is_file():
        files.write_atomic(path, json.dumps(now, indent=1) + "\n")
        return
    before = json.loads(path.read_text())
    shown = {"model": "the model", "data": "the state of the data"}
    differing = [
        shown.get(key) or f"{key}: {before.get(key, 'not set')} there, {now.get(key, 'not set')} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{folder}: holds a search with another setting ({'; '.join(differing[:3])}{more});"
            " choose another --output, or remove the folder"
        )


def flat(recipe: Recipe) -> dict[str, str]:
    """What a search depends on, by dotted key, as text."""
    asked = recipe.search.model_dump(mode="json")
    sections = {**runs.relevant(recipe), "search": {**asked, **asked["space"]}}
    del sections["search"]["space"]
    return {
        f"{section}.{key}": json.dumps(value)
        for section, keys in sections.items()
        for key, value in keys.items()
    }


def finish(plan: Plan) -> Result:
    """The result; and the best setting as a recipe, ``best.yaml``.

    Raises:
        AllFailed: no trial reached its end.
    """
    rows = [row(number, trial) for number, trial in enumerate(begun(plan.study), 1)]
    failed = [row for row in rows if row["state"] == "failed"]
    if all(row["value"] is None for row in rows):
        why = f"; the first one failed: {failed[0]['reason']}" if failed else ""
        raise AllFailed(f"{plan.folder}: none of {len(rows)} trials reached its end{why}")
    keep_best(plan)
    best = plan.study.best_trial
    chosen = plan.recipe.changed(best.params).kept_in(plan.folder)
    files.write_atomic(plan.folder / BEST, chosen.to_yaml())
    pruned = sum(row["state"] == "pruned" for row in rows)
    metric = plan.recipe.search.metric
    value = plan.study.best_value
    return Result(plan.folder, len(rows), len(failed), pruned, best.params, metric, value, rows)


def row(number: int, trial: FrozenTrial) -> dict[str, Any]:
    """A trial as a row of the table."""
    state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")
    value = trial.value if state == "complete" else None
    return {"trial": number, "state": state, "value": value, **trial.user_attrs, **trial.params}


def range_test(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]], low: float, high: float, steps: int
) -> list[tuple[float, float]]:
    """The loss of each step while the learning rate grows from ``low`` to ``high`` by the same factor.

    The range test of Smith (2015), https://arxiv.org/abs/1506.01186, with AdamW. It spoils the model: load it anew.

    Args:
        model: its trained parameters require a gradient.
        batches: on the model's device, with labels.
        low: the first rate.
        high: the last one, unless the loss is no number, or four times its least, before: then that step is the last.
        steps: how many, at least two.

    Returns:
        (learning rate, loss before that step) by step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=low)
    growth, found = (high / low) ** (1 / (steps - 1)), []
    model.train()
    for batch in itertools.islice(batches, steps):
        with models.autocast(trained[0].device):
            loss = model(**batch).loss
        found.append((optimizer.param_groups[0]["lr"], loss.item()))
        if not loss.item() < 4 * min(value for _, value in found):
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] *= growth
    return found
