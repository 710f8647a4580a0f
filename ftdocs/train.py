"""Train: a recipe in, a run out, through transformers.Trainer."""

import importlib.util
import json
import math
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ftdocs import assets, card, checkpoints, evaluate, files, hardware, models, runs
from ftdocs.data import pack, prepare
from ftdocs.errors import InputError
from ftdocs.methods.full import train_all
from ftdocs.methods.lora import add_lora
from ftdocs.recipe import Recipe

SAVE_SECONDS = 120.0  # between checkpoints, where the recipe does not count them in steps


class Interrupted(Exception):
    """The user stopped the run; its message says at which step, and how to go on."""


class Diverged(RuntimeError):
    """The loss is no longer a number; its message says at which step, and what the usual causes are."""


def train(
    recipe: Recipe, output: Path | None = None, resume: bool = False, progress: bool = False
) -> runs.Result:
    """Fine-tune as ``recipe`` says and leave a run in ``output``; a finished run of the same is reused.

    Args:
        recipe: what to do; see ``ftdocs.recipe``.
        output: the run's folder. When left out, a folder of the cache that the run's fingerprint names.
        resume: go on with an unfinished run from its last good checkpoint.
        progress: show a progress bar on standard error.

    Raises:
        InputError: the recipe, the data or the folder is not right.
        Interrupted: Ctrl-C; a checkpoint was written.
        Diverged: the loss became NaN or infinite.
    """
    data_file = prepare.source(recipe.data)
    prints = runs.fingerprint(recipe, data_file)
    folder = output or runs.stored(prints)
    runs.state(folder)  # a folder that is not a run is refused before anything is put into it
    with runs.hold(folder), files.explain_write_errors(folder):
        match runs.state(folder):
            case "finished":
                runs.check_same(folder, recipe, prints)
                return runs.read_result(folder)
            case "unfinished" if not resume and output is not None:
                raise InputError(
                    f"{folder}: holds an unfinished run; add --resume to go on, or choose another --output"
                )
            case "unfinished":
                runs.check_same(folder, recipe, prints, resume=True)
        return fit(recipe, folder, prints, progress)


