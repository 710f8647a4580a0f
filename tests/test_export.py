"""A GGUF file of ours, read by Transformers: the same logits, text and chat template."""

import pytest
import torch
from gguf import GGUFReader, TokenType
from make_repositories import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ftdocs import gguf
from ftdocs.errors import InputError
from ftdocs.export import write_gguf

TEXT = "In 1234 the river rose by 5.67 metres; nobody's boat was safe."


def tiny(folder):
    """A LLaMA in bfloat16 with a tokenizer of SmolLM's kind, both as small as can be."""
    spelling = Tokenizer(models.BPE())
    spelling.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    spelling.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    spelling.train_from_iterator([" ".join(WORDS)] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelling,
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[0],
        unk_token=special[0],
    )
    # As LLaMA 3's: special, though nothing's begin, end or padding.
    tokenizer.add_tokens([AddedToken("<|header|>", special=True), AddedToken("<tool>", special=False)])
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_what_is_written_is_read_again(tmp_path):
    folder = tiny(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    far = {}
    for kind in ("f16", "q8_0"):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        again, spelt = gguf.load(tmp_path / f"{kind}.gguf")
        assert spelt(TEXT)["input_ids"] == ids[0].tolist() and spelt.chat_template == tokenizer.chat_template
        assert (spelt.eos_token_id, spelt.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        with torch.no_grad():
            far[kind] = (again(ids).logits - model(ids).logits).abs().max() / model(ids).logits.abs().max()
        kinds = GGUFReader(tmp_path / f"{kind}.gguf").fields["tokenizer.ggml.token_type"].contents()
        marked = {
            spelt.convert_ids_to_tokens(n): TokenType(kinds[n]).name for n in tokenizer.added_tokens_decoder
        }
        assert marked == {
            **dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|header|>"), "CONTROL"),
            "<tool>": "USER_DEFINED",
        }
        assert kinds.count(TokenType.NORMAL) == len(kinds) - len(marked)
    assert far["f16"] < 1e-3 < far["q8_0"] < 0.1
    sizes = {kind: (tmp_path / f"{kind}.gguf").stat().st_size for kind in far}
    assert sizes["q8_0"] < sizes["f16"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f16.gguf", "q8_0.gguf", "tiny"]
    with pytest.raises(InputError, match="exists"):
        write_gguf(folder, tmp_path / "f16.gguf")
    with pytest.raises(InputError, match="give one of f16, q8_0"):
        write_gguf(folder, tmp_path / "x.gguf", "q2")


def test_what_would_be_written_wrong_is_refused(tmp_path):
    folder = tiny(tmp_path / "tiny")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"rope_type": "default"', '"rope_type": "linear", "factor": 2.0')
    )
    with pytest.raises(InputError, match="linear rotary"):
        write_gguf(folder, tmp_path / "x.gguf")
    (folder / "config.json").write_text(text)
    config = LlamaConfig.from_pretrained(folder)
    config.attention_bias = True
    LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"proj\.bias: is not written here"):
        write_gguf(folder, tmp_path / "x.gguf")
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        tokenizer.replace('"individual_digits": true', '"individual_digits": false')
    )
    with pytest.raises(InputError, match="its tokenizer"):
        write_gguf(folder, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf*"))
