"""A folder of documents as rows to train on: questions with answers, or chunks of text, each with its document."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftdocs.data.chunks import Count, chunk, estimate_tokens
from ftdocs.data.clean import normal_digest
from ftdocs.data.documents import FEWEST, Document, read_folder
from ftdocs.data.duplicates import near_duplicates
from ftdocs.data.personal import licences, personal
from ftdocs.data.questions import pairs, quoted
from ftdocs.data.store import Stored
from ftdocs.errors import InputError

Row = dict[str, Any]
GROUP = "document"  # the column whose rows stay in one split
FORMATS = ("messages", "text")
ENOUGH = 50  # pairs; with fewer, chunks of text are the default


def folder_rows(
    folder: Path,
    format: str | None = None,
    report: dict[str, Any] | None = None,
    tokens: int = 256,
    overlap: int = 0,
    count: Count = estimate_tokens,
) -> Iterator[Row]:
    """The rows of a folder of documents, in the order of their names; they lie on disk until they are asked for.

    A row has ``messages``, a question and its answer (:func:`ftdocs.data.questions.pairs`), or ``text``, a chunk
    (:func:`ftdocs.data.chunks.chunk`), and further ``source`` and ``where``, the file and the place in it, ``kind`` (of
    a pair, or ``chunk``), and ``document``: the source, or, where documents are nearly the same
    (:func:`ftdocs.data.duplicates.near_duplicates`), that of the first of them. Rows of one ``document`` belong into
    one split, or training sees what is asked in the test.

    Args:
        format: ``messages`` or ``text``; left out, pairs where there are :data:`ENOUGH`, from three documents or more.
        report: gets what :func:`ftdocs.data.documents.read_folder` counts, and ``chunks``, ``chunk_tokens``, ``pairs``
            and ``not_asked`` (by kind and by reason), ``near_duplicate_documents``, ``personal_data`` (places by kind)
            and ``licences`` (documents by kind). No text is in it.
        tokens: of a chunk or an answer, at most.
        overlap: tokens at the beginning of a chunk that the one before ends with. Training would see them twice; a
            retriever wants some.
        count: of the tokens of a text.

    Raises:
        InputError: no document can be read, or ``format`` is another one.
    """
    if format not in (None, *FORMATS):
        raise InputError(
            f"{folder}: a folder of documents gives rows of the format {' or '.join(FORMATS)}, not {format}; "
            f"change data.format"
        )
    report = {} if report is None else report
    found, asked = Counter[str](), Counter[str]()
    counts = {"chunks": 0, "chunk_tokens": 0}
    left_out, private, notices = Counter[str](), Counter[str](), Counter[str]()
    titles: dict[bytes, dict[bytes, str]] = {}  # of the document, by question and answer
    texts, rows = Stored(), {name: Stored() for name in FORMATS}
    for document in read_folder(folder, report):
        texts.append({"text": document.text, "source": document.source})
        private += personal(document.text)
        notices.update(licences(document.text))
        for one in chunk(document, tokens, overlap, count):
            counts["chunks"] += 1
            counts["chunk_tokens"] += one.tokens
            rows["text"].append({"text": one.text, **place_of(document, one.where, "chunk")})
        for pair in pairs(document, tokens, count, left_out):
            asked[document.source] += 1
            found[pair.kind] += 1
            answers = titles.setdefault(normal_digest(pair.question), {})
            answers.setdefault(normal_digest(pair.answer), document.title)
            turns = {"question": pair.question, "answer": pair.answer}
            rows["messages"].append({**turns, **place_of(document, pair.where, pair.kind)})
    group = alike(texts)
    report |= {**counts, "pairs": found, "not_asked": left_out}
    report["near_duplicate_documents"] = len(group) - len(set(group.values()))
    report |= {"personal_data": private, "licences": notices}
    if format is None:
        format = "messages" if found.total() >= ENOUGH and len(asked) >= FEWEST else "text"
    if not rows[format]:
        raise InputError(
            f"{folder}: no heading, parameter or term in it that a question could be made from; set data.format: text"
        )
    for number, row in enumerate(rows[format], 1):
        placed = {**row, GROUP: group[row["source"]], "row": number}
        yield as_messages(placed, titles) if format == "messages" else placed


def as_messages(row: Row, titles: dict[bytes, dict[bytes, str]]) -> Row:
    """A row with a question and an answer as a conversation.

    What several documents ask and answer differently, such as *How is it installed?*, gets the document's title: else
    nobody could tell which is meant, and all these documents would have to lie in one split.
    """
    question, answer = row.pop("question"), row.pop("answer")
    answers = titles[normal_digest(question)]
    if len(answers) > 1:
        question = f"{question} ({quoted(answers[normal_digest(answer)])})"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **row}


def place_of(document: Document, where: str, kind: str) -> Row:
    """The columns that say where a row is from."""
    return {"source": document.source, "where": where, "kind": kind}


def alike(texts: Stored) -> dict[str, str]:
    """For each source that of the first document which is nearly the same: itself as a rule."""
    groups = near_duplicates(row["text"] for row in texts)
    first: dict[int, str] = {}
    return {
        row["source"]: first.setdefault(group, row["source"])
        for group, row in zip(groups, texts, strict=True)
    }
