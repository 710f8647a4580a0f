"""Runs beside each other, and beside what needs no training, on the same held-out rows, with paired intervals."""

import difflib
import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer

from ftdocs import answer, assets, evaluate, files, hardware, intervals, models, paired, runs, scores
from ftdocs.answer import FORMATS, Answer
from ftdocs.contestants import (
    BASELINES,
    NEW_TOKENS,
    Contestant,
    Holder,
    Run,
    contestants,
    kept_losses,
    open_run,
    pairs_of,
    part,
    stages,
    untuned,
)
from ftdocs.data import prepare
from ftdocs.data.clean import prompt_key, text_key
from ftdocs.data.read import is_documents
from ftdocs.errors import InputError
from ftdocs.intervals import Interval
from ftdocs.paired import Statistic

Row = dict[str, Any]
OUTCOME, ANSWERS = "comparison.json", "answers.jsonl"
ROWS = {"smoke": 4, "cpu": 100, "gpu": 1000}  # questions that are asked, if nobody says how many
LESS_IS_BETTER = ("loss", "perplexity")
KINDS = {  # metrics by kind of task
    "questions": (*scores.METRICS, *LESS_IS_BETTER),
    "text": LESS_IS_BETTER,
    "label": ("accuracy", "f1", "loss"),
}
# With fewer documents, or rows where nothing is known of these, intervals are rough. Drawn from nothing but noise, one
# of ten intervals over two to four of them lies on the good side of 0, where one of forty should: no gate opens to it.
FEW_DOCUMENTS = 10
MAJORITY = "base of a classifier: its head is random, so the most frequent training label is always answered"


class NotBetter(Exception):
    """What ``--gate`` asks for does not hold; the message says of what."""


