"""A folder of documents as data: its rows, its report, and the commands that take it."""

import gc
import json
import tracemalloc
from pathlib import Path

import make_documents
import pytest
from test_cli import refused

from ftdocs.assets import data_path
from ftdocs.cli import main
from ftdocs.data.folder import folder_rows
from ftdocs.data.prepare import load_splits
from ftdocs.data.read import read_rows
from ftdocs.errors import InputError
from ftdocs.recipe import Data, Recipe


def questions(rows) -> set[str]:
    return {row["messages"][0]["content"] for row in rows}


def test_no_document_lies_in_two_splits_in_either_format(tmp_path):
    folder = make_documents.manual(tmp_path / "docs")
    for format in ("messages", "text"):
        rows = {row["row"]: row["source"] for row in folder_rows(folder, format)}
        splits = load_splits(Data(path=folder, format=format, validation=0.2, test=0.2))
        sources = [{rows[number] for number in numbers} for numbers in splits.numbers().values()]
        assert sum(map(len, sources)) == len(set.union(*sources)) == 12
        assert all(sources) and len(sources[0]) >= 7


def test_documents_that_are_nearly_the_same_lie_in_one_split(tmp_path):
    folder = make_documents.manual(tmp_path / "docs", 10)
    for number in range(4):
        copy = (
            (folder / "pump.md")
            .read_text()
            .replace("slowly", "quickly", 1)
            .replace("page", f"page {number}", 1)
        )
        (folder / f"copy-{number}.md").write_text(copy)
    report = {}
    groups = {row["source"]: row["document"] for row in folder_rows(folder, "text", report)}
    family = {f"copy-{number}.md" for number in range(4)} | {"pump.md"}
    assert {groups[source] for source in family} == {"copy-0.md"}
    assert report["near_duplicate_documents"] == 4
    for seed in range(8):
        splits = load_splits(Data(path=folder, format="text", seed=seed))
        found = [{row["group"] for row in part} for part in (splits.train, splits.validation, splits.test)]
        assert sum("copy-0.md" in part for part in found) == 1


def test_a_question_of_many_documents_gets_the_title_unless_the_answer_is_the_same(tmp_path):
    for name in ("lamp", "valve", "motor"):
        (tmp_path / f"{name}.md").write_text(
            f"# The {name}\n\n## How is it cleaned?\n\nThe {name} is cleaned with a brush and warm water.\n\n"
            "## Who made it?\n\nThe same company in the same town made them all.\n"
        )
    asked = questions(folder_rows(tmp_path, "messages"))
    assert {f"How is it cleaned? (“The {name}”)" for name in ("lamp", "valve", "motor")} <= asked
    assert "Who made it?" in asked and len(asked) == 4
    splits = load_splits(Data(path=tmp_path, format="messages", validation=0, test=0))
    assert splits.report["duplicates"] == 2


def test_the_report_counts_what_is_there(tmp_path):
    folder = make_documents.manual(tmp_path / "docs", 4)
    bad = make_documents.bad(folder)
    (folder / "notice.md").write_text(
        "# Notice\n\nCopyright 2020 by all of us. Write to jo@acme.io or li@acme.io, or call +49 30 1234567.\n"
    )
    (folder / "photo.jpg").touch()
    report = load_splits(Data(path=folder, format="messages")).report
    assert report["files"] == {".md": 5} and report["other_files"] == {".jpg": 1}
    assert len(report["skipped"]) == len(bad)
    assert report["pairs"] == {"section": 5, "faq": 20} and report["rows"] == 25
    assert report["personal_data"] == {"e-mail": 2, "telephone": 1} and report["licences"] == {"copyright": 1}
    assert "jo@acme.io" not in json.dumps(report)
    rows = list(folder_rows(folder, "text"))
    assert report["chunks"] == len(rows) == load_splits(Data(path=folder, format="text")).report["rows"]
    masked = load_splits(Data(path=folder, format="text", validation=0, test=0, personal="mask"))
    assert (
        sum("Write to [e-mail] or [e-mail], or call [telephone]." in row["text"] for row in masked.train) == 1
    )


