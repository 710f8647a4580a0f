"""The model's own server, an existing one: ``transformers serve``, or vLLM where there is a GPU and vLLM.

It runs as a child process on a port of this machine, behind a key that is made for each start, and
:mod:`ftdocs.gateway` stands before it.
"""

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub.errors import StrictDataclassError

from ftdocs import assets, child, files, hardware, runs
from ftdocs.errors import InputError

SECRETS = ("FTDOCS_API_KEY", "HF_TOKEN", "FTDOCS_HF_TOKEN", "OPENAI_API_KEY")  # the child needs none of them


@dataclass(frozen=True)
class Served:
    """A model that can be served.

    Attributes:
        name: what clients call it.
        folder: its whole model as safetensors, with tokenizer and chat template.
        context: tokens that it can see at once.
        run: the run that it is from; None for a folder that is only a model.
        fingerprint: of the weights.
        generation: the settings in its generation_config.json.
        dtype: what it has to be computed in; None leaves it to the machine.
    """

    name: str
    folder: Path
    context: int
    run: Path | None
    fingerprint: str
    generation: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None


def find(given: Path) -> Served:
    """The model of a finished run, of a folder with a whole model, or with a name from ``ftdocs assets``.

    A run that trained an adapter is merged into its base model once, in the cache folder, by the adapter's
    fingerprint.

    Raises:
        InputError: there is no such model, or one that cannot hold a conversation.
    """
    run = None
    if given.is_dir() and (given / "config.json").is_file():
        folder = assets.model_path(str(given.resolve()))  # safetensors, and no code of its own
    elif (
        not given.exists()
        and given.name == str(given)
        and given.name in {asset.name for asset in assets.catalogue() if asset.kind == "model"}
    ):
        folder = assets.model_path(given.name)
    else:
        runs.read_result(given)
        run = given
        check_writes_text(run)
        folder = run / "model" if (run / "model").is_dir() else merged(run)
    config = files.read_kept(folder / "config.json")
    check_chats(folder, given, config)
    generation = folder / "generation_config.json"
    return Served(
        name=(run or given).resolve().name if given.exists() else given.name,
        folder=folder.resolve(),
        context=context(folder, given),
        run=run,
        fingerprint=runs.folder_fingerprint(folder),
        generation=json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {},
        dtype=config.get("dtype") if run and folder.parent != run else None,  # merged as it is to be computed
    )


def context(folder: Path, given: Path) -> int:
    """The tokens that a model can see at once; one that sees pictures too says so in the part for text.

    Raises:
        InputError: it does not say, or is not one that Transformers knows.
    """
    from transformers import AutoConfig  # here, as what only asks for a model need not wait for it

    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
    except (ValueError, StrictDataclassError):
        raise InputError(
            f"{given}: its config.json is not of a model that Transformers knows; give another"
        ) from None
    if not (positions := getattr(config, "max_position_embeddings", None)):
        raise InputError(
            f"{given}: its config.json does not say how many tokens it sees; add max_position_embeddings"
        )
    return int(positions)


def check_writes_text(run: Path) -> None:
    """Refuse a run that trained a classifier."""
    if labels := files.read_kept(run / runs.SPLITS, "labels")["labels"]:
        raise InputError(
            f"{run}: is a classifier ({', '.join(labels[:3])}{', …' * (len(labels) > 3)}) and cannot hold a"
            f" conversation; {run / runs.CARD} shows how to use it"
        )


def check_chats(folder: Path, given: Path, config: dict[str, Any]) -> None:
    """Refuse a model that writes no text, or whose tokenizer does not know what a conversation looks like."""
    kinds = config.get("architectures") or [""]
    if not any(kind.endswith(("ForCausalLM", "ForConditionalGeneration")) for kind in kinds):
        raise InputError(f"{given}: {kinds[0] or 'this model'} cannot generate text; give one that can")
    settings = folder / "tokenizer_config.json"
    known = (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    )
    if not known:
        raise InputError(
            f"{given}: its tokenizer has no chat template, so it cannot hold a conversation;"
            " train an instruct model, or complete text as its README.md shows"
        )


