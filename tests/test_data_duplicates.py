"""Near-duplicates: those there are, no others, in any order, and none of them in two splits."""

import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from ftdocs.data.duplicates import bands, jaccard, near_duplicates, one_of_each, shingles

WORDS = [f"word{number}" for number in range(400)]


def text(seed, length=60):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def changed(original, *places):
    words = original.split()
    for place in places:
        words[place] = f"other{place}"
    return " ".join(words)


def by_comparing_all(texts, threshold):
    """The groups by their definition, without signatures: all pairs."""
    runs = [(t.lower().split(), range(len(t.split()) - 2)) for t in texts]
    sets = [{tuple(words[start : start + 3]) for start in starts} for words, starts in runs]
    groups = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b]):
            groups = [groups[a] if group == groups[b] else group for group in groups]
    numbers = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def family(seed):
    """An original, a copy with one word changed, one with eight, and one in capitals with other white space."""
    original = text(seed)
    return [
        original,
        changed(original, 30),
        changed(original, *range(4, 60, 7)),
        original.upper().replace(" ", "\n "),
    ]


TEXTS = [copy for seed in range(40) for copy in family(seed)]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_it_finds_what_comparing_all_pairs_finds(threshold):
    assert near_duplicates(TEXTS, threshold) == by_comparing_all(TEXTS, threshold)


def test_a_group_is_one_word_apart_and_others_are_apart():
    groups = near_duplicates(TEXTS[:8], 0.7)
    assert groups == [0, 0, 1, 0, 2, 2, 3, 2]


def test_the_order_changes_numbers_but_not_groups():
    order = list(range(len(TEXTS)))
    random.Random(0).shuffle(order)
    there, here = near_duplicates([TEXTS[place] for place in order]), near_duplicates(TEXTS)
    pairs = {(there[at], here[place]) for at, place in enumerate(order)}
    assert len(pairs) == len(set(here)) == len(set(there))
    assert there[0] == 0  # numbered in the order in which groups first come


def test_a_chain_is_one_group():
    original = text(1, 100)
    chain = [changed(original, *range(5, 5 + 6 * links, 6)) for links in range(9)]
    assert jaccard(shingles(chain[0]), shingles(chain[-1])) < 0.7
    assert set(near_duplicates(chain, 0.7)) == {0}


def test_short_empty_and_repeated_texts():
    assert near_duplicates([]) == []
    assert near_duplicates(["", " ", "a", "A!", "a b", "b a", "a b"]) == [0, 0, 1, 1, 2, 3, 2]
    assert len(set(near_duplicates(["good film"] * 500))) == 1


def test_hundreds_that_are_all_alike_are_quick():
    original = text(2, 200)
    assert set(near_duplicates([changed(original, place % 200) for place in range(600)])) == {0}


def test_word_order_counts():
    assert jaccard(shingles("one two three four"), shingles("four three two one")) == 0
    assert len(shingles("one two three four")) == 2
    assert shingles("one two three").dtype == np.uint32


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_see_99_of_100_pairs_at_the_threshold(threshold):
    count, rows = bands(threshold)
    assert count * rows <= 128
    assert count >= 2
    assert 1 - (1 - threshold**rows) ** count >= 0.99 or rows == 1


def test_the_result_is_the_same_in_another_process():
    code = (
        "from ftdocs.data.duplicates import near_duplicates as near; print(near(['a b c d', 'x', 'A b c d']))"
    )
    for seed in "01":
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert run.stdout == "[0, 1, 0]\n"


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.1}, {"words": 0}, {"permutations": 1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        near_duplicates(["a"], **wrong)


def test_of_each_group_the_first_row_stays():
    said = "the same words in the same order and only the last of them is another"
    rows = [{"text": f"{said} {end}", "row": row} for row, end in enumerate(("one", "two"), 1)]
    other = {"text": "nothing that the others say is said here, not even once", "row": 3}
    assert one_of_each([*rows, other]) == [rows[0], other]
