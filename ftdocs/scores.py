"""How good an answer is beside the wanted one: exact match, token F1, ROUGE-L, similarity; and what is wrong."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from ftdocs.answer import Answer

METRICS = ("exact_match", "f1", "rouge_l", "similarity")
WORD = re.compile(r"[^\W_]+")
ARTICLES = re.compile(r"\b(a|an|the)\b")
REFUSAL = re.compile(
    r"\b(?:I(?: a|')m sorry|I apologi[sz]e|I (?:can ?no|can'|do no|don')t (?:know|answer|help|provide|assist|have)|"
    r"I(?: a|')m (?:not able|unable|not sure)|as an? (?:AI|language model|assistant)|"
    r"(?:passages?|documents?|context) (?:do|does) ?(?:not|n't) (?:say|mention|contain|answer))\b",
    re.IGNORECASE,
)
MARKUP = re.compile(
    r"<\|?/?(?:im_start|im_end|endoftext|system|user|assistant|s|begin_of_text|eot_id)\|?>|\[/?INST\]"
    r"|###? ?(?:Instruction|Response)|^(?:user|assistant|system|Question)\s*:?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
STOP = frozenset(
    "a an the of to in on at by for from with and or not no is are was were be been it its this that these those as if "
    "then than so which who what how when where can may will would should must do does did has have had you your i we "
    "they their there here into also such other one any all each only more most".split()
)
BEGINNING = 200  # characters in which a refusal stands
REPEATS = 3  # of one line or sentence
KNOWN = 0.5  # share of the words that matter

# What is wrong with an answer, by rules in this order: the first that holds. They read words, not meaning.
CATEGORIES = {
    "empty": "no letter or digit",
    "refused": f"says in its first {BEGINNING} characters that it cannot, and the wanted answer does not",
    "ran on": "cut off by the limit, which the wanted answer is within",
    "format": f"marks of the chat template, or one line or sentence of three words {REPEATS} times",
    "wrong fact": f"less than {KNOWN:.0%} of the wanted answer's words that the question does not have, function words "
    "left out",
    "right": "none of these",
}


def normalised(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: lower case, without punctuation and articles."""
    folded = text.lower().translate(str.maketrans("", "", string.punctuation))
    return ARTICLES.sub(" ", folded).split()


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are the same words (Rajpurkar et al., 2016), else 0.0."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of words, each counted as often as it stands (SQuAD's F1)."""
    given, wanted = normalised(answer), normalised(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L's F-measure (Lin, 2004): the longest common subsequence of words, by the package rouge-score.

    Words are letters and digits of any script; the package's own are a to z and 0 to 9, so that "Größe" would be "gr"
    and "e", as "Grüße" is, and Russian nothing.
    """
    from rouge_score.rouge_scorer import RougeScorer

    words = SimpleNamespace(tokenize=lambda text: WORD.findall(text.lower()))
    scorer = RougeScorer(["rougeL"], tokenizer=words)
    pairs = zip(answers, references, strict=True)
    return [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]


def similarity(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """The cosine of both texts' MiniLM vectors, of which it reads the first 256 tokens; 0.0 for an empty answer."""
    from ftdocs.embed import embed

    vectors = embed([*answers, *references])
    cosines = (vectors[: len(answers)] * vectors[len(answers) :]).sum(axis=1)
    return np.where([bool(answer.strip()) for answer in answers], cosines, 0.0).tolist()


def scored(answers: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Every metric of :data:`METRICS`, one score a row, from 0 (similarity: -1) to 1."""
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": [exact_match(*pair) for pair in pairs],
        "f1": [token_f1(*pair) for pair in pairs],
        "rouge_l": rouge_l(answers, references),
        "similarity": similarity(answers, references),
    }


def key_words(text: str, question: str) -> set[str]:
    """The words of an answer that tell something: those the question has, and function words, left out."""
    return set(normalised(text)) - set(normalised(question)) - STOP


def category(answer: Answer, question: str, reference: str, within_limit: bool = True) -> str:
    """What is wrong with an answer: the first of :data:`CATEGORIES` that holds.

    Args:
        within_limit: the wanted answer has fewer tokens than an answer may have.
    """
    if not any(sign.isalnum() for sign in answer.text):
        return "empty"
    if REFUSAL.search(answer.text[:BEGINNING]) and not REFUSAL.search(reference):
        return "refused"
    if not answer.ended and within_limit:
        return "ran on"
    units = [" ".join(unit.split()) for unit in re.split(r"\n|(?<=[.!?])\s", answer.text)]
    repeats = Counter(unit for unit in units if len(unit.split()) >= 3)
    if (MARKUP.search(answer.text) and not MARKUP.search(reference)) or max(
        repeats.values(), default=0
    ) >= REPEATS:
        return "format"
    wanted = key_words(reference, question) or set(normalised(reference))
    if len(wanted & set(normalised(answer.text))) < KNOWN * len(wanted):
        return "wrong fact"
    return "right"
