"""Parameter-efficient methods beside LoRA, each named in a recipe and made with PEFT: few weights move, most stay."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    VeraConfig,
)
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from ftdocs.errors import InputError
from ftdocs.methods.lora import adapt, add_lora, classifies, target_names
from ftdocs.recipe import Method

# The methods that leave an adapter and not a whole model, with a usual peak learning rate. What has few weights to
# move, or starts as noise in front of the text, is moved faster than matrices are.
RATES = {
    "lora": 1e-3,
    "qlora": 1e-3,
    "rslora": 1e-3,
    "dora": 1e-3,
    "pissa": 1e-3,
    "adalora": 5e-3,
    "vera": 1e-2,
    "ia3": 1e-2,
    "prompt": 3e-2,
    "prefix": 1e-2,
    "norms": 1e-3,
}
ORTHOGONAL = 0.5  # AdaLoRA's weight of the penalty that keeps P and Q orthogonal, as in its paper


def add_adapter(model: PreTrainedModel, method: Method, total: int = 1) -> PeftModel:
    """Freeze ``model`` and put the adapter on it that a recipe names; its weights are float32.

    - ``lora`` (Hu et al., 2021), and on a base in 4 bits ``qlora`` (Dettmers et al., 2023);
    - ``rslora``: the update by alpha / √rank (Kalajdzievski, 2023); ``dora``: each row's length by itself (Liu et al.,
      2024); ``pissa``: begins with the largest singular values (Meng et al., 2024); ``adalora``: ranks go where they
      are of use (Zhang et al., 2023);
    - ``vera``: two vectors a layer around random matrices that all layers share (Kopiczko et al., 2024);
    - ``ia3``: keys, values and the inner activations of the MLP scaled (Liu et al., 2022);
    - ``prompt``, ``prefix``: vectors before the text (Lester et al., 2021), or before each layer's keys and values (Li
      & Liang, 2021);
    - ``norms``: the weights of the norms (Zhao et al., 2024).

    A classification head is new, so it is trained whole.

    Args:
        model: a transformer, in 4 bits for ``qlora``.
        method: a recipe's; the keys that the named one uses.
        total: optimiser steps, over which ``adalora`` lowers the ranks.

    Raises:
        InputError: the model has nothing that the method could change.
    """
    lora = (model, method.rank, method.alpha, method.targets, method.dropout)
    task: Any = {"task_type": TaskType.SEQ_CLS if classifies(model) else TaskType.CAUSAL_LM}
    match method.name:
        case "lora" | "qlora":
            return add_lora(*lora)
        case "rslora":
            return add_lora(*lora, use_rslora=True)
        case "dora":
            return add_lora(*lora, use_dora=True)
        case "pissa":
            return add_lora(*lora, init_lora_weights="pissa")
        case "adalora":
            # Half as many ranks again to begin with; they fall from a tenth of the steps on, and rest in the last half.
            config: Any = AdaLoraConfig(
                init_r=method.rank + (method.rank + 1) // 2,
                target_r=method.rank,
                tinit=total // 10,
                tfinal=max(0, min(total // 2, total - 2)),
                total_step=max(2, total),  # one step to see what each rank is worth, one to choose
                lora_alpha=method.alpha,  # type: ignore[arg-type]
                target_modules=target_names(method.targets),
                lora_dropout=method.dropout,
                orth_reg_weight=ORTHOGONAL,
                **task,
            )
            adapted = adapt(model, config)
            adapted.base_model.register_forward_pre_hook(penalty_in_training_alone)
            return adapted
        case "vera":
            targets = target_names(method.targets)
            config = VeraConfig(r=method.rank, target_modules=targets, vera_dropout=method.dropout, **task)
        case "ia3":
            config = IA3Config(**task)
        case "prompt" if classifies(model) and hasattr(model, "score"):
            raise InputError(
                "method.name: prompt hands a decoder vectors in place of tokens, so its classifier cannot see where a"
                " text ends; use prefix"
            )
        case "prompt":
            config = PromptTuningConfig(num_virtual_tokens=method.tokens, **task)
        case "prefix":
            config = PrefixTuningConfig(num_virtual_tokens=method.tokens, **task)
        case "norms":
            norms = {
                name.split(".")[-1] for name, part in model.named_modules() if "Norm" in type(part).__name__
            }
            config = LNTuningConfig(target_modules=sorted(norms), **task)
        case _:
            raise ValueError(f"{method.name} is no adapter")
    return adapt(model, config)


def penalty_in_training_alone(adapted: torch.nn.Module, inputs: Any) -> None:
    """Before a forward pass: PEFT adds AdaLoRA's penalty to every loss, that of held-out rows too."""
    adapted.peft_config["default"].orth_reg_weight = ORTHOGONAL * adapted.training  # type: ignore


@contextmanager
def allocating(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, each optimiser step of ``adalora`` is followed by a new choice of its ranks."""
    if not isinstance(model, PeftModel) or model.peft_config["default"].peft_type != "ADALORA":
        yield
        return
    step = 0

    def choose(*_: Any) -> None:
        nonlocal step
        step += 1
        model.base_model.update_and_allocate(step)  # type: ignore[operator]

    handle = register_optimizer_step_post_hook(choose)
    try:
        yield
    finally:
        handle.remove()
        model.peft_config["default"].orth_reg_weight = 0.0  # whoever loads it wants the loss alone


def trained_matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the matrices of a LoRA adapter, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}


def as_plain_lora(model: PeftModel, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a PiSSA adapter as a plain one's, for the base as it was: B A - B₀ A₀, twice as high in rank.

    PiSSA took B₀ A₀, with which it started, out of the frozen weights. The configuration is changed in place.

    Args:
        model: with a trained PiSSA adapter.
        start: its matrices before training.
    """
    config: Any = model.peft_config["default"]
    config.init_lora_weights, config.r, config.lora_alpha = True, 2 * config.r, 2 * config.lora_alpha
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    for name, initial in start.items():
        parts = [weights[name], initial] if "lora_A" in name else [weights[name], -initial]
        weights[name] = torch.cat(parts, dim=0 if "lora_A" in name else 1)
    return weights


def train_biases(model: PreTrainedModel) -> PreTrainedModel:
    """BitFit (Ben Zaken et al., 2022): let the optimiser change the biases, and a new head, in place.

    Raises:
        InputError: the model has no biases, as LLaMA and its kin.
    """
    inside = dict(getattr(model, model.base_model_prefix).named_parameters(prefix=model.base_model_prefix))
    if not any(name.endswith(".bias") for name in inside):
        raise InputError(
            "method.name: bitfit trains biases, and this model has none; norms trains as few weights"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith(".bias") or name not in inside
    return model
