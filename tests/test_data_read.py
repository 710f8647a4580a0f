"""Every format in every kind of file, and every broken file: one line that says where and what to do."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ftdocs import recipe
from ftdocs.data.formats import recognise, renaming, unused_columns
from ftdocs.data.prepare import checked_rows, load_splits
from ftdocs.data.read import READERS, read_rows
from ftdocs.errors import InputError
from ftdocs.recipe import Data

CHAT = [{"role": "user", "content": "Grüße?"}, {"role": "assistant", "content": "Hallo,\n  „Welt“"}]
ROWS = {
    "messages": {"messages": CHAT},
    "prompt": {"prompt": "Q: è\nA:", "completion": " 1,5"},
    "instruction": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "text": {"text": 'She said "no",\n\n    then left.'},
    "label": {"text": "Fine film", "label": "good"},
}
KINDS = ("jsonl", "ndjson", "json", "data.json", "csv", "tsv", "parquet", "folder", "dict-folder")


def write(path, kind, rows):
    if kind in ("jsonl", "ndjson"):
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8-sig")
    elif kind == "data.json":
        path.write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
            writer.writerows(cells)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "folder":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ROWS)
def test_every_format_from_every_kind_of_file(tmp_path, format, kind):
    path = tmp_path / f"mine.{kind}"
    write(path, kind, [ROWS[format], {**ROWS[format]}])
    rows, found, blank = checked_rows(path)
    assert (found, blank) == (format, 0)
    assert rows == [{"row": 1, **ROWS[format]}, {"row": 2, **ROWS[format]}]


def good(number):
    return json.dumps({"prompt": f"p{number}", "completion": "c"}).encode()


def seventeenth(line):
    return b"\n".join([*map(good, range(16)), line, good(18)])


BAD_TEXT_FILES = [
    ("a.jsonl", seventeenth(b'{"prompt": "x", '), r"a\.jsonl, row 17: not valid JSON"),
    ("a.jsonl", seventeenth(b'["x"]'), "row 17: a row must be an object with named fields, not a list"),
    ("a.jsonl", seventeenth(b'"x"'), "row 17: .*not text"),
    ("a.jsonl", seventeenth(b'{"prompt": "x"}'), "row 17: no column `completion`"),
    ("a.jsonl", seventeenth(b'{"prompt": "x", "completion": null}'), "row 17: `completion` is null, not text"),
    ("a.jsonl", seventeenth(b'{"prompt": 3, "completion": "x"}'), "row 17: `prompt` is int, not text"),
    ("a.jsonl", seventeenth(b'{"prompt": "x", "completion": " "}'), "row 17: `completion` is empty"),
    ("a.jsonl", seventeenth(b'{"prompt": "x", "completion": "a\\u0000"}'), "row 17: a NUL character"),
    ("a.jsonl", seventeenth(b'{"prompt": "x", "completion": "\\ud800"}'), "row 17: half a surrogate pair"),
    ("a.jsonl", seventeenth(b'{"prompt": "caf\xe9", "completion": "x"}'), r"line 17: not UTF-8 \(byte 0xe9.*-f cp1252"),
    ("a.jsonl", seventeenth(good(17) + b"\0"), "line 17: a NUL byte"),
    ("a.jsonl", b"[" * 100_000, "row 1: not valid JSON"),
    ("a.jsonl", b"", "no rows in it"),
    ("a.jsonl", b"\n\n", "no rows in it"),
    ("a.jsonl", "x".encode("utf-16"), "encoded as UTF-16.*iconv -f utf-16"),
    ("a.json", b"[" + b",\n".join([*map(good, range(16)), b'{"prompt": }', good(18)]) + b"]", "row 17: not valid JSON"),
    ("a.json", b"[" + good(1) + b" " + good(2) + b"]", "row 1: neither a comma nor"),
    ("a.json", b"[" + good(1) + b",]", "row 2: not valid JSON"),
    ("a.json", b"[" + good(1), "row 1: neither a comma nor"),
    ("a.json", good(1) + b"\n" + good(2), r"name the file \.jsonl"),
    ("a.json", b'{"rows": []}', "without a `data` list"),
    ("a.json", b'"x"', "not a JSON array"),
    ("a.json", b"[]", "no rows in it"),
    ("a.json", b"", "no rows in it"),
    ("a.csv", b"prompt,completion\n" + b"a,b\n" * 16 + b"a,b,c\n", "row 17: 3 fields where the header has 2"),
    ("a.csv", b"prompt,completion\n" + b"a,b\n" * 16 + b"a\n", "row 17: 1 fields where the header has 2"),
    ("a.csv", b'prompt,completion\na,"b\n', "row 1: broken CSV"),
    ("a.csv", b"text,text\na,b\n", "empty or repeated name"),
    ("a.csv", b"text\n", "no rows in it"),
    ("a.csv", b"text;label\na;b\n", "separated by semicolons"),
    ("a.csv", b"text\ra\rb\r", "header line: broken CSV"),
    ("a.csv", b"text\na\xe9\n", "line 2: not UTF-8"),
    ("a.parquet", b"PAR1 no", "damaged, or not a Parquet file"),
    ("a.parquet", b"", "damaged, or not a Parquet file"),
    ("a.xlsx", b"x", r"cannot read \.xlsx; these work: \.jsonl"),
    ("a.md", b"x", "put it into a folder with others"),
    ("a", b"x", "a file without an ending"),
    ("a.csv", b"question,answer\na,b\n", r"\(question, answer\) are no known set; rename question to prompt and"),
    ("a.csv", b"foo,bar\na,b\n", r"\(foo, bar\) are no known set; rename them to one of: messages \| prompt, compl"),
    ("a.yaml", b"model: x\n", r"a\.yaml: is a recipe, not data; give the data file, and train with: ftdocs train "),
    ("a.csv", b"prompt,completion,text\na,b,c\n", "fit several formats.*prompt, text"),
    ("a.csv", b"prompt,chosen,rejected\na,b,c\n", "preference pairs .* later version"),
    ("a.csv", b"text,label\na,good\nb,good\n", "every row has the label 'good'"),
    ("a.csv", b"text,label\na,good\nb,\n", "row 2: `label` is empty"),
    ("a.jsonl", b'{"text": "x", "label": null}', "`label` is null"),
    ("a.jsonl", b'{"text": "x", "label": 0.5}', "`label` is float"),
    ("a.jsonl", b'{"text": " "}', "all 1 rows are blank"),
    ("a.jsonl", b'{"conversations": []}', "ShareGPT.*rename `conversations`"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD_TEXT_FILES)
def test_a_bad_file_is_one_clear_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_splits(Data(path=path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_CHATS = [
    (None, "must be a list"),
    ([], "must be a list"),
    ("no JSON", "not a JSON list"),
    ([{"role": "tool", "content": "x"}], "message 1 has the unknown role 'tool'"),
    ([{"from": "human", "value": "x"}], "ShareGPT"),
    ([{"role": "user", "content": None}], "`content of message 1` is null"),
    ([{"role": "user", "content": [{"type": "text"}]}], "`content of message 1` is list"),
    ([{"role": "user", "content": "x"}], "no assistant message"),
    ([{"role": "assistant", "content": "x"}], "the assistant speaks first"),
    ([*CHAT, {"role": "system", "content": "x"}, *CHAT], "a system message after the first"),
    ([CHAT[0], {"role": "assistant", "content": "\n"}], "`content of message 2` is empty"),
    (["x"], "message 1 must be an object"),
]


@pytest.mark.parametrize(("messages", "message"), BAD_CHATS)
def test_a_bad_conversation_names_row_and_message(tmp_path, messages, message):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in (CHAT, messages)))
    with pytest.raises(InputError, match=f"row 2: .*{message}"):
        load_splits(Data(path=path))


def test_folders_that_are_not_data(tmp_path):
    with pytest.raises(InputError, match="a folder without documents"):
        next(read_rows(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        next(read_rows(tmp_path / "missing.jsonl"))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match="not a dataset that save_to_disk wrote"):
        next(read_rows(tmp_path))
    datasets.DatasetDict({"dev": datasets.Dataset.from_list([{"text": "x"}])}).save_to_disk(
        tmp_path / "dev-only"
    )
    with pytest.raises(InputError, match=r"no `train` split \(there are: dev\)"):
        next(read_rows(tmp_path / "dev-only"))


def test_class_labels_come_by_name_and_numbers_in_order(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(20)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "named")
    assert load_splits(Data(path=tmp_path / "named")).labels == ["no", "yes"]
    path = tmp_path / "numbers.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{n}", "label": n % 11}) for n in range(66)))
    assert load_splits(Data(path=path)).labels == [str(n) for n in range(11)]


def test_blank_lines_and_texts_are_passed_over_and_counted(tmp_path):
    path = tmp_path / "wiki.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": ""}\n{"text": "b"}\n{"text": "c"}\n')
    splits = load_splits(Data(path=path))
    assert splits.report["blank"] == 1
    assert sorted(row["row"] for part in (splits.train, splits.validation, splits.test) for row in part) == [
        1,
        4,
        5,
    ]


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ("question answer", "rename question to prompt and answer to completion"),
        ("q a id", "rename q to prompt and a to completion"),
        ("input output", "rename input to prompt and output to completion"),
        ("prompt response", "rename response to completion"),
        ("instruction input response", "rename response to output"),
        ("sentence label", "rename sentence to text"),
        ("review sentiment", "rename review to text and sentiment to label"),
        ("Text Label", "rename Text to text and Label to label"),
        ("id content", "rename content to text"),
        ("Messages", "rename Messages to messages"),
        ("foo bar", ""),
        ("answer id", ""),
    ],
)
def test_near_columns_are_named_and_the_renaming_works(columns, advice):
    assert renaming(columns.split()) == advice
    row = dict.fromkeys(columns.split(), "x")
    with pytest.raises(InputError, match="no known set") as caught:
        recognise(row)
    assert "preference" not in str(caught.value)
    assert advice in str(caught.value)
    if advice:  # whoever follows it gets on
        for pair in advice.removeprefix("rename ").split(" and "):
            before, after = pair.split(" to ")
            row[after] = row.pop(before)
        recognise(row)


LABEL_LIKE = [
    ("sentiment", lambda n: ["good", "bad"][n % 2], 2),
    ("stars", lambda n: n % 5, 5),
    ("id", lambda n: n, 0),
    ("pairs", lambda n: n // 2, 20),  # 40 rows of 20 values
    ("one", lambda n: "same", 0),
    ("source", lambda n: ["web", "book"][n % 2], 0),
    ("gaps", lambda n: ["good", "bad", None][n % 3], 0),
    ("score", lambda n: n % 2 / 2, 0),
    ("tags", lambda n: [n % 2], 0),
]


@pytest.mark.parametrize(("column", "value", "classes"), LABEL_LIKE)
def test_unused_columns_and_how_many_classes_they_could_be(column, value, classes):
    rows = [{"row": n + 1, "text": f"t{n}", column: value(n)} for n in range(40)]
    assert unused_columns(rows, "text") == {column: classes}
    assert unused_columns(rows, "text", group=column) == {}
    if column == "pairs":
        assert unused_columns([*rows, {"row": 41, "text": "t", column: 99}], "text") == {column: 0}


def test_what_a_format_uses_is_not_unused():
    row = {"row": 1, "instruction": "a", "input": "b", "output": "c", "text": "d"}
    assert list(unused_columns([row], "instruction")) == ["text"]
    assert list(unused_columns([row], "text")) == ["instruction", "input", "output"]


def test_the_nearest_file_is_named_and_no_other(tmp_path):
    (tmp_path / "reviews.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "reviews.yaml").write_text("model: x\n")
    for name in ("review.jsonl", "reviews.csv"):
        with pytest.raises(InputError, match=r"no such file or folder; did you mean .*reviews\.jsonl\?"):
            next(read_rows(tmp_path / name))
    for path in (tmp_path / "faq.jsonl", tmp_path / "none" / "reviews.jsonl"):
        with pytest.raises(InputError, match="no such file or folder; check the path"):
            next(read_rows(path))


def test_recipes_know_the_endings_of_data():
    assert {*recipe.DATA, ".json"} == set(READERS)


def test_our_own_row_numbers_are_no_group(tmp_path):
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}", "row": "one"}) + "\n" for n in range(9)))
    with pytest.raises(InputError, match=r"faq\.jsonl: data\.group is `row`.*rename the column"):
        load_splits(Data(path=path, group="row"))


def test_only_the_rows_that_are_asked_for(tmp_path):
    path = tmp_path / "faq.jsonl"
    lines = [{"text": f"text {n}", "source": "ab"[n % 2], "year": 2000 + n % 3} for n in range(30)]
    path.write_text("\n".join(map(json.dumps, lines)))
    splits = load_splits(Data(path=path, where={"source": "b", "year": 2001}))
    assert sorted(row["row"] for row in [*splits.train, *splits.validation, *splits.test]) == [
        2,
        8,
        14,
        20,
        26,
    ]
    with pytest.raises(InputError, match=r"faq\.jsonl: no row has source: c; change data\.where"):
        load_splits(Data(path=path, where={"source": "c"}))
    with pytest.raises(
        InputError, match=r"row 1: data\.where: no column `origin` \(columns: text, source, year\)"
    ):
        load_splits(Data(path=path, where={"origin": "b"}))
