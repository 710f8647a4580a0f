"""What is done with a fence that is not a Python cell: run it, load it with what reads it, or compare it.

The same functions serve the build of the book and the snippet tests.
"""

import difflib
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values
from fences import Fence, parser
from setuptools.config.pyprojecttoml import read_configuration

from ftdocs.recipe import Recipe

TIMEOUT = 600  # seconds, for one shell block
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "KINETO_LOG_LEVEL": "6",  # PyTorch's profiler says when it begins and ends
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm asks a notebook for widgets that the pages have no use for
    "NO_COLOR": "1",
    "COLUMNS": "100",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PYTHONUTF8": "1",
}


class CheckFailed(Exception):
    """A fence that does not do what the page says; the message is for the author."""


@dataclass
class Outcome:
    """What became of a fence: a status of the ledger, why, and what it printed."""

    status: str
    reason: str | None = None
    output: str = ""


@dataclass
class Sandbox:
    """The folder in which a page's blocks run one after another, as they would in one reader's terminal.

    Attributes:
        folder: working directory of the first block.
        env: environment of every block.
        output: what the last block that ran has printed; None before the first.
        promised: files that a fence wrote and no later block has named yet, with the fence's line.
    """

    folder: Path
    env: dict[str, str]
    output: str | None = None
    promised: dict[str, int] = field(default_factory=dict)

    def keep_promises(self, fence: Fence) -> None:
        """A file that this fence names has been used by the page."""
        self.promised = {name: line for name, line in self.promised.items() if name not in fence.content}

    def path(self, name: str) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise CheckFailed(f"{name} is outside the page's folder")
        return path


def environment(profile: str, runs: Path) -> dict[str, str]:
    """The environment of blocks and cells: this interpreter's programs first, no progress bars, the size of runs."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    return {**os.environ, **QUIET, "PATH": path, "FTDOCS_PROFILE": profile, "FTDOCS_RUNS": str(runs)}


def check(fence: Fence, sandbox: Sandbox) -> Outcome:
    """Check one fence; cells and included regions are the runner's, who knows what the kernel did.

    Raises:
        CheckFailed: says what is wrong.
    """
    if fence.problem:
        raise CheckFailed(fence.problem)
    sandbox.keep_promises(fence)
    if reason := fence.marks.get("exempt"):
        return Outcome("exempt", reason)
    if fence.kind == "windows":
        return Outcome("exempt", "Windows only; the book is built on Linux")
    if name := fence.marks.get("file"):
        sandbox.path(name).parent.mkdir(parents=True, exist_ok=True)
        sandbox.path(name).write_text(fence.content, encoding="utf-8")
        sandbox.promised[name] = fence.line
    if command := fence.marks.get("validated by"):
        return _validated(fence, command, sandbox)
    if fence.kind == "output":
        return _compared(fence, sandbox)
    if fence.kind in ("shell", "console") and name is None:
        return _ran(fence, sandbox)
    if fence.kind == "page":
        return _page(fence)
    if reader := _reader(fence):
        return _loaded(fence, reader, sandbox)
    return Outcome("validated", f"written to {name}, which a later block uses")


def finish(sandbox: Sandbox) -> None:
    """After a page's last fence: a file that no later block named was not used by the page.

    Raises:
        CheckFailed: names it.
    """
    for name, line in sandbox.promised.items():
        raise CheckFailed(f"line {line} writes {name}, and no later block names it")


# Shell ------------------------------------------------------------------------------------------------------


def run(script: str, sandbox: Sandbox, timeout: float = TIMEOUT) -> tuple[int, str, str]:
    """Run a script with bash in the sandbox; exported variables and the folder carry over to the next one.

    Returns: exit code, standard output, standard error.
    """
    state = sandbox.folder / ".shell"
    state.touch()
    begin = '. "$1"; trap \'{ export -p; printf "cd %q\\n" "$PWD"; } > "$1"\' EXIT\n'
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", begin + script, "bash", str(state)],
        cwd=sandbox.folder,
        env=sandbox.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # whatever the block has started, too
        process.communicate()
        raise CheckFailed(f"did not end within {timeout:.0f} s") from None
    return process.returncode, output, errors


def _ran(fence: Fence, sandbox: Sandbox) -> Outcome:
    script, expected = fence.content, ""
    if fence.kind == "console":
        lines = fence.content.splitlines(keepends=True)
        script = "".join(line[2:] for line in lines if line.startswith(("$ ", "> ")))
        expected = "".join(line for line in lines if not line.startswith(("$ ", "> ")))
    code, output, errors = run(script, sandbox)
    wanted = int(fence.marks.get("exits", 0))
    if code != wanted:
        raise CheckFailed(f"ended with {code} instead of {wanted}\n{output}{errors}".rstrip())
    sandbox.output = output if wanted == 0 else output + errors
    if expected.strip():
        compare(expected, sandbox.output)
    return Outcome("executed", f"meant to end with {wanted}" if wanted else None, sandbox.output)


def _validated(fence: Fence, command: str, sandbox: Sandbox) -> Outcome:
    if command == "options":
        return Outcome("validated", "options known to " + ", ".join(_options_known(fence.content, sandbox)))
    code, output, errors = run(command, sandbox)
    if code != 0:
        raise CheckFailed(f"`{command}` ended with {code}\n{output}{errors}".rstrip())
    return Outcome("validated", f"`{command}` succeeds")


def _options_known(script: str, sandbox: Sandbox) -> list[str]:
    """Look every option of every command up in the tool's own help; the tools that were asked."""
    asked, looked_up = [], 0
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=|(sudo|export|time)$", words[0]):
            words.pop(0)
        if not words or words[0] in ("cd", "source", "."):
            continue
        script_at = next((i for i, word in enumerate(words) if i and word.endswith(".py")), len(words))
        first = 3 if words[1:2] == ["-m"] else 1  # `python -m X`: -m is Python's, what follows is X's
        options = [word.split("=")[0] for word in words[first:script_at] if re.match(r"--?[A-Za-z]", word)]
        looked_up += len(options)
        tool, helped = _help(words, sandbox)
        for option in options:
            if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", helped):
                raise CheckFailed(f"`{tool} --help` knows no {option}")
        asked.append(f"`{tool} --help`")
    if not looked_up:
        raise CheckFailed("there is no option to check; run the block, or say `validated by COMMAND`")
    return list(dict.fromkeys(asked))


