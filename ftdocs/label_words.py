"""A generative model as a classifier: which of a few words is the likeliest answer to a prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from transformers import PreTrainedTokenizerBase

from ftdocs import models
from ftdocs.data.chat import Message, render_messages
from ftdocs.errors import InputError

CONTENT_FREE = ("N/A", "[MASK]", "")  # inputs that say nothing, as in Zhao et al.


def conversation(text: str, task: str, examples: Sequence[tuple[str, str]] = ()) -> list[Message]:
    """A task and a text to judge, as a chat; ``examples``, (text, word), stand before it as earlier turns."""
    turns: list[Message] = [{"role": "system", "content": task}]
    for shown, word in examples:
        turns += [{"role": "user", "content": shown}, {"role": "assistant", "content": word}]
    return [*turns, {"role": "user", "content": text}]


def ask(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    task: str,
    examples: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """A prompt for each text, as the chat template writes it, up to where the answer begins."""
    return [render_messages(tokenizer, conversation(text, task, examples), reply_next=True) for text in texts]


def score_words(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    words: Sequence[str],
    batch_size: int = 16,
    precision: str = "auto",
) -> np.ndarray:
    """The log-likelihood of each word as the continuation of each prompt, in nats: float32, (prompts, words).

    The tokens of a word are added up: the probability of all of it. The scores serve as a classifier's logits. Prompt
    and word are tokenised as one text, as in training, since a tokenizer may join characters across the border.

    Args:
        model: a causal language model; its mode is put back as it was.
        tokenizer: the model's.
        prompts: whole texts, up to where the answer begins, such as :func:`ask` makes.
        words: one a class, with a leading space where the prompt has none at its end and the text would.
        batch_size: different texts at once.
        precision: a recipe's ``train.precision``.

    Raises:
        InputError: fewer than two words, an empty one, or one that another begins with.
    """
    check_words(words)
    plain = tokenizer.chat_template is None  # a template has written its own special tokens
    # Texts to read, without their last token, and what is to be scored at their end. Words of one token share a text.
    targets: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for number, (prompt, word) in enumerate((prompt, word) for prompt in prompts for word in words):
        text = tokenizer(prompt + word, add_special_tokens=plain, return_offsets_mapping=True, verbose=False)
        first = next(place for place, (_, end) in enumerate(text["offset_mapping"]) if end > len(prompt))
        ids = text["input_ids"]
        targets.setdefault(tuple(ids[:-1]), []).append((number, ids[first:]))
    longest = max((len(target) for waiting in targets.values() for _, target in waiting), default=1)

    device, pad = model.device, models.pad_token_id(tokenizer)
    scores = np.zeros(len(prompts) * len(words), np.float32)
    order = sorted(targets, key=len, reverse=True)
    with models.evaluating(model), in_float32(model.get_output_embeddings()):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            # Filled up at the left: the words stand at the end of every row, and only there logits are computed.
            filling = [len(chosen[0]) - len(ids) for ids in chosen]
            batch = [[pad] * count + [*ids] for count, ids in zip(filling, chosen, strict=True)]
            seen = torch.tensor(
                [[0] * count + [1] * len(ids) for count, ids in zip(filling, chosen, strict=True)]
            )
            with models.autocast(device, precision):
                logits = model(
                    input_ids=torch.tensor(batch, device=device),
                    attention_mask=seen.to(device),
                    position_ids=(seen.cumsum(dim=1) - 1).clamp(min=0).to(device),
                    logits_to_keep=longest,
                ).logits  # (B, longest, V)
            nats = logits.log_softmax(dim=-1).cpu()
            for place, ids in enumerate(chosen):
                for number, target in targets[ids]:
                    scores[number] = sum(
                        nats[place, at - len(target), token] for at, token in enumerate(target)
                    )
    return scores.reshape(len(prompts), len(words))


@contextmanager
def in_float32(head: torch.nn.Module) -> Iterator[None]:
    """The head's product again, in float32.

    A bfloat16 logit of 16 or more is a multiple of 1/8, so that two words often tie, and ``argmax`` takes the first.
    """

    def exactly(head: torch.nn.Linear, given: tuple[torch.Tensor], _: torch.Tensor) -> torch.Tensor:
        with torch.autocast(given[0].device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return torch.nn.functional.linear(given[0].float(), head.weight.float(), bias)

    hook = head.register_forward_hook(exactly)
    try:
        yield
    finally:
        hook.remove()


def check_words(words: Sequence[str]) -> None:
    """Refuse words whose probabilities cannot be compared.

    Raises:
        InputError: fewer than two, an empty one, or one that another begins with: it would be scored as a part of that.
    """
    if len(words) < 2 or not all(word.strip() for word in words):
        raise InputError(f"words: {list(words)}; give at least two, none of them empty")
    for one in words:
        for number, other in enumerate(words):
            if other.startswith(one) and number != words.index(one):
                raise InputError(
                    f"words: {other!r} begins with {one!r}, so that one could never lose; choose others"
                )


def calibrate(scores: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Scores less what the prompt gives each word before there is anything to judge (Zhao et al., 2021).

    Args:
        scores: (rows, words), from :func:`score_words`.
        content_free: (inputs, words), scores of the same prompt around inputs that say nothing (``CONTENT_FREE``).

    Returns:
        (rows, words), log p(word) − log of its mean probability over the content-free inputs, both among the words.
    """
    prior = content_free - logsumexp(content_free, axis=1, keepdims=True)
    return scores - logsumexp(scores, axis=1, keepdims=True) - (logsumexp(prior, axis=0) - np.log(len(prior)))
