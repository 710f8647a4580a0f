"""Repairs that go further than cleaning: they change characters of damaged text, and say which rows had better go.

:mod:`ftdocs.data.clean`, through which every row passes, loses nothing; what is done here is for the one who knows the
data to choose. The packages come with ``pip install ftdocs[text]``.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from ftdocs.errors import InputError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.matcher import Matcher

Row = dict[str, Any]
BREAKS = "br p div li tr hr h1 h2 h3 h4 blockquote".split()  # where a line ends
TAGS = [*BREAKS, *"a b i u em strong span font small big ul ol table td th img sub sup tt pre code".split()]
# A `<` that begins none of these tags is text: `<3`, `a < b`, `<grin>`, `p <a and q> b`.
ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+)"""
NO_TAG = re.compile(rf"<(?!/?(?:{'|'.join(TAGS)})(?:{ATTRIBUTE})*\s*/?>)", re.IGNORECASE)
NO_ENTITY = re.compile(
    r"&(?!(?:#\d+|#x[0-9a-f]+|\w+);)", re.IGNORECASE
)  # AT&T, which the parser would shorten
BEFORE_MARK = re.compile(r"(?<![^\S\n])[^\S\n]+(?=(?:[,.;:!?)\]]+|'(?:s|d|m|ll|re|ve))(?:\s|$))")
AFTER_BRACKET = re.compile(r"(?<=[(\[])[^\S\n]+")
LONG_RUN = re.compile(r"([^\W\d_]|[!?])\1{3,}")


def decode(content: bytes, where: str, candidates: Iterable[str] = ()) -> tuple[str, str]:
    """Text out of bytes of an unknown encoding, and the encoding's name: UTF-8 if it can be that, else the likeliest.

    Whether it is UTF-8 is nearly certain, as other text is hardly ever valid UTF-8. Which of the older encodings it is
    has to be guessed from how much the result looks like language (charset-normalizer). Neighbours such as cp1252 and
    cp1250 differ in a few letters and are easily confused: name the ``candidates`` if you know where a file is from.

    Raises:
        InputError: no encoding fits; the bytes are no text.
    """
    try:
        return content.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        best = from_bytes(content, cp_isolation=list(candidates) or None).best()
        if best is None:
            raise InputError(
                f"{where}: in no known encoding; it is not text, or damaged: export it again"
            ) from None
        return str(best), best.encoding


def strip_html(text: str) -> str:
    """Text without the tags that scraping has left in it; ``<br>`` and the ends of paragraphs become line breaks."""
    from bs4 import BeautifulSoup

    guarded = NO_TAG.sub("&lt;", text)
    if "<" not in guarded:
        return text
    soup = BeautifulSoup(NO_ENTITY.sub("&amp;", guarded), "html.parser")
    for tag in soup(BREAKS):
        tag.append("\n")
    return soup.get_text()


def fix_characters(text: str) -> str:
    """Text in which what a wrong decoding has made of its letters is undone, by ftfy (Speer 2019).

    ``dÃ©jÃ  vu`` becomes ``déjà vu``; control characters that were Windows' dashes and quotes become those. It acts
    only where the result is clearly better, so sound text stays, but for curly quotes and ligatures, made plain.
    """
    import ftfy

    return ftfy.fix_text(text)


def fix_spacing(text: str) -> str:
    """Text with one space between words, none before a mark that ends a word, and runs of a letter cut to three.

    ``a film , soooooo good !!!!!!`` becomes ``a film, sooo good!!!``. Not for code, whose indentation it would spoil.
    """
    text = AFTER_BRACKET.sub("", BEFORE_MARK.sub("", text))
    text = LONG_RUN.sub(lambda run: run[1] * 3, text)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def repair(text: str) -> str:
    """All repairs, in the order in which they need each other: tags, then characters, then spacing."""
    return fix_spacing(fix_characters(strip_html(text)))


@cache
def identifier() -> Any:
    """The language identifier of py3langid, with probabilities."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language(text: str) -> tuple[str, float]:
    """The likeliest language of a text (ISO 639 code) and its probability (Lui and Baldwin 2012, langid.py).

    A few words are too little to tell: ask for a high probability before a row is dropped for it.
    """
    code, probability = identifier().classify(text)
    return code, float(probability)


def screen(
    rows: Iterable[Row],
    languages: tuple[str, ...] = ("en",),
    certain: float = 0.95,
    words: tuple[int, int] = (3, 2000),
) -> tuple[list[Row], dict[str, list[int]]]:
    """The rows worth keeping, and for each reason the ``row`` numbers of those that are not.

    Reasons, the first that holds: ``no text`` and ``no label`` (null or blank), ``too short`` and ``too long`` (fewer
    or more than ``words``), ``language`` (with probability ``certain`` or more another than ``languages``).
    """
    kept: list[Row] = []
    dropped: dict[str, list[int]] = {
        reason: [] for reason in ("no text", "no label", "too short", "too long", "language")
    }
    for row in rows:
        text, label = (str(row.get(name) if row.get(name) is not None else "") for name in ("text", "label"))
        count = len(text.split())
        if not count:
            reason = "no text"
        elif not label.strip():
            reason = "no label"
        elif not words[0] <= count <= words[1]:
            reason = "too short" if count < words[0] else "too long"
        else:
            code, probability = language(text)
            reason = "language" if code not in languages and probability >= certain else ""
        if reason:
            dropped[reason].append(row["row"])
        else:
            kept.append(row)
    return kept, dropped


def rating_matcher(nlp: "Language") -> "Matcher":
    """A spaCy matcher for ratings that are written out, such as ``8/10``, ``8 / 10`` and ``eight out of ten``.

    It needs a tokenizer only, so a blank pipeline: ``spacy.blank("en")``.
    """
    from spacy.matcher import Matcher

    number: dict[str, Any] = {"LIKE_NUM": True}
    best = {"LOWER": {"IN": ["10", "ten"]}}
    matcher = Matcher(nlp.vocab)
    matcher.add(
        "rating",
        [
            [{"TEXT": {"REGEX": r"^(?:10|\d)(?:[.,]\d)?/10$"}}],
            [number, {"LOWER": "/"}, best],
            [number, {"LOWER": "out"}, {"LOWER": "of"}, best],
        ],
    )
    return matcher
