"""Look at a data file or a folder of documents and write a commented recipe for it."""

import math
import os
import re
import shlex
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

from ftdocs import files
from ftdocs.data import prepare
from ftdocs.data.annotation import training_rows
from ftdocs.data.documents import FEWEST, visible_files
from ftdocs.data.folder import GROUP, folder_rows
from ftdocs.data.formats import ALSO_CALLED, recognise, unused_columns
from ftdocs.data.read import DOCUMENTS, is_documents, reader
from ftdocs.errors import InputError
from ftdocs.recipe import Data, Recipe, Train

TEMPLATE = """\
# Written by `ftdocs new` after a look at {name}: {rows}{duplicates}, format {format}{labels}{unused}.
{documents}# What will be trained on:  ftdocs data inspect {argument} --recipe {recipe}
# Train:                    ftdocs train {recipe}
model: {model:<22}  # {model_note}
data:
  path: {data}
  format: {format:<19}  # {format_note}
  validation: {share:<15}  # share of the rows held out to watch the training
  test: {test:<21}  # share held out for the final figure; `ftdocs evaluate` uses it{test_note}
method:
  name: {method}
train:
  epochs: {epochs:<19}  # passes over the training rows
  batch_size: {batch_size:<15}  # sequences at once; halve it when memory runs out
  accumulation: {accumulation:<13}  # batches per optimiser step; double it when you halve batch_size
  seq_len: {seq_len:<18}  # tokens; {longer}
  learning_rate: null          # the method's own ({rate}); the first thing to try values of
  seed: 0
profiles:                      # try it in seconds: FTDOCS_PROFILE=smoke ftdocs train {recipe} --output runs/smoke
  smoke: {{data: {{limit: 64}}, train: {{max_steps: 2, batch_size: 2, seq_len: 128}}}}
"""
PLAIN = re.compile(r"(\.\./)*[^\W\d][\w./ -]*")  # needs no quotes in YAML, if it is not a word such as `true`
SHOWN = 6  # names of classes or columns in one line
SHARE = 0.1  # of the rows, held out once to watch the training and once for the final figure
MORE = (0.2, 0.3, 0.4)  # for the final figure, where a tenth is too little to compare anything on
STEPS = 40  # a small file is passed over again until there are about so many optimiser steps
FORMAT_NOTES = {
    "messages": "chats: only the assistant's words and its end-of-turn token are trained",
    "prompt": "prompt/completion: only the completion is trained",
    "instruction": "instruction/input/output: only the output is trained",
    "text": "plain text: every token is trained (continued pretraining)",
    "label": "text/label: a classifier",
}


def write_recipe(data_file: Path, output: Path | None = None) -> tuple[Path, str]:
    """Write a recipe for ``data_file`` (to ``NAME.yaml`` in the working folder when ``output`` is left out).

    The whole file, or every document of a folder, is read and checked first, so a broken row is found now and not
    after a night.

    Returns:
        The recipe's path, and a note on the columns or documents that it does not use ("" where it uses all).

    Raises:
        InputError: the data cannot be used, ``output`` is no YAML file, or is there already (it is not overwritten).
    """
    reader(data_file)  # refuses what is no data file
    documents = is_documents(data_file)
    if documents:
        check_folder(data_file)
    name = data_file.resolve().name
    target = output or Path(f"{name if data_file.is_dir() else name.split('.')[0]}.yaml")
    if target.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{target}: the recipe is written as YAML; let the name end in .yaml")
    if target.exists():
        raise InputError(f"{target}: exists; choose another name with --output, or remove it")
    splits, test, test_note = splits_and_share(data_file)
    unused = {} if documents else unused_columns(training_rows(data_file), splits.format)
    is_label = splits.format == "label"
    model, seq_len = model_and_length(splits.format)
    rows = sum(len(part) for part in (splits.train, splits.validation, splits.test))
    dropped = splits.report["duplicates"]
    # A path that starts from the recipe's own folder goes on working when both are moved together.
    relative = Path(os.path.relpath(data_file.resolve(), target.resolve().parent)).as_posix()
    text = TEMPLATE.format(
        name=one_line(name),
        rows=counted(rows, "row"),
        documents=about_documents(splits) if documents else "",
        duplicates=f" ({dropped} repeated ones left out)" if dropped else "",
        format=splits.format,
        format_note=FORMAT_NOTES[splits.format] + (other_format(splits) if documents else ""),
        labels=f" with {len(splits.labels)} classes: {listed(splits.labels)}" if splits.labels else "",
        unused=f"; not used: {listed(unused)}" if unused else "",
        argument=one_line(shlex.quote(str(data_file))),
        recipe=one_line(shlex.quote(str(target))),
        model=model,
        model_note="a small BERT" if is_label else "a small LLaMA",
        data=scalar(relative),
        share=SHARE,
        test=test,
        test_note=test_note,
        method="full                   # every weight; lora trains small adapters"
        if is_label
        else "lora\n  rank: 8\n  targets: all-linear",
        seq_len=seq_len,
        longer="longer texts are split, nothing is lost"
        if splits.format == "text"
        else "longer rows are cut",
        rate="full, labels: 5.0e-5" if is_label else "lora: 1.0e-3",
        **schedule(splits),
    )
    with tempfile.TemporaryDirectory() as folder:  # only a recipe that can be read is written
        trial = Path(folder, "recipe.yaml")
        trial.write_text(text, encoding="utf-8")
        Recipe.load(trial, environment=False)
    with files.explain_write_errors(target):
        files.write_atomic(target, text)
    return target, about_unused(data_file, splits.format, unused) or about_skipped(data_file, splits)


