"""What fine-tuning costs elsewhere: a causal model's perplexity on general text, and replay, which protects it."""

import json
import math
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftdocs import assets, evaluate, loss, models
from ftdocs.data import pack, prepare
from ftdocs.errors import InputError
from ftdocs.evaluate import Encoded

Row = dict[str, object]
HELD_OUT = 100  # web pages that are only for measuring; the other 200 may be trained on


def web_pages() -> tuple[list[Row], list[Row]]:
    """General text, ``{"text", "row"}``: 200 web pages that may be trained on, and 100 to measure with.

    They are the data set ``web-sample``, a sample of C4 (Raffel et al., 2020); no page is in both parts.
    """
    with open(assets.data_path("web-sample"), encoding="utf-8") as file:
        pages = [{"text": json.loads(line)["text"], "row": row} for row, line in enumerate(file, 1)]
    return pages[:-HELD_OUT], pages[-HELD_OUT:]


def general_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    documents: int = 24,
    seq_len: int = 128,
    precision: str = "auto",
) -> np.ndarray:
    """Loss of a causal model on each of some web pages: (documents,), mean nats per token, float64.

    Always the same pages, so two models that share a tokenizer can be compared page by page. Of each the first
    ``seq_len`` tokens count; pages that have fewer are passed over, so all weigh the same.

    Raises:
        InputError: there are not so many pages of that length.
    """
    encoded = prepare.encode(web_pages()[1], "text", tokenizer, seq_len)
    first = {row["row"]: row for row in reversed(encoded)}  # of a page's pieces the first one
    long = [row for _, row in sorted(first.items()) if len(row["input_ids"]) == seq_len]
    if not 0 < documents <= len(long):
        raise InputError(
            f"documents is {documents}; of {seq_len} tokens or more there are {len(long)} web pages"
        )
    pad = models.pad_token_id(tokenizer)
    with loss.chunked(model):  # once around all: whether it may be is found out by trying
        return np.array(
            [evaluate.held_out_loss(model, [row], pad, precision=precision) for row in long[:documents]]
        )


def general_perplexity(model: nn.Module, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> float:
    """The perplexity over all tokens of :func:`general_losses`, which takes the same arguments.

    After fine-tuning a rise says how much of its general ability a model has forgotten. It says nothing about
    another model with another tokenizer, whose tokens are other pieces of text.
    """
    return math.exp(min(general_losses(model, tokenizer, **kwargs).mean(), 700))


def with_replay(
    rows: Encoded, tokenizer: PreTrainedTokenizerBase, share: float, seq_len: int, seed: int = 0
) -> list[Row]:
    """Training rows with general text among them, which keeps what a model knew (rehearsal; Robins, 1995).

    Args:
        rows: encoded rows, such as ``prepare.encode`` gives.
        tokenizer: the model's.
        share: how much of all tokens is to be general text, from 0 to below 1.
        seq_len: tokens of a piece of a web page.
        seed: of the choice of pieces and of the order.

    Raises:
        InputError: a share that is none, or more general text than there is.
    """
    if not 0 <= share < 1:
        raise InputError(
            f"share is {share}; give the share of general tokens, from 0 to below 1, such as 0.2"
        )
    generator = np.random.default_rng(seed)
    pieces = [row | {"row": 0} for row in prepare.encode(web_pages()[0], "text", tokenizer, seq_len)]
    generator.shuffle(pieces)
    counts = pack.token_counts(pieces).cumsum()
    wanted = share / (1 - share) * pack.token_counts(rows).sum()
    if wanted > counts[-1]:
        raise InputError(
            f"share is {share}: that is {wanted:,.0f} general tokens, and there are {counts[-1]:,}; lower it"
        )
    mixed = [*rows, *pieces[: int(np.searchsorted(counts, wanted)) + 1 if share else 0]]
    return [mixed[place] for place in generator.permutation(len(mixed))]
