"""`ftdocs serve` as a process of its own, with the real client, hung clients, signals, and a canary in its logs."""

import asyncio
import io
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest
from serving import QUESTION, children, serving, tiny_llama, tiny_run

from ftdocs import backend, gateway
from ftdocs.access import Bucket, Keys, Limits
from ftdocs.cli import main
from ftdocs.errors import InputError
from ftdocs.gateway import Gateway
from ftdocs.protocol import Refused

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
    assert httpx2.get(url.replace("/v1", "/health")).json() == {"status": "ready"}


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


def test_no_orphan_is_left_by_a_kill_and_many_at_once_are_answered_or_refused(run, tmp_path):
    options = ("--queue", "8", "--rate", "0", "--max-tokens", "32")
    with serving(run, tmp_path / "log", *options) as (process, told):
        before = psutil.Process(process.pid).memory_info().rss

        async def ask(client: httpx2.AsyncClient) -> tuple[int, str | None]:
            body = {"model": "rivers", "messages": QUESTION, "max_tokens": 16}
            answer = await client.post(f"{told['url']}/chat/completions", json=body)
            if answer.status_code == 200:
                assert answer.json()["usage"]["completion_tokens"] == 16
            return answer.status_code, answer.headers.get("Retry-After")

        async def crowd() -> list[tuple[int, str | None]]:
            async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None), timeout=60) as client:
                return await asyncio.gather(*(ask(client) for _ in range(150)))

        answers = asyncio.run(crowd())
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 24
        assert all(after for status, after in answers if status == 503)
        assert psutil.Process(process.pid).memory_info().rss - before < 100e6
        assert asyncio.run(crowd_of_one(ask))[0] == 200
        with pytest.raises(openai.BadRequestError, match="--no-batching"):
            openai.OpenAI(base_url=told["url"], api_key="none").chat.completions.create(
                model="rivers", messages=QUESTION, temperature=1
            )
        assert httpx2.get(f"{told['url']}/models", headers={"Host": "evil.example"}).status_code == 400
        below = children(process)
        process.kill()
        assert below and not psutil.wait_procs(below, timeout=5)[1]


async def crowd_of_one(ask):
    async with httpx2.AsyncClient(timeout=60) as client:
        return await ask(client)


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


def one_line(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, line = capsys.readouterr()
    assert line.count("\n") == 1 and not out
    return line


def test_wrong_use_is_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FTDOCS_API_KEY", raising=False)
    assert "no such run" in one_line(capsys, "serve", "runs/nowhere")
    assert "without a key" in one_line(capsys, "serve", str(run), "--host", "0.0.0.0")
    assert "sees 4096 tokens" in one_line(capsys, "serve", str(run), "--max-tokens", "4096")
    assert "--queue -1: give 0 or more" in one_line(capsys, "serve", str(run), "--queue", "-1")
    assert "cannot generate text" in one_line(capsys, "serve", "minilm")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = one_line(capsys, "serve", str(run), "--port", str(taken.getsockname()[1]))
        assert "in use" in line and "--port" in line
    (keys := tmp_path / "keys").write_text("short\n")
    keys.chmod(0o644)
    assert "chmod 600" in one_line(capsys, "serve", str(run), "--key-file", str(keys))
    keys.chmod(0o600)
    line = one_line(capsys, "serve", str(run), "--key-file", str(keys))
    assert "API key 1: has 5 characters" in line and "short" not in line
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
    import torch

    monkeypatch.setattr("ftdocs.hardware.device", lambda: torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm")
    command = backend.command(backend.find(run), 8123, batching=True)
    assert command[0].startswith("vllm.") and "8123" in command and not backend.shares_sampling(command)


def test_chat_reads_a_pipe_and_keeps_the_conversation(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("What follows river 3?\n\nAnd then?\n"))
    assert main(["chat", str(run), "--json", "--max-tokens", "5", "--system", "Be brief."]) == 0
    turns = json.loads(capsys.readouterr().out)["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[3]["content"] == "And then?" and all(turn["content"] for turn in turns)
    monkeypatch.setattr("sys.stdin", io.StringIO("What follows river 3?\n"))
    assert main(["chat", str(run), "--max-tokens", "5", "--system", "Be brief."]) == 0
    assert capsys.readouterr().out.strip() == turns[2]["content"].strip()


def test_an_adapter_is_merged_once(tmp_path, monkeypatch, capsys):
    run = tiny_run(tmp_path, name="lora", rank=2)
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "home"))
    served = backend.find(run)
    assert served.name == "rivers" and served.run == run and served.context == 4096
    assert "merging" in capsys.readouterr().err
    written = (served.folder / "model.safetensors").stat().st_mtime_ns
    assert backend.find(run) == served and "merging" not in capsys.readouterr().err
    assert (served.folder / "model.safetensors").stat().st_mtime_ns == written


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
    assert talk.messages[:1] == before[:1]