def splits_and_share(data_file: Path) -> tuple[prepare.Splits, float, str]:
    """The splits of a first recipe, their share for the final figure, and a comment on it where it is not a tenth.

    `ftdocs compare` needs two rows, of documents two that ask questions: it would be found out after the training.
    """
    first = prepare.load_splits(Data(path=data_file, validation=SHARE, test=SHARE), seed=0)
    asked = questions_by_document(data_file, first)
    if can_be_compared(first, asked):
        return first, SHARE, ""
    of = "documents with questions" if asked else "documents" if is_documents(data_file) else "rows"
    for share in MORE:
        try:
            splits = prepare.load_splits(Data(path=data_file, validation=SHARE, test=share), seed=0)
        except InputError:  # too little would be left to train on
            break
        if can_be_compared(splits, asked):
            return splits, share, f"; with {SHARE} there are no two {of} to compare on"
    return first, SHARE, f"; too few {of} for `ftdocs compare`"


def questions_by_document(data_file: Path, splits: prepare.Splits) -> Counter[str]:
    """How many questions each document asks, of a folder that is trained on as text: compare asks them all the same."""
    if splits.format != "text" or sum(splits.report.get("pairs", {}).values()) < 2:
        return Counter()
    return Counter(row[GROUP] for row in folder_rows(data_file, "messages"))


def can_be_compared(splits: prepare.Splits, asked: Counter[str]) -> bool:
    """Whether there are two held-out rows, of two documents if they have some; and two questions if any are asked."""
    if len(splits.test) < 2:
        return False
    groups = {row.get("group", row["row"]) for row in splits.test}
    return len(groups) > 1 and (not asked or sum(asked[group] for group in groups) > 1)


def check_folder(folder: Path) -> None:
    """Refuse a folder of documents from which no recipe could be made that trains."""
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{folder}: the runs would be written among the documents; go to the folder above, "
            f"then: ftdocs new {folder.resolve().name}"
        )
    found = sum(path.suffix.lower() in DOCUMENTS for path in visible_files(folder))
    if found < FEWEST:
        raise InputError(
            f"{folder}: {found} documents, and {FEWEST} are the least: one is held out to watch the training and one "
            f"for the final figure; add some, or divide what there is"
        )


def about_documents(splits: prepare.Splits) -> str:
    """Lines of comment on a folder of documents: what was read, what became of it, and what to look at."""
    report = splits.report
    skipped, copies = len(report["skipped"]), report["near_duplicate_documents"]
    pairs = sum(report["pairs"].values())
    found = {
        name: ", ".join(f"{one_line(kind)} {count}" for kind, count in sorted(report[name].items()))
        for name in ("personal_data", "licences")
    }
    sentences = [
        f"{sum(report['files'].values())} documents, about {counted(report['pages'], 'page')}",
        f"{skipped} more could not be read, and `ftdocs data inspect` says why" * (skipped > 0),
        f"{copies} nearly the same as another one" * (copies > 0),
        f"{counted(pairs, 'question')} with answers, made from headings, parameters, terms and FAQs, and "
        f"{counted(report['chunks'], 'chunk')} of text",
        "No document lies in two splits",
        f"Personal data: {found['personal_data']} (data.personal: mask hides it)"
        * bool(report["personal_data"]),
        f"Licences and notices: {found['licences']}. Train on them only if you may"
        * bool(report["licences"]),
    ]
    words = ". ".join(filter(None, sentences))
    return textwrap.fill(f"{words}.", 110, initial_indent="# ", subsequent_indent="# ") + "\n"


