"""Runs beside each other and beside baselines: on the same rows, paired, kept when stopped; a gate that can shut."""

import json
import re
import shutil
from pathlib import Path

import make_documents
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from test_runs import WORDS, recipe_file, rows, run, tiny_llama, write  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import answer, contestants, hardware, paired, runs, scores
from ftdocs.answer import Answer
from ftdocs.cli import main
from ftdocs.compare import judged
from ftdocs.contestants import open_run, searched, shots
from ftdocs.errors import InputError
from ftdocs.intervals import Interval, bootstrap_interval

WANTED = "The amber falcon guards the copper lantern."


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama) -> Path:  # noqa: F811
    """A folder with two runs on the same rows: one that has learnt their answer, and one of a single timid step."""
    folder = tmp_path_factory.mktemp("compared")
    faq = [
        {"prompt": f"What does {WORDS[n % 12]} {n} mean?", "completion": WANTED, "topic": f"t{n % 44}"}
        for n in range(48)
    ]
    recipe = recipe_file(folder, write(folder / "faq.jsonl", faq), tiny_llama)
    changes = json.loads(recipe.read_text())
    changes["data"] |= {"test": 0.3, "group": "topic"}
    changes["method"] = {"name": "full"}
    changes["train"] |= {"max_steps": 60, "batch_size": 8, "seq_len": 128, "learning_rate": 1e-2}
    recipe.write_text(json.dumps(changes))
    assert run("train", recipe, "--output", folder / "learnt") == 0
    timid = ["--set", "train.max_steps=1", "--set", "train.learning_rate=1e-9"]
    assert run("train", recipe, "--output", folder / "timid", *timid) == 0
    return folder


@pytest.fixture(autouse=True)
def size(monkeypatch):
    """A few questions, and answers that have room for the wanted one."""
    monkeypatch.setitem(contestants.NEW_TOKENS, "smoke", 24)
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")


def compared(capsys, *arguments: object, code: int = 0) -> dict:
    """The one JSON object that the command prints."""
    capsys.readouterr()
    assert main(["compare", *map(str, arguments), "--json"]) == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def refused(capsys, *arguments: object) -> str:
    """The one line with which it is refused."""
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1
    return line


# Intervals


def test_without_groups_it_is_the_plain_bootstrap_and_whole_groups_say_less():
    values = np.random.default_rng(3).normal(size=60)
    alone = paired.clustered_interval(paired.mean_of(values), range(60))
    plain = bootstrap_interval(values)
    assert alone.estimate == pytest.approx(plain.estimate)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    copies, groups = np.repeat(values, 9), np.repeat(np.arange(60), 9)  # nine questions that say the same
    clustered = paired.clustered_interval(paired.mean_of(copies), groups.tolist())
    fooled = paired.clustered_interval(paired.mean_of(copies), range(540))
    assert (clustered.high - clustered.low) / (alone.high - alone.low) == pytest.approx(1, abs=0.05)
    assert (clustered.high - clustered.low) / (fooled.high - fooled.low) == pytest.approx(3, abs=0.3)
    with pytest.raises(InputError, match="two groups"):
        paired.clustered_interval(paired.mean_of([1, 0]), ["a", "a"])


def test_statistics_are_what_others_compute():
    once = np.ones((1, 4), int)
    assert paired.mean_of([1, 2, 3, 4], [1, 1, 1, 7])(once)[0] == pytest.approx(34 / 10)
    assert np.isnan(paired.mean_of([1.0, 2.0], [0, 3])(np.array([[2, 0]]))[0])
    given, right = [0, 1, 1, 2], [0, 0, 1, 1]
    assert paired.macro_f1_of(given, right, 4)(once)[0] == pytest.approx(
        f1_score(right, given, average="macro")
    )
    same = paired.macro_f1_of(given, right, 3)
    assert paired.clustered_interval(paired.less(same, same), range(4)) == (0, 0, 0)


# Scores


def test_words_are_compared_as_squad_does():
    assert scores.normalised("The  Pump, an engine; it's A toy!") == "pump engine its toy".split()
    assert scores.exact_match("A pump.", "the PUMP") == 1 and scores.exact_match("a pump", "two pumps") == 0
    assert scores.token_f1("red pump pump", "pump is red now") == pytest.approx(2 * 2 / (3 + 4))
    assert scores.token_f1("", "pump") == 0 and scores.token_f1("blue", "red") == 0


