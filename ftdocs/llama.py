"""LLaMA from scratch: the model, its weights from a hub folder, text from it. PyTorch and nothing above it.

In the shapes, B sequences have T tokens; a token is D numbers (``hidden_size``) in H query heads and K key-value heads
of d numbers each, F inside the feed-forward layer; S tokens are in the cache; V tokens are in the vocabulary.
Modules have the names that files on the hub use, so that weights load by name.

Rows of a batch have one length: there is no padding and no mask for it. A row that was filled up would be read as text.
Every token's embedding is trained; Transformers leaves that of the config's ``pad_token_id`` without a gradient.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ftdocs.errors import InputError

# What a config may say besides sizes, and the one thing that is built here.
BUILT = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0,
    "partial_rotary_factor": 1,
    "sliding_window": None,
    "quantization_config": None,
}


@dataclass(frozen=True)
class RopeScaling:
    """How LLaMA 3.1 and later stretch the rotary angles of a model that was trained on shorter texts."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Config:
    """The sizes of a LLaMA, by the names of its ``config.json``; defaults are those of files that leave a key out."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    head_dim: int  # d
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False


def read_config(values: Mapping[str, Any], where: str = "config.json") -> Config:
    """The sizes in a Hugging Face config, of this year's format or an older one.

    Raises:
        InputError: a key is missing or impossible, or asks for what is not built here: another architecture, another
            activation or rotary scaling, biases, dropout, a sliding window, quantised weights.
    """
    rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    asked = {**values, **{key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}}
    for key, built in BUILT.items():
        if (found := asked.get(key)) is not None and found != built:
            raise InputError(f"{where}: {key} is {found!r}; ftdocs.llama does {built!r} alone")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise InputError(f"{where}: rope_type is {kind!r}; ftdocs.llama does 'default' and 'llama3' alone")
    given = {field.name: asked[field.name] for field in fields(Config) if asked.get(field.name) is not None}
    try:
        given.setdefault("num_key_value_heads", given["num_attention_heads"])
        given.setdefault("head_dim", given["hidden_size"] // given["num_attention_heads"])
        if kind == "llama3":
            rope.setdefault("original_max_position_embeddings", given.get("max_position_embeddings", 2048))
            given["rope_scaling"] = RopeScaling(
                **{each.name: rope[each.name] for each in fields(RopeScaling)}
            )
        else:
            given["rope_scaling"] = None
        config = Config(**given)
    except (KeyError, TypeError, ArithmeticError) as error:
        raise InputError(f"{where}: not the config of a LLaMA, as {error} shows") from None
    if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
        raise InputError(
            f"{where}: {config.num_attention_heads} query heads cannot share {config.num_key_value_heads} key-value"
            f" heads of {config.head_dim} numbers; the first must be a multiple of the second, the third even"
        )
    return config


class RMSNorm(nn.Module):
    """Scales each token's numbers to a root mean square of 1, then by a learned weight (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (…, D), any dtype: the same shape; the same dtype, or the weight's where that is wider."""
        wide = x.float()  # a mean of squares in bfloat16 would be good to two digits
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_frequencies(config: Config, device: torch.device | None = None) -> Tensor:
    """By how many radians each pair of a head's numbers turns from one position to the next (Su et al., 2021).

    The first pair turns by 1, the last by little more than 1 / ``rope_theta``. With LLaMA 3's scaling, a pair that
    turns less than ``low_freq_factor`` times in the context it was trained on is slowed down by ``factor``, so that it
    meets no new angle in a longer one; one that turns more than ``high_freq_factor`` times tells near positions apart
    and stays; what lies between is mixed.

    Returns:
        (d / 2,), float32.
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1 / config.rope_theta**pairs
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope(
    config: Config, start: int, length: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles at positions ``start`` and on: two (T, d / 2), float32.

    They are made anew for each call and not kept as a buffer, which ``model.to(torch.bfloat16)`` would round.
    """
    positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, rope_frequencies(config, device))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of numbers of ``x`` (B, heads, T, d) by its position's angle; ``cos`` and ``sin`` are (T, d / 2).

    A pair is number i and number i + d / 2, as in files on the hub. Meta's own files pair neighbours, 2i and 2i + 1;
    the rows of their query and key weights were reordered for the hub.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, -1)  # (B, heads, T, d / 2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Cache:
    """Keys and values of the tokens that were read, for every layer, so that none is computed twice.

    The memory for all ``size`` tokens is taken at once: appending a token copies that token alone.
    """

    def __init__(self, config: Config, batch: int, size: int, like: Tensor):
        """Room for ``size`` tokens in each of ``batch`` rows, of the dtype and on the device of ``like``.

        Raises:
            InputError: ``size`` is more than the model's context.
        """
        if size > config.max_position_embeddings:
            raise InputError(
                f"a cache of {size} tokens: the model's context, max_position_embeddings, is"
                f" {config.max_position_embeddings}; ask for fewer"
            )
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, size, config.head_dim)
        self.keys, self.values = (torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        self.size, self.length = size, 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, K, T, d) behind what a layer has; all that it has then, (B, K, S, d). The model moves ``length``."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Each token looks at itself and those before it; H / K query heads share keys (Ainslie et al., 2023)."""

    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = (
            heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, d), keys and values (B, K, T, d) of ``x`` (B, T, D); the first two are turned."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """``x`` (B, T, D) to the same shape, with the tokens in ``cache`` before it."""
        q, k, v = self.heads(x, cos, sin)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, d)
        new, read = q.shape[2], k.shape[2]
        mask = None
        if 1 < new < read:  # several tokens after others: row t sees the first read - new + t + 1
            mask = torch.ones(new, read, dtype=torch.bool, device=x.device).tril(read - new)
        found = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=new == read, enable_gqa=q.shape[1] != k.shape[1]
        )  # (B, H, T, d)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: one product says what, another one through ``silu`` says how much of it (Shazeer, 2020)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, T, D) to the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # (B, T, F) inside


class Block(nn.Module):
    """One layer: attention, then feed-forward; each reads the normed stream and adds to the stream itself."""

    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """``x`` (B, T, D) to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A LLaMA language model (Touvron et al., 2023), with random weights until it is filled or trained."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # A tied model says a token with the vector that it reads it by, and has no head of its own.
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.dim() == 2:  # small, so that a new model gives every token about the same probability
                nn.init.normal_(weight, std=0.02)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """What the last layer says about each token of ``ids`` (B, T), int64: (B, T, D).

        Args:
            ids: tokens; with a cache, those that come after the ones in it. Rows have one length, without padding.
            cache: is appended to. Gradients do not go through it.

        Raises:
            InputError: more tokens than the context, or than the cache has room for.
        """
        start = 0 if cache is None else cache.length
        room = self.config.max_position_embeddings if cache is None else cache.size
        if start + ids.shape[1] > room:
            what = "the model's context" if cache is None else "the cache"
            raise InputError(f"{start + ids.shape[1]} tokens: {what} has room for {room}; give fewer")
        cos, sin = rope(self.config, start, ids.shape[1], ids.device)
        x = self.embed_tokens(ids)  # (B, T, D)
        for number, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache, number)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """A score for each token that may come next: ``hidden`` (…, D) to (…, V)."""
        return functional.linear(hidden, (self.lm_head or self.embed_tokens).weight)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of ``ids`` (B, T); arguments and errors as in :meth:`hidden`."""
        return self.logits(self.hidden(ids, cache))


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-probability, in nats, of ``labels`` (B, T), int64, by ``logits`` (B, T, V); a float32 scalar.

    Position t is asked for the label at t + 1. A label of -100 is not asked for; with no other one the mean is NaN.
    """
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def fill(model: Llama, weights: Mapping[str, Tensor], where: str = "weights") -> None:
    """Copy weights, named as on the hub, into a model; every one is used and every parameter filled.

    Raises:
        InputError: a weight is missing, left over or of another shape or kind, or contradicts the config.
    """
    left = {name.removeprefix("model."): weight for name, weight in weights.items()}
    own = dict(model.named_parameters())
    if len(left) < len(weights):
        raise InputError(f"{where}: a weight is there twice, with and without the prefix model.")
    angles = [name for name in left if name.endswith("rotary_emb.inv_freq")]  # older files have them
    for name in angles:
        if not close(left.pop(name), rope_frequencies(model.config)):
            raise InputError(f"{where}: {name} has other angles than the config's rope_theta gives")
    tied = left.pop("lm_head.weight", None) if model.lm_head is None else None  # some files have it once more
    for kind, names in (("missing", own.keys() - left.keys()), ("not used", left.keys() - own.keys())):
        if names:
            raise InputError(
                f"{where}: {len(names)} weights {kind}, such as {min(names)}; is it another model's?"
            )
    if tied is not None and not torch.equal(tied, left["embed_tokens.weight"]):
        raise InputError(f"{where}: lm_head.weight is not the embedding, and the config ties them together")
    for name, weight in left.items():
        wanted = tuple(own[name].shape)
        if weight.shape != wanted or not weight.is_floating_point():
            raise InputError(
                f"{where}: {name} is {weight.dtype} {tuple(weight.shape)}; the config wants {wanted}"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(left[name])


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors have one shape and, but for the rounding of a 16-bit file, the same numbers."""
    return found.shape == wanted.shape and torch.allclose(found.float(), wanted.float(), rtol=0.01)


def load(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Llama:
    """The model in a folder of the hub's format, ``config.json`` and safetensors, with its weights in ``dtype``.

    Raises:
        InputError: the config is of another architecture, a file is missing, or weights do not fit the config.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
        if index.is_file():  # the weights of a large model lie in several files
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        weights = {name: weight for file in names for name, weight in load_file(folder / file).items()}
    except FileNotFoundError as error:
        raise InputError(f"{folder}: not a whole model: {error}") from None
    with torch.device("meta"):  # shapes without memory, so that no random numbers are drawn for nothing
        model = Llama(read_config(values, str(folder / "config.json")))
    model = model.to(dtype).to_empty(device=device)
    fill(model, weights, str(folder))
    return model


@torch.no_grad()
def generate(
    model: Llama,
    ids: Tensor,
    new_tokens: int,
    temperature: float = 0.0,
    stop: Iterable[int] = (),
    use_cache: bool = True,
) -> Tensor:
    """Go on with each row of ``ids`` (B, T) by up to ``new_tokens`` tokens.

    Args:
        ids: prompts of one length, int64; padding would be read as text.
        temperature: 0 takes the likeliest token; else tokens are drawn, with logits divided by it.
        stop: tokens that end a row. A row that ended repeats its last token until all rows have.
        use_cache: keep keys and values; without, the same tokens come out, and all of the text is read for each.

    Returns:
        (B, T + new tokens), int64: the prompts and what follows.

    Raises:
        InputError: prompt and new tokens are more than the model's context.
    """
    cache = Cache(model.config, len(ids), ids.shape[1] + new_tokens, model.norm.weight)
    ends = torch.tensor(list(stop), dtype=ids.dtype, device=ids.device)
    ended = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    unread = ids
    for _ in range(new_tokens):
        logits = model.logits(model.hidden(unread, cache if use_cache else None)[:, -1])  # (B, V)
        if temperature == 0:
            token = logits.argmax(-1, keepdim=True)  # (B, 1)
        else:
            token = torch.multinomial((logits.float() / temperature).softmax(-1), 1)
        token = torch.where(ended, ids[:, -1:], token)
        ended |= torch.isin(token, ends)
        ids = torch.cat((ids, token), 1)
        unread = token if use_cache else ids
        if ended.all():
            break
    return ids
