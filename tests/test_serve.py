"""`ftdocs serve` as a process of its own, with the real client, hung clients, signals, and a canary in its logs."""

import asyncio
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import parse_headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest
import torch
import uvicorn
from safetensors.torch import load_file, save_file
from serving import QUESTION, children, serving, tiny_llama, tiny_run
from starlette.testclient import TestClient

from ftdocs import backend, gateway, listen, models
from ftdocs.access import Bucket, Keys, Limits, read_keys
from ftdocs.cli import main
from ftdocs.errors import InputError
from ftdocs.gateway import Gateway
from ftdocs.protocol import Asked, Refused

KEY = "a-key-of-the-tests-0123456789"
CANARY = "xylophone-7319"  # stands in prompts and must stand in no log


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log") / "serve.log"


@pytest.fixture(scope="module")
def server(run, log):
    """A server with a key that answers one request after the other; two may wait."""
    options = ("--no-batching", "--queue", "2", "--rate", "0", "--timeout", "60", "--max-tokens", "3000")
    with serving(run, log, *options, FTDOCS_API_KEY=KEY) as (process, told):
        yield process, told


@pytest.fixture(scope="module")
def hung(server):
    """Two clients that hang: one sends half a head, one half a body."""
    where = urlsplit(server[1]["url"])
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {KEY}\r\n"
    found = {}
    for name, sent in {"head": "POST /v1", "body": f"{head}Content-Length: 99\r\n\r\n{{"}.items():
        found[name] = socket.create_connection((where.hostname, where.port))
        found[name].sendall(sent.encode())
    return found


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server[1]["url"], api_key=KEY, max_retries=0)


def test_the_real_client_gets_the_same_answer_streamed_and_whole(client, hung):
    assert [model.id for model in client.models.list()] == ["rivers"]
    whole = client.chat.completions.create(model="rivers", messages=QUESTION, max_tokens=12)
    assert whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length"
    chunks = list(
        client.chat.completions.create(model="rivers", messages=QUESTION, max_tokens=12, stream=True)
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert len(chunks) > 6 and chunks[-1].usage.completion_tokens == 12
    assert {chunk.model for chunk in chunks} == {"rivers"}


def test_a_temperature_is_heeded(client):
    """Transformers' server alone sets it and goes on being greedy."""
    ask = {"model": "rivers", "messages": QUESTION, "max_tokens": 8}
    answers = [
        client.chat.completions.create(**ask, temperature=t, seed=seed).choices[0].message.content
        for t, seed in ((0, 1), (0, 2), (2, 1), (2, 2))
    ]
    assert answers[0] == answers[1] and len(set(answers)) == 3


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "this server has 'rivers'"),
        ({"max_tokens": 3001}, openai.BadRequestError, "3001 is more than the 3000"),
        (
            {"messages": [{"role": "user", "content": "river " * 3000}]},
            openai.BadRequestError,
            "1096 are the most",
        ),
        ({"messages": []}, openai.BadRequestError, "messages: "),
        ({"messages": [{"role": "pirate", "content": CANARY}]}, openai.BadRequestError, "messages.0.role"),
        ({"temperature": 3}, openai.BadRequestError, "temperature: "),
        ({"n": 2}, openai.BadRequestError, "n: "),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools: this field is not known"),
    ],
)
def test_what_is_refused_says_why_in_openais_shape(change, kind, words, client):
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**{"model": "rivers", "messages": QUESTION, "max_tokens": 4, **change})
    assert words in refused.value.body["message"] and CANARY not in refused.value.body["message"]
    assert refused.value.body.keys() == {"message", "type", "param", "code"}


