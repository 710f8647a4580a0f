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
            time.sleep(0.03)
        return value

    def open(self, url: str) -> None:
        """Go to an address and wait until all of it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Make the window as large as this, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def press(self, key: str) -> None:
        """A key, by its name in DevTools: Tab, ArrowDown, Space, or a character."""
        text = {"Space": " "}.get(key, key if len(key) == 1 else "")
        code = {"Tab": 9, "ArrowUp": 38, "ArrowDown": 40, "Backspace": 8, "Space": 32}.get(key) or ord(
            key.upper()
        )
        event = {"key": text or key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

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
