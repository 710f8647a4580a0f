"""From the `data` part of a recipe to three splits, and from rows to what a model takes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftdocs.assets import data_path
from ftdocs.data.annotation import training_rows
from ftdocs.data.chat import IGNORED, encode_chat
from ftdocs.data.clean import clean_row, deduplicate, prompt_key, text_key
from ftdocs.data.formats import check, class_names, is_blank, recognise
from ftdocs.data.personal import mask_row
from ftdocs.data.read import is_documents, nearest
from ftdocs.data.store import Stored, keys_of, take
from ftdocs.errors import InputError

if TYPE_CHECKING:  # reading and checking rows needs no transformers, which takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from ftdocs.recipe import Data

Row = dict[str, Any]
OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
)  # they count positions from after the padding token's id
SHOWN = 20  # groups of rows that a report lists
BATCH = 1000  # texts that the tokenizer's threads get at once


@dataclass
class Splits:
    """Checked and cleaned rows, held out before anything else touches them.

    A split is used as a list of rows is; they lie on disk (:class:`ftdocs.data.store.Stored`). A row is a
    dict of its format's fields, ``"row"`` (its number in the file, from 1) and, where the recipe names a
    group column, ``"group"``. ``labels`` are the class names of the format label, in
    the order of their integers. ``report`` counts what happened on the way.
    """

    path: Path
    format: str
    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    labels: list[str] | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def numbers(self) -> dict[str, list[int]]:
        """The row numbers of each split: what a run writes down, to notice later if its test rows have moved.

        They come in the split's order, which the text of the rows decides, so that a changed text shows too.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: [row["row"] for row in rows] for name, rows in parts.items()}


class Encoded(Stored):
    """Encoded rows, on disk; ``dropped`` had nothing left to train on, ``truncated`` were cut short."""

    dropped: int = 0
    truncated: int = 0


def source(data: "Data") -> Path:
    """The file or folder that a recipe's ``data`` names, made on first use if it is one of the book's.

    Raises:
        InputError: there is none.
    """
    if data.path is None:
        return data_path(str(data.name))
    if not data.path.exists():
        near = nearest(data.path)
        raise InputError(
            f"{data.path}: no such file or folder; "
            + (
                f"did you mean {near}?"
                if near
                else "put it back, or change data.path, which starts from the recipe"
            )
        )
    return data.path


def load_splits(data: "Data", seed: int = 0) -> Splits:
    """Read, check, clean, deduplicate, limit and split the rows that a recipe's ``data`` names.

    Deterministic in the rows' text and ``data.seed``, else ``seed``; the order of the file plays no part. Raises
    :class:`InputError` as :mod:`~ftdocs.data.read`, :mod:`~ftdocs.data.formats` and
    :mod:`~ftdocs.data.split` do.
    """
    path = source(data)
    annotation: dict[str, Any] = {}
    column = data.group or ("document" if is_documents(path) else None)  # no document lies in two splits
    rows, format, blank = checked_rows(path, data.format, column, data.where, annotation, data.personal)
    from ftdocs.data.split import (
        contradictions,
        split,
    )  # after the rows were found to be good: NumPy takes a while

    kept = deduplicate(rows)
    report: dict[str, Any] = {"format": format, **annotation, "rows": len(rows) + blank, "blank": blank}
    report["duplicates"] = len(rows) - len(kept)
    if data.limit is not None and data.limit < len(
        kept
    ):  # by a hash: a fair sample, whatever the file's order
        kept = take(kept, keys_of(kept, text_key).argsort()[: data.limit])
    labels = class_names(kept, str(path)) if format == "label" else None
    try:
        group, stratify = column and "group", "label" if labels else None
        own = seed if data.seed is None else data.seed
        train, validation, test = split(kept, data.validation, data.test, own, group, stratify)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    report |= {"train": len(train), "validation": len(validation), "test": len(test)}
    if labels:
        counts = Counter(row["label"] for row in kept)
        report["labels"] = {name: counts[name] for name in labels}
        found = contradictions(kept)
        report |= {"contradictions": len(found)} | ({"contradicting_rows": found[:SHOWN]} if found else {})
    return Splits(path, format, train, validation, test, labels, report)


def checked_rows(
    path: Path,
    format: str | None = None,
    group: str | None = None,
    where: dict[str, str | int] | None = None,
    report: dict[str, Any] | None = None,
    personal: str | None = None,
) -> tuple[Stored, str, int]:
    """The rows of a file, checked and cleaned; their format; and how many blank texts were passed over.

    With ``where``, those rows only that have its values in its columns. Where the file is an annotation export or a
    folder of documents, ``report`` gets its counts. ``personal``, if it is ``mask``, masks personal data
    (:mod:`ftdocs.data.personal`).
    """
    if group == "row":
        raise InputError(
            f"{path}: data.group is `row`, which is every row's number here and keeps nothing together; "
            f"rename the column in the file, say to `source`"
        )
    rows, blank = Stored(keys=(text_key, prompt_key)), 0
    for raw in training_rows(path, report, format):
        if where and not all(_value(raw, column, path) == str(value) for column, value in where.items()):
            continue
        format = format or recognise(raw, f"{path}, row {raw['row']}")
        row = clean_row(check(raw, format, str(path)))
        row = mask_row(row) if personal == "mask" else row
        if is_blank(row, format, str(path)):
            blank += 1
            continue
        if group is not None:
            row["group"] = _group(raw, group, path)
        rows.append(row)
    if where and not rows and not blank:
        wanted = " and ".join(f"{column}: {value}" for column, value in where.items())
        raise InputError(f"{path}: no row has {wanted}; change data.where")
    if not rows:
        raise InputError(f"{path}: all {blank} rows are blank; a data file needs at least one row of text")
    return rows, str(format), blank


