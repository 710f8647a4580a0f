"""Retrieval: both ways and their fusion find what answers a question, measured on docstrings of a package."""

import make_documents
import numpy as np
import pytest

from ftdocs.data.docstrings import collect
from ftdocs.errors import InputError
from ftdocs.retrieve import BM25, Retriever, hit_rate, passages, reciprocal_ranks, words

PASSAGES = 45


@pytest.fixture(scope="module")
def corpus() -> tuple[list[dict], list[str], list[str]]:
    """Docstrings without their first sentence, which is what is asked: no passage repeats its question."""
    rows, asked = [], []
    for row in collect(["scikit-learn"]):
        summary, _, rest = row["text"].partition("\n\n")
        if 6 <= len(summary.split()) <= 20 and len(rest.split()) >= 60:
            rows.append({"text": rest[:600], "source": str(len(rows)), "where": "line 3"})
            asked.append(" ".join(summary.split()))
    step = len(rows) // PASSAGES
    return (
        rows[::step][:PASSAGES],
        asked[::step][:PASSAGES],
        [row["source"] for row in rows[::step][:PASSAGES]],
    )


def test_both_ways_and_their_fusion_find_held_out_questions(corpus):
    rows, asked, sources = corpus
    both = Retriever(rows)
    rates = {"both": hit_rate(both, asked, sources, k=3)}
    for way in ("bm25", "minilm"):
        one = Retriever(rows[:1], ["bm25"])
        one.passages, one.indexes = both.passages, {way: both.indexes[way]}
        rates[way] = hit_rate(one, asked, sources, k=3)
    assert rates["bm25"] > 0.7 and rates["minilm"] > 0.7 and rates["both"] > 0.75
    shuffled = sources[1:] + sources[:1]
    assert hit_rate(both, asked, shuffled, k=3) < 0.3, "chance is 3 of 45"
    hits = both.search(asked[0], 5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True) and len(hits) == 5
    assert hits[0].text == rows[hits[0].place]["text"] and hits[0].where == "line 3"
    assert set(hits[0].scores) == {"bm25", "minilm"} and hits[0].scores["minilm"] <= 1.001
    assert both.search_all(asked[:3], 2)[1][0].place == both.search(asked[1], 2)[0].place


def test_bm25_is_what_the_formula_says():
    texts = ["the pump is red", "the pump and the other pump", "a lamp"]
    scores = BM25(texts).scores(["pump lamp", "nothing", "?"])
    lengths = [len(words(text)) for text in texts]

    def term(word: str, place: int) -> float:
        frequency = words(texts[place]).count(word)
        having = sum(word in words(text) for text in texts)
        idf = np.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        return idf * frequency / (frequency + 1.5 * (0.25 + 0.75 * lengths[place] / np.mean(lengths)))

    expected = [term("pump", place) + term("lamp", place) for place in range(3)]
    assert scores[0] == pytest.approx(expected, rel=1e-5)
    assert not scores[1:].any()


def test_names_are_found_whole_and_by_their_parts():
    assert words("Set seq_len=512, isn't it? E-Mail!") == "set seq_len seq len 512 isn't it e-mail".split()
    found = Retriever([{"text": "seq_len is tokens"}, {"text": "a len of rope"}], ["bm25"]).search("seq_len")
    assert [hit.place for hit in found] == [0, 1]


def test_fused_ranks_are_the_sum_of_reciprocal_ranks():
    scores = np.array([[0.5, 3.0, 0.0, -1.0]])
    assert reciprocal_ranks(scores).tolist() == [[1 / 62, 1 / 61, 0, 0]]


def test_a_folder_is_searched_with_titles_and_sources(tmp_path):
    folder = make_documents.manual(tmp_path / "docs", 6)
    found = Retriever(passages(folder), ["bm25"])
    (hit,) = found.search("How do I mount the lamp?", 1)
    assert hit.source == "lamp.md" and "mount the lamp" in hit.text and hit.where.startswith("line ")
    assert found.search("zebra") == []
    rows = [{"text": "Take the lid off."}, {"text": "Take the lid off.", "headings": ("Giraffe", "Cleaning")}]
    assert [hit.place for hit in Retriever(rows, ["bm25"]).search("giraffe")] == [1]


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(InputError, match="there are no passages"):
        Retriever([])
    with pytest.raises(InputError, match="give one or both of bm25, minilm"):
        Retriever([{"text": "x"}], ["tfidf"])
    with pytest.raises(InputError, match="ask for one passage at least"):
        Retriever([{"text": "x"}], ["bm25"]).search("x", 0)
    with pytest.raises(InputError, match="1 questions and 0 sources"):
        hit_rate(Retriever([{"text": "x"}], ["bm25"]), ["x"], [])
