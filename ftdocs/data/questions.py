"""Questions and answers out of a document's structure: its headings, parameters, terms, tables and FAQs."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from zlib import crc32

from ftdocs.data.blocks import Block
from ftdocs.data.chunks import SENTENCES, Count, between, estimate_tokens, sections
from ftdocs.data.documents import SEPARATOR, Document


@dataclass(frozen=True)
class Pair:
    """A question, what the document answers, what it was made from, and where in the file that stands."""

    question: str
    answer: str
    kind: str  # faq, section, parameter, term
    where: str


# Which of several wordings a section gets is drawn by its words, so that it is the same in every run.
WORDINGS = (
    "What does {title} say about {heading}?",
    "Explain {heading} ({title}).",
    "What should I know about {heading} in {title}?",
    "Tell me about {heading}, as described in {title}.",
)
NOTHING_TO_ASK = re.compile(
    r"(?:see also|references?|(?:table of )?contents|further reading|change ?log|acknowledge?ments?|index|"
    r"bibliography|exercises?|license|licence|footnotes|links|navigation|on this page|authors?|credits)\W*",
    re.IGNORECASE,
)
OVERVIEW = re.compile(
    r"(?:overview|introduction|abstract|summary|about|description|readme)\W*", re.IGNORECASE
)
EXAMPLE = re.compile(r"(?:usage )?examples?\W*", re.IGNORECASE)
ASKED = re.compile(r"(?:\*\*|__)(.{8,200}\?)(?:\*\*|__)")  # a paragraph that is a question in bold
Q_AND_A = re.compile(
    r"(?:\*\*)?(?:Q|Question)\s*\d*[:.](?:\*\*)?\s*(\S.*?)\n[ \t]*(?:\*\*)?(?:A|Answer)\s*\d*[:.](?:\*\*)?\s*(\S.*)",
    re.DOTALL,
)
BULLET = re.compile(  # - `name` (type): what it means, with its further lines
    r"^[-*+] +(?:`([^`]{1,60})`|\*\*`?([^*`]{1,60})`?\*\*)(?: *\([^)]{0,80}\))? *(?::|–|—|-) +"
    r"(\S.*(?:\n[ \t]+(?![-*+] )\S.*)*)",
    re.MULTILINE,
)
NAMED = re.compile(
    r"(?:parameter|argument|option|field|key|flag|setting|variable|attribute|keyword|property)s?", re.I
)
DESCRIBED = re.compile(r"(?:description|meaning|what.*|effect|purpose|explanation|details|use)", re.I)
# What looks ahead finds a dot or an underscore within a name: words that both may end at either would take a time that
# doubles with every sign of a line to fill in, which is all underscores.
CODE_NAME = re.compile(r"(?:\w+ )?[\w.]*\w\(.*|(?=\w+[._]\w)\w+(?:\.\w+)*|--?\w[\w-]*")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|TBD|lorem ipsum|coming soon)\b", re.IGNORECASE)
LINK = re.compile(r"\[[^\]]*\]\([^)]*\)|https?://\S+")


def pairs(
    document: Document,
    tokens: int = 256,
    count: Count = estimate_tokens,
    left_out: Counter[str] | None = None,
) -> Iterator[Pair]:
    """The questions that a document answers by its structure, and its own words as the answer.

    A heading that asks, a question in bold and ``Q: … A: …`` are questions as they stand; other headings are worded as
    one by a template. A parameter and a term, in a list or a table too, are asked for by name. An answer has at most
    ``tokens`` and ends where a paragraph or a sentence does. What fails :func:`flaw` is left out, and its reason
    counted in ``left_out``; of a question that comes twice the first one is kept.
    """
    left_out = Counter() if left_out is None else left_out
    asked = set()
    for pair in candidates(document, tokens, count):
        reason = flaw(pair) or ("repeated question" if pair.question.casefold() in asked else "")
        if reason:
            left_out[reason] += 1
            continue
        asked.add(pair.question.casefold())
        yield pair


def candidates(document: Document, tokens: int, count: Count) -> Iterator[Pair]:
    """All pairs before any is judged."""
    blocks = [
        replace(block, kind="heading", text=found[1], level=7)
        if block.kind == "text" and (found := ASKED.fullmatch(block.text.strip()))
        else block
        for block in document.blocks
    ]
    outlines = sections(replace(document, blocks=blocks))
    starts = [place for place, block in enumerate(blocks) if block.kind == "heading"]
    for start, end in zip([-1, *starts], [*starts, len(blocks)], strict=True):
        body = blocks[start + 1 : end]
        path = outlines[start] if start >= 0 else ()
        if start >= 0 and body:
            yield from section_pair(blocks[start], path, body, document.title, tokens, count)
        for block in body:
            for question, answer, kind in within(block, path, document.title):
                yield Pair(question, shortened(answer, tokens, count), kind, block.where)


def section_pair(
    heading: Block, path: tuple[str, ...], body: list[Block], title: str, tokens: int, count: Count
) -> Iterator[Pair]:
    """The question that a heading is or stands for, answered by what follows up to the next heading."""
    words = heading.text.rstrip(" :#")
    question = words if words.endswith("?") else worded(words, path, title)
    if question:
        kind = "faq" if words.endswith("?") else "section"
        yield Pair(question, answer_of(body, tokens, count), kind, heading.where)


def worded(heading: str, path: tuple[str, ...], title: str) -> str:
    """A heading as a question, "" where it says nothing: the whole it belongs to is named in it."""
    above = path[-2] if len(path) > 1 else title
    if NOTHING_TO_ASK.fullmatch(heading):
        return ""
    if OVERVIEW.fullmatch(heading) or (heading == title and len(path) == 1):
        return f"What is {quoted(title if len(path) < 3 else above)} about?"
    if EXAMPLE.fullmatch(heading):
        return f"Give an example of {quoted(above)}."
    if how := re.match(r"how to\s+(.+)", heading, re.IGNORECASE):
        return f"How do I {how[1][0].lower() + how[1][1:]}?"
    if CODE_NAME.fullmatch(heading):
        return f"What is `{heading}`, as described in {quoted(above)}?"
    if heading == title:
        return f"What is {quoted(title)} about?"
    context = title if above == heading else above if above == title else f"{above}, {title}"
    wording = WORDINGS[crc32(heading.encode()) % len(WORDINGS)]
    return wording.format(heading=quoted(heading), title=quoted(context))


def quoted(words: str) -> str:
    """Words in quotation marks, without Markdown's."""
    return f"“{re.sub(r'[*`“”]', '', words)}”"


