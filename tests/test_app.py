"""The web app in a real browser, and feedback that outlives `kill -9` and becomes rows without a test question."""

import base64
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import httpx2
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from serving import children, serving, tiny_run
from starlette.testclient import TestClient

from ftdocs import app, runs
from ftdocs.access import Keys, Limits
from ftdocs.cli import main
from ftdocs.data.clean import normalise
from ftdocs.data.prepare import load_splits
from ftdocs.feedback import Feedback, Store, question, rows_of, simulated, training_rows
from ftdocs.protocol import Said
from ftdocs.recipe import Data

PARTS = ("pump", "valve", "filter", "hose", "motor", "switch")
KEY = "a-key-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def manual(tmp_path_factory) -> Path:
    """A finished run on a folder of documents."""
    folder = tmp_path_factory.mktemp("manual")
    (folder / "docs").mkdir()
    for part in PARTS:
        (folder / "docs" / f"{part}.md").write_text(
            f"# The {part}\n\n## How is the {part} cleaned?\n\nTake the {part} out of its case, rinse it with warm"
            f" water for a minute, let it dry over night and put the {part} back with the <b>mark</b> on top.\n"
        )
    return tiny_run(folder, folder / "docs", "messages")


def test_a_name_belongs_to_the_key_that_came_with_it_first():
    """Else a wrong key, or another's, would change whose requests are counted. Nothing is kept of strangers."""
    users: dict[str, int] = {}
    keys = Keys([KEY, KEY[::-1]])
    assert app.known(keys, users, "alice", KEY) and app.known(keys, users, "bob", KEY[::-1])
    for name, key in (("alice", "wrong"), ("alice", KEY[::-1]), ("x" * 1_000_000, "wrong"), ("x" * 65, KEY)):
        assert not app.known(keys, users, name, key)
    assert app.known(keys, users, "alice", KEY) and users == {"alice": 0, "bob": 1}


def test_as_many_wait_for_the_web_app_as_for_the_gateway():
    """Gradio's own queue has no end."""
    served = SimpleNamespace(name="m", fingerprint="f")
    for queue in (0, 3):  # of none not even an empty place could be taken
        played: Any = SimpleNamespace(served=served, limits=Limits(10, queue=queue))
        assert app.blocks(played, None, None, {})._queue.max_size == max(1, queue)


def test_behind_the_books_nginx_the_page_asks_where_it_came_from():
    """Else it would send what it asks to the name of nginx' `upstream`, which no browser knows."""
    page = (Path(__file__).parent.parent / "docs/llama/deploy.md").read_text(encoding="utf-8")
    headers = {"Host": "models"} | dict(re.findall(r"proxy_set_header (\S+) (\S+);", page))
    sent = {name: {"$host": "tuned.example", "$scheme": "https"}.get(to, to) for name, to in headers.items()}
    played: Any = SimpleNamespace(served=SimpleNamespace(name="m"), limits=Limits(10), keys=Keys([]))
    with TestClient(app.add(FastAPI(), played, None, None)) as client:
        assert client.get("/config", headers=sent).json()["root"] == "https://tuned.example"


@pytest.mark.skipif(browser.FOUND is None, reason="no Chromium or Chrome is installed")
def test_a_conversation_in_a_browser(manual, tmp_path):
    store = manual / "feedback.db"
    with (
        serving(manual, tmp_path / "log", "--max-tokens", "12", FTDOCS_API_KEY=KEY) as (process, told),
        browser.browser(tmp_path / "profile", told["url"].removesuffix("v1")) as tab,
    ):
        for field, text in (("text", "me"), ("password", KEY)):  # no conversation without a key
            tab.type(f"input[type={field}]", text)
        assert not tab.run("!!document.querySelector('#message textarea')")
        tab.click("button")
        tab.type("#message textarea", "How is the valve cleaned?")
        tab.click("#send")
        tab.wait("document.querySelector('#sources')?.innerText.includes('valve.md, line')")
        shown = tab.run("document.querySelector('#sources').innerText")
        assert "The model did not read it" in shown and "<b>mark</b> on top" in shown
        tab.wait("[...document.querySelectorAll('#chat .bot')].some((said) => said.innerText.trim())")
        tab.wait("document.querySelector('#message textarea').value === ''")
        time.sleep(1)  # the answer's last pieces
        tab.click("#up")
        tab.wait("document.querySelector('#said')?.innerText.includes('Kept as number 1')")
        tab.type("#correction textarea", "With warm water, over night it dries.")
        tab.click("#correct")
        tab.wait("document.querySelector('#said')?.innerText.includes('Kept as number 2')")
        picture = tab.call("Page.captureScreenshot")["data"]
        (tmp_path / "app.png").write_bytes(base64.b64decode(picture))
        asked = [url for url in tab.requests if not url.startswith(("data:", "blob:"))]
        assert len(asked) > 5 and {url.split("/")[2].split(":")[0] for url in asked} == {"127.0.0.1"}
        below = children(process)
        process.send_signal(signal.SIGTERM)  # an open page does not keep the server
        assert process.wait(10) == 0 and below
    found = list(Store(store))
    assert [(each.rating, each.correction) for each in found] == [
        (1, ""),
        (-1, "With warm water, over night it dries."),
    ]
    assert found[1].messages == [{"role": "user", "content": "How is the valve cleaned?"}] and found[1].answer
    assert "valve" not in (tmp_path / "log").read_text() and KEY not in (tmp_path / "log").read_text()
    store.unlink()


