"""What people say about answers: kept so that nothing acknowledged is lost, and made into the next training set."""

import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftdocs import runs
from ftdocs.data import prepare
from ftdocs.data.chat import as_messages
from ftdocs.data.clean import normalise
from ftdocs.data.formats import check, is_blank
from ftdocs.data.personal import mask, mask_row
from ftdocs.data.read import is_documents
from ftdocs.errors import InputError

NAME = "feedback.db"  # in a run's folder
TABLE = """
CREATE TABLE IF NOT EXISTS feedback (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    model TEXT NOT NULL,
    messages TEXT NOT NULL,
    answer TEXT NOT NULL,
    rating INTEGER NOT NULL CHECK (rating IN (-1, 0, 1)),
    correction TEXT NOT NULL
)
"""
LONGEST = 20_000  # characters of a correction
AS_THE_RUN = {"prompt": ("prompt", "completion"), "instruction": ("instruction", "output")}
GOOD = 0.6  # token F1 from which a simulated reader is content
Message = dict[str, str]


@dataclass(frozen=True)
class Feedback:
    """What somebody said about an answer.

    Attributes:
        messages: the conversation before the answer.
        answer: what the model said.
        rating: 1, 0 or -1.
        correction: what it should have said; "" where nobody wrote that.
        model: fingerprint of its weights.
        id: of the row, from 1.
    """

    messages: list[Message]
    answer: str
    rating: int
    correction: str = ""
    model: str = ""
    id: int = 0


class Store:
    """A file of feedback (SQLite). What :meth:`add` returned for is on the disk, whatever ends the process.

    The write-ahead log is flushed at each commit (``synchronous=FULL``); several processes may write.

    Raises:
        InputError: the file is no database of feedback, or cannot be written.
    """

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        try:
            self.connection = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.execute(TABLE)
        except sqlite3.Error as error:
            raise InputError(
                f"{path}: cannot hold feedback ({error}); choose another file with --feedback"
            ) from None

    def add(self, feedback: Feedback) -> int:
        """Keep feedback; its id, once it is committed."""
        row = (
            datetime.now(UTC).isoformat(timespec="seconds"), feedback.model,
            json.dumps(feedback.messages, ensure_ascii=False), feedback.answer, feedback.rating,
            feedback.correction.strip(),
        )  # fmt: skip
        ask = "INSERT INTO feedback (time, model, messages, answer, rating, correction) VALUES (?, ?, ?, ?, ?, ?)"
        with self.lock:
            return int(self.connection.execute(ask, row).lastrowid or 0)

    def __iter__(self) -> Iterator[Feedback]:
        """All of it, the oldest first."""
        ask = "SELECT messages, answer, rating, correction, model, id FROM feedback ORDER BY id"
        with self.lock:
            rows = self.connection.execute(ask).fetchall()
        for messages, *rest in rows:
            yield Feedback(json.loads(messages), *rest)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()


