"""The shape of a model, read from its configuration: what can be counted without loading a weight, or torch."""

import difflib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ftdocs.errors import InputError

# Architectures whose layers are described here; each is compared with transformers' own model in the tests.
GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text")
PLAIN = ("phi", "gpt2", "bert")
KNOWN = (*GATED, *PLAIN)
# What published configurations leave out, since it is transformers' default.
LEFT_OUT = {"gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208}}


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block: its name, what goes in and what comes out (features), and whether it adds a bias."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights, and biases where there are any."""
        return self.inputs * self.outputs + self.outputs * self.bias


@dataclass(frozen=True)
class Shape:
    """What of a configuration memory and time depend on.

    Attributes:
        family: transformers' ``model_type``.
        layers: blocks.
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        heads: of attention; ``kv_heads`` of its keys and values.
        head: width of one.
        vocabulary: tokens.
        positions: rows of a learnt position table; 0 where positions are rotated in.
        tied: the output layer is the embedding.
        linears: those of one block.
        norms: parameters of the norms of one block.
        norm_count: norms over the residual stream in one block.
        root: parameters outside of the blocks.
        part: what a configuration of images and text describes besides is not counted.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    positions: int
    tied: bool
    linears: tuple[Linear, ...]
    norms: int
    norm_count: int
    root: int
    part: bool = False

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all keys, which is that of all values."""
        return self.kv_heads * self.head

    @property
    def gated(self) -> bool:
        """The MLP multiplies what goes up by a gate."""
        return self.family in GATED

    @property
    def block(self) -> int:
        """Parameters of one block."""
        return sum(linear.parameters for linear in self.linears) + self.norms

    @property
    def parameters(self) -> int:
        """All of them; an output layer tied to the embedding counts once."""
        return self.layers * self.block + self.root

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding."""
        return self.vocabulary * self.hidden

    def targeted(self, targets: str | list[str]) -> list[Linear]:
        """The linear layers of a block that adapters are put on: by name, or ``all-linear``.

        Raises:
            InputError: a name that no linear layer has.
        """
        if targets == "all-linear":
            return list(self.linears)
        wanted = targets.split(",") if isinstance(targets, str) else targets
        known = [linear.name for linear in self.linears]
        for name in wanted:
            if name not in known:
                raise InputError(
                    f"targets: {self.family} has no linear layer {name}; it has {', '.join(known)}, and all-linear"
                )
        return [linear for linear in self.linears if linear.name in wanted]

    def lora_parameters(self, rank: int, targets: str | list[str] = "all-linear") -> int:
        """Parameters of LoRA's adapters: A (rank, in) and B (out, rank) for each target."""
        return self.layers * sum(rank * (each.inputs + each.outputs) for each in self.targeted(targets))


def shape(config: dict[str, Any], where: str = "config") -> Shape:
    """The shape that a Hugging Face ``config.json`` describes.

    Raises:
        InputError: an architecture that is not described here, or a key that is missing.
    """
    family = config.get("model_type", "")
    if quantised := config.get("quantization_config"):
        kind = quantised.get("quant_method", "weights") if isinstance(quantised, dict) else "weights"
        raise InputError(
            f"{where}: quantization_config: {kind} are not planned; give the config.json of the model before it was"
            " quantised, and --method qlora for nf4"
        )
    if isinstance(config.get("text_config"), dict) and family not in KNOWN:
        # a model of images and text: its language part
        return replace(shape(config["text_config"], where), part=True)
    if family not in KNOWN:
        raise InputError(
            f"{where}: model_type {family or 'is missing'}: the planner knows {', '.join(KNOWN)}; for another one"
            " measure a step (ftdocs.measure.measured_peak)"
        )

    def get(*names: str, default: Any = None) -> Any:
        """The first of several keys that is there."""
        default = LEFT_OUT.get(family, {}).get(names[0], default)
        value = next((config[name] for name in names if config.get(name) is not None), default)
        if value is None:
            raise InputError(f"{where}: key {names[0]} is missing; give a whole config.json")
        if type(value) is not int or value < 1:
            raise InputError(f"{where}: {names[0]} is {value!r}; give a whole number above 0")
        return value

    layers, hidden = get("num_hidden_layers", "n_layer"), get("hidden_size", "n_embd")
    heads = get("num_attention_heads", "n_head")
    kv_heads = get("num_key_value_heads", default=heads)
    head = get("head_dim", default=256 if family.startswith("gemma") else hidden // heads)
    intermediate = get("intermediate_size", "n_inner", default=4 * hidden)
    vocabulary = get("vocab_size")
    queries, keys = heads * head, kv_heads * head
    positions = 0
    if family in GATED:
        bias = bool(config.get("attention_bias", family == "qwen2"))
        attention = (
            Linear("q_proj", hidden, queries, bias),
            Linear("k_proj", hidden, keys, bias),
            Linear("v_proj", hidden, keys, bias),
            Linear("o_proj", queries, hidden, bias and family != "qwen2"),
        )
        mlp_bias = bool(config.get("mlp_bias", False))
        mlp = (
            Linear("gate_proj", hidden, intermediate, mlp_bias),
            Linear("up_proj", hidden, intermediate, mlp_bias),
            Linear("down_proj", intermediate, hidden, mlp_bias),
        )
        if family == "phi3":
            attention = (
                Linear("qkv_proj", hidden, queries + 2 * keys),
                Linear("o_proj", queries, hidden),
            )
            mlp = (
                Linear("gate_up_proj", hidden, 2 * intermediate),
                Linear("down_proj", intermediate, hidden),
            )
        norm_count = 4 if family in ("gemma2", "gemma3_text") else 2
        norms = norm_count * hidden + (2 * head if family in ("qwen3", "gemma3_text") else 0)
        tied = config.get("tie_word_embeddings")
        tied = family.startswith("gemma") if tied is None else bool(tied)
        root = vocabulary * hidden * (1 if tied else 2) + hidden
    elif family == "phi":
        attention = tuple(
            Linear(name, hidden, width, True)
            for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys), ("dense", hidden))
        )
        mlp = (Linear("fc1", hidden, intermediate, True), Linear("fc2", intermediate, hidden, True))
        norms, norm_count, tied = 2 * hidden, 1, False
        root = 2 * vocabulary * hidden + vocabulary + 2 * hidden  # its output layer has a bias
    elif family == "gpt2":
        attention = (Linear("c_attn", hidden, 3 * hidden, True), Linear("c_proj", hidden, hidden, True))
        mlp = (Linear("c_fc", hidden, intermediate, True), Linear("mlp.c_proj", intermediate, hidden, True))
        positions = get("n_positions", "max_position_embeddings")
        norms, norm_count, tied = 4 * hidden, 2, True
        root = (vocabulary + positions) * hidden + 2 * hidden
    else:  # bert, as a classifier of two classes
        attention = tuple(
            Linear(name, hidden, hidden, True) for name in ("query", "key", "value", "attention.output.dense")
        )
        mlp = (
            Linear("intermediate.dense", hidden, intermediate, True),
            Linear("output.dense", intermediate, hidden, True),
        )
        positions = get("max_position_embeddings")
        norms, norm_count, tied = 4 * hidden, 2, True
        types = get("type_vocab_size", default=2)
        pooler, head_layer = hidden * hidden + hidden, 2 * hidden + 2
        root = (vocabulary + positions + types) * hidden + 2 * hidden + pooler + head_layer
    return Shape(
        family, layers, hidden, intermediate, heads, kv_heads, head, vocabulary, positions, tied,
        (*attention, *mlp), norms, norm_count, root,
    )  # fmt: skip


