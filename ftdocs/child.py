"""The program in which a model's server runs: it ends when the gateway does, and answers nobody but the gateway.

``python -m ftdocs.child MODULE ARGUMENT...``, with the gateway at the other end of standard input and its key in
``$VLLM_API_KEY``.
"""

import hmac
import os
import runpy
import sys
import threading

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

KEY = "VLLM_API_KEY"  # vLLM asks for it by itself too, though under /v1 alone


class Guard:
    """Middleware that refuses whoever does not send the key which was made for this start.

    Every user of a machine finds the port, and so does a page in a browser; behind it are no keys, rates or limits.
    """

    def __init__(self, app: ASGIApp):
        self.app, self.wanted = app, f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or hmac.compare_digest(given, self.wanted):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await send({"type": "websocket.close"})


class Config(uvicorn.Config):
    """Uvicorn's, with the guard before the application."""

    def __init__(self, app: ASGIApp, *arguments: object, **more: object):
        super().__init__(Guard(app), *arguments, **more)  # type: ignore[arg-type]


def watch(pipe: int) -> None:
    """Read until the gateway has gone, in whatever way that ended, and then go too.

    The operating system closes the pipe, so this holds after `kill -9`, and on Linux, macOS and Windows alike.
    """
    while os.read(pipe, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=watch, args=(os.dup(0),), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    uvicorn.Config = Config  # both servers make theirs by this name
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
