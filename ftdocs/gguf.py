"""From a GGUF file to a folder that every tool loads: bfloat16 safetensors, tokenizer, chat template.

Transformers' own reader does the work; this module mends what the round trip would otherwise lose and
checks the result before anybody trains on it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf import read_gguf_metadata
from transformers.utils import logging

from ftdocs.errors import InputError

# Tokens that may fill a batch up, best first. A pad token that is also the end of a turn would hide
# the end of every answer from the loss, and the tuned model would never stop.
PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")


def load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file as a dense bfloat16 causal language model with its tokenizer.

    Args:
        path: a GGUF file of an architecture that Transformers knows, quantised or not.

    Returns:
        The model in evaluation mode and its tokenizer. The tokenizer's pad token differs from its
        end-of-text token whenever the vocabulary has a token to use.

    Raises:
        InputError: the file is not GGUF, is cut short, or its architecture is not known.
    """
    folder, file = str(path.parent), path.name
    try:
        with _quiet():
            # Read once and handed on: each reader would go through the file's whole vocabulary again.
            config = AutoConfig.from_pretrained(folder, gguf_file=file)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, config=config)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=file,
                config=config,
                dtype=torch.bfloat16,
                # Without this the weights stay packed in GGUF blocks, which cannot be trained.
                quantization_config=GgufConfig(dequantize=True),
            )
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a GGUF language model ({error})") from error
    _mend_tokenizer(tokenizer, read_gguf_metadata(str(path))[0].get("tokenizer.ggml.pre"))
    tokenizer.model_max_length = model.config.max_position_embeddings
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def convert(path: Path, folder: Path) -> None:
    """Write the model in a GGUF file to ``folder`` as safetensors and read it back to check it.

    Args:
        path: the GGUF file.
        folder: an existing folder; it receives ``model.safetensors`` (bfloat16), ``config.json``,
            ``generation_config.json``, ``tokenizer.json``, ``tokenizer_config.json`` and
            ``chat_template.jinja``.

    Raises:
        InputError: as :func:`load`.
        RuntimeError: what was read back is not what was written.
    """
    model, tokenizer = load(path)
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    token_ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])  # (1, T)
    with torch.no_grad():
        same = torch.equal(model(token_ids).logits, again(token_ids).logits)
    if not same or again.generation_config.eos_token_id != tokenizer.eos_token_id:
        raise RuntimeError(
            f"{path}: the converted model read back from {folder} differs from the one written"
        )
    for file in folder.iterdir():
        file.chmod(0o644)  # save_pretrained makes the weights readable by their owner alone


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase, splitting: str | None) -> None:
    """Give the tokenizer its pre-tokenizer and a pad token of its own."""
    if splitting == "smollm":
        # Transformers rebuilds every BPE tokenizer with GPT-2's splitting. SmolLM splits digits off
        # first; without it "x  3" gets other tokens than the model was trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next(
            (token for token in PAD_TOKENS if token in vocabulary and token != tokenizer.eos_token),
            tokenizer.eos_token,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars inside the block: Transformers' own, and the GGUF reader's, which asks nobody."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