def within(block: Block, path: tuple[str, ...], title: str) -> Iterator[tuple[str, str, str]]:
    """Question, answer and kind of what one block says of parameters and terms, and of a question in it."""
    place = path[-1] if path else title
    place = (
        f"`{place}`"
        if CODE_NAME.fullmatch(place)
        else quoted(place if place == title else f"{place}, {title}")
    )
    if block.kind in ("parameter", "term") and block.meaning:
        yield from named(block.kind, block.name, block.meaning, place)
    elif block.kind == "table":
        rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in block.text.split("\n")]
        rows = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
        described = next((n for n, cell in enumerate(rows[0]) if n and DESCRIBED.fullmatch(cell)), None)
        if described and NAMED.fullmatch(rows[0][0]):
            for row in rows[1:]:
                if len(row) > described and not re.fullmatch(r":?-+:?", row[0]):
                    yield from named("parameter", row[0].strip("`"), row[described], place)
    elif block.kind == "text":
        for found in BULLET.finditer(block.text):
            yield from named("parameter", found[1] or found[2], " ".join(found[3].split()), place)
        if found := Q_AND_A.fullmatch(block.text.strip()):
            yield found[1].rstrip(), found[2], "faq"


def named(kind: str, name: str, meaning: str, place: str) -> Iterator[tuple[str, str, str]]:
    """The question for a parameter or a term, by name."""
    if kind == "parameter":
        yield f"What is `{name}` in {place}?", meaning, kind
    elif re.fullmatch(r"returns?|yields?", name):
        yield f"What does {place} return?", meaning, "parameter"
    elif raised := re.fullmatch(r"(?:raises?|except|exception)(?: (.+))?", name):
        yield f"When does {place} raise {raised[1] or 'an error'}?", meaning, "parameter"
    elif not re.match(r"(?:type|rtype|vartype|meta|author|version|date|status)\b", name.lower()):
        yield f"What does {quoted(name)} mean in {place}?", meaning, kind


def answer_of(body: list[Block], tokens: int, count: Count) -> str:
    """As many blocks as fit, of a first one that does not as many sentences.

    A last paragraph that ends with a colon leads to what did not fit, and is left out too.
    """
    kept: list[str] = []
    for block in body:
        if count(SEPARATOR.join([*kept, block.text])) > tokens:
            break
        kept.append(block.text)
    if len(kept) < len(body):
        while kept and kept[-1].rstrip().endswith(":"):
            kept.pop()
    if not kept and body[0].kind == "text":
        return shortened(body[0].text, tokens, count)
    return SEPARATOR.join(kept)


def shortened(text: str, tokens: int, count: Count) -> str:
    """A text, or as many of its first sentences as fit."""
    if count(text) <= tokens:
        return text
    kept = 0
    for _, end in between(SENTENCES, text, 0, len(text)):
        if count(text[:end]) > tokens:
            break
        kept = end
    return text[:kept]


def flaw(pair: Pair) -> str:
    """Why a pair is not worth training on; "" where it is."""
    question, answer = pair.question.split(), re.sub(r"```[^\n]*", "", pair.answer)
    words = re.findall(r"[^\W\d_]{2,}", LINK.sub(" ", answer))
    letters = sum(sign.isalpha() for sign in answer)
    if not pair.answer.strip():
        return "answer too long, or missing"
    if not 3 <= len(question) <= 40 or len(re.findall(r"[^\W\d_]", pair.question)) < 8:
        return "unclear question"
    if len(words) < (3 if pair.kind in ("parameter", "term", "faq") else 8):
        return "links only" if LINK.search(answer) else "short answer"
    if letters < 0.5 * len("".join(answer.split())):
        return "little prose"
    if UNFINISHED.search(answer):
        return "unfinished"
    if answer.strip().casefold() in pair.question.casefold():
        return "answer repeats the question"
    if answer.rstrip().endswith(":"):
        return "answer goes on elsewhere"
    return ""
