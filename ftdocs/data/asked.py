"""Questions that a model asks about a passage, and those of them that are not worth training on."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from ftdocs.data.chunks import Chunk
from ftdocs.data.questions import Pair, flaw

# The passage first: a small model that reads the task first has forgotten it at the end, and goes on with the passage.
ASK = "{passage}\n\nWrite one short question that can be answered with the passage above."
# A question stands alone in training and in a search: nobody sees which passage it points at.
POINTS = re.compile(
    r"\b(?:this|these|those|above|following|given|passages?|paragraphs?|excerpts?)\b"
    r"|\bthe (?:text|table|code|documents?|authors?|data ?sets?)(?! (?:of|for|from|by|named|called)\b)",
    re.IGNORECASE,
)


def asked(
    chunks: Iterable[Chunk], write: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[tuple[Pair, str]]:
    """For each chunk the question that a model asks about it, answered by the chunk itself, and why it is left out.

    Generated questions, filtered, as Alberti et al. (2019) train on them; their filter is a second model that has to
    find the answer again, this one is rules, which know nothing of the meaning: a question that the passage does not
    answer passes. The reason is "" where a pair is kept.

    Args:
        write: a model's replies to prompts, one for each.
    """
    chunks, known = list(chunks), set[str]()
    replies = write([ASK.format(passage=one.text) for one in chunks])
    for one, reply in zip(chunks, replies, strict=True):
        pair = Pair(" ".join(reply.split()), one.text, "model", one.where)
        reason = wrong(pair) or ("repeated question" if pair.question.casefold() in known else "")
        known.add(pair.question.casefold())
        yield pair, reason


def wrong(pair: Pair) -> str:
    """Why a model's question is left out, "" where it is not; :func:`ftdocs.data.questions.flaw` comes last."""
    if not pair.question.endswith("?"):
        return "no question"
    if pair.question.count("?") > 1:
        return "more than one question"
    if POINTS.search(pair.question):
        return "points at the passage"
    return flaw(pair)