def test_rouge_counts_order_and_similarity_meaning():
    found = scores.scored(
        ["the cat sat on the mat", "mat the on sat cat the", ""], ["the cat sat on the mat"] * 3
    )
    assert found["rouge_l"] == pytest.approx([1, 1 / 2, 0]) and found["f1"] == [1, 1, 0]
    assert found["similarity"][0] == pytest.approx(1, abs=0.01) and found["similarity"][2] == 0
    near, far = scores.similarity(["Rinse it with water."] * 2, ["Wash it.", "Shares fell in London."])
    assert near > far + 0.2


def test_rouge_reads_every_script_and_english_as_the_package_does():
    from rouge_score.rouge_scorer import RougeScorer

    assert scores.rouge_l(["Привет большой мир", "水泵", "Größe"], ["Привет мир", "水泵", "Grüße"]) == [
        4 / 5,
        1,
        0,
    ]
    pairs = [("Set `max_iter=5`, don't!", "max iter is 5; do NOT set it"), ("A 3.5 mm hose", "hose of 3.5mm")]
    package = RougeScorer(["rougeL"])
    assert scores.rouge_l(*zip(*pairs, strict=True)) == [
        package.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs
    ]


QUESTION, REFERENCE = "How is the pump cleaned?", "Take off the lid and rinse it with warm water."


@pytest.mark.parametrize(
    ("text", "ended", "wanted"),
    [
        ("", True, "empty"),
        (" .. ", True, "empty"),
        ("I'm sorry, but I cannot help with that.", True, "refused"),
        ("As an AI, I have no pump.", False, "refused"),
        ("The documents do not mention the pump.", True, "refused"),
        ("Take off the lid and rinse it with warm water and", False, "ran on"),
        ("Take off the lid and rinse it with warm water.<|im_end|>", True, "format"),
        ("user\nTake off the lid, rinse with warm water", True, "format"),
        ("It is red now. " * 3, True, "format"),
        ("Polish it with a dry cloth.", True, "wrong fact"),
        ("How is the pump cleaned? The pump is cleaned.", True, "wrong fact"),
        ("Remove the lid, then rinse with warm water.", True, "right"),
        (REFERENCE, True, "right"),
    ],
)
def test_what_is_wrong_with_an_answer(text, ended, wanted):
    assert scores.category(Answer(text, 9, ended), QUESTION, REFERENCE) == wanted


def test_rules_mind_the_wanted_answer_and_the_limit():
    cut = Answer("Take off the lid and rinse it with warm", 9, False)
    assert scores.category(cut, QUESTION, REFERENCE, within_limit=False) == "right"
    sorry = Answer("I'm sorry, we are closed on Mondays.", 9, True)
    assert scores.category(sorry, "What does the sign say?", "I'm sorry, we are closed on Mondays") == "right"


# Answers


def test_a_batch_answers_as_each_prompt_alone_does_and_ends_where_training_ended(tiny_llama, monkeypatch):  # noqa: F811
    monkeypatch.setattr(hardware, "dtype", lambda: torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    prompts = [answer.prompt(tokenizer, answer.question(row)) for row in rows("prompt", 3)]
    prompts[1] += "a much longer beginning of the answer, so that the others are filled up"
    together = answer.generate(model, tokenizer, prompts, 12)
    assert together == [answer.generate(model, tokenizer, [text], 12)[0] for text in prompts]
    assert {found.tokens for found in together} == {12} and not any(found.ended for found in together)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in answer.end_tokens(model, tokenizer)
    first = model.generate(
        torch.tensor([answer.token_ids(tokenizer, prompts[0])]), max_new_tokens=3, do_sample=False
    )
    third = int(first[0, -1])
    monkeypatch.setattr(answer, "end_tokens", lambda *_: [third])
    (found,) = answer.generate(model, tokenizer, prompts[:1], 12)
    assert found.ended and found.tokens <= 2


def test_prompts_hold_examples_as_turns_and_passages_before_the_question(tiny_llama):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So."},
    ]
    asked = answer.question({"messages": turns, "row": 1})
    assert (asked.text, asked.reference, len(asked.turns)) == ("How?", "So.", 4)
    example = answer.question({"prompt": "Who?", "completion": "She.", "row": 2})
    text = answer.prompt(tokenizer, asked, [example], ["A pump is red."])
    order = ["Be short.", "Who?", "She.", "Why?", "Because.", "A pump is red.", "Question: How?"]
    assert [text.find(part) for part in order] == sorted(
        text.find(part) for part in order
    ) and "So." not in text
    assert text.endswith("<|im_start|>assistant\n") and text.count("Be short.") == 1
    tokenizer.chat_template = None
    plain = answer.prompt(tokenizer, example, [example], ["A pump is red."])
    assert plain == "A pump is red.\n\nWho?She.\n\nWho?"
    with pytest.raises(InputError, match="no chat template"):
        answer.prompt(tokenizer, asked)


