"""Nothing that is held out is trained on: by text, by prompt, by group; whatever the file's order."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftdocs.data.clean import clean_text, deduplicate, normalise, prompt_key, text_key
from ftdocs.data.prepare import load_splits
from ftdocs.data.split import bundle, split
from ftdocs.errors import InputError
from ftdocs.recipe import Data

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.integers(0, 60).map(lambda n: f"Prompt {n}"),
            "completion": st.integers(0, 5).map(str),
            "group": st.integers(0, 60).map(str),
        }
    ),
    min_size=3,
    max_size=80,
)


def as_set(rows):
    return {(row["prompt"], row["completion"], row["group"]) for row in rows}


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.sampled_from([None, "group"]), st.integers(0, 3))
def test_no_prompt_or_group_is_in_two_splits(rows, random, group, seed):
    rows = deduplicate([{**row, "row": number} for number, row in enumerate(rows, 1)])
    bundles = len(set(bundle(rows, group)))
    if bundles < 3:
        with pytest.raises(InputError, match="too few"):
            split(rows, 0.2, 0.1, seed, group)
        return
    parts = split(rows, 0.2, 0.1, seed, group)
    assert sorted(row["row"] for part in parts for row in part) == sorted(row["row"] for row in rows)
    for key in (prompt_key, text_key, *([lambda row: row["group"]] if group else [])):
        seen = [{key(row) for row in part} for part in parts]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert all(parts)
    shuffled = rows.copy()
    random.shuffle(shuffled)
    again = split(shuffled, 0.2, 0.1, seed, group)
    assert [[row["prompt"] for row in part] for part in parts] == [
        [row["prompt"] for row in part] for part in again
    ]
    assert [as_set(part) for part in parts] == [as_set(part) for part in again]


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 200), st.sampled_from([0.0, 0.1, 0.25]), st.sampled_from([0.0, 0.1, 0.3]))
def test_sizes_are_exact_where_every_row_stands_alone(count, validation, test):
    rows = [{"row": n, "text": f"text {n}"} for n in range(count)]
    train, held_out, final = split(rows, validation, test)
    assert len(held_out) == (max(1, round(validation * count)) if validation else 0)
    assert len(final) == (max(1, round(test * count)) if test else 0)
    assert len(train) == count - len(held_out) - len(final)


def test_each_split_has_the_classes_in_proportion():
    rows = [
        {"row": n, "text": f"text {n}", "label": "rare" if n % 10 == 0 else "common"} for n in range(1000)
    ]
    for part, size in zip(split(rows, 0.1, 0.1, stratify="label"), (800, 100, 100), strict=True):
        assert len(part) == size
        assert sum(row["label"] == "rare" for row in part) == size / 10


def test_a_class_of_one_row_is_trained_on_not_tested():
    rows = [{"row": n, "text": f"text {n}", "label": "rare" if n == 0 else "common"} for n in range(20)]
    for seed in range(10):
        assert "rare" in {row["label"] for row in split(rows, 0.3, 0.3, seed, stratify="label")[0]}


def test_the_smallest_data_set_of_two_classes_keeps_both_in_training():
    rows = [{"row": n, "text": f"text {n}", "label": "ab"[n % 2]} for n in range(4)]
    for seed in range(20):
        parts = split(rows, 0.1, 0.1, seed, stratify="label")
        assert {row["label"] for row in parts[0]} == {"a", "b"}
        assert [len(part) for part in parts] == [2, 1, 1]
    with pytest.raises(InputError, match="no training row is left with label"):
        split(rows[:3], 0.1, 0.1, stratify="label")


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    rows = [{"row": n, "text": f"text {n}"} for n in range(100)]
    assert split(rows, seed=0) == split(rows, seed=0)
    assert as_numbers(split(rows, seed=0)[2]) != as_numbers(split(rows, seed=1)[2])


def as_numbers(rows):
    return {row["row"] for row in rows}


def test_a_split_of_its_own_seed_stays_while_the_training_seed_changes(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(40)))

    def test_rows(data_seed, train_seed):
        return [row["text"] for row in load_splits(Data(path=path, seed=data_seed), train_seed).test]

    assert test_rows(0, 1) == test_rows(0, 2) == test_rows(None, 0) != test_rows(None, 1)


def test_too_few_rows_name_the_minimum():
    rows = [{"row": n, "text": "the same"} for n in range(9)]
    with pytest.raises(InputError, match=r"1 different rows or groups are too few .* at least 3 are needed"):
        split(rows)
    assert [len(part) for part in split(rows, 0, 0)] == [9, 0, 0]


def test_a_large_group_does_not_empty_the_training_rows():
    rows = [{"row": n, "text": f"text {n}", "group": "big" if n < 90 else str(n)} for n in range(100)]
    train, held_out, final = split(rows, 0.1, 0.1, group="group")
    assert {row["group"] for row in train} >= {"big"}
    assert len(held_out) + len(final) == 10
    assert held_out
    assert final


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_duplicates_leave_before_the_split_and_limit_comes_after(tmp_path):
    rows = [{"text": f"Text  number {n}!"} for n in range(50)] + [
        {"text": f"text number {n}"} for n in range(25)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    splits = load_splits(Data(path=path))
    assert splits.report["rows"] == 75
    assert splits.report["duplicates"] == 25
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 5, 5)
    limited = load_splits(Data(path=path, limit=20))
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (16, 2, 2)
    again = load_splits(Data(path=write(tmp_path / "b.jsonl", rows[::-1]), limit=20))
    assert [row["text"] for row in limited.train] == [row["text"] for row in again.train]


def test_the_group_column_keeps_rows_together_and_must_be_filled(tmp_path):
    rows = [{"text": f"text {n}", "author": n // 5} for n in range(100)]
    splits = load_splits(Data(path=write(tmp_path / "a.jsonl", rows), group="author"))
    authors = [{row["group"] for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert not (authors[0] & authors[1] or authors[0] & authors[2] or authors[1] & authors[2])
    assert [len(part) for part in authors] == [16, 2, 2]
    rows[16]["author"] = None
    with pytest.raises(InputError, match="row 17: nothing in the group column `author`"):
        load_splits(Data(path=write(tmp_path / "b.jsonl", rows), group="author"))


def test_contradicting_labels_are_counted_and_kept_together(tmp_path):
    rows = [{"text": f"t{n}", "label": label} for n in range(20) for label in ("a", "b")]
    splits = load_splits(Data(path=write(tmp_path / "a.jsonl", rows)))
    assert splits.report["contradictions"] == 20
    texts = [{row["text"] for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_cleaning_keeps_code_and_drops_what_no_one_sees():
    code = "def f():\n    if x:\n\n        return 'a\\tb'\n"
    assert clean_text(code) == code
    assert clean_text("\ufeffe\u0301 \t\r\nx\x07y\r  z ") == "é\nxy\n  z "


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    assert clean_text(clean_text(text)) == clean_text(text)


def test_keys_tell_apart_what_means_different_things():
    assert normalise("What  is\n3.5? ") == normalise("what is 3.5")
    different = ["What is 3.5", "What is 35", "What is 3-5", "What is 3+5", "?", "!", "a.b", "ab"]
    assert len({normalise(text) for text in different}) == len(different)


def test_a_page_of_dots_takes_no_time():
    assert normalise("." * 1_000_000 + "x") == "." * 1_000_000 + "x"
