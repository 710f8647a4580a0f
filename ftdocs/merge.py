"""Merge a run's adapter into its base model: one folder that any library loads, as fast as the base model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoConfig, PreTrainedTokenizerBase

from ftdocs import assets, files, models, runs
from ftdocs.errors import InputError
from ftdocs.methods.lora import is_tied

FLOAT32_SHARE = 1e-4  # of the largest logit: what float32 sums in another order may differ by
# What merged and unmerged are asked to read; any text would do, real text is where a difference would matter.
PROBES = (
    "The river rises in the hills and reaches the sea after two hundred miles.",
    "Returns a new tensor with the same data as the input, of another shape.",
    "May I bring my dog? Only an assistance dog may come in.",
)


class RoundedAway(InputError):
    """The numbers of a dtype are too coarse, or too small, for what was tuned; float32's are not."""


@dataclass(frozen=True)
class Merged:
    """What ``ftdocs merge --json`` prints.

    Attributes:
        run: the run's folder.
        output: the folder with the whole model.
        dtype: of the weights in it.
        float32_difference: largest difference of a logit between adapter on base and merged, both in float32; None
            where nobody asked for a check.
        rounding_difference: root mean square by which the logits of what was written differ from those before it was
            rounded to ``dtype``; 0 in float32.
        tuning_difference: root mean square by which the training changed the logits, to compare it with.
    """

    run: Path
    output: Path
    dtype: str
    float32_difference: float | None = None
    rounding_difference: float | None = None
    tuning_difference: float | None = None


def merge_run(run: Path, output: Path, check: bool = False, dtype: str | None = None) -> Merged:
    """Write a run's base model with its adapter merged into it: weights, tokenizer, chat template, generation config.

    The sum is made in float32 of the base as it lies on disk, whatever it was trained in: the adapter of a 4-bit
    training goes into the full-precision weights. It is rounded once, to the ``dtype`` that the base is stored in.

    Args:
        run: a finished run with an adapter.
        output: a folder that does not exist; it is there whole or not at all.
        check: compare logits in float32 before anything is written, and those of what is written before it gets its
            name: the float32 ones may differ by a ten-thousandth of the largest logit, those rounded to ``dtype`` by
            less than the training changed them.
        dtype: ``float32``, ``bfloat16`` or ``float16``; left out, the base's own.

    Raises:
        InputError: the run has not finished, has nothing to merge, was tuned on another base, mends four bits (loftq)
            or changes a weight that two layers share; the output exists or cannot be made; a number is too large for
            ``dtype``; or the check found a difference.
    """
    runs.read_result(run)
    adapter = run / "adapter"
    if not adapter.is_dir():
        raise InputError(f"{run}: has no adapter to merge; {run / 'model'} is the whole model already")
    recipe = runs.read_recipe(run)
    if reason := why_not(run):
        base = "the 4-bit base, or train with qlora" if recipe.method.name == "loftq" else "the base model"
        raise InputError(f"{run}: {reason}, so there is nothing to merge; load {adapter} on {base}")
    if output.exists():
        raise InputError(f"{output}: exists; choose another --output, or remove it")
    with files.explain_write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)  # told before the work, not after it
    stored = dtype or str(AutoConfig.from_pretrained(assets.model_path(recipe.model)).dtype or "float32")
    target = getattr(torch, stored.removeprefix("torch."))

    full = recipe.changed({"method.name": "lora", "train.precision": "fp32"})  # float32, and never in 4 bits
    model, tokenizer = models.load_adapted(full, adapter, models.saved_labels(run))
    refuse_tied(run, model)
    unmerged = logits(model, tokenizer) if check else None
    with model.disable_adapter():
        untuned = logits(model, tokenizer) if check else None
    merged: Any = model.merge_and_unload()
    for name, part in list(merged.named_modules()):
        # A trained head: PEFT leaves it wrapped after some methods.
        if isinstance(part, ModulesToSaveWrapper):
            merged.set_submodule(name, part.modules_to_save["default"])
    found = Merged(run, output, str(target).removeprefix("torch."))
    if unmerged is not None and untuned is not None:
        difference = (logits(merged, tokenizer) - unmerged).abs().max().item()
        refuse_difference(run, difference, unmerged)
        found = replace(found, float32_difference=difference, tuning_difference=rms(unmerged - untuned))

    merged.to(target)
    for name, weight in merged.named_parameters():
        if not weight.isfinite().all():
            raise RoundedAway(
                f"{run}: a number of {name} is too large for {found.dtype}; choose --dtype bfloat16 or float32"
            )
    with files.explain_write_errors(output), files.new_folder(output) as aside:
        merged.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if unmerged is not None:
            written = type(merged).from_pretrained(aside, dtype=torch.float32).to(merged.device)
            difference = logits(written, tokenizer) - unmerged
            found = replace(found, rounding_difference=rms(difference))
            if target == torch.float32:
                refuse_difference(run, difference.abs().max().item(), unmerged)
            elif not rms(difference) < (found.tuning_difference or 0.0):  # so that NaN is refused too
                raise RoundedAway(
                    f"{run}: rounded to {found.dtype}, the logits change by {rms(difference):.2g}, and the training"
                    f" changed them by {found.tuning_difference:.2g}; write float32 weights: --dtype float32"
                )
    return found


def why_not(run: Path) -> str:
    """Why the adapter of a run cannot become part of its base model; "" where it can."""
    kind = files.read_kept(run / "adapter" / "adapter_config.json", "peft_type")["peft_type"]
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        return f"{kind.lower().replace('_', ' ')} learns what stands before the text and changes no weight"
    if runs.read_recipe(run).method.name == "loftq":
        return "loftq's adapter mends what four bits lost, and the base in full precision has lost nothing"
    return ""


def refuse_tied(run: Path, model: PeftModel) -> None:
    """Refuse an adapter on one of two layers that share a weight: merged into the one, it would change the other too.

    ``ftdocs train`` makes none; an earlier version did, as others do.

    Raises:
        InputError: names the layer.
    """
    for name, part in model.get_base_model().named_modules():
        layer: Any = None
        if isinstance(part, BaseTunerLayer):
            layer = part.get_base_layer()
        elif isinstance(part, ModulesToSaveWrapper):
            layer = part.original_module
        if layer is not None and is_tied(model, layer):
            raise InputError(
                f"{run}: its adapter changes {name}, which shares its weight with another layer, so that merging would"
                f" change both; load {run / 'adapter'} on the base model instead"
            )


def refuse_difference(run: Path, difference: float, unmerged: torch.Tensor) -> None:
    """Refuse float32 logits that differ by more than sums in another order do.

    Raises:
        InputError: says by how much.
    """
    allowed = FLOAT32_SHARE * unmerged.abs().max().item()
    if not difference <= allowed:
        raise InputError(
            f"{run}: merged and unmerged differ by {difference:.2g} in a logit, {allowed:.2g} is allowed; nothing was"
            " written; use the adapter unmerged"
        )


def logits(model: Any, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The logits of a model for :data:`PROBES`, one after the other in a row: float32, (N,)."""
    found = []
    with models.evaluating(model):
        for text in PROBES:
            inputs = tokenizer(text, return_tensors="pt").to(model.device)
            found.append(model(**inputs).logits.float().flatten().cpu())
    return torch.cat(found)


def rms(values: torch.Tensor) -> float:
    """The root mean square."""
    return float(values.double().square().mean().sqrt())
