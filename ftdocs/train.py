"""Train: a recipe in, a run out, through one of two engines."""

import importlib.util
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftdocs import assets, card, checkpoints, files, hardware, job, models, processes, runs
from ftdocs.data import pack, prepare
from ftdocs.errors import InputError
from ftdocs.job import Job
from ftdocs.methods.adapters import add_adapter, allocating, as_plain_lora, train_biases, trained_matrices
from ftdocs.methods.full import train_all
from ftdocs.methods.layers import train_top
from ftdocs.progress import Interrupted, Progress, Watch
from ftdocs.recipe import Data, Method, Recipe

VIRTUAL = ("prompt", "prefix")  # methods that put vectors before the text


def train(
    recipe: Recipe,
    output: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    watch: Watch | None = None,
) -> runs.Result:
    """Fine-tune as ``recipe`` says and leave a run in ``output``; a finished run of the same is reused.

    Args:
        recipe: what to do; see ``ftdocs.recipe``.
        output: the run's folder. When left out, a folder of the cache that the run's fingerprint names.
        resume: go on with an unfinished run from its last good checkpoint.
        progress: show a progress bar on standard error.
        watch: is told the step and the metrics of each validation before the last; what it raises ends the run.

    Raises:
        InputError: the recipe, the data or the folder is not right.
        Interrupted: Ctrl-C; a checkpoint was written.
        Diverged: the loss became NaN or infinite.
    """
    processes.check(recipe.train.engine)
    data_file = prepare.source(recipe.data)
    prints = runs.fingerprint(recipe, data_file)
    folder = output or runs.stored(prints)
    with processes.joined():
        # A folder that is not a run is refused before anything is put into it.
        processes.from_main(lambda: runs.state(folder))
        with runs.hold(folder), files.explain_write_errors(folder):
            named = output is not None
            finished = processes.from_main(lambda: look(recipe, folder, prints, resume, named))
            return finished or fit(recipe, folder, prints, resume, progress, watch)


def look(
    recipe: Recipe, folder: Path, prints: dict[str, str], resume: bool, named: bool
) -> runs.Result | None:
    """The finished run of the same in ``folder``; None where there is something to train.

    Raises:
        InputError: the folder holds a run of something else, or one that was not asked to be resumed.
    """
    match runs.state(folder):
        case "finished":
            runs.check_same(folder, recipe, prints)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # killed before it removed them
            return runs.read_result(folder)
        case "unfinished" if not resume and named:
            raise InputError(
                f"{folder}: holds an unfinished run; add --resume to go on, or choose another --output"
            )
        case "unfinished":
            runs.check_same(folder, recipe, prints, resume=True)
    return None


def fit(
    recipe: Recipe,
    folder: Path,
    prints: dict[str, str],
    resume: bool,
    progress: bool,
    watch: Watch | None = None,
) -> runs.Result:
    """The run itself: data, model, an engine, then the weights and the model card."""
    for logger in recipe.train.report_to:
        if importlib.util.find_spec(logger) is None:
            raise InputError(f"train.report_to: {logger} is not installed; python -m pip install {logger}")
    if recipe.method.name not in ("full", "layers", "lora", "rslora") and processes.count() > 1:
        raise InputError(
            f"method.name: {recipe.method.name} trains with one process; start `ftdocs train` itself"
        )
    with processes.together():
        splits = prepare.load_splits(recipe.data, recipe.train.seed)
        is_label = splits.format == "label"
        if recipe.train.patience:
            check_patience(recipe.method, len(splits.validation))
        if recipe.train.checkpointing:
            check_checkpointing(recipe.method)
        if recipe.method.name == "features" and not is_label:
            raise InputError(
                "method.name: features fits a classifier, and this data has no labels; use layers"
            )
        reads_first = recipe.method.name == "ulmfit" and is_label and recipe.method.language_epochs > 0
        if reads_first:
            models.load(recipe)  # refused here, before anything is written, where it is no language model
        model, tokenizer = models.load(recipe, splits.labels)
        length = recipe.train.seq_len
        before = recipe.method.tokens if recipe.method.name in VIRTUAL else 0
        prepare.check_length(model.config, length + before)
        train_rows, held_out = (
            prepare.encode(rows, splits.format, tokenizer, length, splits.labels, where=str(splits.path))
            for rows in (splits.train, splits.validation)
        )
        # PEFT drops the positions by which documents of a pack are kept apart, where vectors stand before them.
        cut = {"truncated": train_rows.truncated, "dropped": train_rows.dropped}
        packed = recipe.train.packing and not is_label and not before
        if packed:
            pack.check_packing(model)
            train_rows = pack.pack(train_rows, length)

        # The adapters' random matrices draw from here on.
        torch.manual_seed(recipe.train.seed)
        total = 1 if recipe.method.name == "features" else job.steps(recipe, len(train_rows))
        trainable = choose_weights(model, recipe.method, total)
        if recipe.train.checkpointing:
            models.compute_anew(trainable)

    # From here on the folder is a run: all that can be wrong with the input has been found.
    majority = Counter(row["label"] for row in train_rows).most_common(1)[0][0] if is_label else None
    saved = {
        "format": splits.format,
        "rows": splits.numbers(),
        "labels": splits.labels,
        "majority": majority,
        **cut,
    }
    if processes.is_main():
        tell(splits, cut["dropped"], length)
    last = processes.from_main(lambda: begin(recipe, folder, prints, resume, saved))
    if reads_first:
        language = train_language_model(recipe, folder / "language", splits.train, progress)
        trainable, _ = models.load(
            recipe.model_copy(update={"model": str(language / "model")}), splits.labels
        )
        trainable = choose_weights(trainable, recipe.method)
        if recipe.train.checkpointing:
            models.compute_anew(trainable)
    start = trained_matrices(trainable) if recipe.method.name == "pissa" else {}
    counts = Progress.start(folder, last, progress, watch)
    work = Job(
        recipe, folder, splits.format, trainable, tokenizer, train_rows, held_out, packed, total, last, counts
    )
    done = complete(work)
    adapted = isinstance(trainable, PeftModel)
    alone = adapted and processes.count() == 1  # PEFT knows best what belongs to an adapter
    weights = None if alone else processes.whole_weights(trainable, trained_only=adapted)
    if start:
        weights = as_plain_lora(cast(PeftModel, trainable), start)
    return processes.from_main(lambda: finish(work, done, weights))


