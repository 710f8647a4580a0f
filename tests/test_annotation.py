"""Annotation exports: the same rows from each shape, nothing lost without a word, and how far annotators agree."""

import csv
import json
import random

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ftdocs.cli import main
from ftdocs.data.annotation import (
    Task,
    both,
    export_of,
    kappa,
    labeling_config,
    labelled,
    pre_labels,
    read_predictions,
    read_tasks,
    training_rows,
)
from ftdocs.data.prepare import load_splits
from ftdocs.errors import InputError
from ftdocs.recipe import Data

# Text, and the label of each annotator: agreed, disagreed with a majority, one annotator, tied, none.
ANSWERS = [
    ("Dull from the first scene.", {"ann": "negative", "bob": "negative", "eve": "negative"}),
    ("A quiet film, “worth it”.", {"ann": "positive", "bob": "negative", "eve": "positive"}),
    ("Neither here nor there.", {"bob": "negative"}),
    ("Good, then bad.", {"ann": "positive", "bob": "negative"}),
    ("Never shown.", {}),
]
PEOPLE = {"ann": 3, "bob": 12, "eve": 101}
KEPT = {ANSWERS[0][0]: "negative", ANSWERS[1][0]: "positive", ANSWERS[2][0]: "negative"}


def studio_task(number, text, answers, **more):
    def result(label):
        return [
            {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": {"choices": [label]}},
            {
                "from_name": "span",
                "to_name": "text",
                "type": "labels",
                "value": {"labels": ["x"], "start": 0, "end": 1},
            },
        ]

    annotations = [
        {
            "id": 10 * number + at,
            "completed_by": {"id": PEOPLE[who], "email": f"{who}@example.com"},
            "result": result(label),
        }
        for at, (who, label) in enumerate(answers.items())
    ]
    skipped = {"completed_by": 3, "was_cancelled": True, "result": result("positive")}
    return {
        "id": number,
        "data": {"text": text, "year": 1999},
        "annotations": [*annotations, skipped],
        **more,
    }


def studio():
    return [studio_task(number, text, answers) for number, (text, answers) in enumerate(ANSWERS, 1)]


def studio_min():
    empty = {"annotator": None, "annotation_id": None, "lead_time": None}
    rows = []
    for number, (text, answers) in enumerate(ANSWERS, 1):
        for who, label in answers.items():
            about = {"annotator": PEOPLE[who], "annotation_id": len(rows), "lead_time": 1.5}
            rows.append({"text": text, "id": number, "sentiment": label, **about})
        if not answers:
            rows.append({"text": text, "id": number, **empty})
    return rows


def boxed(label):
    answer = {"name": label.title(), "value": label, "classifications": []}
    return {"name": "Sentiment", "value": "sentiment", "radio_answer": answer}


def box():
    rows = []
    for number, (text, answers) in enumerate(ANSWERS):
        labels = [
            {
                "label_kind": "Default",
                "label_details": {"created_by": f"{who}@example.com"},
                "annotations": {"objects": [], "classifications": [boxed(label)], "relationships": []},
            }
            for who, label in answers.items()
        ]
        rows.append(
            {
                "data_row": {"id": f"row{number}", "global_key": f"key{number}", "row_data": text},
                "projects": {"p1": {"name": "films", "labels": labels}},
            }
        )
    return rows


def box_old():
    rows = []
    for number, (text, answers) in enumerate(ANSWERS):
        about = {"DataRow ID": f"row{number}", "Labeled Data": text, "Project Name": "films"}
        for who, label in answers.items():
            answer = {"title": label.title(), "value": label}
            chosen = {
                "objects": [],
                "classifications": [{"title": "Sentiment", "value": "sentiment", "answer": answer}],
            }
            rows.append(
                {"ID": f"{number}{who}", **about, "Label": chosen, "Created By": f"{who}@example.com"}
            )
        if not answers:
            rows.append(
                {"ID": f"{number}", **about, "Label": {}, "Skipped": True, "Created By": "ann@example.com"}
            )
    return rows


SHAPES = {
    "studio.json": studio,
    "min.json": studio_min,
    "min.csv": studio_min,
    "box.ndjson": box,
    "old.json": box_old,
}


def write(path, rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(
                file, ["text", "id", "sentiment", "annotator", "annotation_id", "lead_time"]
            )
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=SHAPES)
def export(request, tmp_path):
    return write(tmp_path / request.param, SHAPES[request.param]())


def test_every_shape_gives_the_same_rows(export):
    tasks = read_tasks(export)
    assert [task.text for task in tasks] == [text for text, _ in ANSWERS]
    assert tasks[1].answers == {1: "positive", 2: "negative", 3: "positive"}
    rows, report = labelled(tasks, str(export))
    assert {row["text"]: row["label"] for row in rows} == KEPT
    places = [task.row for task in tasks]
    assert report == {
        "tasks": 5,
        "unannotated": [places[4]],
        "disagree": [places[1], places[3]],
        "tied": [places[3]],
    }
    assert both(tasks, 1, 2) == (["negative", "positive", "positive"], ["negative", "negative", "negative"])


def test_a_recipe_takes_an_export_and_reports_what_is_left_out(export):
    report = {}
    assert {row["text"]: row["label"] for row in training_rows(export, report)} == KEPT
    assert report == {"annotation": {"tasks": 5, "unannotated": 1, "disagree": 2, "tied": 1}}
    splits = load_splits(Data(path=export, validation=0, test=0))
    assert splits.format == "label"
    assert splits.report["annotation"] == report["annotation"]
    assert {row["text"]: row["label"] for row in splits.train} == KEPT


def test_nobody_is_named(export, capsys):
    assert main(["data", "convert", str(export), "--output", str(export.parent / "rows.jsonl")]) == 0
    written = (export.parent / "rows.jsonl").read_text() + capsys.readouterr().out
    assert "negative" in written and "@" not in written


def test_an_ordinary_file_is_read_as_ever(tmp_path):
    rows = [{"text": "a", "label": "x", "id": 1}, {"data": "b", "annotations": "c"}]
    path = write(tmp_path / "rows.jsonl", rows)
    assert list(training_rows(path)) == [{**row, "row": number} for number, row in enumerate(rows, 1)]
    assert export_of({"text": "a", "label": "b", "id": 3, "score": 1}) is None


def drop(*path):
    """Remove what lies at a path from the second row of an export."""

    def remove(rows):
        place = rows[1]
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return remove


@pytest.mark.parametrize(
    ("shape", "path", "named"),
    [
        ("studio.json", ["annotations"], "row 2 (task 2): `annotations`"),
        ("studio.json", ["annotations", 0, "result"], "row 2 (task 2): `result`"),
        ("studio.json", ["annotations", 0, "result", 0, "value"], "row 2 (task 2): `value`"),
        ("studio.json", ["data", "text"], "row 2 (task 2): which field is the text? there are: none"),
        ("box.ndjson", ["projects"], "row 2 (data row row1): `projects`"),
        ("box.ndjson", ["data_row", "row_data"], "row 2 (data row row1): `row_data`"),
        (
            "box.ndjson",
            ["projects", "p1", "labels", 0, "annotations"],
            "row 2 (data row row1): `annotations`",
        ),
        ("old.json", ["Label"], "row 2 (data row row0): `Label`"),
        ("min.json", ["text"], "row 2 (task 1): which field is the text?"),
    ],
)
def test_a_missing_field_is_named_with_its_file_row_and_task(shape, path, named, tmp_path):
    rows = SHAPES[shape]()
    if shape == "studio.json":
        rows[1]["total_annotations"] = 3
    drop(*path)(rows)
    with pytest.raises(InputError) as caught:
        read_tasks(write(tmp_path / shape, rows))
    assert str(caught.value).startswith(f"{tmp_path / shape}, {named}")


PLACES = [
    ("studio.json", ("annotations",)),
    ("studio.json", ("annotations", 0, "result")),
    ("studio.json", ("annotations", 0, "result", 0, "value", "choices")),
    ("box.ndjson", ("projects", "p", "labels")),
]


@pytest.mark.parametrize(
    ("shape", "place", "broken"),
    [
        (*where, broken)
        for where in PLACES
        for broken in (None, "x", ["x"], [None])
        if (where[1][-1], broken) != ("choices", ["x"])  # which is a choice
    ],
)
def test_whatever_stands_where_objects_belong_gives_one_line(shape, place, broken, tmp_path):
    rows = SHAPES[shape]()
    row = rows[1]
    if "projects" in place:
        place = ("projects", next(iter(row["projects"])), "labels")
    inner = row
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = broken
    if shape == "studio.json":
        row["total_annotations"] = 1
    with pytest.raises(InputError, match="row 2"):
        read_tasks(write(tmp_path / shape, rows))


@pytest.mark.parametrize("answer", ["", "   ", None, 3, [{"start": 0}]])
def test_an_answer_that_is_no_label_is_refused(answer, tmp_path):
    rows = studio()
    rows[1]["annotations"][0]["result"][0]["value"]["choices"] = [answer]
    with pytest.raises(InputError, match=r"row 2.*no label"):
        read_tasks(write(tmp_path / "x.json", rows))


def test_one_id_with_two_texts_is_refused(tmp_path):
    rows = studio()
    rows[2]["id"] = rows[1]["id"]
    with pytest.raises(InputError, match=r"row 3.*has another text than in row 2; were two projects"):
        read_tasks(write(tmp_path / "x.json", rows))


def test_a_task_without_annotations_is_named(tmp_path):
    with pytest.raises(InputError, match=r"row 1.*`annotations` is missing"):
        read_tasks(write(tmp_path / "x.json", [{"id": 1, "data": {"text": "a"}}]))


def test_a_single_choice_may_be_text_and_broken_json_is_named(tmp_path):
    rows = studio_min()
    rows[0]["sentiment"] = {"choices": "positive"}
    assert "positive" in read_tasks(write(tmp_path / "x.json", rows))[0].answers.values()
    rows[0]["sentiment"] = '{"choices": [broken'
    with pytest.raises(InputError, match=r"row 1.*broken JSON"):
        read_tasks(write(tmp_path / "y.json", rows))


def test_a_row_that_is_no_task(tmp_path):
    path = write(tmp_path / "x.json", [*studio(), {"text": "a"}])
    with pytest.raises(InputError, match=r"row 6: not a task of an annotation export \(fields: text\)"):
        read_tasks(path)


def test_a_label_that_is_not_in_the_list(export):
    labels = ["negative", "positives"]
    with pytest.raises(
        InputError, match=r"row \d.*'positive' is not in the list .*; did you mean positives\?"
    ):
        read_tasks(export, labels=labels)
    assert read_tasks(export, labels=["negative", "positive", "mixed"])


def test_two_labels_at_once(tmp_path):
    rows = studio()
    rows[2]["annotations"][0]["result"][0]["value"]["choices"] = ["negative", "positive"]
    with pytest.raises(InputError, match=r"row 3: 2 labels at once \(negative, positive\)"):
        read_tasks(write(tmp_path / "x.json", rows))
    rows = studio_min()
    rows[0]["sentiment"] = '{"choices": ["negative", "positive"]}'
    with pytest.raises(InputError, match=r"row 1: 2 labels at once"):
        read_tasks(write(tmp_path / "x.csv", rows))


def test_several_questions_are_not_mixed(tmp_path):
    rows = studio()
    other = {"from_name": "topic", "to_name": "text", "type": "choices", "value": {"choices": ["war"]}}
    rows[0]["annotations"][0]["result"].append(other)
    path = write(tmp_path / "x.json", rows)
    with pytest.raises(
        InputError, match=r"several questions \(sentiment, topic\).*data convert .* --question sentiment"
    ):
        read_tasks(path)
    assert {row["text"]: row["label"] for row in labelled(read_tasks(path, "sentiment"), "x")[0]} == KEPT
    with pytest.raises(InputError, match=r"no answer to the question 'mood' \(there are: sentiment, topic\)"):
        read_tasks(path, "mood")


def test_several_fields_of_text(tmp_path):
    rows = [{**task, "data": {"title": "T", "body": task["data"]["text"]}} for task in studio()]
    path = write(tmp_path / "x.json", rows)
    with pytest.raises(InputError, match=r"which field is the text\? there are: title, body"):
        read_tasks(path)
    assert read_tasks(path, text="body")[0].text == ANSWERS[0][0]


def test_an_export_without_an_annotation_an_empty_one_and_a_wrong_encoding(tmp_path):
    unannotated = [{**task, "annotations": []} for task in studio()]
    with pytest.raises(InputError, match="none of the 5 tasks has a label"):
        load_splits(Data(path=write(tmp_path / "none.json", unannotated)))
    with pytest.raises(InputError, match="no rows in it"):
        load_splits(Data(path=write(tmp_path / "empty.json", [])))
    (tmp_path / "latin.json").write_bytes(json.dumps(studio(), ensure_ascii=False).encode("cp1252"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_tasks(tmp_path / "latin.json")


def test_an_address_is_not_a_text(tmp_path):
    rows = box()
    rows[3]["data_row"]["row_data"] = "https://storage.example.com/4.txt"
    with pytest.raises(InputError, match=r"row 4 .*address of a file"):
        read_tasks(write(tmp_path / "x.ndjson", rows))


def test_who_annotates_twice_has_one_vote_and_who_has_no_name_has_one_too(tmp_path):
    task = studio_task(1, "a", {"ann": "positive", "bob": "negative"})
    again = {**task["annotations"][0], "result": task["annotations"][1]["result"]}
    path = write(tmp_path / "x.json", [{**task, "annotations": [*task["annotations"], again]}])
    assert read_tasks(path)[0].answers == {1: "negative", 2: "negative"}
    for annotation in task["annotations"]:
        del annotation["completed_by"]
    assert len(read_tasks(write(path, [task]))[0].answers) == 2


def test_rows_of_one_text_with_two_labels_are_reported(tmp_path):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(10)]
    rows += [{"text": "Text 3!", "label": "a"}, {"text": "text 4", "label": "a"}]
    report = load_splits(Data(path=write(tmp_path / "x.jsonl", rows))).report
    assert report["contradictions"] == 1
    assert report["contradicting_rows"] == [[4, 11]]


def test_pre_labels_come_back(tmp_path):
    predictions = [{"label": "positive", "score": np.float32(0.75)}, {"label": "negative", "score": 0.5}]
    tasks = pre_labels(["a", "b"], predictions, "model 1")
    found = read_predictions(write(tmp_path / "x.json", tasks))
    assert [(row["text"], row["label"], row["score"], row["model_version"]) for row in found] == [
        ("a", "positive", 0.75, "model 1"),
        ("b", "negative", 0.5, "model 1"),
    ]
    # An export has numbers in place of the predictions, and the prediction itself beside each annotation.
    exported = studio_task(1, "a", {"ann": "positive", "bob": "positive"}, predictions=[7])
    for annotation in exported["annotations"]:
        annotation["prediction"] = {"id": 7, **tasks[0]["predictions"][0]}
    found = read_predictions(write(tmp_path / "y.json", [exported]))
    assert [(row["label"], row["score"]) for row in found] == [("positive", 0.75)]
    with pytest.raises(ValueError, match="shorter"):
        pre_labels(["a", "b"], predictions[:1], "model 1")


def test_pre_labels_alone_are_not_taken_for_labels(tmp_path):
    path = write(tmp_path / "x.json", pre_labels(["a"], [{"label": "positive", "score": 1}], "model 1"))
    with pytest.raises(InputError, match="`annotations` is missing"):
        load_splits(Data(path=path))


def test_the_project_settings_name_what_the_pre_labels_name():
    import xml.etree.ElementTree as tree

    view = tree.fromstring(labeling_config(['so "so" & so', "<b>"], "mood"))
    assert [choice.get("value") for choice in view.iter("Choice")] == ['so "so" & so', "<b>"]
    result = pre_labels(["a"], [{"label": "<b>", "score": 1}], "m", "mood")[0]["predictions"][0]["result"][0]
    assert (view[1].get("name"), view[1].get("toName")) == (result["from_name"], result["to_name"])


def test_kappa_and_its_interval():
    draw = random.Random(0)
    a = [draw.choice("xyz") for _ in range(200)]
    b = [label if draw.random() < 0.7 else draw.choice("xyz") for label in a]
    found, low, high = kappa(a, b)
    assert found == cohen_kappa_score(a, b)
    # The same interval by drawing the tasks themselves.
    generator, pairs = np.random.default_rng(1), np.array([a, b])
    drawn = [cohen_kappa_score(*pairs[:, generator.integers(0, 200, 200)]) for _ in range(400)]
    assert np.allclose(np.quantile(drawn, [0.025, 0.975]), (low, high), atol=0.03)
    assert kappa(a, b) == (found, low, high)
    assert kappa(["x", "y"] * 50, ["x", "y"] * 50)[0] == 1
    assert abs(kappa(["x", "x", "y", "y"] * 50, ["x", "y"] * 100)[0]) < 1e-9


def test_kappa_needs_the_same_tasks():
    with pytest.raises(ValueError, match="the same tasks"):
        kappa([], [])
    with pytest.raises(ValueError, match="the same tasks"):
        kappa(["x"], ["x", "y"])
    assert both([Task(1, "a", {1: "x"})], 1, 2) == ([], [])


def test_convert_writes_rows_and_keeps_what_is_there(tmp_path, capsys):
    export, target = write(tmp_path / "e.json", studio()), tmp_path / "rows.jsonl"
    assert (
        main(["data", "convert", str(export), "--output", str(target), "--labels", "negative,positive"]) == 0
    )
    assert {
        json.loads(line)["text"]: json.loads(line)["label"] for line in target.open(encoding="utf-8")
    } == KEPT
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == ["unannotated: 1 (rows 5)", "disagree, with a majority: 1 (rows 2)", "tied: 1 (rows 4)"]
    assert main(["data", "convert", str(export), "--output", str(target)]) == 2
    assert (
        main(["data", "convert", str(export), "--output", str(tmp_path / "x"), "--labels", "a,b", "--json"])
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 2


def refused(capsys, *arguments):
    """The one line with which a command refuses wrong input."""
    assert main([str(each) for each in arguments]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1
    return line


def test_convert_names_the_fields_where_none_has_the_name_that_was_given(tmp_path, capsys):
    rows = [{**task, "data": {"title": "T", "body": task["data"]["text"], "year": 1}} for task in studio()]
    path = write(tmp_path / "x.json", rows)
    for name in ("foo", "year", ""):
        line = refused(capsys, "data", "convert", path, "--text", name)
        assert f"{path}: no task has text in a field {name!r}; choose with --text from: title, body\n" in line
    del rows[1]["data"]["body"]  # which the others have
    line = refused(capsys, "data", "convert", write(path, rows), "--text", "body")
    assert "row 2 (task 2): which field is the text? there are: title;" in line
    path = write(tmp_path / "min.csv", studio_min())
    line = refused(capsys, "data", "convert", path, "--text", "foo", "--question", "sentiment")
    assert "a field 'foo'; choose with --text from: text\n" in line
    path = write(tmp_path / "box.ndjson", box())
    assert "has one text only; leave out --text" in refused(capsys, "data", "convert", path, "--text", "foo")
    assert not list(tmp_path.glob("*rows*"))


@pytest.mark.parametrize("labels", ["", " ", "negative,,positive", "negative,"])
def test_a_list_of_labels_with_an_empty_name_is_refused(labels, tmp_path, capsys):
    path, target = write(tmp_path / "x.json", studio()), tmp_path / "rows.jsonl"
    line = refused(capsys, "data", "convert", path, "--labels", labels, "--output", target)
    assert f"--labels {labels!r}: a name is empty; list all labels" in line and not target.exists()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("verb", ["data convert", "data inspect", "new"])
def test_lines_of_labelbox_that_are_named_json_are_to_be_renamed(verb, count, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "box.ndjson", box()[:count]).rename("box.json")
    line = refused(capsys, *verb.split(), "box.json")
    assert (
        "box.json: one object a line, as Labelbox's NDJSON export has it; rename it to box.ndjson\n" in line
    )


def test_new_writes_a_recipe_for_an_export(tmp_path, capsys):
    tasks = [
        studio_task(at, f"film number {at}", {"ann": ("negative", "positive")[at % 2]}) for at in range(1, 25)
    ]
    export, recipe = (
        write(tmp_path / "e.json", [*tasks, studio_task(25, "Never shown.", {})]),
        tmp_path / "e.yaml",
    )
    assert main(["new", str(export), "--output", str(recipe)]) == 0
    written = recipe.read_text()
    assert "24 rows" in written and "format: label" in written and "classes: negative, positive" in written
    assert "not used" not in written + capsys.readouterr().err


def test_an_export_with_several_questions_names_the_command_that_converts_it(tmp_path, capsys):
    rows = studio_min()
    rows[0]["topic"] = "war"
    export = write(tmp_path / "e.json", rows)
    assert main(["new", str(export), "--output", str(tmp_path / "e.yaml")]) == 2
    line = capsys.readouterr().err
    assert f"ftdocs data convert {export} --question sentiment" in line
    assert line.count("\n") == 1
