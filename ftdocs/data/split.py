"""Train, validation and test without leakage: what belongs together stays in one split."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftdocs.data.clean import digest, prompt_key, text_key
from ftdocs.data.store import keys_of, take
from ftdocs.errors import InputError

Row = dict[str, Any]
Splits = tuple[Sequence[Row], Sequence[Row], Sequence[Row]]
TRAIN, VALIDATION, TEST = range(3)


def split(
    rows: Sequence[Row],
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    group: str | None = None,
    stratify: str | None = None,
) -> Splits:
    """Split rows into (train, validation, test), given two shares of the whole in [0, 1).

    Rows that share a normalised prompt or text (:func:`ftdocs.data.clean.prompt_key`), or a value of
    the column ``group``, stay together. Which bundle goes where depends on ``seed`` and the rows'
    text alone, not on their order in the file. The sizes are exact as far as the bundles allow, and a
    share above 0 gets at least one bundle. With ``stratify``, a column, each split has each of its
    values in the same proportion. The rows of a split come shuffled. Raises :class:`InputError` for too few bundles.
    """
    rows = shuffle(rows, seed)
    bundles = bundle(rows, group)
    sizes = np.bincount(bundles)
    needed = 1 + (validation > 0) + (test > 0)
    if len(sizes) < needed:
        raise InputError(
            f"{len(sizes)} different rows or groups are too few to hold some out; at least {needed} are needed: "
            f"add rows, or set data.validation and data.test to 0"
        )
    values, classes = column(rows, stratify)
    strata = stratified(bundles, values, classes)
    shares = {TEST: test, VALIDATION: validation}
    counts = {value: int(sizes[members].sum()) for value, members in strata.items()}
    wanted = {part: quotas(counts, share) for part, share in shares.items()}
    parts = np.empty(len(sizes), np.int8)
    for value, members in strata.items():
        parts[members] = fill(sizes[members], {part: wanted[part][value] for part in shares})
    for part, share in shares.items():
        if share > 0 and not (parts == part).any():
            parts[_spare(parts, sizes, list(strata.values()))] = part
    part_of = parts[bundles]
    missing = set(range(len(values))).difference(classes[part_of == TRAIN].tolist())
    if missing:
        name = min((values[number] for number in missing), key=str)
        raise InputError(
            f"no training row is left with {stratify} {name!r}; "
            f"add rows of it, or set data.validation or data.test to 0"
        )
    train, held_out, final = (
        take(rows, np.flatnonzero(part_of == part)) for part in (TRAIN, VALIDATION, TEST)
    )
    return train, held_out, final


def shuffle(rows: Sequence[Row], seed: int) -> Sequence[Row]:
    """Rows in an order that is random, but depends on ``seed`` and their text alone."""
    start = str(seed).encode()
    drawn = (digest(start, key.tobytes()) for key in keys_of(rows, text_key))
    return take(rows, np.argsort(np.fromiter(drawn, "V16", len(rows)), kind="stable"))


def bundle(rows: Sequence[Row], group: str | None) -> np.ndarray:
    """Number rows, (rows,): those that share a prompt or a group, directly or through other rows, have one number.

    Numbers count up from 0, as the rows come. Prompts and groups are the nodes of a graph in which each row joins
    two; its connected components are found by union-find.
    """
    nodes = numbered(keys_of(rows, prompt_key))
    if group:
        groups = numbered(keys_of(rows, lambda row: digest(repr(row[group]).encode())))
        parent = array("q", range(nodes.max() + groups.max() + 2))

        def root(node: int) -> int:
            while parent[node] != node:
                parent[node] = node = parent[parent[node]]
            return node

        for prompt, its_group in zip(nodes, groups + nodes.max() + 1, strict=True):
            parent[root(prompt)] = root(its_group)
        nodes = numbered(np.fromiter(map(root, nodes), np.int64, len(nodes)))
    return nodes


def numbered(values: np.ndarray) -> np.ndarray:
    """Numbers in place of values, equal for equal ones, counting up from 0 in the order in which they first come."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def column(rows: Sequence[Row], name: str | None) -> tuple[list[Any], np.ndarray]:
    """The different values of a column, sorted as text, and the number of each row's, (rows,).

    Without a name all rows have one value, None.
    """
    if name is None:
        return [None], np.zeros(len(rows), np.int64)
    numbers: dict[Any, int] = {}
    found = np.fromiter((numbers.setdefault(row[name], len(numbers)) for row in rows), np.int64, len(rows))
    values = sorted(numbers, key=str)
    return values, np.argsort([numbers[value] for value in values])[found]


def contradictions(rows: Sequence[Row]) -> list[list[int]]:
    """The row numbers of each text that occurs with more than one label, in the order of the file."""
    names, labels = column(rows, "label")
    texts = numbered(keys_of(rows, prompt_key))
    pairs = np.unique(texts * len(names) + labels)
    several = np.bincount(pairs // len(names)) > 1  # (texts,)
    found: dict[int, list[int]] = {}
    for place in np.flatnonzero(several[texts]).tolist():
        found.setdefault(int(texts[place]), []).append(rows[place]["row"])
    return sorted(sorted(numbers) for numbers in found.values())


def stratified(bundles: np.ndarray, values: list[Any], classes: np.ndarray) -> dict[Any, np.ndarray]:
    """The bundles of each value, in their order; a bundle's is the one that most of its rows have."""
    pairs, counts = np.unique(bundles * len(values) + classes, return_counts=True)
    owners = pairs // len(values)
    by_count = np.lexsort((pairs, -counts, owners))
    majority = pairs[by_count[np.unique(owners, return_index=True)[1]]] % len(values)  # (bundles,)
    found = [np.flatnonzero(majority == number) for number in np.unique(majority)]
    return {
        values[majority[members[0]]]: members for members in sorted(found, key=lambda members: members[0])
    }


def quotas(counts: dict[Any, int], share: float) -> dict[Any, int]:
    """How many rows of each stratum to hold out: round(share × total) in all, by largest remainder."""
    exact = {value: share * count for value, count in counts.items()}
    chosen = {value: int(number) for value, number in exact.items()}
    by_remainder = sorted(counts, key=lambda value: (chosen[value] - exact[value], str(value)))
    for value in by_remainder[: max(0, round(share * sum(counts.values())) - sum(chosen.values()))]:
        chosen[value] += 1
    return chosen


def fill(sizes: np.ndarray, wanted: dict[int, int]) -> np.ndarray:
    """Give each bundle, in order, to the first split that still has room for the whole of it, else to train.

    Takes the rows of each bundle and the rows wanted for each split but train; returns the split of each bundle.
    """
    parts = np.full(len(sizes), TRAIN, np.int8)
    room = dict(wanted)
    for place, size in enumerate(sizes.tolist()):
        if not any(room.values()):
            break
        part = next((part for part in wanted if size <= room[part]), TRAIN)
        if part != TRAIN:
            parts[place] = part
            room[part] -= size
    if TRAIN not in parts:  # a stratum of one bundle: what is never trained cannot be tested
        last = next(part for part in reversed(wanted) if part in parts)
        parts[np.flatnonzero(parts == last)[-1]] = TRAIN
    return parts


def _spare(parts: np.ndarray, sizes: np.ndarray, strata: list[np.ndarray]) -> int:
    """The smallest bundle of the largest split, one whose class has another bundle there if there is any."""
    largest = np.bincount(parts).argmax()
    there = [members[parts[members] == largest] for members in strata]
    candidates = np.concatenate(there)
    single = np.concatenate([np.full(len(members), len(members) == 1) for members in there])
    return candidates[np.lexsort((sizes[candidates], single))[0]]
