"""LoRA: the pretrained weights stay, and each chosen linear layer learns a low-rank update."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from ftdocs.errors import InputError


def add_lora(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | list[str] = "all-linear",
    dropout: float = 0.0,
    **options: Any,
) -> PeftModel:
    """Freeze ``model`` and give each target layer an update ``W + (alpha / rank) · B A`` (Hu et al., 2021).

    ``A`` is (rank, in) and random, ``B`` is (out, rank) and zero, so the model starts out unchanged. The
    adapters are kept in float32 whatever the dtype of the frozen weights, since their updates are small.
    A classification head is new, so it is trained whole, and in float32 too. ``options`` go to ``LoraConfig``.

    Raises:
        InputError: no layer of the model has one of the names in ``targets``.
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifies(model) else TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides by the rank; a fraction is fine
        target_modules=target_names(targets),
        lora_dropout=dropout,
        **options,
    )
    return adapt(model, config)


def classifies(model: torch.nn.Module) -> bool:
    """Whether a model has a classification head."""
    return "SequenceClassification" in type(model).__name__


def target_names(targets: str | list[str]) -> str | list[str]:
    """Names of layers as a list; PEFT would take text as a regular expression."""
    if isinstance(targets, list) or targets == "all-linear":
        return targets
    return [name.strip() for name in targets.split(",")]


def adapt(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Freeze ``model`` and put PEFT's adapter on it, in float32.

    Raises:
        InputError: no layer of the model has one of the names that the configuration gives.
    """
    targets = getattr(config, "target_modules", None)
    try:
        with old_name_allowed():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        if "specify `target_modules`" in str(error):
            raise InputError(
                f"method.name: which layers of a {model.config.model_type} it changes is not known; use lora"
            ) from None
        if "arget modules" not in str(error):
            raise
        linear = {
            name.split(".")[-1] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)
        }
        names = sorted(targets) if isinstance(targets, set | list) else targets
        raise InputError(
            f"method.targets: {names!r} names no layer of this model; its linear layers: {', '.join(sorted(linear))}"
        ) from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def old_name_allowed() -> Iterator[None]:
    """Inside the block PEFT may ask a model by a name that Transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