def test_finished_batches_are_kept_and_a_torn_one_is_done_again(tmp_path):
    path, asked = tmp_path / "part.jsonl", []

    def work(places):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(places)
        return [f"v{place}" for place in places]

    groups = [[3, 0], [1, 4], [2]]
    with pytest.raises(KeyboardInterrupt):
        answer.kept(path, groups, work)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:9])  # killed while it wrote
    asked.clear()
    assert answer.kept(path, groups, work) == ["v0", "v1", "v2", "v3", "v4"]
    assert asked == [[1, 4], [2]]
    assert answer.kept(path, groups, lambda places: pytest.fail("nothing is left to do")) == [
        f"v{n}" for n in range(5)
    ]


# Runs


def test_a_run_is_held_beside_what_needs_no_training(place, capsys):
    found = compared(capsys, place / "learnt", "--baselines", "retrieval,base,few-shot", "--limit", 9)
    assert list(found["metrics"]) == ["base", "few-shot", "retrieval", "learnt"]
    assert found["rows"] == 9 and found["split"] == "test" and found["resampled"] == "documents"
    assert found["metrics"]["learnt"]["exact_match"] == 1 and found["metrics"]["base"]["exact_match"] == 0
    assert found["errors"]["learnt"]["right"] == 9 and sum(found["errors"]["base"].values()) == 9
    estimate, low, high = found["differences"]["base"]["f1"]
    assert 0 < low <= estimate <= high <= 1
    assert found["differences"]["base"]["loss"][2] < 0 and found["differences"]["retrieval"]["loss"] is None
    answers = [json.loads(line) for line in (place / "learnt/answers.jsonl").read_text().splitlines()]
    assert len(answers) == 9 and answers[0]["answers"]["learnt"]["text"] == WANTED == answers[0]["reference"]
    mean = np.mean([row["answers"]["base"]["f1"] for row in answers])
    assert mean == pytest.approx(found["metrics"]["base"]["f1"], abs=1e-3)
    kept = json.loads((place / "learnt/comparison.json").read_text())
    assert kept["metrics"] == found["metrics"] and kept["device"]


def test_the_report_decides_nothing_over_fewer_rows_than_a_gate_needs(place, capsys):
    def differences(limit: int) -> tuple[list[bool], str]:
        capsys.readouterr()
        assert run("compare", place / "learnt", "--baselines", "base", "--limit", limit) == 0
        out = capsys.readouterr().out
        return [line.endswith("(cannot tell)") for line in re.findall(r"^  .* to .*\).*$", out, re.M)], out

    told, out = differences(9)
    assert len(told) == 6 and all(told) and "documents, no difference is decided" in out
    told, out = differences(14)
    assert not any(told) and "no difference is decided" not in out


def test_a_limit_below_the_wanted_answers_is_said(place, capsys):
    found = compared(capsys, place / "learnt", "--limit", 2, "--max-new-tokens", 2)
    line = (
        "2 of 2 wanted answers do not fit into 2 tokens: answers to these may be cut, and a right one called"
    )
    assert found["errors"]["learnt"]["wrong fact"] == 2 and any(
        note.startswith(line) for note in found["notes"]
    )
    assert "do not fit" not in str(compared(capsys, place / "learnt", "--limit", 2)["notes"])


def test_the_loss_is_the_one_that_evaluate_gives(place, capsys):
    found = compared(capsys, place / "timid", "--limit", 100)["metrics"]["timid"]
    assert run("evaluate", place / "timid", "--json") == 0
    wanted = json.loads(capsys.readouterr().out)["metrics"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=2e-3)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))