def test_wrong_keys_bodies_and_addresses_are_refused(server):
    url = server[1]["url"]
    allowed = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for key in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x"):
        for path in ("/v1/models", "/metrics"):
            answer = httpx2.get(url.removesuffix("/v1") + path, headers={"Authorization": key})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert key.removeprefix("Bearer ") not in answer.text or len(key) < 8
    for content, status, code in (
        (b'{"model": ', 400, "invalid_json"),
        (b"[" * 200_000, 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[1]", 400, "invalid_value"),
        (b" " * 1_000_001, 413, "body_too_large"),
    ):
        answer = httpx2.post(f"{url}/chat/completions", content=content, headers=allowed)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    answer = httpx2.post(
        f"{url}/chat/completions", content=b"{}", headers={**allowed, "Content-Type": "text/plain"}
    )
    assert answer.status_code == 415
    assert httpx2.get(f"{url}/nothing", headers=allowed).json()["error"]["code"] == "not_found"
    for method, address, status, words in (
        ("POST", "/chat/completions", 404, "the base URL of this server ends in /v1"),
        ("GET", "/models", 404, "the base URL of this server ends in /v1"),
        ("GET", "/v1/chat/completions", 405, "sent as POST"),
    ):
        answer = httpx2.request(method, url.removesuffix("/v1") + address, headers=allowed)
        assert answer.status_code == status and words in answer.json()["error"]["message"]
    assert httpx2.get(url.replace("/v1", "/health")).json() == {"status": "ready"}


def test_the_models_own_server_answers_the_gateway_alone(server):
    """Every user of a machine finds its port; behind it are no keys, rates or limits."""
    below = children(server[0])
    (port,) = {
        each.laddr.port for child in below for each in child.net_connections() if each.status == "LISTEN"
    }
    body = {"model": "x", "messages": QUESTION}
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}):
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as other:
            for path in ("/v1/chat/completions", "/reset", "/load_model"):
                assert other.post(path, json=body).status_code == 401
            assert other.get("/health").status_code == other.get("/v1/models").status_code == 401


def test_a_proxy_of_the_environment_is_not_asked_for_the_models_server(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    child = backend.Backend.__new__(backend.Backend)
    child.process, child.output = SimpleNamespace(poll=lambda: None), None
    child.key, child.arguments = "k", []
    with answering(200) as child.url:
        child.wait(5)
    with answering(503) as child.url, pytest.raises(RuntimeError, match="did not start"):
        child.wait(0.3)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers every GET with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_queue_is_bounded_and_who_goes_away_frees_the_model(client):
    def ask(tokens: int) -> int:
        try:
            client.chat.completions.create(model="rivers", messages=QUESTION, max_tokens=tokens)
        except openai.APIStatusError as error:
            return error.status_code if error.response.headers["Retry-After"] else 0
        return 200

    long = client.chat.completions.create(model="rivers", messages=QUESTION, max_tokens=3000, stream=True)
    next(iter(long))
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, 2) for _ in range(5)]
        until = time.monotonic() + 20
        while sum(future.done() for future in asked) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert [future.result() for future in asked if future.done()] == [503] * 3
        long.close()  # 3,000 tokens would take far longer than the two that wait
        began = time.monotonic()
        assert sorted(future.result() for future in asked) == [200, 200, 503, 503, 503]
        assert time.monotonic() - began < 5
    metrics = httpx2.get(
        str(client.base_url).replace("/v1/", "/metrics"), headers={"Authorization": f"Bearer {KEY}"}
    ).text
    assert 'ftdocs_requests_total{status="503"} 3.0' in metrics and "ftdocs_running 0.0" in metrics
    assert 'ftdocs_requests_total{status="499"} 1.0' in metrics  # the one that went away


def test_clients_that_hang_are_let_go(server, hung, client):
    for name, connection in hung.items():
        connection.settimeout(gateway.BODY_SECONDS + 5)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
        assert (b" 408 " in answer.partition(b"\r\n")[0]) == (name == "body"), name
    assert client.chat.completions.create(model="rivers", messages=QUESTION, max_tokens=2).usage