def training_rows(
    found: list[Feedback], held_out: set[str], preference: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows to train on, and how many were left out, by reason.

    All answers of a conversation are trained on, so an earlier one has to be judged too: it is replaced by its
    correction, stays if it was called right, and else the conversation is left out.

    Args:
        found: the oldest first; of several corrections in one conversation the newest counts.
        held_out: normalised questions that a run is evaluated on (:func:`held_out_questions`).
        preference: pairs of the correction and what the model said, instead of the corrected conversation.

    Returns:
        ``{"messages"}`` rows, or ``{"prompt", "chosen", "rejected"}`` rows; and the reasons' counts.
    """
    rows: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    wanted = right_answers(found)
    for each in found:
        key, said, reason = spoken(each.messages), corrected(each, wanted), ""
        if not each.correction.strip():
            reason = "no correction"
        elif normalise(each.correction) == normalise(each.answer):
            reason = "correction says the same"
        elif not is_conversation(each.messages, each.correction):
            reason = "not a conversation"
        elif any(is_held_out(turn["content"], held_out) for turn in each.messages if turn["role"] == "user"):
            reason = "held-out question"
        elif preference and len(each.messages) > 1:
            reason = "several turns"  # a preference row has one prompt
        elif None in said:
            reason = "earlier answer that nobody judged"
        if reason:
            left_out[reason] += 1
            continue
        if key in rows:
            left_out["corrected again later"] += 1
            del rows[key]
        if preference:
            prompt = each.messages[0]["content"]
            rows[key] = {"prompt": prompt, "chosen": each.correction, "rejected": each.answer}
        else:
            rows[key] = {"messages": [*said, {"role": "assistant", "content": each.correction}]}
    return list(rows.values()), dict(left_out)


def spoken(messages: list[Message], answer: str | None = None) -> str:
    """A conversation, up to an answer or with it, as a key."""
    turns = [[turn["role"], normalise(turn["content"])] for turn in messages]
    return json.dumps(turns if answer is None else [*turns, ["assistant", normalise(answer)]])


def right_answers(found: list[Feedback]) -> dict[str, str]:
    """What each judged answer should have been, by the conversation with it: itself if it was called right."""
    wanted: dict[str, str] = {}
    for each in found:
        key = spoken(each.messages, each.answer)
        if each.correction.strip():
            wanted[key] = each.correction
        elif each.rating > 0:
            wanted[key] = each.answer
        elif each.rating < 0 and wanted.get(key) == each.answer:
            del wanted[key]  # a second thought
    return wanted


def corrected(each: Feedback, wanted: dict[str, str]) -> list[Message | None]:
    """The turns before an answer, the right answers in place of the earlier ones; None where nobody judged one."""
    turns: list[Message | None] = []
    for number, turn in enumerate(each.messages):
        if turn["role"] == "assistant":
            right = wanted.get(spoken(each.messages[: number + 1]))
            turns.append(None if right is None else {**turn, "content": right})
        else:
            turns.append(turn)
    return turns


def is_conversation(messages: list[Message], answer: str) -> bool:
    """Whether a conversation with its answer is a row that can be trained on."""
    row = {"row": 1, "messages": [*messages, {"role": "assistant", "content": answer}]}
    try:
        return messages[-1]["role"] == "user" and not is_blank(check(row, "messages", ""), "messages", "")
    except InputError:
        return False


def is_held_out(text: str, held_out: set[str]) -> bool:
    """Whether a question is one of the held-out ones, which may be masked where it is not."""
    return normalise(text) in held_out or normalise(mask(text)) in held_out


def held_out_questions(run: Path) -> set[str]:
    """The first and the last question of each of a run's validation and test rows, normalised: not to be trained on.

    Raises:
        InputError: no finished run, or its data has changed or is gone, so nobody can tell which they are.
    """
    rows = rows_of(run, "validation") + rows_of(run, "test")
    return {normalise(asked) for row in rows for asked in (questions(row)[0], questions(row)[-1])}


def simulated(
    asked: Sequence[str], answers: Sequence[str], wanted: Sequence[str], diligence: float = 0.5, seed: int = 0
) -> list[Feedback]:
    """What readers who know the wanted answers might say, for a study: most people say nothing, few write an answer.

    Args:
        asked: questions, none of them from an evaluation split.
        answers: of the model.
        wanted: the right ones.
        diligence: share of the answers that anybody says something about; the rest goes by.
        seed: of the choice which.
    """
    from ftdocs.scores import token_f1  # here, as a server need not wait for torch, which comes with it

    draw, found = random.Random(seed), []
    for text, answer, right in zip(asked, answers, wanted, strict=True):
        if draw.random() < diligence:
            good = token_f1(answer, right) >= GOOD
            turns = [{"role": "user", "content": text}]
            found.append(Feedback(turns, answer, 1 if good else -1, "" if good else right))
    return found


def rows_of(run: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a run's split: ``train``, ``validation`` or ``test``."""
    runs.read_result(run)
    recipe = runs.read_recipe(run)
    runs.check_data(run, prepare.source(recipe.data))
    return list(getattr(prepare.load_splits(recipe.data, recipe.train.seed), split))


def question(row: dict[str, Any]) -> str:
    """What a row asks: the last thing that a user says in it; a text itself."""
    return questions(row)[-1]


def questions(row: dict[str, Any]) -> list[str]:
    """All that a user says in a row; a text itself."""
    if "text" in row:
        return [str(row["text"])]
    return [turn["content"] for turn in as_messages(row) if turn["role"] == "user"]


def export(
    run: Path, output: Path, store: Path | None = None, preference: bool = False, replay: bool = False
) -> dict[str, Any]:
    """Write the next training set from a run's feedback.

    Args:
        run: whose feedback, and whose validation and test rows are left out.
        output: a JSON Lines file that does not exist.
        store: the file of feedback; in the run's folder when left out.
        preference: pairs for preference tuning.
        replay: the run's own training rows too, so that the next model forgets them less; not those whose question a
            correction answers.

    Returns:
        ``{"output", "rows", "replayed", "replaced", "group", "left_out": {reason: count}}``: ``replaced`` are the run's
        rows that a correction stands for, ``group`` is the column that keeps the run's rows of one document in one
        split, with ``replay``; a correction has its question's, else one of its own.

    Raises:
        InputError: nothing to write, or nowhere; as :func:`held_out_questions`.
    """
    from ftdocs import files

    if output.exists():
        raise InputError(f"{output}: exists; choose another name with --output, or remove it")
    if output.suffix != ".jsonl":
        raise InputError(f"{output}: the rows are written as JSON Lines; let the name end in .jsonl")
    if preference and replay:
        raise InputError(
            "--replay: the run's rows have no rejected answers; leave out --preference or --replay"
        )
    held_out = held_out_questions(run)
    path = store or run / NAME
    if not path.is_file():
        raise InputError(f"{path}: there is no feedback yet; `ftdocs serve {run}` collects it in its web app")
    opened = Store(path)
    found = list(opened)
    opened.close()
    rows, left_out = training_rows(found, held_out, preference)
    format = files.read_kept(run / runs.SPLITS, "format")["format"]
    if (
        not preference and format in AS_THE_RUN
    ):  # the next run has the same format, to be compared with this one
        single = [row["messages"] for row in rows if len(row["messages"]) == 2]
        if len(single) < len(rows):
            left_out["several turns"] = len(rows) - len(single)
        given, reply = AS_THE_RUN[format]
        rows = [{given: turns[0]["content"], reply: turns[1]["content"]} for turns in single]
    if not rows:
        empty = f"it is empty; what people say in the web app of `ftdocs serve {run}` fills it"
        reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        raise InputError(f"{path}: no row can be trained on ({reasons or empty})")
    if replay and format == "text":
        raise InputError(f"{run}: its training rows are texts and not conversations; leave out --replay")
    rows, again, about = with_the_runs_own(run, rows) if replay else (rows, [], {})
    with files.explain_write_errors(output):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, *again])
        files.write_atomic(output, "".join(lines))
    counts = {"output": str(output), "rows": len(rows), "replayed": len(again), "left_out": left_out}
    return {**counts, "replaced": 0, "group": None, **about}


def with_the_runs_own(
    run: Path, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Corrections, the run's training rows beside them, and ``{"replaced", "group"}`` as :func:`export` has them."""
    data, own = runs.read_recipe(run).data, rows_of(run, "train")
    group = data.group or ("document" if is_documents(prepare.source(data)) else None)
    asked = [normalise(questions(mask_row(row) if data.personal else row)[0]) for row in rows]
    groups = {normalise(questions(row)[0]): row.get("group") for row in own}
    kept = [row for row in own if normalise(questions(row)[0]) not in asked]
    again = [{key: value for key, value in row.items() if key not in ("row", "group")} for row in kept]
    if group:
        rows = [
            {group: groups.get(text, f"feedback {number}"), **row}
            for number, (text, row) in enumerate(zip(asked, rows, strict=True), 1)
        ]
        again = [{group: row["group"], **fields} for row, fields in zip(kept, again, strict=True)]
    return rows, again, {"replaced": len(own) - len(kept), "group": group}
