"""A conversation with a model in the terminal, or with lines from a pipe."""

import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TextStreamer

from ftdocs import backend, hardware, models, runs
from ftdocs.errors import InputError


class Typed(TextStreamer):
    """Writes an answer as it is made, word by word."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.text = write, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each piece."""
        self.text += text
        self.write(text)


class Conversation:
    """A model and what was said so far.

    Args:
        given: a run's folder, a folder with a model, or a name.
        system: what the model is told first; None leaves it to the chat template.
        max_tokens: of an answer.

    Raises:
        InputError: as :func:`ftdocs.backend.find`; or the answers would fill all that the model can see.
    """

    def __init__(self, given: Path, system: str | None = None, max_tokens: int = 256):
        run = given if (given / "adapter").is_dir() else None  # its adapter is put on, not merged
        if run:
            runs.read_result(run)
            backend.check_writes_text(run)
            loaded: tuple[Any, Any] = models.load_run(run)
            self.model, self.tokenizer = loaded
            context = int(self.model.config.get_text_config().max_position_embeddings)
        else:
            found = backend.find(given)
            self.tokenizer = AutoTokenizer.from_pretrained(found.folder)
            self.model = AutoModelForCausalLM.from_pretrained(
                found.folder, dtype=hardware.dtype(), use_safetensors=True
            ).to(hardware.device())
            context = found.context
        self.model.eval()
        if not self.tokenizer.chat_template:
            raise InputError(f"{given}: its tokenizer has no chat template, so it cannot hold a conversation")
        if not 0 < max_tokens < context:
            raise InputError(
                f"--max-tokens {max_tokens}: give 1 to {context - 1}; the model sees {context} tokens"
            )
        self.room, self.max_tokens = context - max_tokens, max_tokens
        self.messages = [{"role": "system", "content": system}] if system is not None else []
        self.first = len(self.messages)

    def encode(self) -> dict[str, Any]:
        """The conversation as token ids, (1, T); its oldest turns are dropped where it is too long.

        Raises:
            InputError: the last message alone is too long; it is taken back, and nothing else is dropped.
        """
        start = self.first
        while True:
            inputs = self.tokenizer.apply_chat_template(
                self.messages[: self.first] + self.messages[start:],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            length = inputs["input_ids"].shape[1]
            if length <= self.room:
                del self.messages[self.first : start]
                return inputs.to(self.model.device)
            if start + 1 >= len(self.messages):
                self.messages.pop()
                raise InputError(
                    f"the message has {length} tokens with what surrounds it, and {self.room} is the most"
                )
            start += 2  # a question and its answer

    def say(self, text: str, write: Callable[[str], None]) -> str:
        """The answer to a message, written as it is made. What an interrupt leaves of it counts as the answer."""
        self.messages.append({"role": "user", "content": text})
        inputs, typed = self.encode(), Typed(self.tokenizer, write)
        try:
            with torch.no_grad():
                self.model.generate(
                    **inputs, streamer=typed, max_new_tokens=self.max_tokens, do_sample=False,
                    pad_token_id=models.pad_token_id(self.tokenizer),
                )  # fmt: skip
        finally:
            self.messages.append({"role": "assistant", "content": typed.text})
        return typed.text


def talk(conversation: Conversation, show: bool = True) -> None:
    """Read messages until the end of the input: Ctrl-D, or of a pipe. Ctrl-C ends an answer, or the conversation.

    Raises:
        InputError: the input is not UTF-8.
    """
    typing = sys.stdin.isatty()
    if typing:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - the arrow keys work once it is imported
    write = (lambda text: print(text, end="", flush=True)) if show else (lambda text: None)
    for number in count(1):
        try:
            line = input("> ") if typing else sys.stdin.readline()
            line.encode()  # a byte that is no UTF-8 came as a surrogate, which no tokenizer takes
            if not typing and not line:
                return None
        except (EOFError, KeyboardInterrupt):
            if not typing:
                raise
            return print()
        except UnicodeError:
            raise InputError(f"standard input: line {number} is not UTF-8; write it as UTF-8") from None
        if not line.strip():
            continue
        try:
            conversation.say(line.strip(), write)
        except InputError as error:
            print(f"ftdocs: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not typing:
                raise
        write("\n")
