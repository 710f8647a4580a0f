"""Attention over documents laid end to end, each of which looks at itself alone, and over padded rows on a CPU."""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "documents"
LONGEST = 512  # tokens of a document whose attention weights are kept whole for the gradient
# What an architecture may ask for besides causal order; only Transformers' own function knows all of them.
FURTHER_RULES = ("sliding_window", "softcap", "position_bias", "s_aux")


def attend_within_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every document by itself.

    A mask over T packed tokens has T² entries, most of them "no". Cutting at the documents' ends leaves them out:
    the work is the sum of the squared lengths. Without document ends, as in generation or with padding, all of a row
    is attended to as ``attention_mask`` says: by Transformers' own function, or where that is slow, by
    :func:`masked_attention`.

    Args:
        module: the layer, which Transformers hands over.
        query: (1, heads, T, head_dim).
        key: (1, key-value heads, T, head_dim); ``value`` too.
        attention_mask: of rows without document ends; documents need none.
        cu_seq_lens_q: (documents + 1,), int32: where documents begin, and T.
        dropout: share of the attention weights set to 0.
        scaling: of the scores; 1/√head_dim when left out.

    Returns:
        (1, T, heads, head_dim), and None for the weights.
    """
    short = query.device.type == "cpu" and query.requires_grad and query.shape[2] <= LONGEST
    further = any(kwargs.get(rule) is not None for rule in FURTHER_RULES)
    if cu_seq_lens_q is None and short and not further:
        asked = kwargs.get("is_causal")  # None leaves it to the layer, as Transformers' own functions do
        causal = attention_mask is None and (getattr(module, "is_causal", True) if asked is None else asked)
        return masked_attention(query, key, value, attention_mask, causal, dropout, scaling), None
    if cu_seq_lens_q is None or further:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    lengths = cu_seq_lens_q.diff().tolist()
    documents = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    grouped = query.shape[1] != key.shape[1]
    found = []
    for q, k, v in documents:
        if q.device.type == "cpu" and q.requires_grad and q.shape[2] <= LONGEST:
            found.append(plain_attention(q, k, v, dropout, scaling))
        else:
            found.append(
                functional.scaled_dot_product_attention(
                    q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
                )
            )
    return torch.cat(found, 2).transpose(1, 2).contiguous(), None


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Causal attention as three lines of matrix products, whose gradient torch computes faster on a CPU than SDPA's.

    Shapes as in :func:`attend_within_documents`, but (1, heads, T, head_dim) is returned. The weights, heads × T × T
    numbers, are kept for the gradient: too many for long documents.
    """
    length = query.shape[2]
    groups = query.shape[1] // key.shape[1]
    # flatten, not [0], whose gradient would be a tensor of zeros filled for each document
    query, key, value = (each.flatten(0, 1) for each in (query, key, value))
    key, value = (each.repeat_interleave(groups, 0) for each in (key, value))
    later = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
    scores = torch.baddbmm(later, query, key.transpose(1, 2), alpha=scaling or query.shape[-1] ** -0.5)
    weights = functional.dropout(scores.softmax(-1), dropout)
    return torch.bmm(weights, value)[None]


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of padded rows as matrix products: on a CPU the gradient of SDPA's kernel takes longer.

    Args:
        query: (batch, heads, T, head_dim); ``key`` and ``value`` have the key-value heads.
        mask: (batch or 1, heads or 1, T, T): True where a token may look, or a number that is added to its score.
        causal: no token looks at a later one; with a mask, that says it already.

    Returns:
        (batch, T, heads, head_dim).
    """
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:  # not -inf: a row of padding may look at nothing
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return (functional.dropout(scores.softmax(-1), dropout) @ value).transpose(1, 2).contiguous()


def use(model: PreTrainedModel) -> None:
    """Let a model attend this way; one with other rules, such as a window, keeps its own way."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if (
        getattr(model, "_supports_attention_backend", False)
        and layers == {"full_attention"}
        and not any(windows)
    ):
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend_within_documents)
AttentionMaskInterface.register(NAME, sdpa_mask)
