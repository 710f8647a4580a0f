"""The engine that most readers know: the job in the hands of transformers.Trainer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from ftdocs import checkpoints, hardware, job, loss, models, processes, runs
from ftdocs.errors import InputError
from ftdocs.job import Job


def run(work: Job) -> int:
    """Train with ``transformers.Trainer``; the number of optimiser steps that were done.

    Several processes train as Accelerate was told to: by DDP, or on GPUs by FSDP.

    Raises:
        InputError: Accelerate was told something else than the recipe, or trains with fewer processes than there are.
        Diverged: the loss or the gradient is no number, or the loss has exploded.
    """
    if work.resumed_from and checkpoints.step_of(work.resumed_from) >= work.total:
        checkpoints.load_weights(work.resumed_from, work.model)  # Trainer would make a step more
        return work.total
    trainer = CountingTrainer(
        model=work.model,
        args=arguments(work),
        train_dataset=Rows(work.rows),
        eval_dataset=work.held_out or None,
        data_collator=lambda rows: {**work.collate(rows), "origin": work.origin(rows)},
        callbacks=[Record(work), *own_loggers(work), checkpoints.Seal()],
        compute_loss_func=classification_loss if work.kind == "label" else None,
    )
    trainer.work = work
    check_accelerate(trainer)
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, where only the result belongs
    with loss.chunked(work.model):
        trainer.train(resume_from_checkpoint=str(work.resumed_from) if work.resumed_from else None)
    return int(trainer.state.global_step)


def check_accelerate(trainer: Trainer) -> None:
    """Refuse settings of ``accelerate launch`` that would win over the recipe, or leave each process to itself.

    Raises:
        InputError: names the setting.
    """
    found, wanted = trainer.accelerator.mixed_precision, "bf16" if trainer.args.bf16 else "no"
    if found != wanted:
        raise InputError(
            f"Accelerate's mixed_precision is {found}, the recipe's train.precision makes it {wanted}; change one"
        )
    if trainer.accelerator.num_processes != processes.count():
        raise InputError(
            f"{processes.count()} processes were started, and Accelerate trains with"
            f" {trainer.accelerator.num_processes}; start them with `accelerate launch` or `torchrun`"
        )


def own_loggers(work: Job) -> list[TrainerCallback]:
    """TensorBoard's writer, where the recipe asks for it: into ``tensorboard/`` of the run's folder.

    Left to itself, Trainer writes among the checkpoints, which are removed when the run has ended. In a resumed run,
    the steps that are trained again replace the earlier ones.
    """
    if "tensorboard" not in work.recipe.train.report_to or not processes.is_main():
        return []
    from torch.utils.tensorboard import SummaryWriter  # a package that need not be installed

    first = (
        checkpoints.step_of(work.resumed_from) + 1 if work.resumed_from else 0
    )  # before step 1 comes a validation
    return [TensorBoardCallback(SummaryWriter(str(work.folder / "tensorboard"), purge_step=first))]


def classification_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross-entropy summed over a micro-batch's rows, by the number of rows of the whole step.

    Classifiers of Transformers 5 take ``num_items_in_batch`` and leave it unused, so that Trainer's sum over k
    micro-batches is k times too large, and its gradient too.
    """
    total = functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def arguments(work: Job) -> TrainingArguments:
    """The recipe in the words of ``transformers.TrainingArguments``."""
    asked = work.recipe.train
    return TrainingArguments(
        output_dir=str(work.folder / "checkpoints"),
        max_steps=work.total,
        per_device_train_batch_size=asked.batch_size,
        gradient_accumulation_steps=asked.accumulation,
        learning_rate=work.learning_rate,
        weight_decay=asked.weight_decay,
        max_grad_norm=asked.max_grad_norm,
        bf16=models.mixed(work.recipe),
        seed=asked.seed,
        logging_steps=asked.log_every,
        logging_nan_inf_filter=False,  # the default hides a NaN loss as the mean of the others
        eval_strategy="steps" if work.held_out else "no",
        eval_steps=asked.eval_every or work.total,
        eval_on_start=bool(work.held_out) and work.resumed_from is None,
        save_strategy="steps" if asked.save_every else "no",  # Record asks for those by the clock
        save_steps=asked.save_every or work.total,
        save_total_limit=3 if asked.patience else 2,  # one of them may be the best one, long ago
        report_to=[logger for logger in asked.report_to if logger != "tensorboard"] or "none",
        disable_tqdm=True,  # Progress shows tokens per second beside the loss
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # the batch brings its rows along, for messages
        use_cpu=hardware.device().type == "cpu",
    )