def _help(words: list[str], sandbox: Sandbox) -> tuple[str, str]:
    """The help of the longest beginning of a command (tool, verb, verb of a verb) that has one."""
    named = words[:3] if words[1:2] == ["-m"] else words[:1]
    for word in words[len(named) : len(named) + 2]:
        if not re.fullmatch(r"[a-z][\w-]*", word):
            break
        named.append(word)
    for end in range(len(named), 0, -1):
        code, output, errors = run(shlex.join([*named[:end], "--help"]), sandbox, timeout=120)
        if code == 0:
            return shlex.join(named[:end]), output + errors
    raise CheckFailed(f"{words[0]}: no such tool here, or it has no --help")


# Configuration ----------------------------------------------------------------------------------------------


def _schema(name: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(done.stdout + done.stderr)

    return read


def _pyproject(path: Path) -> None:
    read_configuration(path, expand=False)


def _dotenv(path: Path) -> None:
    if empty := [key for key, value in dotenv_values(path).items() if value is None]:
        raise ValueError(f"{empty[0]} has no value")


def _accelerate(path: Path) -> None:
    from accelerate.commands.config.config_args import (
        load_config_from_file,
    )  # imports torch: only where it is used

    load_config_from_file(str(path))


def _jsonl(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None


READERS: dict[str, Callable[[Path], object]] = {
    "Recipe": Recipe.load,
    "accelerate": _accelerate,
    "dotenv": _dotenv,
    "github-workflow": _schema("vendor.github-workflows"),
    "jsonl": _jsonl,
    "pyproject": _pyproject,
    "readthedocs": _schema("vendor.readthedocs"),
}
BY_LANGUAGE = {"dotenv": "dotenv", "jsonl": "jsonl"}


def _reader(fence: Fence) -> str:
    """The name of what loads a configuration, "" where a file's later use is its check."""
    if named := fence.marks.get("reads"):
        return named
    if fence.kind == "config" and fence.language in ("yaml", "yml"):
        try:
            mapping = yaml.safe_load(fence.content)
        except yaml.YAMLError as error:
            raise CheckFailed(f"is not one YAML document: {error}") from None
        if isinstance(mapping, dict) and {"model", "data"} <= mapping.keys():
            return "Recipe"
    if fence.language in BY_LANGUAGE:
        return BY_LANGUAGE[fence.language]
    if "file" in fence.marks:
        return ""
    raise CheckFailed(f"nothing says what reads this {fence.language}; mark it `reads …`")


def _loaded(fence: Fence, reader: str, sandbox: Sandbox) -> Outcome:
    path = sandbox.path(fence.marks.get("file", f".fence-{fence.line}.{fence.language}"))
    path.write_text(fence.content, encoding="utf-8")
    try:
        if reader in READERS:
            READERS[reader](path)
        elif ":" in reader:
            module, _, name = reader.partition(":")
            getattr(importlib.import_module(module), name)(**_mapping(fence))
        else:
            raise CheckFailed(f"no reader `{reader}`; one of {', '.join(READERS)}, or module:callable")
    except CheckFailed:
        raise
    except Exception as error:
        message = str(error).replace(f"{sandbox.folder}{os.sep}", "")
        raise CheckFailed(f"{reader} refuses it: {type(error).__name__}: {message}") from None
    return Outcome("validated", f"loaded by {reader}")


def _mapping(fence: Fence) -> dict[str, Any]:
    return tomllib.loads(fence.content) if fence.language == "toml" else yaml.safe_load(fence.content)


def _page(fence: Fence) -> Outcome:
    """Markdown shown as an example: it must parse to something."""
    if not parser().parse(fence.content):
        raise CheckFailed("an empty example")
    return Outcome("validated", "parsed by the book's own parser")


# Output -----------------------------------------------------------------------------------------------------

NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"


def _compared(fence: Fence, sandbox: Sandbox) -> Outcome:
    if sandbox.output is None:
        raise CheckFailed("no block before this one has run")
    within = re.fullmatch(r"within ([\d.]+)\s*%", fence.marks["output"] or "within 0%")
    if not within:
        raise CheckFailed(
            f"`output {fence.marks['output']}` means nothing; write `output` or `output within 20%`"
        )
    compare(fence.content, sandbox.output, float(within[1]) / 100)
    return Outcome("output", "compared with a fresh run")


def compare(expected: str, actual: str, tolerance: float = 0.0) -> None:
    """Compare what a page shows with what was printed; ``…`` stands for any text of a line, or for any lines.

    Args:
        tolerance: numbers may differ by this share of the expected one.

    Raises:
        CheckFailed: with the difference.
    """
    wanted, got = _tidy(expected), _tidy(actual)
    if not wanted.strip("… \n"):
        raise CheckFailed("an output of nothing but … is compared with nothing")
    pattern, numbers = "", []
    for part in re.split(rf"(^…\n|…|{NUMBER})", wanted, flags=re.MULTILINE):
        if part == "…\n":
            pattern += r"(?:.*\n)*?"
        elif part == "…":
            pattern += r".*?"
        elif tolerance and re.fullmatch(NUMBER, part):
            pattern += f"({NUMBER})"
            numbers.append(part)
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, got)
    if found and all(_close(a, b, tolerance) for a, b in zip(numbers, found.groups(), strict=True)):
        return
    lines = difflib.unified_diff(
        wanted.splitlines(), got.splitlines(), "on the page", "printed", lineterm="", n=1
    )
    raise CheckFailed("the output differs\n" + "\n".join(lines))


def _tidy(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.strip().splitlines())


def _close(expected: str, actual: str, tolerance: float) -> bool:
    a, b = (float(text.replace(",", "").rstrip(".") or "nan") for text in (expected, actual))
    return abs(a - b) <= tolerance * abs(a)
