"""Preparing ten times the rows takes no more memory than a few bytes a row, and gives what lists in memory give."""

import errno
import json
import os
import random
from bisect import bisect_left, insort

import numpy as np
import pytest
from transformers import AutoTokenizer

from ftdocs.assets import model_path
from ftdocs.cli import main
from ftdocs.data.chat import IGNORED
from ftdocs.data.clean import digest, prompt_key, text_key
from ftdocs.data.pack import pack
from ftdocs.data.prepare import encode, load_splits
from ftdocs.data.store import Stored, keys_of, take
from ftdocs.errors import InputError
from ftdocs.recipe import Data

ROWS, TIMES = 2000, 10  # of 3 kB: 6 MB of text, then 60 MB
BYTES_A_ROW = (
    300  # may stay behind in memory, a tenth of a row's text: places, keys, numbers and what sorts them
)

# Peak memory of a process of its own, as the system counts it: that includes what NumPy, sorting and the allocator
# take, of which tracemalloc, which would also make this several times slower, sees only a part. The tokenizer makes
# few tokens of much text and keeps nothing: this is about what preparation keeps.
PREPARE = """
import json, resource, sys
from pathlib import Path
import numpy, torch
from ftdocs.data import clean, pack, prepare
from ftdocs.recipe import Data

if sys.argv[3] == "keeping":  # the fault that this test is there for
    class Kept(list):
        def __init__(self, rows=(), keys=()):
            super().__init__(rows)
    prepare.Stored = Kept
class Words:
    is_fast, eos_token_id = True, 0

    def __call__(self, texts, verbose):
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

def prepared(path):
    splits = prepare.load_splits(Data(path=path, group="author"))
    packed = pack.pack(prepare.encode(splits.train, splits.format, Words(), 512), 512)
    return splits, sum(len(row["input_ids"]) for row in packed)

def peak():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would begin with that of the process before
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

prepared(Path(sys.argv[1]))  # libraries load parts of themselves, and batches fill their buffers
before = peak()
splits, tokens = prepared(Path(sys.argv[2]))
print(json.dumps({"grown": peak() - before, "rows": splits.report["rows"], "tokens": tokens}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A JSONL file, and one with ten times the rows, all different."""
    folder = tmp_path_factory.mktemp("rows")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=99)) for _ in range(500)]
    paths = [folder / "small.jsonl", folder / "large.jsonl"]
    for path, count in zip(paths, (ROWS, ROWS * TIMES), strict=True):
        with path.open("w") as file:
            for number in range(count):
                text = " ".join([str(number), *draw.choices(words, k=30)])
                file.write(json.dumps({"text": text, "author": number // 3}) + "\n")
    return paths


def test_ten_times_the_rows_take_a_few_bytes_each(files, run_python):
    found = measured(run_python, files, "streaming")
    assert found["rows"] == ROWS * TIMES
    assert found["tokens"] > 20 * found["rows"]  # all of the training split was encoded and packed
    assert found["grown"] < BYTES_A_ROW * ROWS * TIMES, f"{found['grown'] / found['rows']:.0f} bytes a row"


def test_this_would_show_if_rows_were_kept(files, run_python):
    found = measured(run_python, files, "keeping")
    assert found["grown"] > 5 * BYTES_A_ROW * ROWS * TIMES


def measured(run_python, files, how):
    done = run_python(PREPARE, *map(str, files), how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def in_memory(path, seed):
    """The splits of a file of texts that stand alone, computed from lists: read, deduplicate, shuffle, cut."""
    kept = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        row = {"row": number, "text": json.loads(line)["text"]}
        other = kept.get(text_key(row))
        if other is None or row["text"] < other["text"]:
            kept[text_key(row)] = row
    rows = sorted(kept.values(), key=lambda row: digest(str(seed).encode(), text_key(row)))
    held_out = round(0.1 * len(rows))
    return rows[2 * held_out :], rows[held_out : 2 * held_out], rows[:held_out]


def packed_in_memory(encoded, seq_len):
    """Best-fit decreasing as it is written in textbooks, with every row joined."""
    bins, room = [], []
    for row in sorted(encoded, key=lambda row: -len(row["input_ids"])):
        length = len(row["input_ids"])
        place = bisect_left(room, (length, 0))
        free, number = room.pop(place) if place < len(room) else (seq_len, len(bins))
        if number == len(bins):
            bins.append({"input_ids": [], "labels": [], "position_ids": [], "rows": []})
        bins[number]["input_ids"] += row["input_ids"]
        bins[number]["labels"] += [IGNORED, *row["labels"][1:]]
        bins[number]["position_ids"] += range(length)
        bins[number]["rows"].append(row["row"])
        insort(room, (free - length, number))
    return bins


@pytest.fixture(scope="module")
def smollm2():
    return AutoTokenizer.from_pretrained(model_path("smollm2-135m-instruct"))


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_tokens_and_packed_rows_are_those_of_lists_in_memory(tmp_path, smollm2, seed):
    draw = random.Random(seed)
    texts = [
        " ".join(draw.choices("one Two three. four FIVE".split(), k=draw.randint(1, 40))) for _ in range(1500)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    splits = load_splits(Data(path=path), seed)
    expected = in_memory(path, seed)
    assert splits.report["duplicates"] == len(texts) - sum(map(len, expected)) > 20
    assert [list(part) for part in (splits.train, splits.validation, splits.test)] == list(expected)
    assert splits.numbers()["test"] == [row["row"] for row in expected[2]]

    encoded = encode(splits.train, "text", smollm2, 24)
    pieces = []
    for row in expected[0]:
        ids = [*smollm2(row["text"])["input_ids"], smollm2.eos_token_id]
        for start in range(0, len(ids) - 1, 23):
            piece = ids[start : start + 24]
            pieces.append({"input_ids": piece, "labels": [IGNORED, *piece[1:]], "row": row["row"]})
    assert list(encoded) == pieces

    packed = pack(encoded, 24)
    assert list(packed) == packed_in_memory(pieces, 24)
    assert packed[-1] == packed[len(packed) - 1] and packed[1:3] == [packed[1], packed[2]]
    with pytest.raises(IndexError):
        packed[len(packed)]


def test_rows_are_read_and_tokenised_once_each_however_many(tmp_path, monkeypatch, smollm2):
    """Work grows with the rows and no faster: counted, as a busy machine's clock is no measure."""
    counts = {}
    read = Stored.__getitem__

    def counted(self, index):
        counts["reads"] += not isinstance(index, slice)
        return read(self, index)

    monkeypatch.setattr(Stored, "__getitem__", counted)
    for rows in (200, 2000):
        path = tmp_path / f"{rows}.jsonl"
        path.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(rows)))
        counts["reads"] = 0
        splits = load_splits(Data(path=path, limit=rows - 1))
        packed = pack(encode(splits.train, "text", smollm2, 64), 64)
        assert sum(len(row["rows"]) for row in packed) == len(splits.train)
        counts[rows] = counts["reads"] / rows
    assert 2 < counts[2000] <= 3  # to be tokenised, to be counted, to be joined
    assert counts[2000] == pytest.approx(counts[200], rel=0.02)


def test_stored_rows_are_used_as_a_list_is(tmp_path, monkeypatch):
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "cache"))
    rows = [{"row": n, "text": f"é{n}" * n, "ids": [n, -100]} for n in range(1, 8)]
    stored = Stored(iter(rows), keys=(text_key,))
    assert stored == rows and list(stored) == rows and len(stored) == 7
    assert (
        stored[0] == rows[0] and stored[-1] == rows[-1] and stored[1:6:2] == rows[1:6:2] and rows[2] in stored
    )
    with pytest.raises(IndexError):
        stored[7]
    view = take(stored, np.array([5, 0]))
    assert view == take(rows, np.array([5, 0])) == [rows[5], rows[0]]
    for key in (text_key, prompt_key):
        assert keys_of(view, key).tolist() == [key(row) for row in view]
    view.append(rows[1])  # to the same file, where it is in nobody's way
    stored.append(rows[2])
    assert view == [rows[5], rows[0], rows[1]] and stored == [*rows, rows[2]]
    assert not list(
        (tmp_path / "cache").iterdir()
    )  # nothing is left behind, even by a process that is killed


def test_rows_can_be_read_by_forked_processes():
    stored = Stored({"row": n} for n in range(100))
    assert stored[0] == {"row": 0}
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            os._exit(sum(row["row"] for _ in range(50) for row in stored) != 50 * 4950)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch, capsys):
    """Nothing smaller than a disk can be filled everywhere: its error stands for it."""

    class Full:
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def tell(self):
            return 0

    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="the disk is full; free some space"):
        load_splits(Data(path=path))
    assert main(["new", str(path), "--output", str(tmp_path / "mine.yaml")]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1 and f"{tmp_path}: the disk is full" in line


def test_rows_are_read_where_a_file_has_one_place_for_reading_and_writing(monkeypatch):
    """As on Windows, which has no ``pread``."""
    monkeypatch.delattr(os, "pread")
    rows = Stored({"row": number} for number in range(5))
    assert rows[3] == {"row": 3}
    rows.append({"row": 5})
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4, 5]