def fit(recipe: Recipe, folder: Path, prints: dict[str, str], progress: bool) -> runs.Result:
    """The run itself: data, model, Trainer, then the weights and the model card."""
    splits = prepare.load_splits(recipe.data, recipe.train.seed)
    is_label = splits.format == "label"
    for logger in recipe.train.report_to:
        if importlib.util.find_spec(logger) is None:
            raise InputError(f"train.report_to: {logger} is not installed; python -m pip install {logger}")
    model, tokenizer = models.load(recipe, splits.labels)
    length = recipe.train.seq_len
    prepare.check_length(model.config, length)
    train_rows, held_out = (
        prepare.encode(rows, splits.format, tokenizer, length, splits.labels, where=str(splits.path))
        for rows in (splits.train, splits.validation)
    )
    packed = recipe.train.packing and not is_label
    if packed:
        pack.check_packing(model)
        train_rows = pack.pack(train_rows, length)

    # Dropout and the adapters' random matrices draw from here on.
    torch.manual_seed(recipe.train.seed)
    method = recipe.method
    if method.name == "lora":
        trainable = add_lora(model, method.rank, method.alpha, method.targets, method.dropout)
    else:
        trainable = train_all(model)

    # From here on the folder is a run: all that can be wrong with the input has been found.
    last = checkpoints.last_good(folder)
    if last is None:
        runs.start(folder, recipe, prints)
    else:
        runs.go_on(folder, recipe, prints)
    majority = Counter(row["label"] for row in train_rows).most_common(1)[0][0] if is_label else None
    saved = {
        "format": splits.format,
        "rows": splits.numbers(),
        "labels": splits.labels,
        "majority": majority,
    }
    files.write_atomic(folder / runs.SPLITS, json.dumps(saved) + "\n")

    total = steps(recipe, len(train_rows))
    record = Record(folder, last, by_the_clock=save_steps(recipe, total) is None, progress=progress)
    trainer = CountingTrainer(
        model=trainable,
        args=arguments(
            recipe,
            folder,
            total,
            validates=bool(held_out),
            resumed=bool(last),
            kind=splits.format,
        ),
        train_dataset=train_rows,
        eval_dataset=held_out or None,
        data_collator=Collate(models.pad_token_id(tokenizer), packed),
        callbacks=[record, checkpoints.Seal()],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, where only the result belongs
    trainer.record, trainer.tokenizer, trainer.kind = record, tokenizer, splits.format
    trainer.precision = recipe.train.precision
    with stop_on_interrupt(record):
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            record.bar.close()
    if record.stop_asked and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f"{folder}: stopped after step {trainer.state.global_step}; add --resume to go on")

    save(trainable, tokenizer, recipe, folder)
    result = runs.Result(
        folder, trainer.state.global_step, record.tokens, record.seconds, record.final_loss()
    )
    files.write_atomic(folder / runs.CARD, card.model_card(folder, result))
    runs.finish(folder, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def steps(recipe: Recipe, sequences: int) -> int:
    """Optimiser steps of the run; the last, smaller batch of an epoch counts."""
    if recipe.train.max_steps:
        return recipe.train.max_steps
    # One process that sees several GPUs gives each a micro-batch (Trainer's DataParallel).
    devices = processes() if processes() > 1 else max(1, torch.cuda.device_count())
    batches = math.ceil(sequences / (recipe.train.batch_size * devices))
    return max(1, math.ceil(recipe.train.epochs * math.ceil(batches / recipe.train.accumulation)))


def processes() -> int:
    """How many processes train together, as torchrun and accelerate launch say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def save_steps(recipe: Recipe, total: int) -> int | None:
    """Steps between checkpoints; None: by the clock, which several processes would read differently."""
    return recipe.train.save_every or (math.ceil(total / 10) if processes() > 1 else None)


def learning_rate(recipe: Recipe, kind: str = "text") -> float:
    """The peak learning rate: the recipe's, else a usual one for its method and kind of data."""
    if recipe.train.learning_rate:
        return recipe.train.learning_rate
    if recipe.method.name == "lora":
        return 1e-3
    return 5e-5 if kind == "label" else 1e-4


def arguments(
    recipe: Recipe, folder: Path, total: int, validates: bool, resumed: bool, kind: str = "text"
) -> TrainingArguments:
    """The recipe in the words of ``transformers.TrainingArguments``."""
    asked = recipe.train
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=total,
        per_device_train_batch_size=asked.batch_size,
        gradient_accumulation_steps=asked.accumulation,
        learning_rate=learning_rate(recipe, kind),
        lr_scheduler_type=asked.schedule if asked.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(asked.warmup * total),
        weight_decay=asked.weight_decay,
        max_grad_norm=asked.max_grad_norm,
        bf16=models.mixed(recipe),
        seed=asked.seed,
        logging_steps=asked.log_every,
        logging_nan_inf_filter=False,  # the default hides a NaN loss as the mean of the others
        eval_strategy="steps" if validates else "no",
        eval_steps=asked.eval_every or total,
        eval_on_start=validates and not resumed,
        save_strategy="steps" if save_steps(recipe, total) else "no",  # Record asks for those by the clock
        save_steps=save_steps(recipe, total) or total,
        save_total_limit=2,
        report_to=asked.report_to or "none",
        disable_tqdm=True,  # Record shows tokens per second beside the loss
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=hardware.device().type == "cpu",
    )


class Collate:
    """Make a batch of encoded rows, and count its tokens without the padding."""

    def __init__(self, pad_token_id: int, packed: bool):
        self.pad_token_id, self.packed = pad_token_id, packed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        collate = pack.collate_packed if self.packed else pack.collate_padded
        batch = collate(rows, self.pad_token_id)
        return {**batch, "tokens": torch.tensor(sum(len(row["input_ids"]) for row in rows))}


class CountingTrainer(Trainer):
    """transformers.Trainer that counts the tokens it trains and weights held-out tokens equally.

    Trainer's own evaluation averages the means of its batches, so a token of a short batch counts more.
    """

    record: "Record"
    tokenizer: PreTrainedTokenizerBase
    kind: str
    precision: str

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's loss; the batch's count of tokens is taken out before the model sees it."""
        self.record.tokens += int(inputs.pop("tokens"))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out metrics of ``ftdocs.evaluate``, logged as ``eval_loss`` and so on."""
        start = time.perf_counter()
        found = evaluate.metrics(
            self.model, self.eval_dataset, self.tokenizer, self.kind, precision=self.precision
        )
        named = {f"eval_{name}": value for name, value in found.items()}
        self.record.paused += time.perf_counter() - start
        self.log(dict(named))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named


