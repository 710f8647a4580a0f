"""What stands before a model's server: keys, limits, metrics, an orderly end. OpenAI's protocol on both sides.

:class:`Gateway` has the rules and :func:`build` the routes; :func:`serve` runs them with a model behind.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from ftdocs.backend import Backend, Served, shares_sampling
from ftdocs.errors import InputError
from ftdocs.feedback import LONGEST, Feedback

log = logging.getLogger("ftdocs.serve")
SHORTEST_KEY = 16  # characters
HEADER_SECONDS = 10.0  # for a client to send its request's head
BODY_SECONDS = 10.0  # and the body
WRITE_SECONDS = 30.0  # and to read what it is sent, at least a piece
LARGEST_BODY = 10_000_000  # bytes, wherever it is sent; the API's own limit is a setting
LOOPBACK = ("127.0.0.1", "localhost", "::1")
Chunk = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one client may ask, and all together.

    Attributes:
        prompt_tokens: of a conversation, as the model's chat template writes it.
        max_tokens: of an answer; more is refused, and an answer for which nothing is asked ends there.
        per_minute: requests of a key in a minute, as many at once; 0 is no limit.
        slots: requests that the model works on together.
        queue: requests that wait for a slot; one more is refused.
        seconds: of a request, waiting included.
        body_bytes: of a request.
    """

    prompt_tokens: int
    max_tokens: int = 512
    per_minute: int = 120
    slots: int = 16
    queue: int = 32
    seconds: float = 120.0
    body_bytes: int = 1_000_000


class Refused(Exception):
    """A request that is not answered; it becomes a response in OpenAI's error shape."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response, with `Retry-After` in whole seconds where waiting helps."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.status in (408, 413, 415):  # the rest of the body is not waited for
            headers["Connection"] = "close"
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after + 0.5)))
        return JSONResponse(self.body(), self.status, headers)


class Part(BaseModel):
    """A part of a message's content; of OpenAI's kinds only text."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = (
            self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Asked(BaseModel):
    """The body of a request for a chat completion: those of OpenAI's fields that are honoured.

    Fields that would change the answer and are not honoured are refused, unless they say what happens anyway.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None


class Said(BaseModel):
    """The body of a request that brings feedback."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Turn] = Field(min_length=1)
    answer: str
    rating: Literal[-1, 0, 1] = 0
    correction: str = Field("", max_length=LONGEST)