def test_a_signal_lets_what_runs_be_finished_and_nothing_is_left(server, log, client):
    process, told = server
    below = children(process)
    assert below
    answer = client.chat.completions.create(
        model="rivers", messages=[{"role": "user", "content": CANARY}], max_tokens=300, stream=True
    )
    first = next(iter(answer))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(openai.APIConnectionError):
        openai.OpenAI(base_url=told["url"], api_key=KEY, max_retries=0).models.list()
    rest = list(answer)
    assert first and rest[-1].usage.completion_tokens == 300
    assert process.wait(15) == 0
    assert not psutil.wait_procs(below, timeout=5)[1]
    written = log.read_text()
    assert "chat 200 prompt=" in written and "invalid_api_key" not in written.replace(
        "chat 401 invalid_api_key", ""
    )
    for secret in (CANARY, "What follows", KEY, "river"):
        assert secret not in written


def test_no_orphan_is_left_by_a_kill_and_a_thousand_at_once_are_answered_or_refused(run, tmp_path):
    listen.more_files()  # for a thousand connections; the server asks for as many itself
    options = ("--queue", "8", "--rate", "0", "--max-tokens", "32")
    with serving(run, tmp_path / "log", *options) as (process, told):
        before = psutil.Process(process.pid).memory_info().rss

        where = urlsplit(told["url"])
        body = json.dumps({"model": "rivers", "messages": QUESTION, "max_tokens": 16}).encode()
        head = f"POST {where.path}/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"

        async def ask() -> tuple[int, str | None]:
            # By hand: of a thousand requests a client library takes most of the seconds.
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write(head.encode() + body)
            status, _, rest = (await reader.read()).partition(b"\r\n")
            writer.close()
            headers = parse_headers(answer := io.BytesIO(rest))
            if (code := int(status.split()[1])) == 200:
                assert json.load(answer)["usage"]["completion_tokens"] == 16
            return code, headers["Retry-After"]

        async def crowd(count: int) -> list[tuple[int, str | None]]:
            async with asyncio.timeout(120):
                return await asyncio.gather(*(ask() for _ in range(count)))

        answers = asyncio.run(crowd(1000))
        statuses = [status for status, _ in answers]
        assert len(statuses) == 1000 and set(statuses) == {200, 503} and statuses.count(200) >= 24
        assert all(after for status, after in answers if status == 503)
        assert psutil.Process(process.pid).memory_info().rss - before < 100e6
        assert asyncio.run(crowd(1))[0][0] == 200
        with pytest.raises(openai.BadRequestError, match="--no-batching"):
            openai.OpenAI(base_url=told["url"], api_key="none").chat.completions.create(
                model="rivers", messages=QUESTION, temperature=1
            )
        assert httpx2.get(f"{told['url']}/models", headers={"Host": "evil.example"}).status_code == 400
        below = children(process)
        process.kill()
        assert below and not psutil.wait_procs(below, timeout=5)[1]


def test_the_gateway_needs_no_torch():
    """The model's server has it; in the gateway it would be seconds of the start, and memory for nothing."""
    code = "import sys; from ftdocs import gateway; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_bucket_lets_as_many_through_as_it_says():
    now = [0.0]
    bucket = Bucket(60, clock=lambda: now[0])
    assert [bucket.take() for _ in range(60)] == [0.0] * 60
    assert bucket.take() == pytest.approx(1.0)
    now[0] = 1.0
    assert bucket.take() == 0.0 and bucket.take() > 0
    now[0] = 1000.0  # it does not save up more than a minute's
    assert sum(bucket.take() == 0.0 for _ in range(100)) == 60


