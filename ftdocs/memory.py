"""Will it fit, before it runs: a first closed form of the memory that training needs."""

from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

Method = Literal["full", "lora"]


def parameters(config: PreTrainedConfig) -> int:
    """How many parameters a model of this config has, counted on the meta device: no memory, no weights.

    An output layer that is tied to the embedding counts once.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def lora_parameters(config: PreTrainedConfig, rank: int) -> int:
    """How many parameters LoRA of this rank trains on every linear layer but the output layer.

    A layer of shape (out, in) gets ``B`` (out, rank) and ``A`` (rank, in).
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not output]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def training_bytes(
    config: PreTrainedConfig,
    method: Method = "full",
    rank: int = 8,
    batch_size: int = 1,
    seq_len: int = 512,
    weight_bytes: int = 4,
    compute_bytes: int = 2,
) -> dict[str, int]:
    """Bytes that a training step of a decoder needs, by what they hold.

    Resting: the weights (``weight_bytes`` each; LoRA's frozen ones ``compute_bytes``), and for every trained
    parameter its gradient and AdamW's two moments in float32. Passing: what the forward pass keeps for the
    backward pass, about 34 bytes per token, layer and hidden unit in 16 bits (Korthikanti et al., 2022,
    without their attention matrix, which SDPA does not keep), and the logits with their float32 copy and its
    gradient. The largest moment is a little below the sum. Fragmentation and the framework are not in it.

    Args:
        config: of a decoder; reads ``hidden_size``, ``num_hidden_layers`` and ``vocab_size``.
        method: full, or lora on every linear layer.
        rank: LoRA's rank.
        batch_size: sequences of a micro-batch.
        seq_len: tokens of a sequence.
        weight_bytes: bytes of a trained weight.
        compute_bytes: bytes of a number in matrix products.
    """
    total = parameters(config)
    trained = total if method == "full" else lora_parameters(config, rank)
    frozen = total if method == "lora" else 0
    tokens = batch_size * seq_len
    return {
        "weights": trained * weight_bytes + frozen * compute_bytes,
        "gradients": trained * weight_bytes,
        "optimiser": trained * 8,
        "activations": tokens * config.num_hidden_layers * config.hidden_size * 17 * compute_bytes,
        "logits": tokens * config.vocab_size * (compute_bytes + 4 + 4),
    }
