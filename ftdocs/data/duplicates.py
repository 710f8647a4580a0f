"""Texts that are nearly the same, found without comparing each with each other."""

from collections.abc import Iterable, Sequence
from typing import Any, cast
from zlib import crc32

import numpy as np

from ftdocs.data.clean import normalise

MISSED = 0.01  # the chance, at most, that a pair which is exactly as alike as the threshold is not looked at
BASE = np.uint32(0x9E3779B1)


def shingles(text: str, words: int = 3) -> np.ndarray:
    """The set of a text's runs of ``words`` words, as sorted uint32 hashes, (shingles,).

    The text is normalised first (:func:`ftdocs.data.clean.normalise`). A shorter text is one run.
    """
    hashes = np.fromiter(map(crc32, normalise(text).encode().split()), np.uint32)  # (words of the text,)
    length = min(words, len(hashes))
    runs = np.zeros(len(hashes) - length + 1 if length else 0, np.uint32)
    for place in range(length):  # a polynomial in an odd base, modulo 2**32: the order of the words counts
        runs = runs * BASE + hashes[place : place + len(runs)]
    return np.unique(runs)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """What two sets share: the size of their intersection over the size of their union, 0 to 1."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def bands(threshold: float, permutations: int = 128) -> tuple[int, int]:
    """Into how many bands of how many values a signature is cut, so that 99 % of pairs at the threshold are seen.

    Two texts of similarity s agree in a band of r values with probability s**r, and so in one of b bands with
    1 - (1 - s**r)**b. The longest bands that keep this promise bring the fewest pairs to compare in vain.
    """
    for rows in range(permutations // 2, 1, -1):
        count = permutations // rows
        if (1 - threshold**rows) ** count <= MISSED:
            return count, rows
    return permutations, 1


def near_duplicates(
    texts: Iterable[str], threshold: float = 0.7, words: int = 3, permutations: int = 128, seed: int = 1
) -> list[int]:
    """Give each text the number of its group, (texts,): texts of one group are nearly the same.

    Two texts are joined where the Jaccard similarity of their sets of word runs (:func:`shingles`) is at least
    ``threshold``; a group is what is connected so, directly or through other texts. Numbers count up from 0 in the
    order of each group's first text, so rows whose split is chosen by their number do not leak into another split.
    Which texts are together depends on the texts alone, not on their order, and is the same in every run.

    MinHash signatures find the pairs worth comparing (Broder 1997, "On the resemblance and containment of
    documents"), in bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3), and each such
    pair is then compared exactly. So no two texts are joined by chance; a pair just at the threshold is overlooked with
    a probability of at most 1 %, a more similar one less often. A short text within a long one is not found: the
    similarity counts what either has alone.

    Time grows with the words in all (``permutations`` multiplications each) and with the pairs compared, which for
    n texts that are all alike are n - 1 comparisons, but n²/2 look-ups. Memory: 4 bytes a word, and about 400 a
    text and band.

    Raises:
        ValueError: ``threshold`` is not in (0, 1], or ``words`` or ``permutations`` is below 1 or 2.
    """
    if not 0 < threshold <= 1 or words < 1 or permutations < 2:
        raise ValueError(
            f"threshold {threshold} must be in (0, 1], words {words} at least 1, permutations {permutations} at least 2"
        )
    from datasketch import MinHash, MinHashLSH  # here, as it imports SciPy, which takes a while

    places: dict[bytes, list[int]] = {}  # equal sets need one signature
    sets: list[np.ndarray] = []
    of_text = []
    for text in texts:
        found = shingles(text, words)
        place = places.setdefault(found.tobytes(), [len(sets)])[0]
        if place == len(sets):
            sets.append(found)
        of_text.append(place)

    parent = list(range(len(sets)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    index = MinHashLSH(num_perm=permutations, params=bands(threshold, permutations))
    signatures = MinHash.generator(sets, num_perm=permutations, seed=seed, hashfunc=int)
    for place, signature in enumerate(signatures):
        for other in cast("list[int]", index.query(signature)):
            if root(other) != root(place) and jaccard(sets[place], sets[other]) >= threshold:
                parent[root(place)] = root(other)
        index.insert(place, signature, check_duplication=False)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(place), len(numbers)) for place in of_text]


def one_of_each(rows: Sequence[dict[str, Any]], threshold: float = 0.7) -> list[dict[str, Any]]:
    """Rows without their near-duplicates: the first of each group that :func:`near_duplicates` finds in ``text``."""
    first: dict[int, dict[str, Any]] = {}
    for group, row in zip(near_duplicates([row["text"] for row in rows], threshold), rows, strict=True):
        first.setdefault(group, row)
    return list(first.values())
