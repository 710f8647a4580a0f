"""The web app in a real browser, and feedback that outlives `kill -9` and becomes rows without a test question."""

import base64
import json
import os
import signal
import threading
import time
from pathlib import Path

import browser
import httpx2
import pytest
from serving import children, serving, tiny_run

from ftdocs import runs
from ftdocs.cli import main
from ftdocs.data.clean import normalise
from ftdocs.feedback import Feedback, Store, question, rows_of, simulated, training_rows

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
    ]
    rows, left_out = training_rows(found, {normalise("is it a test")})
    assert [row["messages"][-1]["content"] for row in rows] == ["Like this.", "Because."]
    assert rows[1]["messages"][:-1] == two_turns.messages
    assert left_out == {
        "no correction": 2,
        "correction says the same": 1,
        "held-out question": 1,
        "corrected again later": 1,
    }
    pairs, left_out = training_rows(found, {normalise("is it a test")}, preference=True)
    assert (
        pairs == [{"prompt": "how ", "chosen": "Like this.", "rejected": "No."}]
        and left_out["several turns"] == 1
    )


def test_the_command_writes_the_next_training_set(manual, tmp_path, capsys):
    def wrong(*more: str) -> str:
        assert main(["feedback", str(manual), "--output", str(tmp_path / "next.jsonl"), *more]) == 2
        out, line = capsys.readouterr()
        assert line.count("\n") == 1 and not out
        return line

    assert "there is no feedback yet" in wrong()
    assert "no row can be trained on (it is empty)" in wrong("--store", str(store(tmp_path / "none.db")))
    (tmp_path / "text.db").write_text(
        "this is no database, and it is longer than a header of one would be " * 9
    )
    assert "cannot hold feedback" in wrong("--store", str(tmp_path / "text.db"))
    asked = [question(row) for row in rows_of(manual, "test")]
    store(
        manual / "feedback.db",
        said(asked[0], correction="Leaked."),
        said("And the pump?", correction="Rinse it."),
    )
    arguments = ["feedback", str(manual), "--json", "--output"]
    assert main([*arguments, str(tmp_path / "next.jsonl"), "--replay"]) == 0
    told = json.loads(capsys.readouterr().out)
    trained = len(json.loads((manual / runs.SPLITS).read_text())["rows"]["train"])
    assert told["rows"] == 1 and told["left_out"] == {"held-out question": 1} and told["replayed"] == trained
    written = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert len(written) == 1 + trained and "Leaked." not in json.dumps(written)
    assert "exists; choose another" in wrong()
    assert main([*arguments, str(tmp_path / "pairs.jsonl"), "--preference"]) == 0
    assert json.loads((tmp_path / "pairs.jsonl").read_text())["chosen"] == "Rinse it."
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
        Feedback(turns, "No.", -1, "Because."),
    )
    assert main(["feedback", str(run), "--output", str(tmp_path / "next.jsonl"), "--replay", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"several turns": 1}
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
