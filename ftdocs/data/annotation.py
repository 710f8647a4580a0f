"""What annotators have decided: exports of Label Studio and Labelbox as rows, how far they agree, labels to correct."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ftdocs.data.read import is_documents, read_documents, read_rows
from ftdocs.errors import InputError

Row = dict[str, Any]
Answer = tuple[Any, str, list[str]]  # who, the question, what was chosen
# Columns of Label Studio's JSON_MIN and CSV that are neither the text nor an answer.
ABOUT = "row id annotator annotation_id created_at updated_at lead_time agreement".split()


@dataclass
class Task:
    """A text and each annotator's label for it.

    Attributes:
        row: the row of the file in which the task comes first, from 1.
        text: what was annotated.
        answers: label by annotator; who annotated twice has the last one. Annotators are numbers from 1, in the order
            of their ids or names: exports hold people's e-mail addresses, and rows need none.
    """

    row: int
    text: str
    answers: dict[Any, str] = field(default_factory=dict)


def export_of(row: Row) -> str | None:
    """The kind of annotation export that a row is from, by its columns; None where it is from none."""
    if isinstance(row.get("data"), dict) and {"annotations", "predictions", "total_annotations"} & row.keys():
        return "Label Studio JSON"
    if {"annotation_id", "lead_time"} & row.keys() and "id" in row:
        return "Label Studio JSON_MIN or CSV"
    if "data_row" in row:
        return "Labelbox NDJSON (v2)"
    return "Labelbox JSON (v1)" if "Labeled Data" in row else None


def training_rows(
    path: Path | str, report: dict[str, Any] | None = None, format: str | None = None
) -> Iterator[Row]:
    """The rows of a data file as :func:`~ftdocs.data.read.read_rows` gives them, or those of an annotation export.

    An export's rows are ``text`` and ``label`` (:func:`labelled`), and ``report`` gets its counts as ``annotation``.
    Of a folder of documents ``report`` gets all that is counted (:func:`ftdocs.data.folder.folder_rows`), and
    ``format`` says which rows it gives.
    """
    if is_documents(Path(path)):
        yield from read_documents(Path(path), format, report)
        return
    rows = read_rows(path)
    first = next(rows)
    if export_of(first) is None:
        yield from chain([first], rows)
        return
    found, counts = labelled(read_tasks(path), str(path))
    if report is not None:
        report["annotation"] = {
            name: value if name == "tasks" else len(value) for name, value in counts.items()
        }
    yield from found


def read_tasks(
    path: Path | str,
    question: str | None = None,
    text: str | None = None,
    labels: Sequence[str] | None = None,
) -> list[Task]:
    """The tasks of an annotation export, those without an annotation too.

    These are read: Label Studio's JSON, JSON_MIN and CSV (https://labelstud.io/guide/export), and Labelbox's NDJSON
    (export v2, https://docs.labelbox.com/reference/export-text-annotations) and older JSON (v1). An answer is a choice
    of one label for a whole text; spans, ratings and free text are passed over.

    Args:
        question: whose choice is the label, where an export holds several (`from_name` in Label Studio).
        text: which field is the text, where Label Studio's tasks have several; `text` when left out, or the only one.
        labels: all that may be chosen.

    Raises:
        InputError: the file is no such export, misses a field, has several questions or fields to choose from, has a
            task with two labels at once, or a label that is not in ``labels``.
    """
    tasks: dict[Any, Task] = {}
    questions: dict[str, str] = {}
    for row in read_rows(path):
        where = f"{path}, row {row['row']}"
        kind = export_of(row)
        if kind is None and isinstance(row.get("data"), dict) and "id" in row:
            need(row, "annotations", list, where)  # a task without it
        if kind is None and "projects" in row:
            need(row, "data_row", dict, where)
        if kind is None:
            fields = ", ".join(name for name in row if name != "row")
            raise InputError(
                f"{where}: not a task of an annotation export (fields: {fields}); known are Label Studio's JSON, "
                f"JSON_MIN and CSV, and Labelbox's NDJSON and JSON"
            )
        key, content, answers = PARSERS[kind](row, where, text, question)
        if not isinstance(key, str | int | None):
            raise InputError(f"{where}: the task's id is neither text nor a number; export the project again")
        task = tasks.setdefault(row["row"] if key is None else key, Task(row["row"], content))
        if task.text != content:
            raise InputError(
                f"{where}: task {key} has another text than in row {task.row}; were two projects' exports joined? "
                "Convert each by itself"
            )
        for place, (who, asked, chosen) in enumerate(answers):
            questions.setdefault(asked, where)
            if question in (None, asked) and chosen:
                named = f"unnamed {place + 1}" if who is None else str(who)
                task.answers[named] = checked_label(chosen, labels, where)
    if question is None and len(questions) > 1:
        raise InputError(
            f"{path}: several questions ({', '.join(questions)}); choose one: "
            f"ftdocs data convert {path} --question {next(iter(questions))}"
        )
    if question is not None and question not in questions:
        raise InputError(
            f"{path}: no answer to the question {question!r} (there are: {', '.join(questions) or 'none'})"
        )
    names = {name for task in tasks.values() for name in task.answers}
    numbers = {name: at for at, name in enumerate(sorted(names, key=lambda name: (len(name), name)), 1)}
    for task in tasks.values():
        task.answers = {
            numbers[name]: task.answers[name] for name in sorted(task.answers, key=numbers.__getitem__)
        }
    return list(tasks.values())


def checked_label(chosen: list[str], labels: Sequence[str] | None, where: str) -> str:
    """The one label that was chosen; :class:`InputError` where there are two, or it is none of ``labels``."""
    if len(chosen) > 1:
        raise InputError(
            f"{where}: {len(chosen)} labels at once ({', '.join(map(str, chosen))}); a classifier learns one a text: "
            f"make it a single choice, or delete all but one"
        )
    label = chosen[0]
    if not isinstance(label, str) or not label.strip():
        raise InputError(
            f"{where}: an answer is {json.dumps(label)[:60]}, which is no label; a classifier learns a choice: "
            "export a project of choices, or choose another question"
        )
    if labels is not None and label not in labels:
        near = difflib.get_close_matches(label, labels, n=1)
        hint = f"did you mean {near[0]}?" if near else "correct it, or add it to the list"
        raise InputError(f"{where}: the label {label!r} is not in the list ({', '.join(labels)}); {hint}")
    return label


def label_studio(
    row: Row, where: str, text: str | None, question: str | None
) -> tuple[Any, str, list[Answer]]:
    """A task of Label Studio's JSON export: its id, text and answers; annotations that were skipped give none."""
    where = f"{where} (task {row.get('id', '?')})"
    content = text_of(need(row, "data", dict, where), text, where)
    answers = []
    for annotation in objects(row, "annotations", where):
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by")
        who = who.get("id") if isinstance(who, dict) else who
        for result in objects(annotation, "result", where):
            if result.get("type") == "choices":
                value = need(result, "value", dict, where)
                answers.append((who, result.get("from_name", ""), need(value, "choices", list, where)))
    return row.get("id"), content, answers


def label_studio_min(
    row: Row, where: str, text: str | None, question: str | None
) -> tuple[Any, str, list[Answer]]:
    """An annotation of Label Studio's JSON_MIN or CSV export: a row each, with one column for each question."""
    where = f"{where} (task {row.get('id', '?')})"
    content = text_of(
        {name: value for name, value in row.items() if name not in (*ABOUT, question)}, text or "text", where
    )
    answers = []
    for name, value in row.items():
        if name in (*ABOUT, text or "text") or name != (question or name) or value in (None, ""):
            continue
        if isinstance(value, str) and value.startswith('{"choices"'):  # several choices in CSV
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise InputError(f"{where}: `{name}` is broken JSON; export the project again") from None
        chosen = value.get("choices") if isinstance(value, dict) else [value]
        answers.append((row.get("annotator"), name, [chosen] if isinstance(chosen, str) else chosen or []))
    return row.get("id"), content, answers


def labelbox(row: Row, where: str, text: str | None, question: str | None) -> tuple[Any, str, list[Answer]]:
    """A data row of Labelbox's NDJSON export (v2), in which each project has a list of labels."""
    data_row = need(row, "data_row", dict, where)
    where = f"{where} (data row {data_row.get('id', '?')})"
    content = inline(need(data_row, "row_data", str, where), where)
    answers = []
    for project in need(row, "projects", dict, where).values():
        for label in objects(project, "labels", where):
            details = label.get("label_details")
            who = details.get("created_by") if isinstance(details, dict) else None
            for answer in objects(need(label, "annotations", dict, where), "classifications", where):
                radio = answer.get("radio_answer")
                chosen = [radio] if radio else answer.get("checklist_answers") or []
                answers.append(
                    (who, answer.get("value", ""), [need(one, "value", str, where) for one in chosen])
                )
    return data_row.get("id"), content, answers


def labelbox_old(
    row: Row, where: str, text: str | None, question: str | None
) -> tuple[Any, str, list[Answer]]:
    """A label of Labelbox's older JSON export (v1), which has one object a label."""
    where = f"{where} (data row {row.get('DataRow ID', '?')})"
    content = inline(need(row, "Labeled Data", str, where), where)
    label = need(row, "Label", (dict, str), where)
    answers = []
    if isinstance(label, dict) and not row.get("Skipped"):  # text is "Skip"
        for answer in objects(label, "classifications", where) if label.get("classifications") else []:
            chosen = answer.get("answers") or [answer.get("answer")]
            values = [need(one, "value", str, where) for one in chosen if isinstance(one, dict)]
            answers.append((row.get("Created By"), answer.get("value", ""), values))
    return row.get("DataRow ID"), content, answers


PARSERS = {
    "Label Studio JSON": label_studio,
    "Label Studio JSON_MIN or CSV": label_studio_min,
    "Labelbox NDJSON (v2)": labelbox,
    "Labelbox JSON (v1)": labelbox_old,
}


def need(row: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field that an export must have; :class:`InputError` where it is missing or of another kind."""
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise InputError(
            f"{where}: `{name}` is missing, or not as the annotation tool writes it; export the project again"
        )
    return value


def objects(row: Any, name: str, where: str) -> list[dict[str, Any]]:
    """A field that is a list of objects; :class:`InputError` where it is missing or holds anything else."""
    values: list[Any] = need(row, name, list, where)
    for place, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: `{name}`, number {place} is {json.dumps(value)[:40]}, which no annotation tool writes; "
                "export the project again"
            )
    return values


def text_of(data: Mapping[str, Any], name: str | None, where: str) -> str:
    """The text among a task's fields: the one named, ``text``, or the only one that is text."""
    texts = [key for key, value in data.items() if isinstance(value, str)]
    if name is None:
        name = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if name not in texts:
        raise InputError(
            f"{where}: which field is the text? there are: {', '.join(texts) or 'none'}; "
            f"name it: ftdocs data convert EXPORT --text FIELD"
        )
    return data[name]


def inline(content: str, where: str) -> str:
    """The text of a Labelbox data row; :class:`InputError` where it is only the address of a file."""
    if content.startswith(("https://", "http://", "gs://", "s3://")) and not content.split()[1:]:
        raise InputError(
            f"{where}: the data row is the address of a file, not its text; put the text itself into the export"
        )
    return content


def labelled(tasks: Iterable[Task], where: str) -> tuple[list[Row], dict[str, Any]]:
    """One row (``row``, ``text``, ``label``) for each task, by the majority of its annotators, and what was left out.

    The report has ``tasks``, how many there were, and the row numbers of those that are ``unannotated`` and left out,
    of those whose annotators ``disagree``, and of those that are ``tied``, with no majority, and left out.

    Raises:
        InputError: nothing is left.
    """
    rows: list[Row] = []
    report: dict[str, Any] = {"tasks": 0, "unannotated": [], "disagree": [], "tied": []}
    for task in tasks:
        report["tasks"] += 1
        votes = Counter(task.answers.values()).most_common(2)
        if not votes:
            report["unannotated"].append(task.row)
        elif len(votes) == 2:
            report["disagree"].append(task.row)
        if len(votes) == 2 and votes[0][1] == votes[1][1]:
            report["tied"].append(task.row)
        elif votes:
            rows.append({"row": task.row, "text": task.text, "label": votes[0][0]})
    if not rows:
        raise InputError(
            f"{where}: none of the {report['tasks']} tasks has a label ({len(report['unannotated'])} not annotated, "
            f"{len(report['tied'])} with as many votes for as against); annotate some and export again"
        )
    return rows, report


def both(tasks: Iterable[Task], a: int, b: int) -> tuple[list[str], list[str]]:
    """The labels of annotators ``a`` and ``b`` for the tasks that both have annotated."""
    pairs = [(task.answers[a], task.answers[b]) for task in tasks if {a, b} <= task.answers.keys()]
    return [first for first, _ in pairs], [second for _, second in pairs]


def kappa(
    a: Sequence[str], b: Sequence[str], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Cohen's kappa of two annotators' labels for the same tasks, and its 95 % bootstrap interval.

    kappa = (p - e) / (1 - e), where p is the share of tasks on which they agree and e the share on which they would if
    each gave labels at random, as often as now (Cohen 1960, "A coefficient of agreement for nominal scales"). 1 is full
    agreement, 0 what chance gives. The interval is that of the kappas of ``resamples`` sets of as many tasks, drawn
    with replacement (Efron 1979, "Bootstrap methods"); it is not a number where both give the same label throughout.

    Raises:
        ValueError: there are no labels, or not as many of one as of the other.
    """
    import numpy as np
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    if not a or len(a) != len(b):
        raise ValueError(f"{len(a)} labels and {len(b)}: two annotators need the same tasks, at least one")
    table = confusion_matrix(a, b)  # (labels, labels)
    # Which tasks are drawn matters only by how often each cell of the table is: a multinomial draw.
    drawn = np.random.default_rng(seed).multinomial(len(a), table.ravel() / len(a), resamples) / len(a)
    drawn = drawn.reshape(resamples, *table.shape)
    agreed = drawn.trace(axis1=1, axis2=2)
    by_chance = (drawn.sum(1) * drawn.sum(2)).sum(1)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile((agreed - by_chance) / (1 - by_chance), [0.025, 0.975])
    return float(cohen_kappa_score(a, b)), float(low), float(high)


def pre_labels(
    texts: Sequence[str],
    predictions: Sequence[Mapping[str, Any]],
    model_version: str,
    question: str = "label",
    text: str = "text",
) -> list[dict[str, Any]]:
    """Tasks for Label Studio, each with a model's label for the annotator to confirm or correct.

    ``predictions`` are ``{"label", "score"}`` as a transformers text-classification pipeline returns them, the score
    from 0 to 1; the list is written as JSON (https://labelstud.io/guide/predictions).
    """
    return [
        {
            "data": {text: content},
            "predictions": [
                {
                    "model_version": model_version,
                    "score": float(prediction["score"]),
                    "result": [
                        {
                            "from_name": question,
                            "to_name": text,
                            "type": "choices",
                            "value": {"choices": [prediction["label"]]},
                        }
                    ],
                }
            ],
        }
        for content, prediction in zip(texts, predictions, strict=True)
    ]


def read_predictions(path: Path | str) -> list[Row]:
    """The predictions in a Label Studio file, as ``{"row", "text", "label", "score", "model_version"}``.

    A file that was imported has them with its tasks. An export has only their numbers there, but with each annotation
    the prediction that it began with; so tasks without an annotation give none.
    """
    found = []
    for row in read_rows(path):
        where = f"{path}, row {row['row']} (task {row.get('id', '?')})"
        text = text_of(need(row, "data", dict, where), None, where)
        shown = [*row.get("predictions", []), *(one.get("prediction") for one in row.get("annotations", []))]
        seen = {}
        for prediction in filter(lambda one: isinstance(one, dict) and one, shown):
            result = need(prediction, "result", list, where)
            choices = [need(need(one, "value", dict, where), "choices", list, where) for one in result]
            if choices:
                seen[prediction.get("model_version")] = {
                    "row": row["row"],
                    "text": text,
                    "label": checked_label(choices[0], None, where),
                    "score": prediction.get("score"),
                    "model_version": prediction.get("model_version"),
                }
        found += seen.values()
    return found


def labeling_config(labels: Iterable[str], question: str = "label", text: str = "text") -> str:
    """The settings of a Label Studio project that asks for one of ``labels`` for each text."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    name, to = quoteattr(question), quoteattr(text)
    shown = f"<Text name={to} value={quoteattr('$' + text)}/>"
    return f'<View>{shown}<Choices name={name} toName={to} choice="single">{choices}</Choices></View>'
