"""A real Label Studio takes pre-labels and gives back annotations that ftdocs reads: `nox -s labelstudio`.

Starts the command that it is given in a folder of its own, on this machine alone, and speaks to it over its API.
"""

import json
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from ftdocs.data.annotation import (
    both,
    kappa,
    labeling_config,
    labelled,
    pre_labels,
    read_predictions,
    read_tasks,
    training_rows,
)

LABELS = ["negative", "positive"]
TEXTS = [
    "Dull from the first scene.",
    "A quiet film that stays with you.",
    "Neither here nor there.",
    "Never shown.",
]
PREDICTIONS = [
    {"label": "negative", "score": 0.9},
    {"label": "positive", "score": 0.8},
    {"label": "positive", "score": 0.55},
    {"label": "negative", "score": 0.5},
]
START = "start --no-browser --internal-host 127.0.0.1".split()
PAGE = Path(__file__).parent.parent / "docs" / "techniques" / "data-preparation.md"
QUIET = {
    "COLLECT_ANALYTICS": "False",
    "LATEST_VERSION_CHECK": "False",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}


class Server:
    """Label Studio on a free port of the loopback address."""

    def __init__(self, command: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.token = secrets.token_hex(20)
        options = (
            f"start --no-browser --internal-host 127.0.0.1 --port {self.port} --data-dir {folder}".split()
        )
        user = ["--username", "annotator@example.com", "--password", secrets.token_urlsafe(12)]
        options += [*user, "--user-token", self.token, "--enable-legacy-api-token"]
        self.log = open(folder / "log.txt", "w+")  # noqa: SIM115, closed with the server
        self.process = subprocess.Popen(
            [command, *options],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET},
            start_new_session=True,
        )

    def wait(self, seconds: float = 600) -> None:
        """Return when it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.call("GET", "/api/version")
                return
            except OSError:
                time.sleep(0.5)
        self.log.seek(0)
        raise SystemExit(f"Label Studio did not start:\n{self.log.read()[-2000:]}")

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        """The answer to a request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode()[:1000])
            raise

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer to a request."""
        return json.loads(self.call(method, path, body))

    def stop(self) -> None:
        """End it and what it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        self.log.close()


def annotate(server: Server, task: int, label: str, who: int | None = None) -> None:
    result = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}]
    body = {"result": result} | ({} if who is None else {"completed_by": who})
    server.ask("POST", f"/api/tasks/{task}/annotations/", body)


def check_page() -> None:
    """Fail unless the page installs the version and gives the options that `nox -s labelstudio` really starts."""
    page = PAGE.read_text(encoding="utf-8")
    command = re.search(r"^label-studio/bin/label-studio (.*)$", page, re.MULTILINE)
    version = re.search(r"label-studio==[\d.]+", (PAGE.parents[2] / "noxfile.py").read_text(encoding="utf-8"))
    assert command and version and version[0] in page
    options = " ".join([*START, "--port", "8080", "--data-dir", "label-studio-data"])
    assert command[1] == options, f"the page has {command[1]}, the session {options}"


def main(command: str) -> None:
    """Check the round trip."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(command, folder)
        try:
            server.wait()
            ready = time.monotonic() - started
            check(server, folder)
        finally:
            server.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"Label Studio was ready after {ready:.0f} s, ended after {time.monotonic() - started:.0f} s;",
        end=" ",
    )
    print(f"it computed for {used.ru_utime + used.ru_stime:.0f} s and took {used.ru_maxrss / 2**20:.1f} GiB")


def check(server: Server, folder: Path) -> None:
    """Import pre-labels, annotate three of four tasks, two of them twice, and read each export."""
    project = server.ask(
        "POST", "/api/projects/", {"title": "films", "label_config": labeling_config(LABELS)}
    )["id"]
    imported = server.ask(
        "POST", f"/api/projects/{project}/import", pre_labels(TEXTS, PREDICTIONS, "tf-idf 1")
    )
    print("imported", {name: imported[name] for name in ("task_count", "prediction_count")})
    found = server.ask("GET", f"/api/tasks/?project={project}&fields=all")["tasks"]
    tasks = {task["data"]["text"]: task["id"] for task in found}
    second = server.ask("POST", "/api/users/", {"username": "second", "email": "second@example.com"})["id"]
    for text, label in zip(TEXTS[:3], ("negative", "positive", "negative"), strict=True):
        annotate(server, tasks[text], label)
    annotate(server, tasks[TEXTS[0]], "negative", second)
    annotate(server, tasks[TEXTS[2]], "positive", second)

    for kind, ending in (("JSON", "json"), ("JSON_MIN", "min.json"), ("CSV", "csv")):
        export = folder / f"export.{ending}"
        address = f"/api/projects/{project}/export?exportType={kind}&download_all_tasks=true"
        export.write_bytes(server.call("GET", address))
        if "--show" in sys.argv:
            print(export.read_text()[:3000])
        read = read_tasks(export, labels=LABELS)
        rows, report = labelled(read, export.name)
        print(kind, report)
        assert {row["text"]: row["label"] for row in rows} == {TEXTS[0]: "negative", TEXTS[1]: "positive"}
        assert len(report["disagree"]) == len(report["tied"]) == 1
        assert both(read, 1, 2)[0] == ["negative", "negative"]
        assert kappa(*both(read, 1, 2))[0] == 0.0
        assert list(training_rows(export)) == rows
    predictions = read_predictions(folder / "export.json")
    scores = {text: prediction["score"] for text, prediction in zip(TEXTS, PREDICTIONS, strict=True)}
    assert {row["text"]: row["score"] for row in predictions} == {text: scores[text] for text in TEXTS[:3]}
    assert {row["model_version"] for row in predictions} == {"tf-idf 1"}


if __name__ == "__main__":
    check_page() if "--check-page" in sys.argv else main(sys.argv[1])
