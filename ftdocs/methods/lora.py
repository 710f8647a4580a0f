"""LoRA: the pretrained weights stay, and each chosen linear layer learns a low-rank update."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftdocs.errors import InputError

LINEAR = (torch.nn.Linear, Conv1D)  # Conv1D is GPT-2's linear layer, its weight the other way round
HEADS = ("classifier", "score")  # PEFT trains a part whole whose name ends so


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
        InputError: a name in ``targets`` is no linear layer's, or one's that shares its weight.
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifies(model) else TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides by the rank; a fraction is fine
        target_modules=target_names(model, targets),
        lora_dropout=dropout,
        **options,
    )
    return adapt(model, config)


def classifies(model: torch.nn.Module) -> bool:
    """Whether a model has a classification head."""
    return "SequenceClassification" in type(model).__name__


def target_names(model: torch.nn.Module, targets: str | list[str]) -> str | list[str]:
    """Names of layers as a list; PEFT would take text as a regular expression.

    Raises:
        InputError: a name is no linear layer's, or one's that shares its weight with another part.
    """
    parts = dict(model.named_modules())
    # PEFT trains DistilBERT's pre_classifier whole too, and cannot give it an adapter besides.
    heads = [place for place in parts if place.endswith(HEADS)] if classifies(model) else []
    if targets == "all-linear":
        linear = [place for place, part in parts.items() if isinstance(part, LINEAR) and place not in heads]
        return targets if set(heads) <= set(HEADS) else linear
    names = targets if isinstance(targets, list) else [name.strip() for name in targets.split(",")]
    for name in names or [""]:
        meant = [part for place, part in parts.items() if place == name or place.endswith(f".{name}")]
        if any(is_tied(model, part) for part in meant):
            raise InputError(
                f"method.targets: {name} shares its weight with another layer of this model, which would change with"
                " it; leave it out, or train every weight: method.name: full"
            )
        if not meant or not all(isinstance(part, LINEAR) for part in meant):
            there = {place.split(".")[-1] for place, part in parts.items() if isinstance(part, LINEAR)}
            raise InputError(
                f"method.targets: {name!r} names no linear layer of this model; its linear layers:"
                f" {', '.join(sorted(there))}; or all-linear"
            )
    return [name for name in names if name not in heads]


def is_tied(model: torch.nn.Module, part: torch.nn.Module) -> bool:
    """Whether a part's weight is another's too, as a head's is often the embedding's."""
    weight = getattr(part, "weight", None)
    return sum(other is weight for _, other in model.named_parameters(remove_duplicate=False)) > 1


def adapt(model: PreTrainedModel, config: Any) -> PeftModel:
    """Freeze ``model`` and put PEFT's adapter on it, in float32.

    Raises:
        InputError: PEFT does not know how to change a model of this kind so, or finds nothing to change.
    """
    kind = config.peft_type.lower().partition("_")[0]
    try:
        with old_name_allowed():
            adapted = get_peft_model(model, config)
    except NoMatchingPeftModuleError:
        raise InputError(
            f"method: {kind} finds nothing to change in this {model.config.model_type}, but for a head, which is"
            " trained whole anyway; use lora with method.targets: all-linear"
        ) from None
    except ValueError as error:
        if "Please specify `" not in str(error):
            raise
        raise InputError(
            f"method.name: {kind} does not know how {model.config.model_type} models are built; use lora"
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
