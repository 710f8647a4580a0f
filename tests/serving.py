"""A tiny run to serve, and `ftdocs serve` as a process of its own, for the tests of serving."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

QUESTION = [{"role": "user", "content": "What follows the river?"}]


def tiny_llama(folder: Path, context: int = 4096) -> Path:
    """A LLaMA of random weights with SmolLM2's chat template: it never stops by itself."""
    import torch
    from small_tokenizer import small_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=context, bos_token_id=1,
        eos_token_id=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    words = [
        text.isascii() and text.isalpha() for text in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ]
    model.model.embed_tokens.weight.data *= torch.tensor(words)[:, None]  # it says words: other logits are 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_run(folder: Path, data: Path | None = None, format: str = "prompt", **method: Any) -> Path:
    """A finished run of two steps on a few questions, or on other data."""
    from ftdocs.recipe import Recipe
    from ftdocs.train import train

    rows = [
        {"prompt": f"What follows river {n}?", "completion": f"Stone {n * 7} follows it."} for n in range(24)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "model": str(tiny_llama(folder / "base")),
            "data": {
                "path": str(data or folder / "faq.jsonl"),
                "format": format,
                "validation": 0.2,
                "test": 0.2,
            },
            "method": method or {"name": "full"},
            "train": {"max_steps": 2, "batch_size": 2, "seq_len": 64},
        }
    )
    train(recipe, folder / "rivers")
    return folder / "rivers"


@contextmanager
def serving(
    run: Path, log: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen, dict]]:
    """``ftdocs serve`` in a process of its own, and what it announced; it and its child are gone in the end."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("FTDOCS_API_KEY", "OPENAI_API_KEY")
    }
    with open(log, "a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftdocs.cli", "serve", str(run), "--json", "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=errors, text=True, env={**kept, **environment},
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield process, json.loads(line)
    finally:
        for each in [*children(process), process]:
            each.kill()
        process.wait()
        process.stdout.close()


def children(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that it started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