def test_search_shows_what_was_masked_for_the_training_masked(manual, tmp_path):
    (tmp_path / "docs").mkdir()
    words = "For the pump write to jane.roe@acme.io or call +49 30 1234567 in the morning."
    (tmp_path / "docs" / "support.md").write_text(f"# Support\n\n{words}\n")
    recipe = runs.read_recipe(manual)
    for personal, masked in ((None, False), ("mask", True)):
        changed = recipe.changed({"data.path": str(tmp_path / "docs"), "data.personal": personal})
        (tmp_path / runs.RECIPE).write_text(changed.to_yaml())
        shown = app.sources(app.retriever(tmp_path), "Who helps with the pump?")
        assert ("[e-mail] or call [telephone]" in shown) == masked == ("acme" not in shown)


def test_nothing_acknowledged_is_lost_by_a_kill(manual, tmp_path):
    store, acknowledged = tmp_path / "said.db", []

    def send(number: int) -> None:
        with httpx2.Client() as client:
            for count in range(10_000):
                body = {
                    "messages": [{"role": "user", "content": f"{number} {count}"}],
                    "answer": "a",
                    "correction": "b",
                }
                try:
                    answer = client.post(told["url"].replace("/v1", "/feedback"), json=body)
                except httpx2.TransportError:
                    return
                assert answer.status_code == 201
                acknowledged.append((answer.json()["id"], f"{number} {count}"))

    with serving(manual, tmp_path / "log", "--feedback", str(store), "--rate", "0") as (process, told):
        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        process.kill()
        for thread in threads:
            thread.join(30)
    kept = {each.id: each.messages[0]["content"] for each in Store(store)}
    assert len(acknowledged) > 20
    assert [pair for pair in acknowledged if kept.get(pair[0]) != pair[1]] == []
    assert len(acknowledged) <= len(kept) <= len(acknowledged) + len(threads)  # committed, and not yet said


def said(text: str, answer: str = "No.", correction: str = "", rating: int = -1) -> Feedback:
    return Feedback([{"role": "user", "content": text}], answer, rating, correction)


def test_rows_are_what_was_corrected_and_nothing_that_is_tested():
    two_turns = Feedback(
        [*said("Hi").messages, {"role": "assistant", "content": "Yes?"}, *said("Why?").messages], "No.", -1, "Because."
    )  # fmt: skip
    found = [
        said("How?", correction="So."),
        said("What?", correction="  "),
        said("Who?", answer="Jo.", correction="jo!"),
        said("Is it a TEST?", correction="Yes."),
        said("how ", correction="Like this."),
        said("Fine?", rating=1),
        two_turns,
        said("Hi", answer="Yes?", rating=1),
    ]
    rows, left_out = training_rows(found, {normalise("is it a test")})
    assert [row["messages"][-1]["content"] for row in rows] == ["Like this.", "Because."]
    assert rows[1]["messages"][:-1] == two_turns.messages
    assert left_out == {
        "no correction": 3,
        "correction says the same": 1,
        "held-out question": 1,
        "corrected again later": 1,
    }
    pairs, left_out = training_rows(found, {normalise("is it a test")}, preference=True)
    assert (
        pairs == [{"prompt": "how ", "chosen": "Like this.", "rejected": "No."}]
        and left_out["several turns"] == 1
    )


def chat(*turns: str, answer: str = "No.", correction: str = "", rating: int = -1) -> Feedback:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return Feedback(messages, answer, rating, correction)


