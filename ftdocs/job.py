"""A training job: what both engines are given, and the few numbers that they must agree on."""

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedTokenizerBase, get_scheduler

from ftdocs import evaluate, models, processes, runs
from ftdocs.data import pack
from ftdocs.data.chat import IGNORED
from ftdocs.errors import InputError
from ftdocs.methods import adapters, ulmfit
from ftdocs.progress import Progress
from ftdocs.recipe import Recipe


@dataclass
class Job:
    """Everything that training needs, made ready: the model with its method, the rows encoded and packed.

    Attributes:
        recipe: what was asked for.
        folder: the run's folder.
        kind: the data's format; "label" is a classifier.
        model: on its device; parameters to be trained require a gradient, the others do not.
        tokenizer: the model's.
        rows: for training, as ``pack.pack`` or ``prepare.encode`` gives them.
        held_out: encoded validation rows; may be none.
        packed: whether ``rows`` are packed.
        total: optimiser steps.
        resumed_from: the checkpoint to go on from, or None.
        progress: counts, curve and clock.

    Raises:
        InputError: weights that are to be trained have fewer digits than the recipe says.
    """

    recipe: Recipe
    folder: Path
    kind: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[dict[str, Any]]
    held_out: Sequence[dict[str, Any]]
    packed: bool
    total: int
    resumed_from: Path | None
    progress: Progress

    def __post_init__(self):
        coarse = (torch.bfloat16, torch.float16)
        trained = (name for name, p in self.model.named_parameters() if p.requires_grad and p.dtype in coarse)
        if self.recipe.train.precision != "bf16" and (name := next(trained, None)):
            raise InputError(
                f"{name} is to be trained and was loaded in 16 bits, which round small updates away; load the model for"
                " a recipe whose method.name is the method that trains it, or ask for it with train.precision: bf16"
            )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: the recipe's, else a usual one for its method and kind of data."""
        return learning_rate(self.recipe, self.kind)

    @property
    def best_step(self) -> int | None:
        """The step of the lowest held-out loss so far, whose weights are kept; None where nobody asked for patience."""
        losses = self.progress.validations
        return min(losses, key=lambda step: losses[step]) if self.recipe.train.patience and losses else None

    @property
    def had_enough(self) -> bool:
        """Whether the held-out loss has had no new lowest value for ``train.patience`` validations (Prechelt, 1998)."""
        since = [step for step in self.progress.validations if step > (self.best_step or 0)]
        return self.best_step is not None and len(since) >= (self.recipe.train.patience or 0)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows as one batch of tensors."""
        if self.packed:
            return pack.collate_packed(rows)
        return pack.collate_padded(rows, models.pad_token_id(self.tokenizer))

    @staticmethod
    def origin(rows: list[dict[str, Any]]) -> tuple[int, list[int]]:
        """How many tokens some rows have, and which rows of the data file they come from; :func:`filling` is no row."""
        rows = [row for row in rows if not row.get("filling")]
        numbers = [number for row in rows for number in row.get("rows") or [row["row"]]]
        return sum(len(row["input_ids"]) for row in rows), numbers

    def order(self, epoch: int) -> torch.Tensor:
        """The order of the rows in an epoch, counted from 0: (rows,), int64.

        It depends on nothing but the seed and the epoch, so a resumed run finds its place without keeping one, and
        every process knows it.
        """
        generator = torch.Generator().manual_seed(self.recipe.train.seed + epoch)
        return torch.randperm(len(self.rows), generator=generator)

    def begin_step(self, step: int) -> None:
        """Set the layers free that a step (from 1) trains, and give dropout its numbers, other ones in each process.

        Made from the seed instead of kept in a checkpoint, so that a resume may have another number of processes.
        """
        if self.recipe.method.name == "ulmfit" and self.recipe.method.unfreeze:
            ulmfit.unfreeze(self.model, ulmfit.unfrozen(step, self.total))
        torch.manual_seed(
            random.Random(f"{self.recipe.train.seed} {step} {processes.rank()}").getrandbits(63)
        )

    def validate(self, step: int) -> dict[str, float]:
        """Held-out metrics, as ``eval_loss`` and so on, also written to the curve."""
        start = time.perf_counter()
        found = evaluate.metrics(
            self.model, self.held_out, self.tokenizer, self.kind, precision=self.recipe.train.precision
        )
        processes.reshard(self.model)
        return self.progress.validate(step, found, time.perf_counter() - start)


def filling(row: dict[str, Any]) -> dict[str, Any]:
    """A row that trains nothing, in a place for which there is no row: ``row`` without its labels."""
    if "label" in row:
        return {**row, "label": IGNORED, "filling": True}
    return {**row, "labels": [IGNORED] * len(row["labels"]), "filling": True}


def steps(recipe: Recipe, sequences: int) -> int:
    """Optimiser steps of the run; the last, smaller one of an epoch counts."""
    if recipe.train.max_steps:
        return recipe.train.max_steps
    return max(1, math.ceil(recipe.train.epochs * math.ceil(sequences / runs.rows_per_step(recipe))))


def learning_rate(recipe: Recipe, kind: str = "text") -> float:
    """The peak learning rate: the recipe's, else a usual one for its method and kind of data."""
    if recipe.train.learning_rate:
        return recipe.train.learning_rate
    if recipe.method.name in adapters.RATES:
        return adapters.RATES[recipe.method.name]
    if recipe.method.name == "bitfit":
        return 1e-3
    return 5e-5 if kind == "label" else 1e-4


def warmup_steps(recipe: Recipe, total: int) -> int:
    """Steps in which the learning rate rises from 0."""
    return round(recipe.train.warmup * total)


def schedule(work: Job, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """What the learning rate does: it rises in the warm-up, and then falls as the recipe says."""
    name, total = work.recipe.train.schedule, work.total
    if name == "slanted":
        return LambdaLR(optimizer, lambda step: ulmfit.slanted_triangular(step, total))
    named = "constant_with_warmup" if name == "constant" else name
    return get_scheduler(named, optimizer, warmup_steps(work.recipe, total), total)


def parameter_groups(work: Job) -> list[dict[str, Any]]:
    """AdamW's parameter groups: what decays and what does not and, of the method ulmfit, each with its own rate."""
    method, decay = work.recipe.method, work.recipe.train.weight_decay
    if method.name != "ulmfit":
        return decay_groups(work.model.parameters(), decay)
    return [
        {**group, "lr": ulmfit.discriminative_rate(work.learning_rate, place, method.discriminative)}
        for place, parameters in enumerate(ulmfit.layer_groups(work.model))
        for group in decay_groups(parameters, decay)
    ]


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that are trained, in two groups: matrices decay, biases and the weights of norms do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # adapters are matrices alone
