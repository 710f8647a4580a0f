"""Load a base model and its tokenizer for a recipe, or the tuned model of a run, in the right precision."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftdocs import assets, attention, files, hardware
from ftdocs.errors import InputError
from ftdocs.methods.lora import old_name_allowed
from ftdocs.recipe import Recipe

IN_FOUR_BITS = ("qlora", "loftq")
# Whose frozen weights are only multiplied with. Of the others, norms trains weights that stand between products, and
# pissa takes its first update out of the frozen weights, which 16 bits would round.
IN_COMPUTED_DTYPE = ("lora", *IN_FOUR_BITS, "rslora", "dora", "adalora", "vera", "ia3", "prompt", "prefix")
# In an adapter's folder: its weights, and what they were trained on.
ADAPTER, BASE = "adapter_model.safetensors", "base.json"


def load(recipe: Recipe, labels: list[str] | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The recipe's base model, on the device, and its tokenizer.

    Only safetensors are read, and no code that comes with a model is run.

    Args:
        recipe: names the model and the precision.
        labels: class names; with them the model gets a new classification head of that many outputs.

    Raises:
        InputError: no such model, or one without the weights that the task needs.
    """
    folder = assets.model_path(recipe.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(recipe.train.seed)  # a new classification head starts the same on every run
    options = {"dtype": weights_dtype(recipe), "use_safetensors": True, "attn_implementation": "sdpa"}
    if recipe.method.name in IN_FOUR_BITS:
        options |= in_four_bits(options["dtype"])
    try:
        if labels is None:
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
        else:
            names = dict(enumerate(labels))
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(labels),
                id2label=names,
                label2id={v: k for k, v in names.items()},
                **options,
            )
            # Decoder classifiers read the last token that is not padding, so they must know which one is.
            model.config.pad_token_id = pad_token_id(tokenizer)
    except SafetensorError as error:
        raise InputError(
            f"model: {recipe.model}: its weights are damaged ({error}); fetch them again"
        ) from None
    except ValueError as error:
        if "does not support an attention implementation" in str(error):
            raise InputError(
                f"model: {recipe.model} has no scaled_dot_product_attention, which this needs; choose another"
            ) from None
        if "Unrecognized configuration class" not in str(error):
            raise
        task = "classify text" if labels else "generate text"
        raise InputError(f"model: {recipe.model} is of a kind that cannot {task}; choose another") from None
    if recipe.method.name in IN_FOUR_BITS:
        keep_gradients(model)
    else:
        model = model.to(hardware.device())
    if labels is None:
        check_causal(model, recipe.model)
    attention.use(model)
    if recipe.train.dropout is not None:
        set_dropout(model, recipe.train.dropout)
    return model, tokenizer


def in_four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """How ``from_pretrained`` loads a base for QLoRA (Dettmers et al., 2023): nf4, its scales quantised once more.

    Products are made in ``dtype``. The embedding, norms and new heads are not quantised; a pretrained pooler is.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "method.name: qlora and loftq need bitsandbytes, which is not installed;"
            ' python -m pip install "ftdocs[qlora]"'
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["lm_head", "score", "classifier", "pre_classifier", "head"],
        ),
        "device_map": {"": hardware.device()},
    }


def keep_gradients(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from a faster form of its weights on CPUs with bfloat16.

    It is taken at the first forward pass without training, such as a validation's, and gives no gradients: from then on
    the layers below would be trained no more, without a word (bitsandbytes 0.50).
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


def compute_anew(model: torch.nn.Module) -> None:
    """Activation checkpointing (Chen et al., 2016), in place: layers keep their input, and the backward pass the rest.

    Raises:
        InputError: Transformers' code of the model has none.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not base.supports_gradient_checkpointing:
        raise InputError(f"train.checkpointing: {base.config.model_type} models cannot; leave it out")
    base.activation_checkpointing_enable()
    # Transformers has a frozen embedding's output require a gradient, as an older kind of checkpointing needed it: all
    # frozen layers above it would be differentiated too, and attend by another way on a CPU.
    base.disable_input_require_grads()


def set_dropout(model: PreTrainedModel, share: float) -> None:
    """Let this share of values be left out at random wherever the model has dropout (Srivastava et al., 2014)."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = share
        elif isinstance(getattr(part, "attention_dropout", None), float):  # LLaMA and its kin keep a number
            part.attention_dropout = share


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a model in which a token sees those after it, such as BERT: it would read the answer it has to predict.

    Raises:
        InputError: the logits at the first of two tokens change with the second one.
    """
    ids = torch.tensor([[1, 2], [1, 3]], device=model.device)
    with evaluating(model):
        logits = model(input_ids=ids).logits.float()[:, 0]  # (2, V)
    if not torch.equal(logits[0], logits[1]):
        raise InputError(
            f"model: {name} sees the tokens after the one it predicts, so it cannot generate text; choose another"
        )