def test_no_answer_that_was_called_wrong_is_trained_on():
    second = chat("Q1", "WRONG1", "Q2", answer="WRONG2", correction="RIGHT2")
    for first, kept in (
        (said("Q1", "WRONG1", "RIGHT1"), ["RIGHT1", "RIGHT2"]),
        (said("Q1", "wrong1", rating=1), ["wrong1", "RIGHT2"]),
        (said("Q1", "WRONG1"), []),
        (said("Q1", "another answer", "RIGHT1"), []),
        (said("Q1", "WRONG1", rating=0), []),
    ):
        rows, left_out = training_rows([second, first], set())
        row = next((row for row in rows if len(row["messages"]) == 4), {"messages": []})
        assert [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"] == kept
        assert left_out.get("earlier answer that nobody judged", 0) == (not kept)
    changed = [said("Q1", "WRONG1", rating=1), said("Q1", "WRONG1"), second]
    assert training_rows(changed, set())[0] == []


def test_no_row_holds_a_held_out_question_in_any_turn_or_masked():
    held_out = {normalise("How long is the warranty?"), normalise("Who reads [e-mail]?")}
    found = [
        chat(
            "Hello",
            "Hi.",
            "How long is the warranty?",
            "Ten years.",
            "And batteries?",
            correction="One year.",
        ),
        said("who reads jo@acme.io", correction="Jo does."),
        said("Hello", "Hi.", rating=1),
        chat("Hello", "Hi.", "How long is the warranty?", answer="Ten years.", rating=1),
    ]
    rows, left_out = training_rows(found, held_out)
    assert rows == [] and left_out["held-out question"] == 2


def test_what_is_no_conversation_does_not_spoil_the_file():
    system, user, assistant = (
        {"role": role, "content": "Words."} for role in ("system", "user", "assistant")
    )
    odd = ([system], [user, system, user], [assistant, user], [user, assistant], [{**user, "content": " "}])
    found = [Feedback(messages, "a", -1, "b") for messages in odd]
    rows, left_out = training_rows(
        [*found, said("How?", correction="So."), said("Why?", correction="a\0b")], set()
    )
    assert len(rows) == 1 and left_out == {"not a conversation": 6}
    with pytest.raises(ValidationError, match="last of the messages must be the user's"):
        Said.model_validate({"messages": [user, assistant], "answer": "a"})


def test_the_command_writes_the_next_training_set(manual, tmp_path, capsys):
    def wrong(*more: str) -> str:
        assert main(["feedback", str(manual), "--output", str(tmp_path / "next.jsonl"), *more]) == 2
        out, line = capsys.readouterr()
        assert line.count("\n") == 1 and not out
        return line

    assert "there is no feedback yet" in wrong()
    line = wrong("--store", str(store(tmp_path / "none.db")))
    assert f"(it is empty; what people say in the web app of `ftdocs serve {manual}` fills it)" in line
    (tmp_path / "text.db").write_text(
        "this is no database, and it is longer than a header of one would be " * 9
    )
    assert "cannot hold feedback" in wrong("--store", str(tmp_path / "text.db"))
    asked = [question(row) for row in rows_of(manual, "test")]
    old = rows_of(manual, "train")[0]
    store(
        manual / "feedback.db",
        said(asked[0], correction="Leaked."),
        said("And the pump?", correction="Rinse it."),
        said(question(old), correction="Otherwise."),
    )
    arguments = ["feedback", str(manual), "--json", "--output"]
    assert main([*arguments, str(tmp_path / "next.jsonl"), "--replay"]) == 0
    told = json.loads(capsys.readouterr().out)
    trained = len(json.loads((manual / runs.SPLITS).read_text())["rows"]["train"])
    assert told["rows"] == 2 and told["left_out"] == {"held-out question": 1}
    assert told["replayed"] == trained - 1 and told["replaced"] == 1 and told["group"] == "document"
    written = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert len(written) == 1 + trained and "Leaked." not in json.dumps(written)
    mine = {question(row): row["messages"][-1]["content"] for row in written}
    assert len(mine) == len(written) and mine[question(old)] == "Otherwise."  # not the old answer too
    assert [row["document"] for row in written[:2]] == ["feedback 1", old["group"]]
    grouped = load_splits(Data(path=tmp_path / "next.jsonl", group="document", validation=0.3, test=0))
    assert not {row["group"] for row in grouped.validation} & {row["group"] for row in grouped.train}
    assert "exists; choose another" in wrong()
    assert main([*arguments, str(tmp_path / "pairs.jsonl"), "--preference"]) == 0
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])["chosen"] == "Rinse it."
    os.truncate(manual.parent / "docs" / "pump.md", 50)
    assert main(["feedback", str(manual), "--output", str(tmp_path / "later.jsonl")]) == 2
    assert "its data has changed" in capsys.readouterr().err


def test_rows_have_the_format_of_the_run(tmp_path, capsys):
    """Else the next run could not be compared with it."""
    run = tiny_run(tmp_path)
    turns = [*said("Hi").messages, {"role": "assistant", "content": "Yes?"}, *said("Why?").messages]
    store(
        run / "feedback.db",
        said("Which river?", correction="That one."),
        said("Hi", answer="Yes?", rating=1),
        Feedback(turns, "No.", -1, "Because."),
    )
    assert main(["feedback", str(run), "--output", str(tmp_path / "next.jsonl"), "--replay", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"no correction": 1, "several turns": 1}
    first, *rest = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert first == {"prompt": "Which river?", "completion": "That one."}
    assert len(rest) > 10 and all(row.keys() == {"prompt", "completion"} for row in rest)


def test_a_simulated_reader_corrects_what_is_wrong():
    wanted = [f"the {number} river" for number in range(40)]
    answers = [text if number % 2 else "no" for number, text in enumerate(wanted)]
    found = simulated([f"{number}?" for number in range(40)], answers, wanted, diligence=0.5, seed=1)
    assert 10 < len(found) < 30
    for each in found:
        number = int(each.messages[0]["content"][:-1])
        assert (each.rating, each.correction) == ((1, "") if number % 2 else (-1, wanted[number]))


def store(path: Path, *found: Feedback) -> Path:
    opened = Store(path)
    for each in found:
        opened.add(each)
    opened.close()
    return path