def catalogue(section: str = "models") -> dict[str, dict[str, Any]]:
    """A section of the package's catalogue: ``models`` (what a shape depends on), ``gpus`` or ``instances``."""
    text = resources.files("ftdocs").joinpath("catalogue.json").read_text(encoding="utf-8")
    return json.loads(text)[section]  # type: ignore[no-any-return]


def find(name: str) -> Shape:
    """The shape of a model by a name of the catalogue or the book, a ``config.json``, or a folder that holds one.

    A name may end in ``-Instruct``: tuning on chats leaves the shape as it was.

    Raises:
        InputError: nothing of this name; or the file is no configuration.
    """
    if not name.strip():
        raise InputError("--model: is empty; give a name such as Llama-3.1-8B, or a config.json")
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such file; give a model's config.json, or its folder or name"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: is no JSON ({error}); give a model's config.json") from None
        if not isinstance(config, dict):
            raise InputError(f"{path}: holds no keys; give a model's config.json")
        return shape(config, str(path))
    models = catalogue()
    by_name = {key.lower(): key for key in models} | {key.lower().rpartition("/")[2]: key for key in models}
    # A chat model that was tuned from a base has its shape.
    spelt = next(
        (key for key in (name.lower(), name.lower().removesuffix("-instruct")) if key in by_name), None
    )
    if spelt is None:
        near = difflib.get_close_matches(name.lower(), by_name, n=3, cutoff=0.5)
        known = ", ".join(by_name[key] for key in near) or "a config.json"
        raise InputError(f"--model {name}: not in the catalogue; did you mean {known}? or give a config.json")
    return shape(models[by_name[spelt]], name)