def _value(raw: Row, column: str, path: Path) -> str:
    if column not in raw:
        columns = ", ".join(name for name in raw if name != "row")
        raise InputError(f"{path}, row {raw['row']}: data.where: no column `{column}` (columns: {columns})")
    return str(raw[column])


def _group(raw: Row, column: str, path: Path) -> str:
    if raw.get(column) is None:
        columns = ", ".join(name for name in raw if name != "row")
        raise InputError(
            f"{path}, row {raw['row']}: nothing in the group column `{column}` (columns: {columns})"
        )
    return str(raw[column])


def check_length(config: "PreTrainedConfig", seq_len: int) -> None:
    """Raise :class:`InputError` where ``seq_len`` tokens are more than the model has positions for.

    Learned positions (BERT, GPT-2) end with an index error there. Rotary ones (LLaMA) go on, but at angles that
    the model never saw, and the text gets worse without a word. A model without a limit, such as T5, passes.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and text.model_type in OFFSET_POSITIONS:
        limit -= text.pad_token_id + 1
    if limit is not None and seq_len > limit:
        raise InputError(
            f"train.seq_len is {seq_len}, but the model ({text.model_type}) has positions for {limit} tokens; "
            f"set train.seq_len to {limit} or less, or choose a model with more"
        )


def encode(
    rows: Sequence[Row],
    format: str,
    tokenizer: "PreTrainedTokenizerBase",
    seq_len: int,
    labels: list[str] | None = None,
    where: str = "",
) -> Encoded:
    """Turn rows into token ids of at most ``seq_len`` and what to learn from them, kept on disk.

    Text, prompts and conversations give ``{"input_ids", "labels", "row"}``, two lists of one length, -100
    where nothing is trained: the first token always, as nothing stands before it. Text is cut into
    pieces with nothing lost; of a conversation or a labelled text the beginning is kept. The format
    label gives ``{"input_ids", "label", "row"}``, the label's index in ``labels``. Raises
    :class:`InputError` if nothing is left to train on, or a chat template refuses a row; ``where``, the
    file, begins its message.
    """
    if seq_len < 2:
        raise InputError(
            f"train.seq_len is {seq_len}; it must be at least 2, one token and the one to predict"
        )
    if not tokenizer.is_fast or (format != "label" and tokenizer.eos_token_id is None):
        raise InputError(
            "the model's tokenizer has no tokenizer.json or no end-of-sequence token; choose another model"
        )
    if format == "label":
        return encode_labelled(rows, tokenizer, seq_len, labels or [])
    if format == "text":
        pieces = Encoded(piece for part in batches(rows) for piece in encode_text(part, tokenizer, seq_len))
        if rows and not pieces:
            raise InputError(f"{where and where + ': '}none of the {len(rows)} texts has a token to predict")
        return pieces
    try:
        encoded = encode_replies(rows, tokenizer, seq_len)
    except InputError as error:  # it begins with the row
        raise InputError(f"{where}, {error}" if where else str(error)) from error
    if rows and not encoded:
        raise InputError(
            f"{where and where + ': '}all labels masked: in none of the {len(rows)} rows does a token of the reply "
            f"lie within the first {seq_len} tokens; raise train.seq_len"
        )
    return encoded


def encode_replies(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", seq_len: int) -> Encoded:
    """Conversations, cut at ``seq_len``, without those of which nothing trained is left."""
    result = Encoded()
    for part in batches(rows):
        for row in encode_chat(part, tokenizer):
            ids, labels = row["input_ids"][:seq_len], [IGNORED, *row["labels"][1:seq_len]]
            result.truncated += len(row["input_ids"]) > seq_len
            if any(label != IGNORED for label in labels):
                result.append({"input_ids": ids, "labels": labels, "row": row["row"]})
            else:
                result.dropped += 1
    return result


def encode_text(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", seq_len: int) -> Iterator[Row]:
    """Each document's tokens and an end of sequence, in pieces of at most ``seq_len``.

    A piece begins with the last token of the one before, as context that is not trained again. So
    every token of a document but its first is predicted exactly once.
    """
    for row, ids in zip(
        rows, tokenizer([row["text"] for row in rows], verbose=False)["input_ids"], strict=True
    ):
        if ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, seq_len - 1):  # of an end alone nothing is predicted: no piece
            piece = ids[start : start + seq_len]
            yield {"input_ids": piece, "labels": [IGNORED, *piece[1:]], "row": row["row"]}


def encode_labelled(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", seq_len: int, labels: list[str]
) -> Encoded:
    """Token ids, cut at ``seq_len`` with the tokenizer's special tokens kept, and the index of the label."""
    index = {name: number for number, name in enumerate(labels)}
    result = Encoded()
    for part in batches(rows):
        texts = [row["text"] for row in part]
        encoded = tokenizer(texts, truncation=True, max_length=seq_len, verbose=False)
        result.truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
        for row, ids in zip(part, encoded["input_ids"], strict=True):
            result.append({"input_ids": ids, "label": index[row["label"]], "row": row["row"]})
    return result


def batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """As many rows at a time as keep the tokenizer's threads busy."""
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