def test_the_same_run_differs_by_nothing_and_its_copy_neither(place, capsys):
    shutil.copytree(
        place / "learnt", place / "copy", ignore=shutil.ignore_patterns("answers*"), dirs_exist_ok=True
    )
    for other in ("learnt", "copy"):
        found = compared(
            capsys,
            place / "learnt",
            place / other,
            *["--gate", "loss"] * (other == "copy"),
            code=other == "copy",
        )
        (differences,) = found["differences"].values()
        assert all(difference == [0, 0, 0] for difference in differences.values())


def test_the_gate_opens_to_what_is_better_and_to_nothing_else(place, capsys):
    better, worse = (place / "timid", place / "learnt"), (place / "learnt", place / "timid")
    enough = ("--limit", 14)
    assert compared(capsys, *better, "--gate", "loss", *enough)["gate"]["passed"]
    found = compared(capsys, *worse, "--gate", "exact-match", *enough, code=1)
    assert not found["gate"]["passed"] and found["gate"]["not_beaten"][0].startswith("learnt (exact_match -")
    base = ("--baselines", "base", "--gate", "f1", *enough)
    assert compared(capsys, *better[1:], *base)["gate"]["against"] == ["base"]
    compared(capsys, *worse[1:], *base, code=1)
    assert main(["compare", *map(str, worse), "--gate", "f1"]) == 1
    out, line = capsys.readouterr()
    assert "gate, by f1: not passed" in out and "does not beat learnt" in line


def test_a_gate_does_not_open_to_a_few_documents_or_rows_that_agree(place, capsys):
    found = compared(capsys, place / "timid", place / "learnt", "--gate", "f1", "--limit", 4, code=1)
    assert found["differences"]["timid"]["f1"][1] > 0  # the interval alone would let it pass
    line = "; over 4 documents that can be luck, a gate needs 10 of them)"
    assert not found["gate"]["passed"] and found["gate"]["not_beaten"][0].endswith(line)
    difference = {"old": {"loss": Interval(-0.5, -0.7, -0.2)}}
    for documents, rows_, passes in (
        (None, 9, False),
        (None, 10, True),
        (1, 99, False),
        (9, 99, False),
        (10, 99, True),
    ):
        outcome = {"documents": documents, "per_row": [{}] * rows_, "differences": difference}
        assert judged("loss", outcome, ["old", "new"], ())["passed"] == passes


def test_what_is_known_is_not_asked_again(place, capsys, monkeypatch):
    before = compared(capsys, place / "learnt", "--baselines", "base")

    def never(*_, **__):
        pytest.fail("all of it was kept")

    for name in ("generate", "row_losses"):
        monkeypatch.setattr(answer, name, never)
    monkeypatch.setattr(contestants.models, "load", never)
    monkeypatch.setattr(contestants.models, "load_run", never)
    assert compared(capsys, place / "learnt", "--baselines", "base") == before


def test_examples_are_training_rows_and_passages_too_where_there_are_no_documents(place):
    opened = open_run(place / "learnt")
    tokenizer = AutoTokenizer.from_pretrained(place / "learnt/model")
    trained = {row["prompt"] for row in opened.splits.train}
    tested = [answer.question(row) for row in opened.splits.test]
    examples = shots(opened, tokenizer)
    assert (
        examples
        and {example.text for example in examples} <= trained
        and examples == shots(opened, tokenizer)
    )
    found, where = searched(opened, tokenizer, tested)
    assert "training rows" in where
    assert all(text.split("\n")[0] in trained for passages in found for text in passages)


