"""Will it fit, before it runs: a first closed form of the memory and the disk that training needs."""

from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ftdocs.errors import InputError

Method = Literal["full", "lora"]
LLAMA_LIKE = (
    "llama",
    "mistral",
    "qwen2",
)  # architectures whose layers keep what is counted here, as tests compare


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this config on the meta device: every shape, no memory, no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameters(config: PreTrainedConfig) -> int:
    """How many parameters a model of this config has; an output layer tied to the embedding counts once."""
    return sum(parameter.numel() for parameter in on_meta(config).parameters())


def lora_parameters(config: PreTrainedConfig, rank: int) -> int:
    """How many parameters LoRA of this rank trains on every linear layer but the output layer.

    A layer of shape (out, in) gets ``B`` (out, rank) and ``A`` (rank, in).
    """
    model = on_meta(config)
    output = model.get_output_embeddings()
    layers = [
        layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not output
    ]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def activation_bytes(config: PreTrainedConfig, tokens: int, method: Method = "full") -> int:
    """Bytes that the layers of a LLaMA-like decoder keep for the backward pass, under bfloat16 autocast.

    Counted from transformers' ``LlamaDecoderLayer``, per token and layer. Linear layers and attention work in
    bfloat16 (2 bytes), norms in float32 (4 bytes). Attention is SDPA's, which keeps no (T, T) matrix.

    Args:
        config: reads ``num_hidden_layers``, ``hidden_size``, ``intermediate_size``, and the attention heads.
        tokens: of a micro-batch: sequences × sequence length, padding included.
        method: LoRA's frozen norms keep less, its adapters one more copy of attention's output; what the rank
            adds is left out.

    Raises:
        InputError: another architecture. GPT-2, say, keeps (T, T) matrices and the masks of its dropout.
    """
    if config.model_type not in LLAMA_LIKE:
        raise InputError(
            f"memory of {config.model_type}: no closed form; it is known for {', '.join(LLAMA_LIKE)} only, "
            f"so measure a step instead (ftdocs.measure.measured_peak)"
        )
    hidden = config.hidden_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    norms = 2 * 4 * hidden * (2 if method == "full" else 1)  # what goes in, and (trained) what is scaled
    inputs = 2 * (5 * hidden + queries)  # of q, k, v, gate, up; of o, which is attention's output
    attention = 2 * (queries * (1 if method == "full" else 2) + 2 * keys)
    mlp = 2 * 4 * config.intermediate_size  # gate, its SiLU, up, their product
    return tokens * config.num_hidden_layers * (norms + inputs + attention + mlp)


def training_bytes(
    config: PreTrainedConfig,
    method: Method = "full",
    rank: int = 8,
    batch_size: int = 1,
    seq_len: int = 512,
) -> dict[str, int]:
    """Bytes that a training step of a decoder needs on one device, by what they hold.

    As in mixed precision (``precision: bf16-mixed``): trained weights, their gradients and AdamW's two moments
    are float32, frozen weights and matrix products bfloat16. Autocast keeps a bfloat16 copy of each trained
    linear layer. A logit takes 12 bytes at the worst moment: its log-probability, and two gradients, in float32.

    Not in it: what lives only inside one operation, the memory allocator's gaps, the framework itself.

    Args:
        config: of a LLaMA-like decoder; see :func:`activation_bytes`.
        method: full, or lora on every linear layer but the output layer.
        rank: LoRA's rank.
        batch_size: sequences of a micro-batch.
        seq_len: tokens of a sequence.

    Raises:
        InputError: another architecture; see :func:`activation_bytes`.
    """
    total = parameters(config)
    trained = total if method == "full" else lora_parameters(config, rank)
    frozen = 0 if method == "full" else total
    lookup = 0 if config.tie_word_embeddings or method == "lora" else config.vocab_size * config.hidden_size
    tokens = batch_size * seq_len
    return {
        "weights": 4 * trained + 2 * frozen,
        "optimiser": 8 * trained,
        "gradients": 4 * trained,
        "bf16 copies": 2 * (trained - lookup),  # an embedding that is only looked up is not copied
        "activations": activation_bytes(config, tokens, method),
        "logits": 12 * config.vocab_size * tokens,
    }


def peak_bytes(parts: dict[str, int]) -> int:
    """The most that is held at once: when the loss is differentiated, or when the optimiser steps.

    From the one moment to the other the activations are freed layer by layer while the gradients arrive.
    """
    at_loss = sum(parts.values()) - parts["gradients"]
    at_step = parts["weights"] + parts["optimiser"] + parts["gradients"]
    return max(at_loss, at_step)


def disk_bytes(
    config: PreTrainedConfig, method: Method = "full", rank: int = 8, checkpoints: int = 2
) -> dict[str, int]:
    """Bytes on disk of a run: base model in bfloat16, checkpoints, tuned weights.

    A checkpoint holds the trained weights and AdamW's two moments, all float32: 12 bytes for a parameter.

    Args:
        config: of the base model.
        method: full, or lora on every linear layer but the output layer.
        rank: LoRA's rank.
        checkpoints: how many are kept at a time.
    """
    total = parameters(config)
    trained = total if method == "full" else lora_parameters(config, rank)
    return {"base model": 2 * total, "checkpoints": checkpoints * 12 * trained, "result": 4 * trained}
