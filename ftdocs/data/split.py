"""Train, validation and test without leakage: what belongs together stays in one split."""

from collections import Counter, defaultdict
from typing import Any

from ftdocs.data.clean import digest, prompt_key, text_key
from ftdocs.errors import InputError

Row = dict[str, Any]
Splits = tuple[list[Row], list[Row], list[Row]]


def split(
    rows: list[Row],
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
    order = {
        id(row): digest(str(seed).encode(), text_key(row)) for row in rows
    }  # random, but the text's alone
    bundles = sorted(bundle(rows, group), key=lambda members: min(order[id(row)] for row in members))
    needed = 1 + (validation > 0) + (test > 0)
    if len(bundles) < needed:
        raise InputError(
            f"{len(bundles)} different rows or groups are too few to hold some out; at least {needed} are needed: "
            f"add rows, or set data.validation and data.test to 0"
        )
    strata: dict[Any, list[list[Row]]] = defaultdict(list)
    for members in bundles:
        strata[_majority(members, stratify) if stratify else None].append(members)
    shares = {"test": test, "validation": validation}
    wanted = {name: quotas(strata, share, len(rows)) for name, share in shares.items()}
    parts: dict[str, list[list[Row]]] = {"train": [], "validation": [], "test": []}
    for value, members in strata.items():
        for name, filled in fill(members, {name: wanted[name][value] for name in shares}).items():
            parts[name] += filled
    for name in (name for name, share in shares.items() if share > 0 and not parts[name]):
        parts[name].append(_spare(max(parts.values(), key=len), stratify))
    train, held_out, final = (
        sorted((row for members in part for row in members), key=lambda row: order[id(row)])
        for part in parts.values()
    )
    _check_classes(train, rows, stratify)
    return train, held_out, final


def bundle(rows: list[Row], group: str | None) -> list[list[Row]]:
    """Join rows that share a prompt or a group, directly or through other rows (union-find)."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    keys = [("prompt", prompt_key(row)) for row in rows]
    if group:
        for key, row in zip(keys, rows, strict=True):
            parent[root(key)] = root(("group", row[group]))
    bundles: dict[Any, list[Row]] = defaultdict(list)
    for key, row in zip(keys, rows, strict=True):
        bundles[root(key)].append(row)
    return list(bundles.values())


def quotas(strata: dict[Any, list[list[Row]]], share: float, total: int) -> dict[Any, int]:
    """How many rows of each stratum to hold out: round(share × total) in all, by largest remainder."""
    exact = {value: share * sum(map(len, bundles)) for value, bundles in strata.items()}
    counts = {value: int(number) for value, number in exact.items()}
    by_remainder = sorted(strata, key=lambda value: (counts[value] - exact[value], str(value)))
    for value in by_remainder[: max(0, round(share * total) - sum(counts.values()))]:
        counts[value] += 1
    return counts


def fill(bundles: list[list[Row]], wanted: dict[str, int]) -> dict[str, list[list[Row]]]:
    """Give each bundle, in order, to the first split that still has room for the whole of it, else to train."""
    parts: dict[str, list[list[Row]]] = {"train": [], **{name: [] for name in wanted}}
    room = dict(wanted)
    for members in bundles:
        name = next((name for name in wanted if len(members) <= room[name]), "train")
        room[name] = room.get(name, 0) - len(members)
        parts[name].append(members)
    if not parts["train"]:  # a stratum of one bundle: what is never trained cannot be tested
        last = next(name for name in reversed(wanted) if parts[name])
        parts["train"].append(parts[last].pop())
    return parts


def _spare(bundles: list[list[Row]], stratify: str | None) -> list[Row]:
    """Take out the smallest bundle, one whose class has another bundle here if there is any."""
    classes = [_majority(members, stratify) if stratify else None for members in bundles]
    left = Counter(classes)
    return bundles.pop(
        min(range(len(bundles)), key=lambda place: (left[classes[place]] == 1, len(bundles[place])))
    )


def _majority(members: list[Row], column: str) -> Any:
    counts = Counter(row[column] for row in members)
    return min(counts, key=lambda value: (-counts[value], str(value)))


def _check_classes(train: list[Row], rows: list[Row], stratify: str | None) -> None:
    if stratify:
        missing = {row[stratify] for row in rows} - {row[stratify] for row in train}
        if missing:
            raise InputError(
                f"no training row is left with {stratify} {min(missing, key=str)!r}; "
                f"add rows of it, or set data.validation or data.test to 0"
            )