def test_a_search_may_read_what_the_questions_are_about(tmp_path, tiny_llama, monkeypatch):  # noqa: F811
    folder = make_documents.manual(tmp_path / "docs", 12)
    recipe = recipe_file(tmp_path, folder, tiny_llama)
    changes = json.loads(recipe.read_text())
    changes["data"] |= {"format": "messages", "test": 0.3}
    recipe.write_text(json.dumps(changes))
    assert run("train", recipe, "--output", tmp_path / "run") == 0
    opened = open_run(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/adapter")
    monkeypatch.setitem(contestants.CONTEXT, "smoke", 400)
    questions = [answer.question(row) for row in opened.splits.test]
    passages, where = searched(opened, tokenizer, questions)
    assert "all documents" in where
    own = [
        scores.token_f1(text, asked.reference)
        for asked, found in zip(questions, passages, strict=True)
        for text in found[:1]
    ]
    assert np.mean(own) > 0.2


def test_runs_on_other_rows_are_refused_and_one_that_has_seen_these(place, capsys, tmp_path):
    recipe = place / "job.yaml"
    quick = ["--set", "train.max_steps=1"]
    assert run("train", recipe, "--output", tmp_path / "other", *quick, "--set", "data.seed=5") == 0
    assert "holds out other test rows" in refused(capsys, place / "learnt", tmp_path / "other")
    none = ["--set", "data.test=0", *quick]
    assert run("train", recipe, "--output", tmp_path / "all", *none) == 0
    line = refused(capsys, place / "learnt", tmp_path / "all")
    assert "of its training data is a test row of" in line
    opened = open_run(place / "learnt")
    (tmp_path / "rest").mkdir()
    rest = write(
        tmp_path / "rest/faq.jsonl",
        [{k: row[k] for k in ("prompt", "completion")} for row in opened.splits.train],
    )
    changed = json.loads(recipe.read_text())
    changed["data"] = {"path": str(rest), "test": 0}
    (tmp_path / "rest.yaml").write_text(json.dumps(changed))
    assert run("train", tmp_path / "rest.yaml", "--output", tmp_path / "new", *quick) == 0
    assert compared(capsys, place / "learnt", tmp_path / "new")["runs"] == ["learnt", "new"]


def test_a_run_that_went_on_from_one_which_read_the_test_rows_is_refused(place, capsys, tmp_path):
    """By their questions, or by their documents: the earlier stage may have read these as text."""
    recipe, quick = place / "job.yaml", ["--set", "train.max_steps=1"]
    assert run("train", recipe, "--output", tmp_path / "all", *quick, "--set", "data.test=0") == 0
    after = [*quick, "--set", f"model={tmp_path / 'all/model'}"]
    assert run("train", recipe, "--output", tmp_path / "after", *after) == 0
    assert "went on from" in (line := refused(capsys, tmp_path / "after")) and "(row" in line
    opened = open_run(place / "learnt")
    for name, split in (("fair", "train"), ("leaky", "test")):
        texts = [
            {"text": f"About {row['prompt']}", "topic": row["group"]} for row in getattr(opened.splits, split)
        ]
        changed = json.loads(recipe.read_text())
        changed["data"] = {"path": str(write(tmp_path / f"{name}.jsonl", texts)), "group": "topic", "test": 0}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(changed))
        assert run("train", tmp_path / f"{name}.yaml", "--output", tmp_path / name, *quick) == 0
        after = [*quick, "--set", f"model={tmp_path / name / 'model'}"]
        assert run("train", recipe, "--output", tmp_path / f"after-{name}", *after) == 0
    assert "which read what is a test row here" in refused(capsys, tmp_path / "after-leaky")
    assert "cannot be told" not in str(compared(capsys, tmp_path / "after-fair")["notes"])
    (tmp_path / "fair.jsonl").unlink()
    assert "cannot be told" in compared(capsys, tmp_path / "after-fair")["notes"][1]


def test_classifiers_are_compared_row_by_row_and_asked_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_file(tmp_path, write(tmp_path / "faq.csv", rows("label")), "minilm", seq_len=16)
    shutil.copy(recipe, "plain.yaml")
    assert run("train", "plain.yaml", "--set", "method.name=full", "--set", "data.test=0.4") == 0
    found = compared(capsys, "runs/plain", "--baselines", "base", "--gate", "accuracy", "--limit", 16, code=1)
    assert found["kind"] == "label" and found["metrics"]["base"]["loss"] is None
    assert (
        found["metrics"]["base"]["accuracy"] == pytest.approx(0.5)
        and 0 <= found["mcnemar"]["base"]["p_value"] <= 1
    )
    assert "answers no questions" in refused(capsys, "runs/plain", "--baselines", "few-shot")
    assert "base has no loss" in refused(capsys, "runs/plain", "--baselines", "base", "--gate", "loss")
    assert "did you mean accuracy" in refused(
        capsys, "runs/plain", "--baselines", "base", "--gate", "accurate"
    )


