"""A real browser, driven over its DevTools protocol: what a page shows, and every request that it makes."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import websocket

FOUND = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


class Tab:
    """A page in the browser."""

    def __init__(self, url: str):
        self.socket = websocket.create_connection(url, timeout=30, suppress_origin=True)
        self.number, self.requests = 0, []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result; requests that the page makes meanwhile are noted."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def run(self, code: str) -> Any:
        """The value of an expression."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 30) -> Any:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < until, (code, self.run("document.body.innerText"))
            time.sleep(0.1)
        return value

    def type(self, selector: str, text: str) -> None:
        """Write into a field, as a user does."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Press a button."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")


@contextmanager
def browser(folder: Path, url: str) -> Iterator[Tab]:
    """A browser with one tab that has gone to ``url``; ``folder`` keeps its profile."""
    process = subprocess.Popen(
        [str(FOUND), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
         "--remote-debugging-port=0", "--no-first-run", "--disable-background-networking", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until, told = time.monotonic() + 30, folder / "DevToolsActivePort"
        while not (told.is_file() and told.read_text().strip()):
            assert time.monotonic() < until, "the browser did not start"
            time.sleep(0.1)
        port = told.read_text().split()[0]
        tabs = httpx2.get(f"http://127.0.0.1:{port}/json").json()
        tab = Tab(next(each["webSocketDebuggerUrl"] for each in tabs if each["type"] == "page"))
        tab.call("Network.enable")
        tab.call("Page.enable")
        tab.call("Page.navigate", url=url)
        yield tab
        tab.socket.close()
    finally:
        process.terminate()
        process.wait(10)