def about_skipped(folder: Path, splits: prepare.Splits) -> str:
    """One line on the documents that could not be read, with the first reason."""
    skipped = splits.report.get("skipped")
    if not skipped:
        return ""
    others = f" (and {len(skipped) - 1} more: ftdocs data inspect {one_line(shlex.quote(str(folder)))})"
    return f"{one_line(str(folder))}: not read: {skipped[0]}{others if len(skipped) > 1 else ''}"


def other_format(splits: prepare.Splits) -> str:
    """What else a folder of documents could be trained on, for the comment beside its format."""
    report = splits.report
    if splits.format == "messages":
        return f"; text: its {counted(report['chunks'], 'chunk')} (continued pretraining)"
    pairs = sum(report["pairs"].values())
    return f"; messages: its {counted(pairs, 'question')} with answers" if pairs else ""


def model_and_length(format: str) -> tuple[str, int]:
    """The model that a first recipe trains rows of this format with, and the tokens of a sequence."""
    return ("minilm", 256) if format == "label" else ("smollm2-135m-instruct", 512)


def first_recipe(data_file: Path) -> Recipe:
    """The model, lengths and splits that :func:`write_recipe` chooses, after a look at the first row alone.

    Of a folder of documents nothing is read: model and lengths are the same for both formats that it may have.

    Raises:
        InputError: the file or its first row cannot be read, or its columns are no known set.
    """
    if is_documents(data_file):
        model, seq_len = model_and_length("text")
        return Recipe(model=model, data=Data(path=data_file), train=Train(seq_len=seq_len))
    row = next(training_rows(data_file))
    model, seq_len = model_and_length(recognise(row, f"{data_file}, row {row['row']}"))
    return Recipe(model=model, data=Data(path=data_file), train=Train(seq_len=seq_len))


def about_unused(data_file: Path, format: str, unused: dict[str, int]) -> str:
    """One line on the columns that a format does not use, with advice where one looks like a label."""
    if not unused:
        return ""
    note = f"{one_line(str(data_file))}: columns that format {format} does not use: {listed(unused)}"
    likely = sorted(filter(unused.get, unused), key=lambda name: name.lower() not in ALSO_CALLED["label"])
    if format != "text" or not likely:
        return note
    return (
        f"{note}; {one_line(likely[0])} has {unused[likely[0]]} different values:"
        " rename it to label for a classifier"
    )


def scalar(text: str) -> str:
    """A text as a value in YAML: as it is where YAML reads it back, else in double quotes."""
    plain = PLAIN.fullmatch(text) and yaml.safe_load(f"path: {text}") == {"path": text}
    if plain:
        return text
    return yaml.safe_dump(text, default_style='"', width=math.inf, allow_unicode=True).strip()


def listed(names: Iterable[str]) -> str:
    """The first names of classes or columns, cut short where they are long, within one line."""
    shown = [one_line(name if len(name) <= 30 else f"{name[:29]}…") for name in names]
    return ", ".join(shown[:SHOWN] + ["…"] * (len(shown) > SHOWN))


def counted(count: int, what: str) -> str:
    """``1 chunk``, ``2 chunks``."""
    return f"{count} {what}{'s' * (count != 1)}"


def one_line(text: str) -> str:
    """Text that stays within a comment: line breaks and other control characters become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def schedule(splits: prepare.Splits) -> dict[str, int]:
    """Batch size, accumulation and epochs by the amount of data, so that a small file is not done in one step."""
    if splits.format == "label":
        batch_size, accumulation, sequences = 16, 1, float(len(splits.train))
    else:  # rows are packed: what counts is their text, at about four characters a token, and the chat template
        characters = sum(len(str(list(row.values()))) for row in splits.train)
        sequences = (characters / 4 + 30 * len(splits.train)) / 512
        batch_size, accumulation = 2, 1 if sequences < 8 * STEPS else 4
    epochs = math.ceil(STEPS * batch_size * accumulation / max(1.0, sequences))
    return {
        "batch_size": batch_size,
        "accumulation": accumulation,
        "epochs": min(10, max(3 if splits.format == "label" else 1, epochs)),
    }
