"""The formats a row may have: recognise one, check it, and bring it to its plain fields."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ftdocs.errors import InputError

Row = dict[str, Any]
ROLES = ("system", "user", "assistant")
# The columns that each format needs; `instruction` may have a further `input`.
COLUMNS = {
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
    "label": ("text", "label"),
    "preference": ("prompt", "chosen", "rejected"),
}
# What other files call these columns: for a hint, as nothing is renamed silently.
ALSO_CALLED = {
    "prompt": ("question", "q", "query", "input", "user", "human"),
    "completion": ("answer", "a", "output", "response", "reply", "assistant"),
    "output": ("answer", "response", "completion", "reply"),
    "text": ("sentence", "review", "content", "comment", "document", "message", "tweet", "body"),
    "label": (
        "sentiment",
        "category",
        "class",
        "target",
        "topic",
        "intent",
        "emotion",
        "labels",
        "stars",
        "rating",
        "score",
    ),
}
# Columns that say where a row is from: they repeat as a label does, and are none.
ORIGINS = (
    "source",
    "origin",
    "split",
    "subset",
    "dataset",
    "file",
    "path",
    "url",
    "language",
    "lang",
    "date",
)
MOST_CLASSES = 20  # a column with more different values is not taken for a label
INTEGER = re.compile(r"-?[0-9]{1,18}")
SHAREGPT = (
    "rename `conversations` to `messages`, and in it `from` to `role` (human: user, gpt: assistant) "
    "and `value` to `content`"
)


def recognise(row: Row, where: str = "the data") -> str:
    """Name the format of a row by its columns.

    Raises :class:`InputError` where none fits, or several do; text with a label is `label`.
    """
    fitting = [name for name, columns in COLUMNS.items() if all(column in row for column in columns)]
    if "label" in fitting:
        fitting.remove("text")
    if len(fitting) > 1 and "preference" in fitting:
        fitting.remove("preference")  # it is refused later
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(column for column in row if column != "row") or "none"
    if fitting:
        raise InputError(
            f"{where}: columns ({found}) fit several formats; set data.format to one of {', '.join(fitting)}"
        )
    if "conversations" in row:
        raise InputError(f"{where}: chat in the ShareGPT spelling; {SHAREGPT}")
    known = " | ".join(", ".join(columns) for name, columns in COLUMNS.items() if name != "preference")
    advice = renaming([column for column in row if column != "row"])
    if advice:
        raise InputError(f"{where}: columns ({found}) are no known set; {advice} (known sets: {known})")
    raise InputError(f"{where}: columns ({found}) are no known set; rename them to one of: {known}")


def renaming(columns: list[str]) -> str:
    """Advice where the columns of a format only go by other names, such as question and answer, else ""."""
    by_name = {column.lower(): column for column in columns}
    for format in ("messages", "instruction", "prompt", "label", "text"):
        found = {}
        for wanted in COLUMNS[format]:
            names = (wanted, *ALSO_CALLED.get(wanted, ()))
            found[wanted] = next((by_name[name] for name in names if name in by_name), None)
        if all(found.values()):
            renamed = [f"{column} to {wanted}" for wanted, column in found.items() if column != wanted]
            return f"rename {' and '.join(renamed)}"
    return ""


def unused_columns(rows: Iterable[Row], format: str, group: str | None = None) -> dict[str, int]:
    """The columns that ``format`` leaves behind, in the file's order, and how many classes they could be.

    The number of different values, where the column may be a label: every row has one, there are 2 to 20
    different ones, and each occurs twice or more on average; else 0.
    """
    used = {"row", group, *COLUMNS[format], *(["input"] if format == "instruction" else [])}
    values: dict[str, set[str]] = {}
    filled: Counter[str] = Counter()
    total = 0
    for row in rows:
        total += 1
        for column in row:
            if column in used:
                continue
            seen, value = values.setdefault(column, set()), row[column]
            if isinstance(value, str | int) and str(value).strip():
                filled[column] += 1
                if len(seen) <= MOST_CLASSES:  # more need not be told apart, nor kept in memory
                    seen.add(str(value).strip())
    return {
        column: len(seen)
        if column.lower() not in ORIGINS
        and filled[column] == total
        and 2 <= len(seen) <= min(MOST_CLASSES, total // 2)
        else 0
        for column, seen in values.items()
    }


def check(row: Row, format: str, where: str) -> Row:
    """Return the fields that ``format`` uses, as plain text, and ``"row"``; all else is left behind.

    ``where`` is the file, for the error: :class:`InputError` for a missing column, a field that is
    null or not text, an unknown role, and a row in which nothing could be trained.
    """
    where = f"{where}, row {row['row']}"
    if format == "preference":
        raise InputError(
            f"{where}: preference pairs (chosen, rejected) come with a later version; use prompt + completion"
        )
    missing = [column for column in COLUMNS[format] if column not in row]
    if missing:
        found = ", ".join(column for column in row if column != "row")
        raise InputError(f"{where}: no column `{missing[0]}`, which format {format} needs (columns: {found})")
    if format == "messages":
        return {"row": row["row"], "messages": check_messages(row["messages"], where)}
    if format == "label":
        return {
            "row": row["row"],
            "text": _text(row["text"], "text", where),
            "label": _label(row["label"], where),
        }
    if format == "instruction":
        row = {**row, "input": row.get("input") or ""}  # null is how many files spell "no input"
        columns: tuple[str, ...] = ("instruction", "input", "output")
    else:
        columns = COLUMNS[format]
    return {"row": row["row"], **{column: _text(row[column], column, where) for column in columns}}


def check_messages(messages: Any, where: str) -> list[dict[str, str]]:
    """Return a conversation as a list of ``{"role", "content"}``, system first, ending with the assistant."""
    if isinstance(messages, str):  # a CSV cell can only hold a conversation as JSON
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise InputError(f"{where}: `messages` is text, but not a JSON list ({error})") from error
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: `messages` must be a list of role and content with at least one message")
    turns = [_message(message, number, where) for number, message in enumerate(messages, 1)]
    roles = [turn["role"] for turn in turns]
    if "assistant" not in roles:
        raise InputError(
            f"{where}: no assistant message, so nothing to train on; add the reply or delete the row"
        )
    if "system" in roles[1:]:
        raise InputError(f"{where}: a system message after the first; there may be one, and it stands first")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise InputError(f"{where}: the assistant speaks first; begin with a user message")
    return turns[: len(roles) - roles[::-1].index("assistant")]  # a user turn without a reply trains nothing


def _message(message: Any, number: int, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"{where}: message {number} must be an object with role and content")
    if "from" in message and "value" in message:
        raise InputError(f"{where}: message {number} is in the ShareGPT spelling; {SHAREGPT}")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(
            f"{where}: message {number} has the unknown role {role!r}; known are {', '.join(ROLES)}"
        )
    return {"role": role, "content": _text(message.get("content"), f"content of message {number}", where)}


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise InputError(f"{where}: `{field}` is {kind}, not text; fill it in or delete the row")
    if "\0" in value:
        raise InputError(
            f"{where}: a NUL character in `{field}`; the text is damaged, write it again without"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: half a surrogate pair in `{field}` at character {error.start}; delete it"
        ) from error
    return value


def _label(value: Any, where: str) -> str:
    """A label's name as text: 1 and "1" are one class."""
    if isinstance(value, int):
        return str(value)
    label = _text(value, "label", where).strip()
    if not label:
        raise InputError(f"{where}: `label` is empty; fill it in or delete the row")
    return label


def class_names(rows: Iterable[Row], where: str) -> list[str]:
    """The sorted names of the classes; a class's index is the integer that the model predicts."""
    names = {row["label"] for row in rows}
    if len(names) == 1:
        raise InputError(
            f"{where}: every row has the label {names.pop()!r}; a classifier needs two classes or more"
        )
    return sorted(names, key=lambda name: (0, int(name), "") if INTEGER.fullmatch(name) else (1, 0, name))


def is_blank(row: Row, format: str, where: str) -> bool:
    """Whether a row of text is blank and can be passed over; a blank reply, prompt or review raises."""
    if format == "text":
        return not row["text"].strip()
    if format == "messages":
        fields = {f"content of message {n}": turn["content"] for n, turn in enumerate(row["messages"], 1)}
    else:
        fields = {name: row[name] for name in COLUMNS[format]}
    blank = [name for name, value in fields.items() if not value.strip()]
    if blank:
        raise InputError(f"{where}, row {row['row']}: `{blank[0]}` is empty; fill it in or delete the row")
    return False
