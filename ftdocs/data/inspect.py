"""What would be trained on, before anything is: counts, lengths, and text with its loss mask shown."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftdocs.assets import model_path
from ftdocs.data.annotation import training_rows
from ftdocs.data.chat import IGNORED
from ftdocs.data.formats import unused_columns
from ftdocs.data.prepare import encode, load_splits
from ftdocs.data.read import is_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftdocs.recipe import Recipe

Row = dict[str, Any]
WHOLE = 2**30  # tokens: longer than any row, so that lengths are counted before anything is cut


def inspect(recipe: "Recipe", samples: int = 3) -> dict[str, Any]:
    """Look at a recipe's data through its model's tokenizer.

    Returns what ``ftdocs data inspect --json`` prints: the counts of ``Splits.report``; ``ignored``, the columns
    that are not used; ``tokens``, the lengths of the training rows before they are cut (min, median, p95, max,
    total); ``trained``, the share of the kept tokens that has a label; how many rows are ``truncated`` at
    ``seq_len``, cut into ``pieces`` (format text) and ``dropped`` as nothing trained is left of them; and
    ``samples``, each with the ``row`` number in the file and ``pieces`` of ``{"text", "trained"}``. Of a folder of
    documents also what :func:`ftdocs.data.folder.folder_rows` counts: files read and skipped, chunks, pairs, personal
    data and licences by kind.
    """
    splits = load_splits(recipe.data, recipe.train.seed)
    from transformers import AutoTokenizer  # after the data was found to be good: it takes seconds

    tokenizer = AutoTokenizer.from_pretrained(model_path(recipe.model))
    rows = encode(splits.train, splits.format, tokenizer, WHOLE, splits.labels, where=str(splits.path))
    report = {
        "data": str(splits.path),
        **splits.report,
        "ignored": ignored(splits.path, splits.format, recipe.data.group),
        "model": recipe.model,
        "seq_len": recipe.train.seq_len,
    }
    report["tokens"] = lengths([len(row["input_ids"]) for row in rows])
    report |= after_cutting(rows, splits.format, recipe.train.seq_len)
    report["samples"] = [
        {"row": row["row"], "pieces": pieces(row, tokenizer, recipe.train.seq_len)}
        | ({"label": splits.labels[row["label"]]} if splits.labels else {})
        for row in rows[:samples]
    ]
    return report


def ignored(path: Path, format: str, group: str | None) -> list[str]:
    """The columns of a file that its format does not use; of documents, whose columns are ours, none."""
    return [] if is_documents(path) else list(unused_columns(training_rows(path), format, group))


def lengths(counts: list[int]) -> dict[str, int]:
    """The spread of some lengths in tokens; p95 is the shortest that 95 % of the rows do not exceed."""
    ranked = sorted(counts)
    return {
        "min": ranked[0],
        "median": round(median(ranked)),
        "p95": ranked[-(-95 * len(ranked) // 100) - 1],
        "max": ranked[-1],
        "total": sum(ranked),
    }


def after_cutting(rows: Sequence[Row], format: str, seq_len: int) -> dict[str, Any]:
    """What cutting at ``seq_len`` tokens does to whole encoded rows."""
    longer = cut = dropped = tokens = trained = 0
    for row in rows:
        longer += len(row["input_ids"]) > seq_len
        if format != "label":
            labels = row["labels"] if format == "text" else row["labels"][:seq_len]
            labelled = sum(label != IGNORED for label in labels)
            tokens, trained, dropped = tokens + len(labels), trained + labelled, dropped + (labelled == 0)
            cut += max(1, -(-(len(labels) - 1) // (seq_len - 1)))
    if format == "label":
        return {"truncated": longer}
    report = {"trained": round(trained / tokens, 4)}
    return report | ({"pieces": cut} if format == "text" else {"truncated": longer, "dropped": dropped})


def pieces(row: Row, tokenizer: "PreTrainedTokenizerBase", seq_len: int) -> list[dict[str, Any]]:
    """The first ``seq_len`` tokens of a row as text again, in runs that are trained and runs that are not."""
    ids = row["input_ids"][:seq_len]
    labels = [IGNORED] * len(ids) if "label" in row else row["labels"][:seq_len]
    found, end, before = [], 0, ""
    for trained, run in groupby(labels, key=lambda label: label != IGNORED):
        end += len(list(run))
        text = tokenizer.decode(ids[:end])  # from the start: some tokenizers drop a run's leading space
        found.append({"text": text[len(before) :], "trained": trained})
        before = text
    return found


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report of :func:`inspect`: a table, then the samples with what is trained in «green»."""
    table = Table(show_header=False, box=None)
    for name, value in report.items():
        if name != "samples":
            table.add_row(name, "\n".join(value) if name == "skipped" and value else _written(value))
    console.print(table)
    for sample in report["samples"]:
        label = f", label {sample['label']}" if "label" in sample else ""
        console.print(Text(f"\nrow {sample['row']}{label}", style="bold"))
        text = Text()
        for piece in sample["pieces"]:
            if piece["trained"]:
                text.append(f"«{piece['text']}»", style="green")
            else:
                text.append(piece["text"], style="dim")
        console.print(text)
    if any(piece["trained"] for sample in report["samples"] for piece in sample["pieces"]):
        console.print(
            Text("\nWhat stands in «guillemets» is trained; the rest is read only.", style="italic")
        )


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count:,}" for key, count in value.items()) or "none"
    if isinstance(value, list):
        words = [" and ".join(map(str, one)) if isinstance(one, list) else one for one in value]
        return ", ".join(words) or "none"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.1%}" if isinstance(value, float) else str(value)
    )
