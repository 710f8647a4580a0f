"""The loss mask against real templates: the reply and its end are trained, and nothing else."""

import io
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
)

from ftdocs.assets import model_path
from ftdocs.data.chat import ALPACA, IGNORED
from ftdocs.data.inspect import inspect, lengths, show
from ftdocs.data.pack import collate_padded
from ftdocs.data.prepare import check_length, encode
from ftdocs.errors import InputError
from ftdocs.recipe import Data, Recipe

TURNS = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!\n\nHow are you?"},
    {"role": "user", "content": "assistant\nHello!"},
    {"role": "assistant", "content": "def f():\n    return '…'"},
]
GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
DROPS_EARLIER = (
    "{% for m in messages %}{% if loop.last %}{{ '<|im_start|>think ' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def smollm2():
    return AutoTokenizer.from_pretrained(model_path("smollm2-135m-instruct"))


def with_template(tokenizer, template):
    changed = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map, chat_template=template
    )
    assert changed.chat_template == template
    return changed


@pytest.fixture(scope="module")
def gpt2_like():
    """A byte-level tokenizer such as GPT-2's: one special token that begins, ends and pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def trained(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != IGNORED])


def one(fields, format, tokenizer, seq_len=512):
    (row,) = encode([{"row": 1, **fields}], format, tokenizer, seq_len)
    assert all(
        label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True)
    )
    return row


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_smollm2_trains_exactly_the_replies_and_their_ends(smollm2, system):
    row = one({"messages": system + TURNS}, "messages", smollm2)
    assert row["input_ids"] == smollm2.apply_chat_template(system + TURNS, return_dict=False)
    assert trained(row, smollm2) == f"{TURNS[1]['content']}<|im_end|>{TURNS[3]['content']}<|im_end|>"
    assert row["labels"][-2] == smollm2.eos_token_id
    assert row["labels"][-1] == IGNORED  # the line break after the last end of turn


@settings(max_examples=40, deadline=None)
@given(
    replies=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1), min_size=1)
)
def test_whatever_the_replies_hold(smollm2, replies):
    chat = [
        turn
        for reply in replies
        for turn in ({"role": "user", "content": "?"}, {"role": "assistant", "content": reply})
    ]
    row = one({"messages": chat}, "messages", smollm2, 100_000)
    assert trained(row, smollm2) == "".join(f"{reply}<|im_end|>" for reply in replies)


def test_a_template_that_marks_replies_agrees_and_its_end_is_trained_too(smollm2):
    marked = with_template(smollm2, GENERATION)
    plain = with_template(
        smollm2, GENERATION.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    assert one({"messages": TURNS}, "messages", marked) == one({"messages": TURNS}, "messages", plain)
    assert trained(one({"messages": TURNS}, "messages", marked), smollm2).count("<|im_end|>") == 2


def test_a_template_without_an_end_gets_one(smollm2):
    row = one({"messages": TURNS[:2]}, "messages", with_template(smollm2, WITHOUT_END))
    # " Hello" is one token of the whole text: it holds the template's space and the reply's first word.
    assert trained(row, smollm2) == " Hello!\n\nHow are you?\n<|im_end|>"


def test_a_template_that_rewrites_what_came_before_is_refused(smollm2):
    with pytest.raises(InputError, match="row 1: the chat template writes message 2 differently"):
        one({"messages": TURNS}, "messages", with_template(smollm2, DROPS_EARLIER))


def test_a_template_that_refuses_a_conversation_names_the_row(smollm2):
    refuses = "{{ raise_exception('only two turns') }}"
    with pytest.raises(
        InputError, match="row 1: the model's chat template refuses this conversation: only two turns"
    ):
        one({"messages": TURNS}, "messages", with_template(smollm2, refuses))
    rows = [{"row": 3, "messages": TURNS}]
    with pytest.raises(InputError, match=r"^mine\.jsonl, row 3: the model's chat template refuses"):
        encode(rows, "messages", with_template(smollm2, refuses), 512, where="mine.jsonl")


def test_one_beginning_of_sequence_not_two(smollm2):
    row = one({"messages": TURNS}, "messages", with_template(smollm2, "{{ bos_token }}" + WITHOUT_END))
    assert row["input_ids"].count(smollm2.bos_token_id) == 1


def test_prompts_and_instructions_for_a_chat_model(smollm2):
    row = one({"prompt": "Say hi", "completion": "hi"}, "prompt", smollm2)
    assert trained(row, smollm2) == "hi<|im_end|>"
    row = one({"instruction": "Add.", "input": "1 2", "output": "3"}, "instruction", smollm2)
    assert "user\nAdd.\n\n1 2<|im_end|>" in smollm2.decode(row["input_ids"])
    assert trained(row, smollm2) == "3<|im_end|>"


def test_prompts_and_instructions_for_a_base_model(gpt2_like):
    row = one({"prompt": "2 + 2 =", "completion": " 4"}, "prompt", gpt2_like)
    assert gpt2_like.decode(row["input_ids"]) == "2 + 2 = 4<|endoftext|>"
    assert trained(row, gpt2_like) == " 4<|endoftext|>"
    row = one({"instruction": "Add {x}.", "input": "", "output": "3"}, "instruction", gpt2_like)
    assert gpt2_like.decode(row["input_ids"]) == ALPACA.format(instruction="Add {x}.") + "3<|endoftext|>"
    row = one({"instruction": "Add.", "input": "1 2", "output": "3"}, "instruction", gpt2_like)
    assert "### Input:\n1 2\n\n### Response:\n3" in gpt2_like.decode(row["input_ids"])
    with pytest.raises(InputError, match="row 1: the model's tokenizer has no chat template"):
        one({"messages": TURNS}, "messages", gpt2_like)


def test_where_padding_is_the_end_the_end_is_still_trained(gpt2_like):
    assert gpt2_like.pad_token_id == gpt2_like.eos_token_id
    rows = encode([{"row": 1, "text": "ab"}, {"row": 2, "text": "abcdef"}], "text", gpt2_like, 64)
    batch = collate_padded(rows, gpt2_like.pad_token_id)
    end = gpt2_like.eos_token_id
    assert batch["labels"][0].tolist() == [IGNORED, rows[0]["input_ids"][1], end, *[IGNORED] * 4]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert batch["input_ids"][0, 3:].tolist() == [end] * 4
    assert batch["labels"][1, -1] == end


@settings(max_examples=60, deadline=None)
@given(
    # The end token alone has nothing to predict, and a test of its own.
    text=st.text(min_size=1).filter(lambda text: text != "<|endoftext|>"),
    seq_len=st.integers(2, 9),
)
@example(text="a<|endoftext|>", seq_len=2)
def test_every_token_of_a_long_document_is_trained_once_but_the_first(gpt2_like, text, seq_len):
    whole, end = gpt2_like(text)["input_ids"], gpt2_like.eos_token_id
    whole += [end] * (whole[-1] != end)  # an end that is there is not doubled
    pieces = encode([{"row": 1, "text": text}], "text", gpt2_like, seq_len)
    assert [label for row in pieces for label in row["labels"] if label != IGNORED] == whole[1:]
    assert all(len(row["input_ids"]) <= seq_len for row in pieces)
    for before, after in pairwise(pieces):
        assert after["input_ids"][0] == before["input_ids"][-1]


def test_rows_without_a_label_left_are_counted_and_all_of_them_refused(gpt2_like):
    rows = [
        {"row": 1, "prompt": "x" * 50, "completion": "y"},
        {"row": 2, "prompt": "x", "completion": "y" * 50},
    ]
    encoded = encode(rows, "prompt", gpt2_like, 20)
    assert [row["row"] for row in encoded] == [2]
    assert (encoded.dropped, encoded.truncated) == (1, 2)
    with pytest.raises(InputError, match=r"all labels masked: .* first 20 tokens; raise train.seq_len"):
        encode(rows[:1], "prompt", gpt2_like, 20)
    with pytest.raises(InputError, match=r"^mine\.csv: all labels masked"):
        encode(rows[:1], "prompt", gpt2_like, 20, where="mine.csv")
    assert encode([], "prompt", gpt2_like, 20) == []


def test_labelled_text_keeps_its_special_tokens_when_cut():
    minilm = AutoTokenizer.from_pretrained(model_path("minilm"))
    rows = [
        {"row": 1, "text": "a fine film " * 9, "label": "good"},
        {"row": 2, "text": "bad", "label": "bad"},
    ]
    encoded = encode(rows, "label", minilm, 8, ["bad", "good"])
    assert [row["label"] for row in encoded] == [1, 0]
    assert [row["input_ids"][-1] for row in encoded] == [minilm.sep_token_id] * 2
    assert len(encoded[0]["input_ids"]) == 8
    assert encoded.truncated == 1
    assert collate_padded(encoded)["labels"].tolist() == [1, 0]


def recipe(tmp_path, rows, seq_len):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Recipe(model="smollm2-135m-instruct", data=Data(path=path), train={"seq_len": seq_len})


def test_inspect_shows_what_is_trained_with_and_without_colour(tmp_path):
    rows = [{"prompt": f"Count to {n}", "completion": "one [two] three " * n} for n in range(1, 11)] * 2
    report = inspect(recipe(tmp_path, rows, 64), samples=2)
    assert report == json.loads(json.dumps(report))
    assert (report["rows"], report["duplicates"], report["train"]) == (20, 10, 8)
    assert (
        report["tokens"]["min"]
        <= report["tokens"]["median"]
        <= report["tokens"]["p95"]
        <= report["tokens"]["max"]
    )
    assert 0 < report["truncated"] <= 8
    assert 0 < report["trained"] < 1
    (sample, _) = report["samples"]
    number = (sample["row"] - 1) % 10 + 1
    assert [piece["trained"] for piece in sample["pieces"]][:2] == [False, True]
    assert sample["pieces"][0]["text"].endswith(f"Count to {number}<|im_end|>\n<|im_start|>assistant\n")
    for colours in (None, "truecolor"):
        written = io.StringIO()
        # Without the environment: NO_COLOR, which some runners set, would decide instead.
        show(report, Console(file=written, width=200, color_system=colours, force_terminal=True, _environ={}))
        assert "«one [two] three" in written.getvalue()
        assert ("\x1b[32m" in written.getvalue()) == (colours is not None)


def test_inspect_counts_pieces_of_text_and_classes(tmp_path):
    report = inspect(recipe(tmp_path, [{"text": f"{n} " * 30} for n in range(20)], 16))
    assert report["pieces"] > report["train"]
    assert report["trained"] > 0.9
    report = inspect(recipe(tmp_path, [{"text": f"t {n}", "label": n % 2} for n in range(20)], 16))
    assert report["labels"] == {"0": 10, "1": 10}
    assert report["samples"][0]["label"] in ("0", "1")


def test_lengths():
    assert lengths(list(range(1, 101))) == {"min": 1, "median": 50, "p95": 95, "max": 100, "total": 5050}
    assert lengths([7]) == {"min": 7, "median": 7, "p95": 7, "max": 7, "total": 7}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (GPT2Config(), 1024),
        (BertConfig(), 512),
        (LlamaConfig(max_position_embeddings=64), 64),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
    ],
)
def test_a_sequence_longer_than_the_model_has_positions_is_refused(config, limit):
    check_length(config, limit)
    with pytest.raises(InputError, match=f"train.seq_len is {limit + 1}.*positions for {limit} tokens"):
        check_length(config, limit + 1)


def test_a_model_without_a_limit_takes_any_length():
    check_length(T5Config(), 100_000)


def test_roberta_really_ends_where_the_check_says():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(vocab_size=9, max_position_embeddings=12, pad_token_id=1, **sizes)
    model = RobertaForMaskedLM(config)
    check_length(config, 10)
    model(torch.full((1, 10), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.full((1, 11), 5))


def test_a_text_that_is_an_end_alone_gives_nothing_to_train(smollm2):
    """Nothing is predicted in it: a batch of it has no label, and a mean over none is no number."""
    texts = ["<|im_end|>", "A text."]
    rows = [{"text": text, "row": number} for number, text in enumerate(texts, 1)]
    assert [row["row"] for row in encode(rows, "text", smollm2, 32)] == [2]
    with pytest.raises(InputError, match=r"rows\.txt: none of the 1 texts has a token to predict"):
        encode(rows[:1], "text", smollm2, 32, where="rows.txt")