def merged(run: Path) -> Path:
    """The whole model of a run that trained an adapter: made once, kept in the cache folder.

    It has the numbers that this machine computes in, or float32 where these would round away what was tuned.

    Raises:
        InputError: as :func:`ftdocs.merge.merge_run`.
    """
    # Here, as a run with a whole model needs no torch.
    from ftdocs.merge import RoundedAway, merge_run, why_not

    if reason := why_not(run):
        other = "qlora" if runs.read_recipe(run).method.name == "loftq" else "lora"
        raise InputError(
            f"{run}: {reason}, and a server needs one whole model; talk with it: ftdocs chat {run}, or train with"
            f" {other}"
        )
    dtype = str(hardware.dtype()).removeprefix("torch.")
    target = files.home() / "merged" / f"{runs.folder_fingerprint(run / 'adapter')[:16]}-{dtype}"
    with files.lock(target):
        if not target.is_dir():
            print(f"ftdocs: {run}: merging the adapter into its base model, once", file=sys.stderr)
            try:
                merge_run(run, target, check=True, dtype=dtype)
            except RoundedAway:
                print(
                    f"ftdocs: {run}: {dtype} would round away what was tuned; served in float32, which is slower",
                    file=sys.stderr,
                )
                merge_run(run, target, dtype="float32")
    return target


def command(served: Served, port: int, batching: bool) -> list[str]:
    """The module and arguments of the server that fits this machine: vLLM on a GPU that has it, else transformers'.

    On a CPU a twentieth of the memory holds keys and values for batching: transformers' own share, made for GPUs, is
    most of the machine.
    """
    dtype = served.dtype or str(hardware.dtype()).removeprefix("torch.")
    if hardware.device().type == "cuda" and importlib.util.find_spec("vllm"):
        return [
            *("vllm.entrypoints.cli.main", "serve", str(served.folder), "--host", "127.0.0.1"),
            *("--port", str(port), "--served-model-name", str(served.folder), "--allowed-origins", "[]"),
            *("--max-num-seqs", "16" if batching else "1"),
            *(("--dtype", dtype) if served.dtype else ()),  # else it would take 16 bits for float32 weights
        ]
    common = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        hardware.device().type,
        "--dtype",
        dtype,
    ]
    shared = ["--continuous-batching", "--cb-max-memory-percent", "0.05"] if batching else []
    if hardware.device().type == "cuda":
        shared = shared[:1]
    return ["transformers.cli.transformers", "serve", str(served.folder), *common, *shared]


def shares_sampling(arguments: list[str]) -> bool:
    """Whether the server samples all requests as the first one asked: transformers' batching does."""
    return "--continuous-batching" in arguments


class Backend:
    """The child process; ``url`` is where it answers, and ``key`` what it wants to be sent.

    Args:
        served: what to serve.
        batching: answer several requests together, token by token, instead of one after the other.
        log: a file for the child's own output, which may hold text of prompts; else it is kept nowhere.
    """

    def __init__(self, served: Served, batching: bool = True, log: Path | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.key = secrets.token_urlsafe(32)
        self.arguments = command(served, port, batching)
        self.home = Path(tempfile.mkdtemp(prefix="ftdocs-serve-"))
        self.output: deque[str] | None = deque(maxlen=20)  # the last lines, until it answers
        kept = {name: value for name, value in os.environ.items() if name not in SECRETS}
        own = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(self.home)}
        own[child.KEY] = self.key  # other users can read a command line, and not an environment
        with open(log or os.devnull, "a", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", child.__name__, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=file if log else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**kept, **own},
                start_new_session=True,  # Ctrl-C is the gateway's: what runs is finished first
            )
        if self.process.stdout:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Read the child's output, so that it never waits for us; once it answers, drop it."""
        for line in self.process.stdout or ():
            if self.output is not None:
                self.output.append(line.decode(errors="replace"))

    def wait(self, seconds: float = 600) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: it ended instead, or did not answer in time; the message has the end of its output.
        """
        until = time.monotonic() + seconds
        headers = {"Authorization": f"Bearer {self.key}"}
        # Never through a proxy that the environment names: it does not reach this machine's own ports.
        with httpx2.Client(base_url=self.url, headers=headers, timeout=5, trust_env=False) as client:
            while self.process.poll() is None and time.monotonic() < until:
                with suppress(httpx2.TransportError):
                    if client.get("/health").status_code == 200:
                        self.output = None  # what comes from now on could hold text of a prompt
                        return
                time.sleep(0.1)
        said = "".join(self.output or ())
        raise RuntimeError(f"the model's server did not start: {' '.join(self.arguments)}\n{said}")

    def stop(self) -> None:
        """End the child: asked first, then made to."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        shutil.rmtree(self.home, ignore_errors=True)
