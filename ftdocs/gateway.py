"""What stands before a model's server: rules, metrics, and the routes of OpenAI's protocol.

:class:`Gateway` has the rules and :func:`build` the routes; :func:`ftdocs.listen.serve` runs them with a model behind.
"""

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ftdocs.access import Bucket, Keys, Limits
from ftdocs.backend import Served
from ftdocs.feedback import Feedback
from ftdocs.protocol import Asked, Chunk, Refused, Said, Turn, explained, whole

log = logging.getLogger("ftdocs.serve")
PIECE = 20_000  # characters that are tokenised at once where there are far too many
BODY_SECONDS = 10.0  # for a client to send a request's body
LARGEST_BODY = 10_000_000  # bytes, wherever it is sent; the API's own limit is a setting
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
        key: what the server wants to be sent.
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
        key: str = "",
    ):
        from transformers import AutoTokenizer

        self.served, self.limits, self.keys = served, limits, keys
        self.temperature, self.shared, self.alive = temperature, shared, alive
        self.tokenizer = AutoTokenizer.from_pretrained(served.folder)
        self.longest = max(map(len, self.tokenizer.get_vocab()))  # characters of a token
        self.one_at_a_time = threading.Lock()  # a tokenizer may not be used by two threads at once
        connections = httpx2.Limits(max_connections=limits.slots + 4)
        self.client = httpx2.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=None, limits=connections,
            trust_env=False,
        )  # fmt: skip
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

    async def well(self) -> bool:
        """Whether the model's server says that it can answer; one that is too busy to say so may be."""
        try:
            return (await self.client.get("/health", timeout=30)).status_code == 200
        except httpx2.TransportError:
            return True

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

    def until(self) -> float:
        """When a request that comes now has to be answered, by the clock of the event loop."""
        return asyncio.get_running_loop().time() + self.limits.seconds

    async def counted(self, asked: Asked, until: float) -> int:
        """As :meth:`count`, in a thread.

        Raises:
            Refused: 400, or 504 where the requests before this one took too long.
        """
        try:
            async with asyncio.timeout_at(until):
                return await asyncio.to_thread(self.count, asked)
        except TimeoutError:
            raise self.late() from None

    def late(self) -> Refused:
        """What a request comes to that was not done in time."""
        return Refused(504, "timeout", f"not done in {self.limits.seconds:g} s; ask for fewer tokens")

    def far_too_long(self, text: str) -> bool:
        """Whether a text has more tokens than a prompt may, told before all of it is tokenised.

        That would take seconds for a megabyte, and others wait. Where a text is cut its tokens are other ones, so
        only more than twice as many as may be are too many here.
        """
        most, found = self.limits.prompt_tokens, 0
        if len(text) > most * self.longest:
            return True
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            found += len(self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])
            if found > 2 * most:
                return True
        return False

    def count(self, asked: Asked) -> int:
        """Tokens of a conversation as the model sees it.

        Raises:
            Refused: 400; it is too long, or the chat template refuses it.
        """
        turns = [turn.plain() for turn in asked.messages]
        text = "".join(turn["content"] for turn in turns)
        with self.one_at_a_time:
            if len(text) > PIECE and self.far_too_long(text):
                message = f"messages: far too long; {self.limits.prompt_tokens} tokens are the most here"
                raise Refused(400, "context_length_exceeded", message)
            try:
                ids = self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, return_dict=True, verbose=False
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
            # Without it vLLM says no counts; transformers does anyway.
            "stream_options": {"include_usage": True},
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

    async def answer(self, asked: Asked, prompt_tokens: int, until: float) -> AsyncGenerator[Chunk, None]:
        """An answer's chunks as the model makes them, not as the client reads them.

        A task reads them from the model's server into memory, at most ``max_tokens`` of them, so a client that reads
        slowly holds no slot. When the reader goes away the task ends, and with it the generation.

        Raises:
            Refused: 502, 503, or 504 where it is not done ``until`` then.
        """
        chunks: asyncio.Queue[Chunk | Refused | None] = asyncio.Queue()

        async def work() -> None:
            last: Refused | None = None
            try:
                async with asyncio.timeout_at(until), self.slot():
                    async for chunk in self.upstream(asked):
                        if usage := chunk.get("usage"):
                            self.tokens.labels("completion").inc(usage["completion_tokens"])
                            self.tokens.labels("prompt").inc(prompt_tokens)
                        chunks.put_nowait({**chunk, "model": self.served.name})
            except Refused as refused:
                last = refused
            except TimeoutError:
                last = self.late()
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
    until = gateway.until()
    prompt = await gateway.counted(asked, until)
    id = f"chatcmpl-{uuid.uuid4().hex}"
    answer = gateway.answer(asked, prompt, until)
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
            counts = bool((asked.stream_options or {}).get("include_usage"))
            return StreamingResponse(events(answer, chunks, id, done, counts), media_type="text/event-stream")
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
    answer: AsyncGenerator[Chunk, None],
    chunks: list[Chunk],
    id: str,
    done: Callable[[int], None],
    counts: bool,
) -> AsyncIterator[str]:
    """An answer as server-sent events; of its chunks the last one is kept, which says how many tokens there were.

    A chunk with that alone, as vLLM sends it, is for clients that asked for ``counts``: others do not expect it.
    """
    status = 499  # what the log says where the client goes away
    try:
        for chunk in chunks:
            yield f"data: {json.dumps({**chunk, 'id': id})}\n\n"
        async for chunk in answer:
            chunks[:] = [chunk]
            if counts or chunk.get("choices"):
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

    @app.api_route("/v1/chat/completions", methods=["GET", "PUT", "PATCH", "DELETE"])
    async def other_method() -> JSONResponse:
        raise Refused(405, "method_not_allowed", "a request for an answer is sent as POST")

    # A client whose address has no /v1 at its end: else the web app at / would answer it.
    @app.api_route("/chat/completions", methods=["GET", "POST"])
    @app.api_route("/completions", methods=["GET", "POST"])
    @app.api_route("/models", methods=["GET", "POST"])
    async def without_version() -> JSONResponse:
        raise Refused(404, "not_found", "there is no such endpoint; the base URL of this server ends in /v1")

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def nothing(rest: str) -> JSONResponse:
        raise Refused(404, "not_found", "there is no such endpoint; see /v1/models and /v1/chat/completions")

    return app