class Keys:
    """API keys, kept as digests; none at all lets everybody in.

    Args:
        keys: the keys as their owners write them.

    Raises:
        InputError: a key is shorter than 16 characters; its place is said and the key is not.
    """

    def __init__(self, keys: list[str]):
        for place, key in enumerate(keys, 1):
            if len(key) < SHORTEST_KEY:
                raise InputError(
                    f"API key {place}: has {len(key)} characters, and {SHORTEST_KEY} are the least; make one with:"
                    ' python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def place(self, given: str) -> int | None:
        """Which key it is, from 0; None if it is none. Takes as long for a wrong key as for a right one."""
        digest, found = hashlib.sha256(given.encode()).digest(), None
        for place, known in enumerate(self.digests):
            if hmac.compare_digest(digest, known):
                found = place
        return found


def read_keys(file: Path | None) -> Keys:
    """The keys in ``file``, one a line, and those in ``$FTDOCS_API_KEY``, separated by commas.

    Raises:
        InputError: the file cannot be read, is empty, or other users of the machine may read it; a key is too short.
    """
    keys = [key.strip() for key in os.environ.get("FTDOCS_API_KEY", "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            mode = file.stat().st_mode
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{file}: no such file of keys, or it cannot be read; one key a line") from None
        if os.name == "posix" and mode & 0o077:
            raise InputError(f"{file}: other users of this machine may read it; chmod 600 {file}")
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError(f"{file}: has no key; write one a line")
        keys += found
    return Keys(keys)


class Bucket:
    """A token bucket: ``per_minute`` requests at once, and as many again in a minute, one after the other."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.size, self.rate, self.clock = float(per_minute), per_minute / 60, clock
        self.left, self.then = self.size, clock()

    def take(self) -> float:
        """Take one; 0 where there was one, else the seconds until there is."""
        now = self.clock()
        self.left, self.then = min(self.size, self.left + (now - self.then) * self.rate), now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0


class Gateway:
    """The rules between clients and a model's server.

    Args:
        served: the model.
        url: of its server.
        limits: what clients may ask.
        keys: who may ask; without keys everybody.
        temperature: of answers for which none is asked; and of all, where the server samples all alike.
        shared: the server samples all requests as the first one asked, so others are refused.
        alive: whether the server still runs.
    """

    def __init__(
        self,
        served: Served,
        url: str,
        limits: Limits,
        keys: Keys,
        temperature: float = 0.0,
        shared: bool = False,
        alive: Callable[[], bool] = lambda: True,
    ):
        from transformers import AutoTokenizer

        self.served, self.limits, self.keys = served, limits, keys
        self.temperature, self.shared, self.alive = temperature, shared, alive
        self.tokenizer = AutoTokenizer.from_pretrained(served.folder)
        self.one_at_a_time = threading.Lock()  # a tokenizer may not be used by two threads at once
        connections = httpx2.Limits(max_connections=limits.slots + 4)
        self.client = httpx2.AsyncClient(base_url=url, timeout=None, limits=connections, trust_env=False)
        self.slots = asyncio.Semaphore(limits.slots)
        self.buckets: dict[int | str | None, Bucket] = {}
        self.running, self.waiting, self.ready, self.stopping = 0, 0, False, False
        self.registry = CollectorRegistry()
        more = {"registry": self.registry}
        self.requests = Counter("ftdocs_requests", "Requests for an answer, by status.", ["status"], **more)
        self.seconds = Histogram(
            "ftdocs_request_seconds", "Seconds of an answered request, waiting included.", **more,
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )  # fmt: skip
        self.first = Histogram(
            "ftdocs_first_token_seconds", "Seconds to the first piece of an answer.", **more,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )  # fmt: skip
        self.tokens = Counter("ftdocs_tokens", "Tokens of answered requests.", ["kind"], **more)
        for name, text in (
            ("running", "Requests that the model works on."),
            ("waiting", "Requests in the queue."),
        ):
            Gauge(f"ftdocs_{name}", text, **more).set_function(lambda name=name: getattr(self, name))

    async def warm(self) -> None:
        """One short answer before the first client's: a server that samples all alike is told how by it."""
        asked = Asked(model=self.served.name, messages=[Turn(role="user", content="Hello")], max_tokens=1)
        async for _ in self.upstream(asked):
            pass
        self.ready = True

    def check_key(self, authorization: str | None) -> int | None:
        """Which key a request has.

        Raises:
            Refused: 401.
        """
        if not self.keys:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        place = self.keys.place(given.strip()) if scheme.lower() == "bearer" else None
        if place is None:
            given_none = "no API key was given" if not given else "this API key is not known"
            raise Refused(401, "invalid_api_key", f"{given_none}; send: Authorization: Bearer KEY")
        return place

    def check_rate(self, key: int | str | None) -> None:
        """Count a request of a key.

        Raises:
            Refused: 429, with the seconds until the next one.
        """
        per_minute = self.limits.per_minute
        if per_minute and (wait := self.buckets.setdefault(key, Bucket(per_minute)).take()):
            message = f"more than {per_minute} requests a minute; wait {wait:.0f} s"
            raise Refused(429, "rate_limit_exceeded", message, retry_after=wait)

    def parse(self, raw: bytes) -> Asked:
        """A request's body, checked.

        Raises:
            Refused: 400 or 404; the message names the field and never repeats what stood in it.
        """
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            where = (
                f" (line {error.lineno}, column {error.colno})"
                if isinstance(error, json.JSONDecodeError)
                else ""
            )
            raise Refused(400, "invalid_json", f"the body is not valid JSON{where}") from None
        try:
            asked = Asked.model_validate(body)
        except ValidationError as error:
            raise Refused(400, "invalid_value", explained(error)) from None
        if asked.model != self.served.name:
            message = f"there is no model of this name here; this server has {self.served.name!r}"
            raise Refused(404, "model_not_found", message)
        most = asked.max_completion_tokens or asked.max_tokens or 0
        if most > self.limits.max_tokens:
            message = (
                f"max_tokens: {most} is more than the {self.limits.max_tokens} that an answer may have here"
            )
            raise Refused(400, "invalid_value", message)
        if self.shared:
            set_ones = [name for name in ("top_p", "seed", "stop") if getattr(asked, name) is not None]
            if asked.temperature not in (None, self.temperature):
                set_ones.insert(0, "temperature")
            if set_ones:
                message = (
                    f"{set_ones[0]}: cannot be set for one request: requests are answered together, at temperature"
                    f" {self.temperature:g}; leave it out, or start the server with --no-batching"
                )
                raise Refused(400, "unsupported_value", message)
        return asked

    def parse_feedback(self, raw: bytes) -> Feedback:
        """A body that brings feedback, checked.

        Raises:
            Refused: 400.
        """
        try:
            said = Said.model_validate_json(raw)
        except ValidationError as error:
            raise Refused(400, "invalid_value", explained(error)) from None
        turns = [turn.plain() for turn in said.messages]
        return Feedback(turns, said.answer, said.rating, said.correction, self.served.fingerprint)

    def count(self, asked: Asked) -> int:
        """Tokens of a conversation as the model sees it.

        Raises:
            Refused: 400; it is too long, or the chat template refuses it.
        """
        try:
            with self.one_at_a_time:
                ids = self.tokenizer.apply_chat_template(
                    [turn.plain() for turn in asked.messages],
                    add_generation_prompt=True,
                    return_dict=True,
                    verbose=False,
                )["input_ids"]
        except Exception:  # of Jinja or the template's own, whose message may repeat the text
            message = "messages: the model's chat template refuses this order of roles"
            raise Refused(400, "invalid_value", message) from None
        if len(ids) > self.limits.prompt_tokens:
            message = f"messages: {len(ids)} tokens, and {self.limits.prompt_tokens} are the most here; shorten them"
            raise Refused(400, "context_length_exceeded", message)
        return len(ids)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place among the requests that the model works on.

        Raises:
            Refused: 503; as many wait already as may, or the server is about to end.
        """
        if self.stopping or not self.ready or not self.alive():
            raise Refused(503, "not_ready", "this server is starting or ending; try again", retry_after=5)
        if self.slots.locked() and self.waiting >= self.limits.queue:
            message = f"{self.waiting} requests wait already, and that is the most; try again"
            raise Refused(503, "queue_full", message, retry_after=2)
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.slots.release()

    async def upstream(self, asked: Asked) -> AsyncIterator[Chunk]:
        """The chunks of an answer, from the model's server, in OpenAI's streaming form.

        Raises:
            Refused: 502; the server answers with an error or not at all.
        """
        temperature = self.temperature if asked.temperature is None else asked.temperature
        body = {
            "model": str(self.served.folder),
            "messages": [turn.plain() for turn in asked.messages],
            "max_tokens": asked.max_completion_tokens or asked.max_tokens or self.limits.max_tokens,
            "stream": True,
            "temperature": temperature,
            **{
                name: value
                for name in ("top_p", "seed", "stop")
                if (value := getattr(asked, name)) is not None
            },
        }
        if temperature > 0 and not self.served.generation.get("do_sample"):
            # transformers' server sets the temperature and leaves sampling off, unless the model's files turn it on.
            body["generation_config"] = json.dumps({**self.served.generation, "do_sample": True})
        try:
            async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise Refused(502, "model_failed", f"the model's server answered {response.status_code}")
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        if "error" in chunk:
                            raise Refused(502, "model_failed", "the model's server failed while it answered")
                        yield chunk
        except httpx2.TransportError:
            raise Refused(502, "model_failed", "the model's server does not answer") from None

    async def answer(self, asked: Asked, prompt_tokens: int) -> AsyncGenerator[Chunk, None]:
        """An answer's chunks as the model makes them, not as the client reads them.

        A task reads them from the model's server into memory, at most ``max_tokens`` of them, so a client that reads
        slowly holds no slot. When the reader goes away the task ends, and with it the generation.

        Raises:
            Refused: 502, 503, or 504 after ``limits.seconds``.
        """
        chunks: asyncio.Queue[Chunk | Refused | None] = asyncio.Queue()

        async def work() -> None:
            last: Refused | None = None
            try:
                async with asyncio.timeout(self.limits.seconds), self.slot():
                    async for chunk in self.upstream(asked):
                        if usage := chunk.get("usage"):
                            self.tokens.labels("completion").inc(usage["completion_tokens"])
                            self.tokens.labels("prompt").inc(prompt_tokens)
                        chunks.put_nowait({**chunk, "model": self.served.name})
            except Refused as refused:
                last = refused
            except TimeoutError:
                last = Refused(504, "timeout", f"not done in {self.limits.seconds:g} s; ask for fewer tokens")
            except Exception:
                log.exception("while answering")
                last = Refused(500, "internal_error", "a fault of this server; it is in its log")
            chunks.put_nowait(last)

        task = asyncio.create_task(work())
        try:
            while (chunk := await chunks.get()) is not None:
                if isinstance(chunk, Refused):
                    raise chunk
                yield chunk
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def note(self, status: int, prompt: int, chunks: list[Chunk], seconds: float, id: str) -> None:
        """Count a request that came to an answer, and write its line into the log."""
        usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), {})
        if status == 200:
            self.seconds.observe(seconds)
        self.requests.labels(str(status)).inc()
        made = usage.get("completion_tokens", 0)
        log.info("chat %d prompt=%d completion=%d seconds=%.2f id=%s", status, prompt, made, seconds, id)


def explained(error: ValidationError) -> str:
    """What is wrong with a body, in one line that names the field and does not repeat its value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][:3] if part not in ("str", "list[Part]"))
    if first["type"] == "extra_forbidden":
        return f"{str(first['loc'][-1])[:40]}: this field is not known here, or would change nothing; leave it out"
    return f"{place or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}"


def whole(chunks: list[Chunk], name: str) -> dict[str, Any]:
    """A chat completion from the chunks of a streamed one."""
    deltas = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in deltas)
    reasons = [choice["finish_reason"] for choice in deltas if choice.get("finish_reason")]
    return {
        "id": chunks[0]["id"] if chunks else "",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reasons[-1] if reasons else "stop",
            }
        ],
        "usage": next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None),
    }


