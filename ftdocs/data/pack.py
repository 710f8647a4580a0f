"""Several documents in one row of tokens, none of which sees another: no compute spent on padding."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, overload

import numpy as np
import torch
from transformers import PreTrainedModel

from ftdocs.data.chat import IGNORED
from ftdocs.errors import InputError

Row = dict[str, Any]


class Packed(Sequence[Row]):
    """Rows of several sequences, joined when they are asked for; memory holds which: 8 bytes a sequence, 8 a row.

    Each has ``input_ids``, ``labels`` and ``position_ids``, lists of one length, and ``rows``, the numbers of the
    rows in it. Positions restart at 0 with each document: by them documents are told apart. The label of a
    document's first token is -100, or the last token of its neighbour would have to predict it.
    """

    def __init__(self, encoded: Sequence[Row], members: np.ndarray, sizes: np.ndarray):
        self._encoded, self._members, self._ends = encoded, members, np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # also from the end, and an IndexError beyond it
        start = self._ends[place - 1] if place else 0
        return joined([self._encoded[member] for member in self._members[start : self._ends[place]]])


def pack(encoded: Sequence[Row], seq_len: int) -> Packed:
    """Put whole sequences into as few rows of at most ``seq_len`` tokens as best-fit decreasing finds."""
    lengths = token_counts(encoded)
    order = np.argsort(-lengths, kind="stable")
    if len(order) and lengths[order[0]] > seq_len:
        row = encoded[order[0]]["row"]
        raise ValueError(f"row {row} has {lengths[order[0]]} tokens, more than seq_len = {seq_len}")
    bins = np.empty_like(order)  # of each sequence in that order
    count = 0
    room: list[int] = []  # sorted: how many tokens may be free in a bin …
    with_room: dict[int, list[int]] = defaultdict(list)  # … and the bins, a heap, with so many
    for place, length in enumerate(map(int, lengths[order])):
        fit = bisect_left(room, length)  # the least that would do
        if fit == len(room):
            number, free = count, seq_len
            count += 1
        else:
            number, free = heappop(with_room[room[fit]]), room[fit]
            if not with_room[free]:
                del room[fit]
        bins[place] = number
        if free > length:
            if not with_room[free - length]:
                insort(room, free - length)
            heappush(with_room[free - length], number)
    return Packed(encoded, order[np.argsort(bins, kind="stable")], np.bincount(bins))


def token_counts(encoded: Sequence[Row]) -> np.ndarray:
    """How many tokens each row has: (rows,), int64."""
    return np.fromiter((len(row["input_ids"]) for row in encoded), np.int64, len(encoded))


def joined(rows: Sequence[Row]) -> Row:
    """Several encoded rows end to end as one, as :class:`Packed` describes it."""
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in [IGNORED, *row["labels"][1:]]],
        "position_ids": [position for row in rows for position in range(len(row["input_ids"]))],
        "rows": [row["row"] for row in rows],
    }


def collate_packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Packed rows end to end, as one row of T tokens without padding: what the model takes, by its names.

    ``input_ids``, ``labels`` and ``position_ids`` are (1, T), int64. ``cu_seq_lens_q`` and ``cu_seq_lens_k`` are
    (documents + 1,), int32, where documents begin, and T; ``max_length_q`` and ``max_length_k`` the longest:
    FlashAttention's words for documents, which :mod:`ftdocs.attention` reads too. There is no attention_mask, on
    purpose: given one, Transformers no longer looks at the positions, and documents see one another.
    """
    joined = {
        name: torch.tensor([[number for row in rows for number in row[name]]])
        for name in ("input_ids", "labels", "position_ids")
    }
    begin = [place for place, position in enumerate(joined["position_ids"][0].tolist()) if position == 0]
    ends = torch.tensor([*begin, joined["input_ids"].shape[1]], dtype=torch.int32)
    longest = int(ends.diff().max())
    return {
        **joined,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }


def collate_padded(rows: Sequence[Row], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """One sequence a row, padded at the right, as tensors (B, T): input_ids, attention_mask, labels, int64.

    Only the filling is masked, by place and not by token: where ``pad_id`` is also the end of
    sequence, the real end keeps its label. Rows of the format label give ``labels`` of shape (B,).
    """
    width = max(len(row["input_ids"]) for row in rows)
    filling = [width - len(row["input_ids"]) for row in rows]
    ids = [row["input_ids"] + [pad_id] * count for row, count in zip(rows, filling, strict=True)]
    seen = [[1] * (width - count) + [0] * count for count in filling]
    if "label" in rows[0]:
        labels = [row["label"] for row in rows]
    else:
        labels = [row["labels"] + [IGNORED] * count for row, count in zip(rows, filling, strict=True)]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(seen),
        "labels": torch.tensor(labels),
    }


def check_packing(model: PreTrainedModel) -> None:
    """Raise :class:`InputError` unless two packed documents get the logits that each gets alone.

    Three forwards of a few tokens on the model as it stands (its device, dtype, attention, with gradients as in
    training), so it costs nothing beside training. A model may ignore ``position_ids``, or keep documents apart
    only in a batch of one (FlashAttention). With a key-value cache none keeps them apart, so the cache, of no use
    in training, is switched off in ``model.config``, as ``transformers.Trainer`` does.
    """
    model.config.use_cache = False
    training, vocabulary = model.training, model.config.get_text_config().vocab_size
    model.eval()
    first, second, other = ([(start + 7 * n) % vocabulary for n in range(1, 9)] for start in (0, 100, 200))
    try:
        alone = _logits(model, [second])
        together = _logits(model, [first, second])[:, len(first) :]
        beside_other = _logits(model, [other, second])[:, len(first) :]
    finally:
        model.train(training)
    # With the same shape and another neighbour the very same sums are made. Rounding differs with the shape
    # of a batch and grows from layer to layer, so beside the document alone there is more to allow for.
    largest, eps = alone.abs().max().item(), torch.finfo(model.dtype).eps
    leaks = (together - beside_other).abs().max() > 2 * eps * largest
    if leaks or (together - alone).abs().max() > max(16 * eps, 1e-4) * largest:
        raise InputError(
            f"model {model.config.name_or_path or model.config.model_type} lets packed documents attend to each "
            f"other, or ignores their positions; set train.packing: false"
        )


def _logits(model: PreTrainedModel, documents: list[list[int]]) -> torch.Tensor:
    """Logits of documents packed into one row; ``alone`` goes the plain way, without a word about documents."""
    if len(documents) == 1:
        return model(input_ids=torch.tensor(documents, device=model.device)).logits.float().detach()
    rows = pack([{"input_ids": ids, "labels": ids, "row": 0} for ids in documents], sum(map(len, documents)))
    batch = to(collate_packed(rows), model.device)
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits.float().detach()


def to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on ``device``; plain numbers stay as they are."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