def compare(
    folders: Sequence[Path],
    baselines: Sequence[str] = (),
    gate: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs and baselines on the same held-out rows; the last run against each of the others, row by row.

    Rows are those of the first run's test split, in its (random) order, the first ``limit`` of them. Every other run
    held out the same ones, or none (``data.test: 0``) and has not seen these. Baselines have the first run's base
    model, or where that was another run's weights, what the first of them began with: ``base`` is asked as the runs
    are; ``few-shot`` sees training rows as examples first, the same for all questions; ``retrieval`` sees passages
    that BM25 and MiniLM find, in all documents if the data is a folder of them, those that the questions are about
    too, as a user's search would; else in the training rows.

    Runs trained on chats, prompts or instructions answer questions (greedy) and are scored by
    :data:`ftdocs.scores.METRICS` and by the held-out loss of the wanted answers. Runs trained on plain text are
    compared by held-out loss; where the text is a folder of documents and few-shot or retrieval is asked for, they are
    asked what the structure of the held-out documents asks. Classifiers are compared by accuracy, macro F1 and loss.

    What is finished is kept in ``answers/`` of each run, by fingerprint, and used again. The outcome is written to
    ``comparison.json`` and ``answers.jsonl`` in the last run's folder.

    Args:
        folders: of finished runs.
        baselines: of :data:`BASELINES`.
        gate: a metric by which the last run has to beat the first, or a single run every baseline: the 95 % interval
            of the difference lies on its side of 0, over :data:`FEW_DOCUMENTS` documents or rows at least. The
            outcome's ``gate`` says whether it does.
        limit: of rows; 100 if left out, on a GPU 1000.
        max_new_tokens: of an answer; 128 if left out, on a GPU 512.
        progress: show a bar on standard error.

    Returns:
        ``runs``, ``baselines``, ``split``, ``kind``, ``rows``, ``documents`` (None where rows say nothing of them),
        ``metrics`` (by contestant and metric; None where it has none), ``differences`` (of the last run, by the other's
        name and metric: estimate, low, high; None where nothing can be said), ``notes``, and ``gate``; of questions
        further ``errors`` (by contestant and category) and ``max_new_tokens``, of classifiers ``mcnemar``.

    Raises:
        InputError: no finished run, changed data, rows that differ, a baseline or metric that does not fit.
    """
    baselines = checked_baselines(baselines)
    if limit is not None and limit < 2:
        raise InputError(f"--limit {limit}: an interval needs two rows at least")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: an answer needs one token at least")
    opened = [open_run(folder) for folder in folders]
    kind = kind_of(opened, baselines)
    gate = checked_gate(gate, kind, len(opened), baselines)
    rows, note = common_rows(opened, kind, limit or ROWS[hardware.profile()])
    unknown = [line for run in opened for line in check_stages(run, opened[0].splits.test)]
    names = named([run.folder for run in opened])
    with ExitStack() as stack:
        for folder in dict.fromkeys(run.folder.resolve() for run in opened):
            stack.enter_context(runs.hold(folder))
        by_questions = partial(by_answers, max_new_tokens=max_new_tokens or NEW_TOKENS[hardware.profile()])
        work = {"questions": by_questions, "text": by_text, "label": by_label}[kind]
        found = work(opened, names, baselines, rows, progress)
        found["notes"][:0] = [note, *unknown]
        outcome: dict[str, Any] = {
            "runs": names,
            "baselines": list(baselines),
            "split": "test",
            "kind": kind,
            "rows": len(rows),
            **found,
            "gate": judged(gate, found, names, baselines) if gate else None,
        }
        last = opened[-1].folder
        per_row = outcome.pop("per_row")
        with files.explain_write_errors(last):
            files.write_atomic(
                last / ANSWERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in per_row)
            )
            about = {"device": hardware.device_name(), "versions": hardware.versions()}
            files.write_atomic(last / OUTCOME, json.dumps({**outcome, **about}, indent=1) + "\n")
    return outcome


def checked_baselines(baselines: Sequence[str]) -> tuple[str, ...]:
    """The baselines, each once, in the order of :data:`BASELINES`.

    Raises:
        InputError: an unknown one.
    """
    for name in baselines:
        if name not in BASELINES:
            near = difflib.get_close_matches(name, BASELINES, n=1)
            raise InputError(
                f"--baselines {name or repr(name)}: "
                + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(BASELINES)}")
            )
    return tuple(name for name in BASELINES if name in baselines)


def checked_gate(gate: str | None, kind: str, count: int, baselines: Sequence[str]) -> str | None:
    """The metric of a gate as this kind of task spells it.

    Raises:
        InputError: no such metric, or nothing to beat.
    """
    if gate is None:
        return None
    metric = gate.lower().replace("-", "_")
    if metric not in KINDS[kind]:
        near = difflib.get_close_matches(metric, KINDS[kind], n=1)
        raise InputError(
            f"--gate {gate}: no such metric here; "
            + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(KINDS[kind])}")
        )
    if count == 1 and not baselines:
        raise InputError("--gate: nothing to beat; give an older run before this one, or --baselines base")
    without = [name for name in baselines if name != "base" or kind == "label"]
    if count == 1 and metric in LESS_IS_BETTER and without:
        raise InputError(f"--gate {gate}: {without[0]} has no loss; gate by f1, or leave it out")
    return metric


def kind_of(opened: Sequence[Run], baselines: Sequence[str]) -> str:
    """What is compared: ``questions``, ``text`` or ``label``.

    Raises:
        InputError: the runs have different formats, or a baseline that fits none of it.
    """
    first = opened[0]
    for run in opened[1:]:
        if run.splits.format != first.splits.format:
            raise InputError(
                f"{run.folder}: was trained on the format {run.splits.format}, {first.folder} on "
                f"{first.splits.format}; compare runs of one format"
            )
    format, prompted = first.splits.format, [name for name in baselines if name != "base"]
    if format == "label":
        if prompted:
            raise InputError(
                f"--baselines {prompted[0]}: {first.folder} is a classifier and answers no questions; base fits, "
                "the most frequent label"
            )
        return "label"
    if format == "text":
        if prompted and not is_documents(first.splits.path):
            raise InputError(
                f"--baselines {prompted[0]}: {first.folder} was trained on plain text, which asks no questions; base "
                "fits, by held-out loss"
            )
        return "questions" if prompted else "text"
    if format not in FORMATS:
        raise InputError(
            f"{first.folder}: rows of the format {format} have no single wanted answer; compare runs of "
            f"{', '.join(FORMATS)}, text or label"
        )
    return "questions"


def common_rows(opened: Sequence[Run], kind: str, limit: int) -> tuple[list[Row], str]:
    """The rows that all runs are compared on, and how they were chosen, in words.

    Raises:
        InputError: there are none, or a run held out others, or has seen them.
    """
    first = opened[0]
    held_out = {text_key(row) for row in first.splits.test}
    if not held_out:
        raise InputError(f"{first.folder}: this run held out no test rows; train with data.test: 0.1")
    for run in opened[1:]:
        own = {text_key(row) for row in run.splits.test}
        if not own:
            asked = {prompt_key(row) for row in first.splits.test}
            seen = [
                row
                for part in (run.splits.train, run.splits.validation)
                for row in part
                if prompt_key(row) in asked
            ]
            if seen:
                raise InputError(
                    f"{run.folder}: row {seen[0]['row']} of its training data is a test row of {first.folder}; "
                    "train on rows without it"
                )
        elif own != held_out or run.splits.labels != first.splits.labels:
            raise InputError(
                f"{run.folder}: holds out other test rows than {first.folder}; train both on the same data, with the "
                "same data.seed, or the later one with data.test: 0 on rows without these"
            )
    rows, share = list(first.splits.test), first.recipe.data.test
    if kind == "questions" and first.splits.format == "text":
        rows = pairs_of(first, {row["group"] for row in rows})
        if not rows:
            alone = "" if len(held_out) < 2 else "; without, --baselines base compares by held-out loss"
            raise InputError(
                f"{first.folder}: nothing in its held-out documents asks a question; set data.format: messages in the "
                f"recipe, or a data.test above {share:g}, and train again{alone}"
            )
    chosen = rows[:limit]
    if len(chosen) < 2:
        raise InputError(
            f"{first.folder}: one test row alone says nothing; in the recipe set a data.test above {share:g}, or add "
            "rows, and train again"
        )
    return chosen, f"{len(chosen)} of {len(rows)} test rows" + " (--limit)" * (len(chosen) < len(rows))


def check_stages(run: Run, test: Sequence[Row]) -> list[str]:
    """Refuse a run that went on from weights which had read test rows: another split of one folder has others.

    Returns: a line for each earlier stage of which nobody can tell, since its data has changed or is gone.

    Raises:
        InputError: names the row, and the document where rows belong to documents.
    """
    asked = {prompt_key(row) for row in test}
    documents = {row["group"] for row in test if row.get("group") is not None}
    unknown = []
    for folder in stages(run):
        try:
            earlier = open_run(folder)
        except InputError as error:
            unknown.append(f"whether {folder} had read the test rows cannot be told: {error}")
            continue
        for row in chain(earlier.splits.train, earlier.splits.validation):
            if prompt_key(row) in asked or row.get("group") in documents:
                about = f", {row['group']}" if row.get("group") in documents else ""
                raise InputError(
                    f"{run.folder}: went on from {folder}, which read what is a test row here"
                    f" (row {row['row']}{about}); train that stage without it"
                )
    return unknown


def named(folders: Sequence[Path]) -> list[str]:
    """A name for each run that no other one and no baseline has: its folder's, else its path."""
    found: list[str] = []
    last = Counter(folder.name or folder.resolve().name for folder in folders)
    for folder in folders:
        name = folder.name or folder.resolve().name
        name = str(folder) if last[name] > 1 or name in BASELINES else name
        while name in (*found, *BASELINES):
            name += " again"
        found.append(name)
    return found


def by_answers(
    opened: Sequence[Run],
    names: Sequence[str],
    baselines: Sequence[str],
    rows: Sequence[Row],
    progress: bool,
    max_new_tokens: int,
) -> dict[str, Any]:
    """What runs and baselines answer to the questions of ``rows``, and how good that is."""
    questions = [answer.question(row) for row in rows]
    first = opened[0]
    everyone, notes = contestants(opened, names, baselines, questions, max_new_tokens)
    bar = tqdm(
        total=len(everyone) * len(rows), desc="answering", unit="answer", disable=not progress, leave=False
    )
    replies: dict[str, list[Answer]] = {}
    losses: dict[str, list[tuple[float, int]]] = {}
    holder = Holder()

    with bar, hardware.memory_kept():
        for each in everyone:
            precision = each.run.recipe.train.precision
            if each.has_loss:
                wanted = answer.encoded(questions, each.tokenizer, first.recipe.train.seq_len)
                losses[each.name] = kept_losses(each, holder, wanted, rows)
            replies[each.name] = answer.answers(
                partial(holder.for_generation, each),
                each.tokenizer,
                each.prompts,
                part(each, "answers", [each.prompts, max_new_tokens]),
                max_new_tokens,
                precision=precision,
                done=bar.update,
            )
    references = [asked.reference for asked in questions]
    tokenizer = everyone[0].tokenizer
    within = [len(answer.token_ids(tokenizer, text)) < max_new_tokens for text in references]
    judged_rows = {
        name: scores.scored([reply.text for reply in found], references) for name, found in replies.items()
    }
    categories = {
        name: [
            scores.category(reply, asked.text, asked.reference, fits)
            for reply, asked, fits in zip(found, questions, within, strict=True)
        ]
        for name, found in replies.items()
    }
    statistics: dict[str, dict[str, Statistic]] = {
        name: {metric: paired.mean_of(values) for metric, values in found.items()}
        for name, found in judged_rows.items()
    }
    if cut := sum(not fits for fits in within):
        notes.append(
            f"{cut} of {len(rows)} wanted answers do not fit into {max_new_tokens} tokens: answers to these may be "
            "cut, and a right one called a wrong fact; raise --max-new-tokens"
        )
    for name, found in losses.items():
        statistics[name] |= loss_statistics(found)
    per_row = [
        {
            "question": asked.text,
            "reference": asked.reference,
            "document": asked.document,
            "answers": {
                name: {
                    "text": replies[name][place].text,
                    "category": categories[name][place],
                    **{metric: round(values[place], 4) for metric, values in judged_rows[name].items()},
                }
                for name in replies
            },
        }
        for place, asked in enumerate(questions)
    ]
    return {
        "max_new_tokens": max_new_tokens,
        **figures(statistics, names[-1], [asked.document for asked in questions], KINDS["questions"], notes),
        "errors": {
            name: {category: found.count(category) for category in scores.CATEGORIES}
            for name, found in categories.items()
        },
        "per_row": per_row,
    }


def loss_statistics(found: Sequence[tuple[float, int]]) -> dict[str, Statistic]:
    """Held-out loss over all tokens of the rows, and its exponential."""
    loss = paired.mean_of([nats for nats, _ in found], [tokens for _, tokens in found])
    return {"loss": loss, "perplexity": lambda counts: np.exp(np.minimum(loss(counts), 700))}


def by_text(
    opened: Sequence[Run], names: Sequence[str], baselines: Sequence[str], rows: Sequence[Row], progress: bool
) -> dict[str, Any]:
    """The held-out loss of runs that were trained on plain text."""
    first, everyone = untuned(opened[0]), list[Contestant]()
    base = AutoTokenizer.from_pretrained(assets.model_path(first.recipe.model))
    length = first.recipe.train.seq_len
    wanted = prepare.encode(rows, "text", base, length)
    everyone = [Contestant(name, first, False, base) for name in baselines]
    for run, name in zip(opened, names, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(runs.weights(run.folder))
        if list(prepare.encode(rows, "text", tokenizer, length)) != list(wanted):
            raise InputError(
                f"{run.folder}: its tokenizer cuts the text into other tokens than that of {first.folder}, so their "
                "losses cannot be compared; compare runs of one base model"
            )
        everyone.append(Contestant(name, run, True, tokenizer))
    bar = tqdm(
        total=len(everyone) * len(rows), desc="evaluating", unit="row", disable=not progress, leave=False
    )
    holder, losses = Holder(), {}

    with bar, hardware.memory_kept():
        for each in everyone:
            losses[each.name] = kept_losses(each, holder, wanted, rows, bar.update)
    statistics = {name: loss_statistics(found) for name, found in losses.items()}
    documents = [row.get("group") for row in rows]
    per_row = [
        {
            "row": row["row"],
            "document": row.get("group"),
            "loss": {name: losses[name][place][0] for name in losses},
        }
        for place, row in enumerate(rows)
    ]
    return {**figures(statistics, names[-1], documents, KINDS["text"], []), "per_row": per_row}


def by_label(
    opened: Sequence[Run], names: Sequence[str], baselines: Sequence[str], rows: Sequence[Row], progress: bool
) -> dict[str, Any]:
    """What classifiers say to the same texts."""
    labels = opened[0].splits.labels or []
    right = np.array([labels.index(row["label"]) for row in rows])
    predictions: dict[str, np.ndarray] = {}
    statistics: dict[str, dict[str, Statistic]] = {}
    notes = []
    if baselines:
        majority = files.read_kept(opened[0].folder / runs.SPLITS, "majority")["majority"]
        predictions["base"], statistics["base"] = np.full(len(rows), majority), {}
        notes.append(MAJORITY)
    for run, name in zip(opened, names, strict=True):
        model, tokenizer = models.load_run(run.folder)
        encoded = prepare.encode(rows, "label", tokenizer, run.recipe.train.seq_len, labels)
        with hardware.memory_kept():
            logits = evaluate.predict(
                model, encoded, models.pad_token_id(tokenizer), progress=progress,
                precision=run.recipe.train.precision,
            )  # fmt: skip
        predictions[name] = logits.argmax(axis=1)
        nats = cross_entropy(torch.from_numpy(logits), torch.from_numpy(right), reduction="none")
        statistics[name] = {"loss": paired.mean_of(nats.tolist())}
    for name, given in predictions.items():
        statistics[name] |= {
            "accuracy": paired.mean_of((given == right).astype(float).tolist()),
            "f1": paired.macro_f1_of(given.tolist(), right.tolist(), len(labels)),
        }
    per_row = [
        {
            "text": row["text"],
            "label": row["label"],
            "answers": {name: labels[given[place]] for name, given in predictions.items()},
        }
        for place, row in enumerate(rows)
    ]
    last = predictions[names[-1]] == right
    tests = {
        name: intervals.mcnemar(last, given == right)._asdict()
        for name, given in predictions.items()
        if name != names[-1]
    }
    documents = [row.get("group") for row in rows]
    found = figures(statistics, names[-1], documents, KINDS["label"], notes)
    return {**found, "mcnemar": tests, "per_row": per_row}


def figures(
    statistics: dict[str, dict[str, Statistic]],
    last: str,
    documents: Sequence[str | None],
    metrics: Sequence[str],
    notes: list[str],
) -> dict[str, Any]:
    """Each contestant's metrics, and the differences of the last run to all others with their intervals."""
    known = None not in documents
    count = len(set(documents)) if known else None
    clustered = count is not None and count > 1
    groups = list(documents) if clustered else list(range(len(documents)))
    if count == 1:
        notes.append(
            "all rows are from one document: intervals are over its rows, and say nothing of other documents"
        )
    if few := few_drawn(count, len(documents)):
        notes.append(
            f"over {few}, no difference is decided: intervals are rough, and too narrow; {FEW_DOCUMENTS} are the least"
        )
    once = np.ones((1, len(documents)), int)
    values = {
        name: {metric: number(found[metric](once)[0]) if metric in found else None for metric in metrics}
        for name, found in statistics.items()
    }
    differences: dict[str, dict[str, Interval | None]] = {
        name: {
            metric: paired.clustered_interval(paired.less(statistics[last][metric], found[metric]), groups)
            if metric in found and metric in statistics[last]
            else None
            for metric in metrics
        }
        for name, found in statistics.items()
        if name != last
    }
    return {
        "documents": count,
        "resampled": "documents" if clustered else "rows",
        "metrics": values,
        "differences": differences,
        "notes": notes,
    }


def few_drawn(documents: int | None, rows: int) -> str:
    """What a difference was drawn from, where that is too little to decide it, else ""."""
    drawn, of = (documents, "document") if documents else (rows, "row")
    return f"{drawn} {of}{'s' * (drawn > 1)}" if drawn < FEW_DOCUMENTS else ""


def number(value: float) -> float | None:
    """A figure as JSON can write it: None for what is no number."""
    return float(value) if math.isfinite(value) else None


def judged(
    metric: str, found: dict[str, Any], names: Sequence[str], baselines: Sequence[str]
) -> dict[str, Any]:
    """Whether the last run beats the first, or a single run every baseline, by a metric."""
    against = [names[0]] if len(names) > 1 else list(baselines)
    better = -1 if metric in LESS_IS_BETTER else 1
    failed, few = [], few_drawn(found["documents"], len(found["per_row"]))
    if few:
        few = f"; over {few} that can be luck, a gate needs {FEW_DOCUMENTS} of them"
    for name in against:
        difference = found["differences"][name][metric]
        if difference is None:
            raise InputError(f"--gate {metric}: {name} has none here; gate by another metric")
        if few or not min(better * difference.low, better * difference.high) > 0:
            failed.append(
                f"{name} ({metric} {difference.estimate:+.3f}, 95 % interval {difference.low:+.3f} to "
                f"{difference.high:+.3f}{few})"
            )
    return {"metric": metric, "against": against, "passed": not failed, "not_beaten": failed}