def test_rows_lie_on_disk_and_documents_come_one_at_a_time(tmp_path):
    words = " ".join(
        row["text"] for _, row in zip(range(900), read_rows(data_path("docstrings")), strict=False)
    ).split()
    held, size = [], 3000
    for count in (4, 4, 16):  # the first time whatever is imported or cached on the way stays
        folder = tmp_path / str(len(held))
        folder.mkdir()
        for number in range(count):
            part = words[number * size : (number + 1) * size]
            (folder / f"{number}.txt").write_text(
                "\n\n".join(" ".join(part[n : n + 90]) for n in range(0, size, 90))
            )
        tracemalloc.start()
        rows = folder_rows(folder, "text")
        next(rows)  # all documents have been read
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert sum(1 for _ in rows) > 20 * count
    more = sum(path.stat().st_size for path in folder.iterdir()) * 12 / 16
    assert more > 200_000 and held[2] - held[1] < 0.3 * more


def test_the_format_that_is_left_out_is_questions_where_there_are_enough(tmp_path):
    assert load_splits(Data(path=make_documents.manual(tmp_path / "many"))).format == "messages"
    assert load_splits(Data(path=make_documents.manual(tmp_path / "few", 4))).format == "text"
    one = tmp_path / "one"
    one.mkdir()
    for number in range(5):
        (one / f"{number}.txt").write_text(f"Plain words of file {number}, with no heading at all.")
    assert load_splits(Data(path=one)).format == "text"
    with pytest.raises(InputError, match=r"no heading, parameter or term .* set data\.format: text"):
        load_splits(Data(path=one, format="messages"))
    with pytest.raises(InputError, match="rows of the format messages or text, not label"):
        load_splits(Data(path=one, format="label"))
    with pytest.raises(
        InputError, match=r"0\.txt: is one document \(\.txt\).* put it into a folder with others"
    ):
        next(read_rows(one / "0.txt"))


def test_new_inspect_and_train_take_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    make_documents.manual(tmp_path / "my docs.v1")
    make_documents.scan(tmp_path / "my docs.v1" / "scan.pdf")
    assert main(["new", "my docs.v1", "--json"]) == 0, capsys.readouterr().err
    out, note = capsys.readouterr()
    assert json.loads(out) == {"recipe": "my docs.v1.yaml"}
    assert note.count("\n") == 1 and "my docs.v1: not read: scan.pdf: no text in its 1 pages" in note
    written = Path("my docs.v1.yaml").read_text()
    comment = " ".join(line.strip("# ") for line in written.splitlines() if line.startswith("#"))
    assert "12 documents" in comment and "72 questions with answers" in comment
    assert "1 more could not be read" in comment and "No document lies in two splits" in comment
    assert "format: messages" in written and "text: its " in written
    recipe = Recipe.load("my docs.v1.yaml")
    assert recipe.data.path == tmp_path.resolve() / "my docs.v1"

    assert main(["data", "inspect", "my docs.v1", "--json"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == {"section": 12, "faq": 60} and report["rows"] == 72 and report["ignored"] == []
    assert report["skipped"][0].startswith("scan.pdf: no text in its 1 pages")
    assert any(piece["trained"] for piece in report["samples"][0]["pieces"])
    assert main(["data", "inspect", "my docs.v1", "--recipe", "my docs.v1.yaml", "--samples", "0"]) == 0
    assert "scan.pdf" in capsys.readouterr().out

    assert main(["train", "my docs.v1.yaml", "--output", "runs/a", "--json"]) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2 and result["train_tokens"] > 0
    assert main(["evaluate", "runs/a", "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["split"] == "test"
    (tmp_path / "my docs.v1" / "pump.md").write_text("# Changed\n")
    assert "its data has changed since the training" in refused(capsys, "evaluate", "runs/a")


def test_a_folder_that_cannot_be_trained_on_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert "empty: a folder without documents (.md, .rst" in refused(capsys, "new", "empty")
    assert "a folder without documents" in refused(capsys, "data", "inspect", "empty")
    make_documents.manual(tmp_path / "two", 2)
    assert "two: 2 documents, and 3 are the least" in refused(capsys, "new", "two")
    Path("bad").mkdir()
    count = len(make_documents.bad(tmp_path / "bad"))
    for command in (["new", "bad"], ["data", "inspect", "bad"]):
        line = refused(capsys, *command)
        assert f"bad: none of its {count} documents can be read; binary.md: not text but binary" in line
    assert not Path("bad.yaml").exists()
    make_documents.manual(tmp_path / "docs")
    monkeypatch.chdir(tmp_path / "docs")
    assert "the runs would be written among the documents" in refused(capsys, "new", ".")
