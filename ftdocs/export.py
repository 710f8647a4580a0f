"""From a folder with a whole model to a GGUF file, which llama.cpp and Ollama load.

For models of the LLaMA architecture with the tokenizers of GPT-2, SmolLM and LLaMA 3; llama.cpp's own
``convert_hf_to_gguf.py`` knows many more.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from ftdocs import files
from ftdocs.errors import InputError

KINDS = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, output: Path, kind: str = "f16") -> None:
    """Write a model, its tokenizer and its chat template into one file.

    Matrices become ``f16``, or ``q8_0``: blocks of 32 values that share a scale, 8.5 bits a weight. Norms stay in
    float32.

    Args:
        folder: safetensors, config, tokenizer.
        output: the file; it is there whole or not at all.
        kind: ``f16`` or ``q8_0``.

    Raises:
        InputError: another architecture or tokenizer, scaled rotary embeddings, biases, or the file exists.
    """
    if output.exists():
        raise InputError(f"{output}: exists; choose another name, or remove it")
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: give one of {', '.join(KINDS)}")
    config = AutoConfig.from_pretrained(folder)
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default":
        raise InputError(
            f"{folder}: {config.model_type} with {rope.get('rope_type', 'default')} rotary embeddings is not written"
            " here; take llama.cpp's convert_hf_to_gguf.py"
        )
    with files.new_folder(output.with_name(f"{output.name}.making")) as aside:
        writer = gguf.GGUFWriter(str(aside / "model"), "llama")
        add_shape(writer, config, rope.get("rope_theta", 10000.0), kind)
        add_tokenizer(writer, folder, config.vocab_size)
        for path in sorted(folder.glob("*.safetensors")):
            for name, weight in load_file(path).items():
                add_tensor(writer, name, weight.float(), config, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (aside / "model").replace(output)
    output.with_name(f"{output.name}.making").rmdir()


def add_shape(writer: gguf.GGUFWriter, config: Any, theta: float, kind: str) -> None:
    """The model's sizes."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if kind == "f16" else gguf.LlamaFileType.MOSTLY_Q8_0)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Tokens, merges, special tokens, how text is divided before it is merged, and the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]  # rows that no token uses
    # llama.cpp finds in a prompt only what is marked so; the others it would cut into pieces, without a word.
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for number, added in tokenizer.added_tokens_decoder.items():
        types[number] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(known, folder))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = known["model"].get("merges") or []
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def splitting(known: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for how a tokenizer divides text before merging: with a wrong one, tokens differ silently."""
    if known["model"]["type"] == "BPE" and (before := known.get("pre_tokenizer")):
        kinds = [each["type"] for each in before.get("pretokenizers", [before])]
        if kinds == ["Digits", "ByteLevel"] and before["pretokenizers"][0]["individual_digits"]:
            return "smollm"
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Split", "ByteLevel"] and r"\p{N}{1,3}" in json.dumps(
            before["pretokenizers"][0]["pattern"]
        ).replace("\\\\", "\\"):
            return "llama-bpe"
    raise InputError(
        f"{folder}: its tokenizer is not one that is written here; take llama.cpp's convert_hf_to_gguf.py"
    )


def add_tensor(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, config: Any, kind: str) -> None:
    """One tensor under llama.cpp's name; rows of queries and keys in its order, pairs of a rotation side by side."""
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        target = WHOLE[stem]
    else:
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        if part not in NAMES:
            raise InputError(f"{name}: is not written here; take llama.cpp's convert_hf_to_gguf.py")
        target = f"blk.{layer}.{NAMES[part]}"
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
            rows, width = weight.shape
            weight = weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)
    values = weight.contiguous().numpy()
    if weight.ndim == 1:
        writer.add_tensor(f"{target}.weight", values)
    else:
        writer.add_tensor(f"{target}.weight", gguf.quantize(values, KINDS[kind]), raw_dtype=KINDS[kind])
