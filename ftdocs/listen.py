"""Run the gateway with a model behind: connections that hang, signals, an orderly end."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ftdocs.access import Keys, Limits
from ftdocs.backend import Backend, Served, shares_sampling
from ftdocs.errors import InputError
from ftdocs.gateway import LARGEST_BODY, LOOPBACK, Gateway, build, log
from ftdocs.protocol import Refused

HEADER_SECONDS = 10.0  # for a client to send its request's head
WRITE_SECONDS = 30.0  # and to read what it is sent, at least a piece


class Patient(H11Protocol):
    """HTTP for clients that hang: the head of a request has to come, and an answer to be read, in time."""

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self.clock: asyncio.TimerHandle | None = None
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def in_time(message: Any) -> None:
                try:
                    async with asyncio.timeout(WRITE_SECONDS):
                        await send(message)
                except TimeoutError:  # what is in the buffer will not be read
                    self.transport.abort()

            received = 0

            async def in_bounds() -> Any:
                nonlocal received
                message = await receive()
                received += len(message.get("body", b""))
                if received > LARGEST_BODY:
                    self.transport.abort()
                    return {"type": "http.disconnect"}
                return message

            await inner(scope, in_bounds, in_time)

        self.app = app  # type: ignore[assignment]

    def connection_made(self, transport: Any) -> None:
        """Wait for a head."""
        super().connection_made(transport)
        self.watch()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, where there is none yet."""
        super().data_received(data)
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self.clock:
            self.clock.cancel()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and cut it off if its last answer is never read."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def answering(self) -> bool:
        """Whether a request's head has come and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def watch(self) -> None:
        """Start the clock where a head is awaited, stop it where one has come."""
        if self.answering():
            if self.clock:
                self.clock.cancel()
            self.clock = None
        elif self.clock is None:
            self.clock = self.loop.call_later(HEADER_SECONDS, self.late)

    def late(self) -> None:
        """End a connection on which no request has come in time."""
        self.clock = None
        if not self.answering():
            self.transport.abort()


class Server(uvicorn.Server):
    """Uvicorn that first lets the answers end which are being given, and then does not wait for idle connections.

    Args:
        config: Uvicorn's.
        gateway: whose answers are waited for.
        backend: the model's server; this one ends when that one does.
        grace: seconds for what runs or waits when a signal comes.
        announce: called once the model answers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        gateway: Gateway,
        backend: Backend,
        grace: float,
        announce: Callable[[], None],
    ):
        super().__init__(config)
        self.gateway, self.backend, self.grace, self.announce = gateway, backend, grace, announce
        self.failed: Exception | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Listen at once, and be ready when the model is."""
        await super().startup(sockets)
        self.watching = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        """Wait for the model's server, then for its end, or for it to say that it cannot go on."""
        try:
            await asyncio.to_thread(self.backend.wait)
            await self.gateway.warm()
            self.announce()
            while self.backend.process.poll() is None and await self.gateway.well():
                await asyncio.sleep(1)
            if not self.should_exit:
                # None: transformers' server outlives the thread that computes.
                code = self.backend.process.poll()
                how = "can answer no more" if code is None else f"ended with code {code}"
                self.failed = RuntimeError(f"the model's server {how}; --backend-log FILE keeps its output")
        except (RuntimeError, Refused) as error:
            self.failed = error
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Accept nothing more, finish what runs or waits within the grace time, then end."""
        self.gateway.stopping = True
        for listener in self.servers:
            listener.close()
        running, waiting = self.gateway.running, self.gateway.waiting
        log.info("stopping: %d running, %d waiting, %g s for them", running, waiting, self.grace)
        until = time.monotonic() + self.grace
        while (
            self.gateway.running + self.gateway.waiting and time.monotonic() < until and not self.force_exit
        ):
            await asyncio.sleep(0.05)
        self.watching.cancel()
        if not self.gateway.ready:  # a thread waits for the model until that server answers or ends
            self.backend.process.terminate()
        self.config.timeout_graceful_shutdown = 1  # to send what is made already
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first SIGTERM or Ctrl-C ends in order, with exit code 0; the second Ctrl-C does not wait."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def more_files() -> None:
    """Let this process have as many connections as the system allows: each is an open file."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard)
        )


def listen(host: str, port: int, keys: Keys) -> socket.socket:
    """The socket to serve on; port 0 takes a free one.

    Raises:
        InputError: others could reach it and there is no key, or the address is taken or not this machine's.
    """
    if host not in LOOPBACK and not keys:
        raise InputError(
            f"--host {host}: others could reach the model without a key; set FTDOCS_API_KEY or give --key-file"
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        if os.name == "posix":  # where it means that a port is free as soon as its last server has ended
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such port"
        raise InputError(f"{host}:{port}: {reason}; choose another with --host and --port") from None
    return listener


def write_log() -> None:
    """A line for each request on standard error: status, tokens, seconds; never text, never a key."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("ftdocs.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(level)


def serve(
    served: Served,
    listener: socket.socket,
    limits: Limits,
    keys: Keys,
    announce: Callable[[str], None],
    batching: bool = True,
    temperature: float = 0.0,
    grace: float = 30.0,
    backend_log: Path | None = None,
    extend: Callable[[FastAPI, Gateway], FastAPI] = lambda app, gateway: app,
) -> None:
    """Serve a model until a signal comes.

    Args:
        served: the model.
        listener: where clients connect.
        limits: what they may ask.
        keys: who may.
        announce: called with the address once the model answers.
        batching: answer several requests together.
        temperature: of answers for which none is asked.
        grace: seconds for what runs when a signal comes.
        backend_log: a file for the output of the model's server; it may hold text of prompts.
        extend: adds what else is served, such as a web app.

    Raises:
        RuntimeError: the model's server did not start, or ended.
    """
    write_log()
    more_files()
    backend = Backend(served, batching, backend_log)
    try:
        shared = shares_sampling(backend.arguments)
        gateway = Gateway(
            served, backend.url, limits, keys, temperature, shared, lambda: backend.process.poll() is None,
            backend.key,
        )  # fmt: skip
        app = extend(build(gateway), gateway)
        config = uvicorn.Config(
            app, http=Patient, ws="none", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=30, backlog=2048, lifespan="on",
        )  # fmt: skip
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = Server(config, gateway, backend, grace, lambda: announce(url))
        server.run(sockets=[listener])
        if server.failed:
            raise server.failed
    finally:
        backend.stop()
