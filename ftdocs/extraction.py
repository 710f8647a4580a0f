"""Does a model say its training text again? Extraction by prefix, and the exposure of planted secrets."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ftdocs import models


def continued(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prefix: int = 16, length: int = 16
) -> list[bool]:
    """Whether the model, given a text's first tokens, goes on with exactly its next ones (Carlini et al., 2023).

    Greedy decoding, all texts as one batch.

    Args:
        texts: those of less than ``prefix + length`` tokens cannot be asked, and count as not continued.
        prefix: tokens that are given.
        length: tokens that have to follow.
    """
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    asked = [place for place, row in enumerate(ids) if len(row) >= prefix + length]
    found = [False] * len(texts)
    if not asked:
        return found
    given = torch.tensor([ids[place][:prefix] for place in asked], device=model.device)  # (B, prefix)
    with models.evaluating(model), models.autocast(model.device):
        written = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=models.pad_token_id(tokenizer),
        )[:, prefix:]  # (B, length)
    for place, row in zip(asked, written.tolist(), strict=True):
        found[place] = row == ids[place][prefix : prefix + length]
    return found


def exposure(
    model: Any, tokenizer: PreTrainedTokenizerBase, before: str, secret: str, others: Sequence[str]
) -> float:
    """log2 of the candidates less log2 of the secret's rank by likelihood among them, in bits (Carlini et al., 2019).

    A secret that the model knows no better than others has 1 or 2 bits on average, ranks being random; one that it
    finds likelier than all others has log2(1 + others).

    Args:
        before: the text before the secret.
        secret: what was planted.
        others: secrets of the same form that were not; as many tokens each.
    """
    texts = [before + each for each in (secret, *others)]
    ids = torch.tensor(
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], device=model.device
    )  # (candidates, T)
    with models.evaluating(model), models.autocast(model.device):
        log_likely = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)  # (candidates, T-1, V)
    sums = log_likely.gather(-1, ids[:, 1:, None]).sum((1, 2))  # (candidates,)
    rank = 1 + int((sums[1:] > sums[0]).sum())
    return math.log2(len(texts)) - math.log2(rank)