class Rows(Dataset[dict[str, Any]]):
    """The job's rows, and at the index after the last one a row that trains nothing."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index] if index < len(self.rows) else job.filling(self.rows[0])
        return row


class Order(Sampler[int]):
    """The rows of the epoch that is under way, filled up so that each process gets as many micro-batches.

    Accelerate would fill up with rows of the epoch's beginning, which would be trained twice.
    """

    def __init__(self, work: Job, step: Callable[[], int]):
        self.work, self.step = work, step  # how many steps are done, where an epoch begins

    def __len__(self) -> int:
        together = self.work.recipe.train.batch_size * processes.count()
        alone = processes.count() == 1
        return len(self.work.rows) if alone else -(-len(self.work.rows) // together) * together

    def __iter__(self) -> Iterator[int]:
        rows = len(self.work.rows)
        epoch = self.step() // -(-rows // runs.rows_per_step(self.work.recipe))
        yield from self.work.order(epoch).tolist()
        yield from [rows] * (len(self) - rows)


class CountingTrainer(Trainer):
    """transformers.Trainer that counts the tokens it trains and weights held-out tokens equally.

    Trainer's own evaluation averages the means of its batches, so a token of a short batch counts more.
    """

    work: Job

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's loss; the rows that the batch was made of are taken out before the model sees it."""
        self.work.progress.count(*inputs.pop("origin"))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's, whose result is a micro-batch's share of the step's loss, times the processes (DDP averages)."""
        share = super().training_step(*args, **kwargs)
        self.work.progress.step_loss += share.item() / processes.count()
        return share

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.work.progress.grad_norm = float(processes.whole(norm) if torch.is_tensor(norm) else norm)
        return norm

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's own, unless the method has rates by layer, or vectors that Trainer would let decay."""
        own = self.work.recipe.method.name in ("full", "layers", "lora", "qlora", "loftq", "rslora")
        if not own and self.optimizer is None:
            groups = job.parameter_groups(self.work)
            self.optimizer = torch.optim.AdamW(groups, lr=self.work.learning_rate, fused=True)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's, which the loop has too."""
        self.lr_scheduler = job.schedule(self.work, self.optimizer if optimizer is None else optimizer)
        return self.lr_scheduler

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Order:
        return Order(self.work, lambda: self.state.global_step)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's, with the mean loss since the last row; Trainer's own begins anew with a resume."""
        if "loss" in logs:
            logs = {**logs, "loss": self.work.progress.mean_loss()}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out metrics of ``ftdocs.evaluate``, logged as ``eval_loss`` and so on."""
        step = self.state.global_step
        named = self.work.validate(step)
        self.log(dict(named))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        if self.work.had_enough:
            self.control.should_training_stop, self.control.should_save = True, False
        elif step and step == self.work.best_step and step < self.state.max_steps:
            self.control.should_save = True
        self.state.best_model_checkpoint = best_checkpoint(self.work)  # which Trainer then does not remove
        return named


def best_checkpoint(work: Job) -> str | None:
    """The folder of the checkpoint with the lowest held-out loss; None where nobody asked for patience."""
    folder = work.folder / "checkpoints" / f"checkpoint-{work.best_step}"
    return str(folder) if work.best_step else None


class Record(TrainerCallback):
    """Tells the run's :class:`Progress` what Trainer does, and Trainer what Progress wants."""

    def __init__(self, work: Job):
        self.work, self.progress = work, work.progress
        self.by_the_clock = work.recipe.train.save_every is None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, unless FSDP was asked for and has done nothing."""
        if processes.by_accelerate_fsdp():
            processes.check_sharded(self.work.model)
        state.best_model_checkpoint = best_checkpoint(self.work)  # the folder may have moved
        self.progress.begin(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Dropout of this step, and which layers it trains."""
        self.work.begin_step(state.global_step + 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.progress.end()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Write a training row; validations are written where they are made."""
        if "loss" in logs:
            row = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            self.progress.write(state.global_step, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; save by the clock; log the last step whatever ``log_every``; after Ctrl-C, save and stop."""
        self.progress.step_done(state.global_step)
        if self.by_the_clock and self.progress.save_due:
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.progress.stop_asked:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the counts beside the checkpoint."""
        self.progress.keep(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)