def tell(splits: prepare.Splits, dropped: int, length: int) -> None:
    """Say on standard error what was found in the rows that somebody may want to mend."""
    where = f"ftdocs: {splits.path}:"
    if dropped:
        print(
            f"{where} {dropped} training rows are left out: nothing that is trained lies within train.seq_len:"
            f" {length}; raise it, or see `ftdocs data inspect`",
            file=sys.stderr,
        )
    if contradictions := splits.report.get("contradictions"):
        print(
            f"{where} texts with more than one label: {contradictions}; `ftdocs data inspect` names their rows",
            file=sys.stderr,
        )


def complete(work: Job) -> int:
    """Run a job's engine to the end, and put back the weights that patience keeps; the optimiser steps that were done.

    Raises:
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    engine = choose_engine(work.recipe)
    with work.progress.stop_on_interrupt(), hardware.memory_kept(), allocating(work.model):
        done = engine(work)
    if done < work.total and not work.had_enough:
        raise Interrupted(f"{work.folder}: stopped after step {done}; add --resume to go on")
    best = work.best_step
    if best is not None and best != done:
        checkpoints.load_best(work.folder, best, work.model)
        if processes.is_main():
            print(f"ftdocs: {work.folder}: kept the weights of step {best} of {done}", file=sys.stderr)
    return done


def check_checkpointing(method: Method) -> None:
    """Activation checkpointing needs a backward pass, through layers that are the same the second time.

    Raises:
        InputError: says what is in the way.
    """
    if method.name == "features":
        raise InputError(
            "train.checkpointing: method.name features has no backward pass to compute anything anew in; leave it out"
        )
    if method.name == "prefix":
        raise InputError(
            "train.checkpointing: a layer that is computed anew would be without method.name prefix's keys and"
            " values; leave it out, or use lora"
        )


def check_patience(method: Method, held_out: int) -> None:
    """Early stopping needs something to watch, and weights that a checkpoint has all of.

    Raises:
        InputError: says what is in the way.
    """
    if not held_out:
        raise InputError("train.patience: no row is held out to watch; set data.validation, such as 0.1")
    if method.name == "features":
        raise InputError(
            "train.patience: method.name features has no steps to stop after; leave patience out"
        )
    if method.name == "adalora":
        raise InputError(
            "train.patience: adalora chooses its ranks up to its end, so the weights of an earlier step do not fit"
            " them; leave patience out, or use lora"
        )
    if method.name == "ulmfit" and method.unfreeze:
        raise InputError(
            "train.patience: ulmfit sets the last weights free near its end, so it cannot end early; leave patience"
            " out, or set method.unfreeze to false"
        )


def choose_engine(recipe: Recipe) -> Callable[[Job], int]:
    """What trains a job and says how many steps it did; imported when it is chosen, as each takes a while."""
    if recipe.method.name == "features":
        from ftdocs import head as engine
    elif recipe.train.engine == "loop":
        from ftdocs import loop as engine
    else:
        from ftdocs import trainer as engine
    return engine.run


def choose_weights(model: PreTrainedModel, method: Method, total: int = 1) -> torch.nn.Module:
    """The model with the weights that the method moves, in ``total`` steps, marked for training, and no others."""
    match method.name:
        case "layers":
            return train_top(model, method.layers)
        case "features":
            from ftdocs.methods.features import train_head  # scikit-learn takes a while to import

            return train_head(model)
        case "full" | "ulmfit":
            return train_all(model)
        case "bitfit":
            return train_biases(model)
    return add_adapter(model, method, total)


def train_language_model(
    recipe: Recipe, folder: Path, rows: Sequence[dict[str, Any]], progress: bool = False
) -> Path:
    """ULMFiT's second stage, a run of its own: the model reads the training texts before it sees their labels.

    The texts that are held out for the classifier are not among them. All layers are trained from the start, as in
    the paper, with the rates by layer that the recipe says.

    Returns: the run's folder.
    """
    texts = folder.with_suffix(".jsonl")
    content = "".join(json.dumps({"text": row["text"]}, ensure_ascii=False) + "\n" for row in rows)
    files.write_atomic(texts, content)
    method = recipe.method.model_copy(update={"unfreeze": False})
    # The recipe's own rate is the classifier's.
    epochs = {"epochs": method.language_epochs, "learning_rate": None, "patience": None}
    language = recipe.model_copy(
        update={
            "data": Data(path=texts, format="text", validation=0, test=0),
            "method": method,
            "train": recipe.train.model_copy(update=epochs),
        }
    )
    if runs.state(folder) == "finished":  # and the classifier is not: it goes on, perhaps spread otherwise
        runs.check_same(folder, language, runs.fingerprint(language, texts), resume=True)
        return folder
    return train(language, folder, resume=runs.state(folder) == "unfinished", progress=progress).run


def begin(
    recipe: Recipe, folder: Path, prints: dict[str, str], resume: bool, splits: dict[str, Any]
) -> Path | None:
    """Write down what is about to run; the checkpoint that it goes on from, if any."""
    # AdaLoRA's scores of what each rank is worth are in no checkpoint: it begins anew.
    last = None if recipe.method.name == "adalora" else checkpoints.last_good(folder)
    checkpoints.remove_after(folder, last)
    if last is not None:
        print(f"ftdocs: {folder}: going on after step {checkpoints.step_of(last)}", file=sys.stderr)
        runs.go_on(folder, recipe, prints)
    else:
        if resume:
            print(
                f"ftdocs: {folder}: no checkpoint to go on from; starting from the beginning", file=sys.stderr
            )
        runs.start(folder, recipe, prints)
    files.write_atomic(folder / runs.SPLITS, json.dumps(splits) + "\n")
    return last


def finish(work: Job, done: int, weights: dict[str, torch.Tensor] | None) -> runs.Result:
    """Write the weights, the model card and the result; the checkpoints are of no more use."""
    folder, counts = work.folder, work.progress
    save(work.model, weights, work.tokenizer, work.recipe, folder)
    result = runs.Result(folder, done, counts.tokens, counts.seconds, counts.final_loss())
    text = card.model_card(folder, result, work.tokenizer)
    for place in (folder, runs.weights(folder)):  # the weights are what is handed on
        files.write_atomic(place / runs.CARD, text)
    runs.finish(folder, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def save(
    model: Any,
    weights: dict[str, torch.Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    folder: Path,
) -> None:
    """Write the tuned weights as safetensors with their tokenizer: ``adapter/`` of PEFT's, else ``model/``.

    ``weights`` is the model's ``state_dict``, whole; None where PEFT is to find an adapter's weights itself.
    """
    adapted = isinstance(model, PeftModel)
    target = folder / ("adapter" if adapted else "model")
    model.config.use_cache = True  # training switches it off; whoever generates with the saved model wants it
    shutil.rmtree(target, ignore_errors=True)  # a run that was killed in here
    with files.new_folder(target) as aside:
        if adapted:
            # A path into this machine's cache would be of no use to anybody else.
            model.peft_config["default"].base_model_name_or_path = assets.public_name(recipe.model)
            facts = models.base_facts(recipe.model)
            model.peft_config["default"].revision = facts.get("commit")
            model.save_pretrained(
                str(aside),
                state_dict=weights,
                save_embedding_layers=False,  # left to itself, PEFT asks the hub about them
            )
            (aside / runs.CARD).unlink()  # PEFT's empty form; the run's own card comes in its place
            facts["adapter"] = files.sha256(aside / models.ADAPTER)
            files.write_atomic(aside / models.BASE, json.dumps(facts, indent=1) + "\n")
        else:
            model.save_pretrained(aside, state_dict=weights)
        tokenizer.save_pretrained(aside)
