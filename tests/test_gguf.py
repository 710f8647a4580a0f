"""From GGUF to safetensors: the same logits, a tokenizer that splits as in training, an end that can be learnt."""

from pathlib import Path

import pytest
import torch
from make_repositories import tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import assets, gguf
from ftdocs.errors import InputError


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    original = tiny_gguf(path)
    folder = tmp_path_factory.mktemp("converted")
    gguf.convert(path, folder)
    return original, folder


def test_conversion_keeps_every_logit(converted):
    original, folder = converted
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    token_ids = torch.arange(3, 43)[None]  # (1, 40)
    with torch.no_grad():
        assert torch.equal(model(token_ids).logits, original(token_ids).logits)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_only_files_that_any_tool_loads_and_anybody_reads(converted):
    _, folder = converted
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".gguf", ".pt")) for name in names)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    assert "quantization_config" not in (folder / "config.json").read_text()


@pytest.mark.parametrize("which", ["tiny", "smollm2"])
def test_end_of_turn_is_not_the_pad_token(converted, which):
    folder = converted[1] if which == "tiny" else assets.model_path("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == model.config.max_position_embeddings


def test_digits_are_split_off_before_spaces_are_joined_to_words():
    """As SmolLM2 was trained: GPT-2's splitting alone would make "Ġ", "Ġ", "3" of two spaces and a digit."""
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))
    assert tokenizer.tokenize("x  33") == ["x", "ĠĠ", "3", "3"]
    assert tokenizer.decode(tokenizer("x  33, ünï → 7")["input_ids"]) == "x  33, ünï → 7"


def test_smollm2_answers_in_its_chat_format():
    folder = assets.model_path("smollm2-135m-instruct")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(answer)
    assert "Paris" in text
    assert text.endswith("<|im_end|>")


def test_what_is_not_gguf_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"this is not a model" * 100)
    with pytest.raises(InputError, match=r"not\.gguf.*cannot be read") as caught:
        gguf.convert(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_gguf_cut_short_is_refused(tmp_path: Path):
    tiny_gguf(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.gguf"):
        gguf.convert(tmp_path / "cut.gguf", tmp_path)