def test_each_key_has_its_own_rate(tmp_path):
    keys = Keys(["first-key-0123456789", "second-key-0123456789"])
    served = backend.find(tiny_llama(tmp_path / "tiny"))
    here = Gateway(served, "http://127.0.0.1:9", Limits(prompt_tokens=100, per_minute=2), keys)
    first, second = (here.check_key(f"Bearer {name}-key-0123456789") for name in ("first", "second"))
    assert (first, second) == (0, 1)
    here.check_rate(first)
    here.check_rate(first)
    with pytest.raises(Refused) as refused:
        here.check_rate(first)
    assert refused.value.status == 429 and refused.value.response().headers["Retry-After"] == "30"
    here.check_rate(second)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> backend.Served:
    return backend.find(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny"))


def behind(served: backend.Served, handler: Callable[[httpx2.Request], httpx2.Response], **more) -> Gateway:
    """A gateway without keys before a server that is played."""
    here = Gateway(served, "http://model", Limits(**{"prompt_tokens": 100, **more}), Keys([]))
    here.client = httpx2.AsyncClient(base_url="http://model", transport=httpx2.MockTransport(handler))
    here.ready = True
    return here


def test_the_gateway_ends_when_the_models_server_lives_and_can_answer_no_more(served):
    """As transformers' does, with 503 on /health, once the thread that computes has died."""
    seen = iter([200, 503])

    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/health":
            return httpx2.Response(next(seen))
        return httpx2.Response(200, text="data: [DONE]\n\n")

    child = SimpleNamespace(wait=lambda: None, process=SimpleNamespace(poll=lambda: None))
    here = behind(served, handler)
    watched = listen.Server(uvicorn.Config(gateway.build(here)), here, child, 1, lambda: None)
    asyncio.run(watched.watch())
    assert watched.should_exit and "can answer no more" in str(watched.failed) and here.ready


@pytest.mark.parametrize("asked", [None, {"include_usage": True}])
def test_counts_are_asked_for_and_handed_on_to_who_asked(served, asked):
    """vLLM counts only where it is asked to, in a chunk without choices that other clients do not expect."""
    sent = []

    def vllm(request: httpx2.Request) -> httpx2.Response:
        sent.append(json.loads(request.content))
        chunks = [
            {"id": "1", "choices": [{"delta": {"content": "Hi"}, "finish_reason": None}], "usage": None}
        ]
        chunks += [{"id": "1", "choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None}]
        if (sent[-1].get("stream_options") or {}).get("include_usage"):
            chunks += [{"id": "1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}]
        return httpx2.Response(200, text="".join(f"data: {json.dumps(each)}\n\n" for each in chunks))

    here = behind(served, vllm)
    body = {"model": served.name, "messages": QUESTION}
    with TestClient(gateway.build(here), base_url="http://127.0.0.1") as client:
        whole = client.post("/v1/chat/completions", json=body).json()
        assert whole["usage"]["completion_tokens"] == 1 and whole["choices"][0]["message"]["content"] == "Hi"
        told = client.post(
            "/v1/chat/completions", json={**body, "stream": True, "stream_options": asked}
        ).text
        assert 'ftdocs_tokens_total{kind="completion"} 2.0' in client.get("/metrics").text
    chunks = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
    assert [bool(chunk["choices"]) for chunk in chunks] == [True, True] + [False] * bool(asked)


def test_what_is_far_too_long_is_refused_before_all_of_it_is_tokenised(served):
    """Others wait meanwhile: a megabyte of digits would take seconds."""
    here, read = behind(served, lambda request: httpx2.Response(500), prompt_tokens=1000), []
    tokenizer = here.tokenizer

    class Counting:
        def __call__(self, text: str, **more):
            read.append(len(text))
            return tokenizer(text, **more)

        apply_chat_template = tokenizer.apply_chat_template

    here.tokenizer = Counting()

    def asked(text: str) -> Asked:
        return Asked.model_validate({"model": "x", "messages": [{"role": "user", "content": text}]})

    for text, most in (("1" * 990_000, 0), ("1" * 50_000, gateway.PIECE), ("river " * 15_000, gateway.PIECE)):
        with pytest.raises(Refused, match="far too long; 1000 tokens are the most") as refused:
            here.count(asked(text))
        assert refused.value.status == 400 and sum(read) <= most, text[:9]
        read.clear()
    assert 625 < here.count(asked("-" * 20_000)) < 700  # 32 of them are one token


def test_who_waits_to_be_counted_waits_no_longer_than_for_an_answer(served):
    here = behind(served, lambda request: httpx2.Response(500), seconds=0.2)
    asked = Asked.model_validate({"model": "x", "messages": QUESTION})

    async def late() -> Refused:
        with here.one_at_a_time, pytest.raises(Refused) as refused:  # another request is counted all the time
            await here.counted(asked, here.until())
        return refused.value

    assert asyncio.run(late()).status == 504


def test_how_much_a_model_sees_may_stand_in_its_part_for_text(served, tmp_path):
    shutil.copytree(served.folder, tmp_path / "tiny")
    path = tmp_path / "tiny" / "config.json"
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    path.write_text(json.dumps({**nested, "text_config": {"max_position_embeddings": 777}}))
    assert backend.find(tmp_path / "tiny").context == 777
    path.write_text(json.dumps({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}))
    with pytest.raises(InputError, match="does not say how many tokens it sees"):
        backend.find(tmp_path / "tiny")
    for wrong in ({"model_type": "new"}, {"model_type": "llama", "hidden_size": "64"}):
        path.write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **wrong}))
        with pytest.raises(InputError, match="not of a model that Transformers knows"):
            backend.find(tmp_path / "tiny")


def one_line(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, line = capsys.readouterr()
    assert line.count("\n") == 1 and not out
    return line


def test_wrong_use_is_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FTDOCS_API_KEY", raising=False)
    assert "no such run" in one_line(capsys, "serve", "runs/nowhere", "--port", "0")
    assert "without a key" in one_line(capsys, "serve", str(run), "--host", "0.0.0.0")
    assert "sees 4096 tokens" in one_line(capsys, "serve", str(run), "--port", "0", "--max-tokens", "4096")
    assert "--queue -1: give 0 or more" in one_line(capsys, "serve", str(run), "--queue", "-1")
    assert "cannot generate text" in one_line(capsys, "serve", "minilm", "--port", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = one_line(capsys, "serve", str(run), "--port", str(taken.getsockname()[1]))
        assert "in use" in line and "--port" in line
    monkeypatch.setattr(backend, "find", None)  # which merges, and is not reached
    assert "no such port" in one_line(capsys, "serve", str(run), "--port", "99999")
    monkeypatch.undo()
    monkeypatch.delenv("FTDOCS_API_KEY", raising=False)
    (keys := tmp_path / "keys").write_text("short\n")
    keys.chmod(0o644)
    assert "chmod 600" in one_line(capsys, "serve", str(run), "--key-file", str(keys))
    keys.chmod(0o600)
    line = one_line(capsys, "serve", str(run), "--key-file", str(keys))
    assert "API key 1: has 5 characters" in line and "short" not in line
    keys.write_text(f"\ufeff{KEY}\n  # the key of the web team, 2026\n\n", encoding="utf-8")
    read = read_keys(keys)
    assert read.place(KEY) == 0 and read.place("# the key of the web team, 2026") is None
    plain = tiny_llama(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    assert "no chat template" in one_line(capsys, "chat", str(plain))
    (run.parent / "labels").mkdir(exist_ok=True)
    for name, content in {"result.json": "{}", "splits.json": '{"labels": ["calm", "storm"]}'}.items():
        (run.parent / "labels" / name).write_text(content)
    with pytest.raises(InputError, match="is a classifier"):
        backend.check_writes_text(run.parent / "labels")


def test_a_gpu_with_vllm_gets_vllm(run, monkeypatch):
    """Not run here: the command alone."""
    monkeypatch.setattr("ftdocs.hardware.device", lambda: torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm")
    command = backend.command(backend.find(run), 8123, batching=True)
    assert command[0].startswith("vllm.") and "8123" in command and not backend.shares_sampling(command)
    assert "--disable-log-requests" not in command  # vLLM knows it no more; not to log them is its default
    assert command[command.index("--allowed-origins") + 1] == "[]"


def test_chat_reads_a_pipe_and_keeps_the_conversation(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What follows river 3?\n\nAnd then?\n"))
    assert main(["chat", str(run), "--json", "--max-tokens", "5", "--system", "Be brief."]) == 0
    turns = json.loads(capsys.readouterr().out)["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[3]["content"] == "And then?" and all(turn["content"] for turn in turns)
    monkeypatch.setattr("sys.stdin", io.StringIO("What follows river 3?\n"))
    assert main(["chat", str(run), "--max-tokens", "5", "--system", "Be brief."]) == 0
    assert capsys.readouterr().out.strip() == turns[2]["content"].strip()
    for errors in ("strict", "surrogateescape"):  # as Python reads a pipe, by its settings
        text = io.TextIOWrapper(io.BytesIO(b"Hi\n\xff\xfe\n"), "utf-8", errors)
        monkeypatch.setattr("sys.stdin", text)
        assert main(["chat", str(run), "--max-tokens", "2"]) == 2
        assert "is not UTF-8" in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_an_adapter_is_merged_once(tmp_path, monkeypatch, capsys):
    run = tiny_run(tmp_path, name="lora", rank=2)
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "home"))
    served = backend.find(run)
    assert served.name == "rivers" and served.run == run and served.context == 4096
    assert "merging" in capsys.readouterr().err
    written = (served.folder / "model.safetensors").stat().st_mtime_ns
    assert backend.find(run) == served and "merging" not in capsys.readouterr().err
    assert (served.folder / "model.safetensors").stat().st_mtime_ns == written


def test_serving_rounds_nothing_away_that_was_tuned(tmp_path, monkeypatch, capsys):
    """In 16 bits where the training outlasts that, else in float32, by whichever server."""
    run = tiny_run(tmp_path, name="lora", rank=2)
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("ftdocs.hardware.dtype", lambda: torch.bfloat16)

    def tuned_by(size: float) -> tuple[str | None, str]:
        file = run / "adapter" / "adapter_model.safetensors"
        save_file(
            {n: torch.full_like(w, size) if "lora_B" in n else w for n, w in load_file(file).items()}, file
        )
        (run / "adapter" / models.BASE).unlink(missing_ok=True)  # which has the sum of the file as it was
        served = backend.find(run)
        commands = [backend.command(served, 8123, batching=True)]
        with monkeypatch.context() as gpu:
            gpu.setattr("ftdocs.hardware.device", lambda: torch.device("cuda"))
            gpu.setattr("importlib.util.find_spec", lambda name: name == "vllm")
            commands.append(backend.command(served, 8123, batching=True))
        assert [each[each.index("--dtype") + 1] for each in commands] == [served.dtype] * 2
        weights = load_file(served.folder / "model.safetensors").values()
        assert {str(weight.dtype) for weight in weights} == {f"torch.{served.dtype}"}
        return served.dtype, capsys.readouterr().err

    dtype, told = tuned_by(0.5)
    assert dtype == "bfloat16" and "float32" not in told
    dtype, told = tuned_by(1e-6)
    line = f"ftdocs: {run}: bfloat16 would round away what was tuned; served in float32, which is slower\n"
    assert dtype == "float32" and told.endswith(line)


def test_what_cannot_be_merged_is_not_served_and_chat_is_named(tmp_path, capsys):
    run = tiny_run(tmp_path, name="prompt", tokens=4)
    capsys.readouterr()
    line = one_line(capsys, "serve", str(run), "--port", "0")
    assert "changes no weight, and a server needs one whole model; talk with it: ftdocs chat" in line


def test_chat_drops_the_oldest_turns_where_the_model_cannot_see_them(tmp_path):
    from ftdocs.chat import Conversation

    talk = Conversation(tiny_llama(tmp_path / "tiny", context=96), system="Be brief.", max_tokens=8)
    written = []
    for number in range(5):
        talk.say(f"What follows river {number}?", written.append)
        assert talk.encode()["input_ids"].shape[1] <= 88
    assert talk.messages[0]["content"] == "Be brief." and talk.messages[-2]["content"].endswith("4?")
    assert "".join(written)
    before = list(talk.messages)
    with pytest.raises(InputError, match="88 is the most"):
        talk.say("river " * 200, written.append)
    assert talk.messages == before  # one that is too long takes nothing along
