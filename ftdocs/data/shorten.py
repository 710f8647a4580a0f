"""A text that is too long, cut down to the sentences that say most of it: nothing is reworded, nothing invented."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from ftdocs.data.chunks import SENTENCES, Count, between, estimate_tokens

FEWEST = 5  # words of a sentence: a title and an item of a list of names say nothing alone
ALIKE = 0.95  # the cosine from which on a sentence says again what one that is kept says


def shorten(
    text: str,
    tokens: int,
    vectors: Callable[[Sequence[str]], np.ndarray],
    count: Count = estimate_tokens,
) -> str:
    """The sentences nearest to the mean of all, in their order: an extractive summary of at most ``tokens``.

    Centroid-based summarization (Radev et al., 2004), with sentence embeddings in the place of tf-idf, as Rossiello et
    al. (2017) have it with word embeddings. From the nearest on each sentence is kept that still fits and is not nearly
    the same as one already kept. What ends with a colon leads to what may be gone, and is left out, and so is a short
    line among longer ones, as they do. A text that fits stays as it is.

    Args:
        text: prose; a line of code or a row of a table is no sentence.
        tokens: of what is kept, at most. Where every sentence is longer, the first words of the nearest one are kept.
        vectors: of texts, (texts, hidden size), each of length 1: :func:`ftdocs.embed.embed`.
        count: of a text's tokens.

    Raises:
        ValueError: ``tokens`` below 1.
    """
    if tokens < 1:
        raise ValueError(f"tokens {tokens} must be 1 or more")
    if count(text) <= tokens:
        return text
    parts = [" ".join(text[start:end].split()) for start, end in between(SENTENCES, text, 0, len(text))]
    parts = [part for part in parts if part and not part.endswith(":")]
    parts = [part for part in parts if len(part.split()) >= FEWEST] or parts
    if not parts:
        return ""
    found = vectors(parts)  # (sentences, H)
    kept = list[int]()
    nearest = np.argsort(-(found @ found.mean(axis=0)), kind="stable").tolist()
    for place in nearest:
        chosen = sorted([*kept, place])
        again = kept and (found[kept] @ found[place]).max() > ALIKE
        if not again and count(" ".join(parts[each] for each in chosen)) <= tokens:
            kept = chosen
    if not kept:
        words = parts[nearest[0]].split()
        fitting = bisect_right(range(len(words) + 1), tokens, key=lambda n: count(" ".join(words[:n]))) - 1
        return " ".join(words[:fitting])
    return " ".join(parts[place] for place in kept)