class Record(TrainerCallback):
    """Writes ``metrics.jsonl``, keeps count over a resume, stops on Ctrl-C and on a loss that is no number."""

    def __init__(
        self, folder: Path, resumed_from: Path | None, by_the_clock: bool = True, progress: bool = False
    ):
        self.folder, self.by_the_clock, self.saved = folder, by_the_clock, time.perf_counter()
        self.bar = tqdm(desc="training", unit="step", disable=not progress)
        self.tokens, self.before, self.paused = 0, 0.0, 0.0
        self.began, self.ended = time.perf_counter(), 0.0
        self.stop_asked = False
        if resumed_from is not None:
            kept = json.loads((resumed_from / "progress.json").read_text())
            self.tokens, self.before = kept["tokens"], kept["seconds"]
            # Steps after the checkpoint are trained again, so their rows are written again.
            rows = [row for row in runs.read_metrics(folder) if row["step"] <= kept["step"]]
            files.write_atomic(folder / runs.METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all parts of a resumed run, validations left out."""
        return self.before + (self.ended or time.perf_counter()) - self.began - self.paused

    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the logged steps."""
        losses = [row["loss"] for row in runs.read_metrics(self.folder) if "loss" in row]
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail) if tail else math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock when the first batch is near, not when the model was loaded."""
        self.began, self.paused = time.perf_counter(), 0.0
        self.saved = self.began
        self.bar.reset(state.max_steps)
        self.bar.update(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.ended = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Append a row and flush it, so that a killed run keeps what it had logged."""
        if "loss" in logs:
            row: dict[str, Any] = {
                key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs
            }
            row |= {"tokens": self.tokens, "seconds": round(self.seconds, 3)}
            self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {self.tokens / self.seconds:.0f} tokens/s")
        else:
            row = {key: value for key, value in logs.items() if key.startswith("eval_")}
        if not row:
            return
        loss = row.get("loss", row.get("eval_loss", 0.0))
        # JSON has no NaN: what is no number is null.
        written = {key: value if math.isfinite(value) else None for key, value in row.items()}
        with open(self.folder / runs.METRICS, "a") as file:
            file.write(
                json.dumps({"step": state.global_step, **written, "time": round(time.time(), 3)}) + "\n"
            )
        if not math.isfinite(loss):
            raise Diverged(
                f"{self.folder}: the loss is {loss} at step {state.global_step}; usual causes: a learning rate"
                " that is too high, broken rows, fp16 overflow"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; save by the clock; log the last step whatever ``log_every``; after Ctrl-C, save and stop."""
        self.bar.update()
        if self.by_the_clock and time.perf_counter() - self.saved > SAVE_SECONDS:
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.stop_asked:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the counts beside the checkpoint."""
        self.saved = time.perf_counter()
        content = {"step": state.global_step, "tokens": self.tokens, "seconds": self.seconds}
        files.write_atomic(
            Path(args.output_dir) / f"checkpoint-{state.global_step}" / "progress.json", json.dumps(content)
        )


@contextmanager
def stop_on_interrupt(record: Record) -> Iterator[None]:
    """The first Ctrl-C finishes the step and saves; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be interrupted
        return

    def ask(number: int, frame: Any) -> None:
        if record.stop_asked:
            raise KeyboardInterrupt
        record.stop_asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def save(model: Any, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, folder: Path) -> None:
    """Write the tuned weights as safetensors with their tokenizer: ``adapter/`` for LoRA, else ``model/``."""
    target = folder / ("adapter" if recipe.method.name == "lora" else "model")
    model.config.use_cache = True  # training switches it off; whoever generates with the saved model wants it
    shutil.rmtree(target, ignore_errors=True)  # a run that was killed in here
    with files.new_folder(target) as aside:
        if recipe.method.name == "lora":
            # A path into this machine's cache would be of no use to anybody else.
            model.peft_config["default"].base_model_name_or_path = assets.public_name(recipe.model)
            model.save_pretrained(
                aside, save_embedding_layers=False
            )  # left to itself, PEFT asks the hub about them
        else:
            model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