async def read_body(request: Request, most: int) -> bytes:
    """A request's body.

    Raises:
        Refused: 415 for what does not say it is JSON (a page in a browser may send that anywhere unasked), 413, or
            408 where the client does not send it in time.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "invalid_content_type", "send the body as Content-Type: application/json")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                raw += piece
                if len(raw) > most:
                    raise Refused(413, "body_too_large", f"the body has more than {most} bytes; send less")
    except TimeoutError:
        raise Refused(408, "body_too_slow", f"the body did not come in {BODY_SECONDS:g} s") from None
    return bytes(raw)


async def beginning(answer: AsyncIterator[Chunk], chunks: list[Chunk]) -> None:
    """Append an answer's chunks up to the first with text, or to its end; the first says only whose turn it is."""
    async for chunk in answer:
        chunks.append(chunk)
        if any(
            choice["delta"].get("content") or choice.get("finish_reason")
            for choice in chunk.get("choices", ())
        ):
            return


async def gone(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def collect(answer: AsyncIterator[Chunk], chunks: list[Chunk]) -> None:
    """Append an answer's chunks to those that are there."""
    async for chunk in answer:
        chunks.append(chunk)


async def chat(gateway: Gateway, request: Request) -> Response:
    """The answer to a request for a chat completion, streamed or whole.

    Raises:
        Refused: what is wrong with the request, or went wrong before the answer's first word.
    """
    began = time.perf_counter()
    gateway.check_rate(gateway.check_key(request.headers.get("authorization")))
    asked = gateway.parse(await read_body(request, gateway.limits.body_bytes))
    prompt = await asyncio.to_thread(gateway.count, asked)
    id = f"chatcmpl-{uuid.uuid4().hex}"
    answer = gateway.answer(asked, prompt)
    chunks: list[Chunk] = []

    def done(status: int) -> None:
        gateway.note(status, prompt, chunks, time.perf_counter() - began, id)

    left = asyncio.create_task(gone(request))

    async def unless_gone(work: Coroutine[Any, Any, Any]) -> bool:
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task  # raises what it raised
            return task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Refused):
                await task

    handed_on = False
    try:
        there = await unless_gone(beginning(answer, chunks))
        if there:
            gateway.first.observe(time.perf_counter() - began)
        if there and asked.stream:
            handed_on = True
            return StreamingResponse(events(answer, chunks, id, done), media_type="text/event-stream")
        if not there or not await unless_gone(collect(answer, chunks)):
            done(499)
            return Response(status_code=499)
        done(200)
        return JSONResponse({**whole(chunks, gateway.served.name), "id": id})
    finally:
        left.cancel()
        if not handed_on:
            await answer.aclose()