def load_run(folder: Path) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The tuned model of a run (its adapter on the recipe's base model, or its whole model) and its tokenizer."""
    recipe = Recipe.load(folder / "recipe.yaml", environment=False)
    if not (folder / "adapter").is_dir():
        recipe = recipe.model_copy(update={"model": str(folder / "model")})
        with damage_told(folder / "model"):
            return load(recipe, saved_labels(folder))
    return load_adapted(recipe, folder / "adapter", saved_labels(folder))


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """What goes wrong while ``folder``, which a training has written, is loaded, as an ``InputError``."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # libraries raise anything, tokenizers a bare Exception
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"{folder}: cannot be loaded ({said}); restore it, or train again") from error


def load_adapted(
    recipe: Recipe, adapter: Path, labels: list[str] | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The recipe's base model with an adapter on it, and the adapter's tokenizer.

    Raises:
        InputError: the adapter was trained on another base model, does not fit it, is damaged, or lacks weights.
    """
    check_base(adapter, recipe.model)
    names = check_adapter(adapter)
    base, _ = load(recipe, labels)
    with damage_told(adapter):
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        try:
            with old_name_allowed():
                tuned = PeftModel.from_pretrained(base, adapter)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise InputError(f"{adapter}: its weights do not fit {recipe.model}; train again") from None
    missing = set(get_peft_model_state_dict(tuned, save_embedding_layers=False)) - names
    if missing:  # PEFT would leave them as they start, and warn at most
        raise InputError(
            f"{adapter / ADAPTER}: lacks {len(missing)} weights of its adapter, such as {min(missing)}; train again"
        )
    config: Any = tuned.peft_config["default"]
    if config.peft_type == "ADALORA":
        # PEFT adds its penalty to every loss, and asks for a name that it sets where it trains.
        config.orth_reg_weight = 0.0
        tuned.base_model.trainable_adapter_name = "default"  # type: ignore[assignment]
    return tuned, tokenizer


def base_facts(name: str) -> dict[str, Any]:
    """What an adapter keeps of its base model: name, source, revision, and the SHA-256 of each file of weights."""
    folder = assets.model_path(name)
    source = json.loads((folder / assets.RECORD).read_text()) if (folder / assets.RECORD).is_file() else {}
    return {
        "model": assets.public_name(name),
        **{key: source[key] for key in ("source", "id", "commit", "converted") if key in source},
        "weights": {path.name: files.sha256(path) for path in sorted(folder.glob("*.safetensors"))},
    }


def check_base(adapter: Path, name: str) -> None:
    """Refuse a base model whose weights are not those that an adapter was trained on: it would load, and talk nonsense.

    An adapter without ``base.json``, made before there was one or elsewhere, cannot be checked and passes.

    Raises:
        InputError: names both.
    """
    if not (adapter / BASE).is_file():
        return
    trained_on, here = files.read_kept(adapter / BASE, "model", "weights"), base_facts(name)
    if trained_on["weights"] != here["weights"]:
        source = " ".join(str(trained_on[key]) for key in ("id", "commit") if key in trained_on)
        raise InputError(
            f"{adapter}: was trained on {trained_on['model']}{f' ({source})' if source else ''}, whose weights are not"
            f" those of {name} here; give it that base model (is FTDOCS_SOURCE another one?), or train again"
        )


def check_adapter(adapter: Path) -> set[str]:
    """The names of an adapter's weights, after a look whether its file is as the training wrote it.

    Of one made elsewhere, or before ``base.json`` kept its SHA-256, only what is cut off is noticed.

    Raises:
        InputError: the file is damaged or gone.
    """
    kept = files.read_kept(adapter / BASE) if (adapter / BASE).is_file() else {}
    file = adapter / ADAPTER
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
        if kept.get("adapter", "") in ("", files.sha256(file)):
            return names
    except (OSError, SafetensorError):
        pass
    raise InputError(
        f"{file}: is damaged or gone, or not what the training wrote; restore it, or train again"
    )


def saved_labels(folder: Path) -> list[str] | None:
    """The class names of a run that trained a classifier, else None."""
    labels: list[str] | None = files.read_kept(folder / "splits.json", "labels")["labels"]
    return labels


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of the loaded weights.

    Weights that are trained stay in float32 unless ``precision: bf16`` is asked for: at usual learning rates
    many of AdamW's updates are smaller than half a bfloat16 step and would be rounded away. Frozen weights
    (LoRA's base) are kept in the dtype that the device computes in.
    """
    asked = recipe.train.precision
    if asked == "fp32":
        return torch.float32
    if asked == "bf16":
        return torch.bfloat16
    return computes_in(asked) if recipe.method.name in IN_COMPUTED_DTYPE else torch.float32


def computes_in(precision: str) -> torch.dtype:
    """The dtype of matrix products for a recipe's ``train.precision``; "auto" asks the hardware."""
    if precision == "auto":
        return hardware.dtype()
    return torch.float32 if precision == "fp32" else torch.bfloat16


def mixed(recipe: Recipe) -> bool:
    """Whether matrix products run in bfloat16 while trained weights are float32."""
    whole = recipe.train.precision == "bf16" and recipe.method.name == "full"
    return computes_in(recipe.train.precision) == torch.bfloat16 and not whole


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradients; the mode is put back as it was, after an error or an interrupt too."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """Compute in the dtype that training with this ``train.precision`` computes in."""
    dtype = computes_in(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up short rows: the tokenizer's, else its end token (masked wherever it pads)."""
    chosen = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(chosen or 0)
