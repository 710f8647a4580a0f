"""Parameter-efficient methods beside LoRA, each named in a recipe and made with PEFT: few weights move, most stay."""

import inspect
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
from peft.tuners.lora import LoraLayer
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftdocs.errors import InputError
from ftdocs.methods.lora import adapt, add_lora, classifies, target_names
from ftdocs.recipe import Method

# The methods that leave an adapter and not a whole model, with a usual peak learning rate. What has few weights to
# move, or starts as noise in front of the text, is moved faster than matrices are.
RATES = {
    "lora": 1e-3,
    "qlora": 1e-3,
    "loftq": 1e-3,
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

    - ``lora`` (Hu et al., 2021), and on a base in 4 bits ``qlora`` (Dettmers et al., 2023); ``loftq`` begins with what
      four bits lost (Li et al., 2023);
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
        model: a transformer, in 4 bits for ``qlora`` and ``loftq``.
        method: a recipe's; the keys that the named one uses.
        total: optimiser steps, over which ``adalora`` lowers the ranks.

    Raises:
        InputError: the model has nothing that the method could change, or the method cannot change it.
    """
    lora = (model, method.rank, method.alpha, method.targets, method.dropout)
    task: Any = {"task_type": TaskType.SEQ_CLS if classifies(model) else TaskType.CAUSAL_LM}
    match method.name:
        case "lora" | "qlora":
            return add_lora(*lora)
        case "loftq":
            adapted = add_lora(*lora)
            check_rank(adapted, method)
            return begin_with_what_was_lost(adapted)
        case "rslora":
            return add_lora(*lora, use_rslora=True)
        case "dora":
            return add_lora(*lora, use_dora=True)
        case "pissa":
            adapted = add_lora(*lora, init_lora_weights="pissa")
            check_rank(adapted, method)
            return adapted
        case "adalora":
            # Half as many ranks again to begin with; they fall from a tenth of the steps on, and rest in the last half.
            config: Any = AdaLoraConfig(
                init_r=method.rank + (method.rank + 1) // 2,
                target_r=method.rank,
                tinit=total // 10,
                tfinal=max(0, min(total // 2, total - 2)),
                total_step=max(2, total),  # one step to see what each rank is worth, one to choose
                lora_alpha=method.alpha,  # type: ignore[arg-type]
                target_modules=target_names(model, method.targets),
                lora_dropout=method.dropout,
                orth_reg_weight=ORTHOGONAL,
                **task,
            )
            adapted = adapt(model, config)
            adapted.base_model.register_forward_pre_hook(penalty_in_training_alone)
            return adapted
        case "vera":
            targets = target_names(model, method.targets)
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
        case "prefix" if not takes_keys_and_values(model):
            raise InputError(
                "method.name: prefix puts keys and values before a model's own, and"
                f" {model.config.model_type} models take none; use lora"
            )
        case "prefix":
            config = PrefixTuningConfig(num_virtual_tokens=method.tokens, **task)
        case "norms":
            parts = dict(model.named_modules())
            norms = {name.split(".")[-1] for name, part in parts.items() if "Norm" in type(part).__name__}
            # ModernBERT's first block has nothing where the others have a norm.
            empty = [name for name, part in parts.items() if isinstance(part, torch.nn.Identity)]
            empty = [name for name in empty if name.split(".")[-1] in norms] or None
            config = LNTuningConfig(target_modules=sorted(norms), exclude_modules=empty, **task)
        case _:
            raise ValueError(f"{method.name} is no adapter")
    return adapt(model, config)


def lora_layers(adapted: PeftModel) -> dict[str, Any]:
    """PEFT's layers of a LoRA adapter, by the name of what each stands around."""
    parts = adapted.get_base_model().named_modules()
    return {name: part for name, part in parts if isinstance(part, LoraLayer)}


def check_rank(adapted: PeftModel, method: Method) -> None:
    """Refuse a rank above a target's smaller side: its matrix has no more singular values to begin with.

    Raises:
        InputError: names the target and the highest rank.
    """
    sides = {name: min(layer.in_features, layer.out_features) for name, layer in lora_layers(adapted).items()}
    name, most = min(sides.items(), key=lambda side: side[1])
    if method.rank > most:
        raise InputError(
            f"method.rank: {method.name} begins with the largest singular values, of which {name} has {most}, not"
            f" {method.rank}; set it to {most} or less, or leave this layer out of method.targets"
        )


def takes_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether a model, or what is below its head, lets others stand before its own, as a cache's do."""
    return any(
        "past_key_values" in inspect.signature(part.forward).parameters for part in (model, model.base_model)
    )


@torch.no_grad()
def begin_with_what_was_lost(model: PeftModel) -> PeftModel:
    """LoftQ's start (Li et al., 2023), one round of it: B A is the best of its rank for what quantisation lost.

    The loss of a layer, W - Q, is decomposed as U S Vᵀ; of its largest singular values half goes into each matrix. PEFT
    does the same on GPUs alone.

    Args:
        model: with a LoRA adapter on a base in 4 bits; its full-precision weights are read from where it came from.
    """
    from bitsandbytes.functional import dequantize_4bit  # of use for these alone, and slow to import

    base: Any = model.get_base_model()
    whole = type(base).from_pretrained(base.name_or_path, dtype=torch.float32)
    for name, layer in lora_layers(model).items():
        stored = layer.get_base_layer().weight
        if not hasattr(stored, "quant_state"):
            continue  # a new part above the base is not in 4 bits, so nothing of it was lost
        there = whole.get_submodule(name)
        full = there.weight.T if isinstance(there, Conv1D) else there.weight
        lost = full.to(stored.device) - dequantize_4bit(stored.data, stored.quant_state).float()
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # (rank, in), (out, rank)
        left, values, right = torch.svd_lowrank(lost, q=len(a), niter=8)
        share = (values / layer.scaling["default"]).sqrt()
        a.copy_((right * share).T)
        b.copy_(left * share)
    return model


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
    """BitFit (Ben Zaken et al., 2022): let the optimiser change the biases, and a classifier's new head, in place.

    A head that predicts tokens was pretrained with the rest, so its weight stays, the embedding's or not.

    Raises:
        InputError: the model has no biases, as LLaMA and its kin.
    """
    inside = dict(getattr(model, model.base_model_prefix).named_parameters(prefix=model.base_model_prefix))
    if not any(name.endswith(".bias") for name in inside):
        raise InputError(
            "method.name: bitfit trains biases, and this model has none; norms trains as few weights"
        )
    has_new_head = classifies(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith(".bias") or (has_new_head and name not in inside)
    return model
