"""Tiny repositories with the shape of real ones, for the local hub: GPT-2 and WikiText-2."""

from pathlib import Path

WORDS = (
    "the a model data text loss train test learn weight token batch step rate fine tune small large".split()
)


def tiny_gpt2(folder: Path) -> Path:
    """GPT-2's architecture and kind of tokenizer with two layers of random weights, as the hub lays it out."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([" ".join(WORDS)] * 50, vocab_size=400, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(
        '{"model_max_length": 128, "tokenizer_class": "GPT2Tokenizer"}'
    )
    end = bpe.token_to_id("<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=bpe.get_vocab_size(),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def tiny_wikitext(folder: Path) -> Path:
    """A data set with WikiText-2's configuration, splits, column, headings and blank lines; sentences made up."""
    import random

    import pyarrow
    import pyarrow.parquet

    (folder / "wikitext-2-raw-v1").mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for split, rows in (("train", 900), ("validation", 180), ("test", 180)):
        lines = []
        for number in range(rows):
            sentence = " ".join(generator.choices(WORDS, k=20))
            article = ["", f" = Title {split} {number} = \n", f" {sentence} . \n"]
            part = ["", f" = = Part {number} = = \n", f" {sentence} . \n"]
            lines.append((article + part)[number % 6])
        table = pyarrow.table({"text": lines})
        pyarrow.parquet.write_table(table, folder / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
    splits = "".join(
        f"  - split: {split}\n    path: wikitext-2-raw-v1/{split}-*\n"
        for split in ("train", "validation", "test")
    )
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n{splits}---\n"
    )
    return folder


def tiny_gguf(path: Path):
    """Write a LLaMA-shaped GGUF file with two layers and SmolLM's tokenizer settings.

    Returns the Transformers model with the same weights, to compare with. Its rows of q and k are
    stored in the order that GGUF wants, pairs of a rotation side by side.
    """
    import gguf
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig

    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator([" ".join(WORDS)] * 50, vocab_size=400, special_tokens=special)
    bpe.save_model(str(path.parent))
    tokens = [bpe.id_to_token(number) for number in range(bpe.get_vocab_size())]
    merges = (path.parent / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    # Not .to(bfloat16), which would round the rotary frequencies too.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = model.state_dict()
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].float().numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].float().numpy())
    for layer in range(2):
        for theirs, ours in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"].float()
            if ours in ("attn_q", "attn_k"):
                heads = 4 if ours == "attn_q" else 2
                weight = weight.view(heads, 2, 4, 32).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def tiny_bert(folder: Path) -> Path:
    """A BERT of two layers with random weights, and the tokenizer of MiniLM: what a classifier is trained from."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from ftdocs import assets

    tokenizer = AutoTokenizer.from_pretrained(assets.model_path("minilm"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