async def events(
    answer: AsyncGenerator[Chunk, None], chunks: list[Chunk], id: str, done: Callable[[int], None]
) -> AsyncIterator[str]:
    """An answer as server-sent events; of its chunks the last one is kept, which says how many tokens there were."""
    status = 499  # what the log says where the client goes away
    try:
        for chunk in chunks:
            yield f"data: {json.dumps({**chunk, 'id': id})}\n\n"
        async for chunk in answer:
            chunks[:] = [chunk]
            yield f"data: {json.dumps({**chunk, 'id': id})}\n\n"
        status = 200
        yield "data: [DONE]\n\n"
    except Refused as error:
        status = error.status
        yield f"data: {json.dumps(error.body())}\n\n"
    finally:
        await answer.aclose()
        done(status)


def build(gateway: Gateway) -> FastAPI:
    """The application: OpenAI's endpoints, health and metrics."""
    app = FastAPI(title="ftdocs", docs_url=None, redoc_url=None, openapi_url=None)
    if (
        not gateway.keys
    ):  # else a page that a browser shows could reach this by a name of its own (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK[:2], "[::1]"])

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        if request.url.path == "/v1/chat/completions":
            gateway.requests.labels(str(error.status)).inc()
            log.info("chat %d %s", error.status, error.code)
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return Refused(error.status_code, "not_found", str(error.detail)).response()

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await chat(gateway, request)

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        gateway.check_key(request.headers.get("authorization"))
        one = {"id": gateway.served.name, "object": "model", "created": 0, "owned_by": "ftdocs"}
        return JSONResponse({"object": "list", "data": [one]})

    @app.get("/health/live")
    async def live() -> JSONResponse:
        return JSONResponse({"status": "live"})

    @app.get("/health")
    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        well = gateway.ready and not gateway.stopping and gateway.alive()
        return JSONResponse({"status": "ready" if well else "not ready"}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        gateway.check_key(request.headers.get("authorization"))
        return Response(generate_latest(gateway.registry), media_type="text/plain; version=0.0.4")

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def nothing(rest: str) -> JSONResponse:
        raise Refused(404, "not_found", "there is no such endpoint; see /v1/models and /v1/chat/completions")

    return app


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
        """Wait for the model's server, then for its end."""
        try:
            await asyncio.to_thread(self.backend.wait)
            await self.gateway.warm()
            self.announce()
            while self.backend.process.poll() is None:
                await asyncio.sleep(0.2)
            if not self.should_exit:
                code = self.backend.process.returncode
                self.failed = RuntimeError(
                    f"the model's server ended with code {code}; --backend-log FILE keeps its output"
                )
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
            served, backend.url, limits, keys, temperature, shared, lambda: backend.process.poll() is None
        )
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
