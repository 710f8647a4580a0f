"""LoRA: the pretrained weights stay, and each chosen linear layer learns a low-rank update."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from ftdocs.errors import InputError


def add_lora(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | list[str] = "all-linear",
    dropout: float = 0.0,
) -> PeftModel:
    """Freeze ``model`` and give each target layer an update ``W + (alpha / rank) · B A`` (Hu et al., 2021).

    ``A`` is (rank, in) and random, ``B`` is (out, rank) and zero, so the model starts out unchanged. The
    adapters are kept in float32 whatever the dtype of the frozen weights, since their updates are small.
    A classification head is new, so it is trained whole, and in float32 too.

    Raises:
        InputError: no layer of the model has one of the names in ``targets``.
    """
    classifies = "SequenceClassification" in type(model).__name__
    if isinstance(targets, str) and targets != "all-linear":
        targets = [
            name.strip() for name in targets.split(",")
        ]  # PEFT would take text as a regular expression
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides by the rank; a fraction is fine
        target_modules=targets,
        lora_dropout=dropout,
    )
    try:
        with old_name_allowed():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        linear = {
            name.split(".")[-1] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)
        }
        raise InputError(
            f"method.targets: {targets!r} names no layer of this model; its linear layers: {', '.join(sorted(linear))}"
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