def test_plain_text_is_compared_by_its_loss(tmp_path, tiny_llama, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    recipe = recipe_file(tmp_path, write(tmp_path / "faq.jsonl", rows("text")), tiny_llama)
    assert (
        run(
            "train",
            recipe,
            "--output",
            "a",
            "--set",
            "method.name=full",
            "--set",
            "train.learning_rate=1e-2",
            "--set",
            "data.test=0.4",
        )
        == 0
    )
    found = compared(capsys, "a", "--baselines", "base", "--gate", "loss", "--limit", 12)
    assert found["differences"]["base"]["loss"][2] < 0 and found["documents"] is None
    assert set(found["metrics"]["a"]) == {"loss", "perplexity"}
    assert "asks no questions; base fits" in refused(capsys, "a", "--baselines", "base,few-shot")


def test_wrong_input_is_one_line(place, capsys, tmp_path):
    learnt = place / "learnt"
    assert "did you mean few-shot" in refused(capsys, learnt, "--baselines", "fewshot")
    assert "choose from base, few-shot, retrieval" in refused(capsys, learnt, "--baselines", "base,,x")
    assert "did you mean rouge_l" in refused(capsys, learnt, learnt, "--gate", "rougel")
    assert "nothing to beat" in refused(capsys, learnt, "--gate", "f1")
    assert "few-shot has no loss" in refused(capsys, learnt, "--baselines", "few-shot", "--gate", "loss")
    assert "two rows at least" in refused(capsys, learnt, "--limit", 1)
    assert "no such run" in refused(capsys, tmp_path / "nothing")
    assert "not a file" in refused(capsys, place / "job.yaml")
    assert "is not a run; did you mean" in refused(capsys, place)
    assert "one token at least" in refused(capsys, learnt, "--max-new-tokens", 0)


def test_a_changed_document_is_noticed(place, capsys, tmp_path):
    shutil.copytree(place, tmp_path / "moved", ignore=shutil.ignore_patterns("answers*", "timid", "copy"))
    with open(tmp_path / "moved/faq.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "And this?", "completion": WANTED, "topic": "t1"}) + "\n")
    assert "data has changed" in refused(capsys, tmp_path / "moved/learnt")
    (tmp_path / "moved/learnt/model/model.safetensors").unlink()
    assert "its weights are gone" in refused(capsys, tmp_path / "moved/learnt")


def test_two_comparisons_do_not_write_at_once(place, capsys):
    with runs.hold(place / "learnt"):
        assert "another process" in refused(capsys, place / "learnt")


def test_a_new_user_gets_from_a_folder_to_an_honest_report(tmp_path, monkeypatch, capsys):
    """The three commands, with ten small documents of which four ask something: a tenth of them asks nothing."""
    make_documents.manual(tmp_path / "my-docs", 4)
    for number, name in enumerate(("beans", "milk", "cups", "water", "filters", "steam")):
        (tmp_path / "my-docs" / f"{name}.txt").write_text(
            f"{name.upper()}\n\nThe {name} are in drawer {number}. Use them within {number + 2} days.\n"
        )
    monkeypatch.chdir(tmp_path)
    assert run("new", "my-docs/") == 0
    recipe = Path("my-docs.yaml").read_text()
    share = re.search(r"^  test: (0\.\d).*; with 0.1 there are no two documents with questions", recipe, re.M)
    assert "format: text" in recipe and share and float(share[1]) > 0.1
    assert run("train", "my-docs.yaml") == 0
    capsys.readouterr()
    assert run("compare", "runs/my-docs", "--baselines", "base,few-shot,retrieval") == 0
    out = capsys.readouterr().out
    assert all(
        name in out for name in ("few-shot", "retrieval", "my-docs less base", "wrong fact: less than")
    )
    assert Path("runs/my-docs/answers.jsonl").is_file()


def test_what_is_too_little_to_compare_says_what_to_change_in_the_recipe(
    tmp_path,
    tiny_llama,  # noqa: F811
    capsys,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    make_documents.manual(tmp_path / "asks", 1)
    for name in ("beans", "milk", "cups", "water"):
        (tmp_path / "asks" / f"{name}.txt").write_text(
            f"The {name} are in the drawer. Use the {name} soon.\n"
        )
    recipe = recipe_file(tmp_path, tmp_path / "asks", tiny_llama)
    changes = json.loads(recipe.read_text())
    changes["data"] |= {"format": "text", "test": 0.1, "validation": 0.1}
    recipe.write_text(json.dumps(changes))
    assert run("train", recipe, "--output", "few") == 0
    line = refused(capsys, "few", "--baselines", "few-shot")
    assert "set data.format: messages in the recipe, or a data.test above 0.1, and train again" in line
    assert "--baselines base" not in line  # which is refused as well
    line = refused(capsys, "few", "--baselines", "base")
    assert "in the recipe set a data.test above 0.1, or add rows, and train again" in line
