"""A training job: what both engines are given, and the few numbers that they must agree on."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ftdocs import evaluate, models
from ftdocs.data import pack
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

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: the recipe's, else a usual one for its method and kind of data."""
        return learning_rate(self.recipe, self.kind)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows as one batch of tensors."""
        if self.packed:
            return pack.collate_packed(rows)
        return pack.collate_padded(rows, models.pad_token_id(self.tokenizer))

    @staticmethod
    def origin(rows: list[dict[str, Any]]) -> tuple[int, list[int]]:
        """How many tokens some rows have, and which rows of the data file they come from."""
        numbers = [number for row in rows for number in row.get("rows") or [row["row"]]]
        return sum(len(row["input_ids"]) for row in rows), numbers

    def validate(self, step: int) -> dict[str, float]:
        """Held-out metrics, as ``eval_loss`` and so on, also written to the curve."""
        start = time.perf_counter()
        found = evaluate.metrics(
            self.model, self.held_out, self.tokenizer, self.kind, precision=self.recipe.train.precision
        )
        return self.progress.validate(step, found, time.perf_counter() - start)


def steps(recipe: Recipe, sequences: int) -> int:
    """Optimiser steps of the run; the last, smaller batch of an epoch counts."""
    if recipe.train.max_steps:
        return recipe.train.max_steps
    batches = math.ceil(sequences / recipe.train.batch_size)
    return max(1, math.ceil(recipe.train.epochs * math.ceil(batches / recipe.train.accumulation)))


def learning_rate(recipe: Recipe, kind: str = "text") -> float:
    """The peak learning rate: the recipe's, else a usual one for its method and kind of data."""
    if recipe.train.learning_rate:
        return recipe.train.learning_rate
    if recipe.method.name == "lora":
        return 1e-3
    return 5e-5 if kind == "label" else 1e-4


def warmup_steps(recipe: Recipe, total: int) -> int:
    """Steps in which the learning rate rises from 0."""
    return round(recipe.train.warmup * total)


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices decay, biases and the weights of norms do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
