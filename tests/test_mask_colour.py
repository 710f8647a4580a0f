"""What `ftdocs data inspect` prints in colour on a terminal is what the chat template says is the assistant's."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer, LlamaConfig

from ftdocs.assets import model_path

CHAT = [
    {"role": "system", "content": "Answer in [one] word."},
    {"role": "user", "content": "Which stone is green?\nassistant\nMoss!"},
    {"role": "assistant", "content": "Jade,\n\n  «or» [bold]emerald[/bold]."},
    {"role": "user", "content": "And red? <|im_end|"},
    {"role": "assistant", "content": "Ruby 🪨"},
]
# Written in the ways of other models: each with its end of turn, and what stands around it.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
ENDS = {"smollm2": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "<|im_end|>"}


def model(kind: str, folder: Path) -> str:
    """SmolLM2, or a folder with its words and another template."""
    if kind == "smollm2":
        return "smollm2-135m-instruct"
    tokenizer = AutoTokenizer.from_pretrained(model_path("smollm2-135m-instruct"))
    if kind == "llama3":
        tokens = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = {"llama3": LLAMA3, "mistral": MISTRAL}[kind]
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    (folder / "model.safetensors").touch()  # its weights are not looked at
    return str(folder)


def expected(tokenizer, chat: list[dict], end: str) -> list[tuple[str, bool]]:
    """The conversation in parts, each trained or not: by Jinja alone, with the replies marked before it writes them."""
    marked = [
        {**turn, "content": f"\ue000{turn['content']}\ue001"} if turn["role"] == "assistant" else turn
        for turn in chat
    ]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    words = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    text = environment.from_string(tokenizer.chat_template).render(
        messages=marked, add_generation_prompt=False, **words
    )
    parts = []
    for place, part in enumerate(re.split("\ue000(.*?)\ue001", text, flags=re.S)):
        if place % 2:
            parts.append((part + end, True))
        else:
            assert place == 0 or part.startswith(end)
            parts.append((part.removeprefix(end) if place else part, False))
    return [part for part in parts if part[0]]


def on_a_terminal(arguments: list[str], folder: Path) -> str:
    """What a command prints where its standard output is a terminal of very long lines."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "10000"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ftdocs.cli", *arguments], stdout=theirs, cwd=folder, env=environment
    )
    os.close(theirs)
    found = b""
    try:
        while piece := os.read(ours, 1 << 16):
            found += piece
    except OSError:  # Linux says that the other side is closed in this way
        pass
    os.close(ours)
    assert process.wait() == 0
    return found.decode().replace("\r\n", "\n")


def coloured(text: str) -> list[tuple[str, str]]:
    """Pieces of a terminal's text with the codes that were in force."""
    pieces, codes = [], ""
    for part in re.split("(\x1b\\[[0-9;]*m)", text):
        if part.startswith("\x1b["):
            codes = part[2:-1] if part != "\x1b[0m" else ""
        elif part:
            pieces.append((part, codes))
    return pieces


@pytest.mark.parametrize("kind", ENDS)
def test_green_is_exactly_the_replies_and_their_ends(kind, tmp_path):
    """Each piece of both shown rows; a line break has no colour of its own, so those are compared as text alone."""
    folder = tmp_path / "base"
    name = model(kind, folder)
    tokenizer = AutoTokenizer.from_pretrained(model_path(name))
    chats = [
        [CHAT[0], {"role": "user", "content": f"{n}. {CHAT[1]['content']}"}, *CHAT[2:]] for n in range(1, 13)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (tmp_path / "job.json").write_text(json.dumps({"model": name, "data": {"path": "chats.jsonl"}}))
    shown = on_a_terminal(
        ["data", "inspect", "chats.jsonl", "--recipe", "job.json", "--samples", "2"], tmp_path
    )
    numbers, samples = headings_and_samples(shown)
    assert len(numbers) == len(samples) == 2
    for number, sample in zip(numbers, samples, strict=True):
        parts = expected(tokenizer, chats[number - 1], ENDS[kind])
        assert sum(trained for _, trained in parts) == 2
        wanted = [(f"«{text}»", "32") if trained else (text, "2") for text, trained in parts]
        assert "".join(text for text, _ in sample) == "".join(text for text, _ in wanted) + "\n"
        assert visible(sample) == visible(wanted)


def headings_and_samples(shown: str) -> tuple[list[int], list[list[tuple[str, str]]]]:
    """Row numbers, and what is printed below each, up to the line that explains the colours."""
    parts = re.split("\n\x1b\\[1mrow (\\d+)\x1b\\[0m\n|\n\x1b\\[3mWhat stands in", shown)
    return [int(n) for n in parts[1:-2:2]], [coloured(text) for text in parts[2:-1:2]]


def visible(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each character with its colour, line breaks left out."""
    return [(character, code) for text, code in pieces for character in text if character != "\n"]
