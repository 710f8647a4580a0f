"""Packed documents are as good as alone: same logits, same gradients; and the traps that make them not so."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ftdocs import attention
from ftdocs.assets import model_path
from ftdocs.data.chat import IGNORED
from ftdocs.data.pack import check_packing, collate_packed, collate_padded, pack
from ftdocs.errors import InputError

LENGTHS = (9, 4, 7, 2, 12)


def documents(lengths, vocabulary=500):
    rows = []
    for number, length in enumerate(lengths, 1):
        ids = [(number * 31 + 7 * place) % vocabulary for place in range(length)]
        rows.append({"input_ids": ids, "labels": ids, "row": number})
    return rows


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=500, num_key_value_heads=2, **sizes))


def gpt2():
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    rates = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=500, n_positions=64, n_embd=32, n_layer=2, n_head=2, **ends, **rates)
    )


def smollm2():
    return AutoModelForCausalLM.from_pretrained(model_path("smollm2-135m-instruct"), dtype=torch.float32)


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_nothing_is_lost_and_no_row_is_too_long(lengths, seq_len):
    rows = pack(documents(lengths), seq_len)
    assert sum(len(row["input_ids"]) for row in rows) == sum(lengths)
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= seq_len
        assert row["position_ids"][0] == 0
        firsts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        assert [row["labels"][place] for place in firsts] == [IGNORED] * len(firsts)
    starts = sorted(
        row["input_ids"][place] for row in rows for place, p in enumerate(row["position_ids"]) if p == 0
    )
    assert starts == sorted(row["input_ids"][0] for row in documents(lengths))
    fewest = -(-sum(lengths) // seq_len)
    assert len(rows) <= max(1, 2 * fewest)


def test_best_fit_fills_the_fullest_row_first():
    rows = pack(documents([6, 5, 4, 3, 2]), 10)
    assert sorted(len(row["input_ids"]) for row in rows) == [10, 10]


def test_a_sequence_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="row 1 has 11 tokens, more than seq_len = 10"):
        pack(documents([11]), 10)


def test_a_batch_has_no_filling_and_no_attention_mask():
    batch = collate_packed(pack(documents([4, 3, 5]), 7))
    assert set(batch) == {
        "input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"
    }  # fmt: skip
    assert {batch[name].dtype for name in ("input_ids", "labels", "position_ids")} == {torch.int64}
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 5, 9, 12] and batch["max_length_q"] == 5
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert [batch["labels"][0, start].item() for start in (0, 5, 9)] == [IGNORED] * 3


def test_a_pack_says_which_rows_it_holds():
    assert [row["rows"] for row in pack(documents([4, 3, 5]), 7)] == [[3], [1, 2]]


def alone(model, rows):
    """Logits of each document by itself, and the gradient of the mean loss over all labelled tokens."""
    model.zero_grad()
    logits, total, count = [], 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logits.append(model(input_ids=ids, use_cache=False).logits[0])
        total = total + torch.nn.functional.cross_entropy(logits[-1][:-1], ids[0, 1:], reduction="sum")
        count += len(row["input_ids"]) - 1
    (total / count).backward()
    return [value.detach() for value in logits], gradient(model)


def gradient(model):
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


@pytest.mark.parametrize("make", [llama, gpt2, smollm2])
@pytest.mark.parametrize("implementation", ["sdpa", attention.NAME])
def test_packed_logits_and_gradients_are_those_of_documents_alone(make, implementation):
    model = make().eval()
    model.set_attn_implementation(implementation)
    model.config.use_cache = False
    rows = documents(LENGTHS)
    expected, expected_gradient = alone(model, rows)
    packed = pack(rows, 16)
    assert len(packed) < len(rows)
    batch = collate_packed(packed)
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    found = per_document(output.logits.detach(), batch, rows)
    for alone_logits, packed_logits in zip(expected, found, strict=True):
        torch.testing.assert_close(packed_logits, alone_logits, rtol=1e-4, atol=1e-3)
    difference = (gradient(model) - expected_gradient).norm() / expected_gradient.norm()
    assert difference < 1e-4

    # The trap: with an attention mask, all ones at that, Transformers no longer looks at the positions.
    model.set_attn_implementation("sdpa")
    leaking = model(**batch, attention_mask=torch.ones_like(batch["input_ids"]))
    leaked = per_document(leaking.logits.detach(), batch, rows)
    assert max((a - b).abs().max() for a, b in zip(expected, leaked, strict=True)) > 0.01
    model.zero_grad()
    leaking.loss.backward()
    assert (gradient(model) - expected_gradient).norm() / expected_gradient.norm() > 0.01


def per_document(logits, batch, rows):
    """The packed logits of each document, found by its first token."""
    found = []
    for row in rows:
        at = ((batch["input_ids"] == row["input_ids"][0]) & (batch["position_ids"] == 0)).nonzero()[0]
        found.append(logits[at[0], at[1] : at[1] + len(row["input_ids"])])
    return found


def test_the_cache_is_a_trap_too_and_the_check_switches_it_off():
    model = llama().eval()
    assert model.config.use_cache
    first, second = documents([8, 8])
    batch = collate_packed(pack([first, second], 16))
    expected = model(input_ids=torch.tensor([second["input_ids"]])).logits[0]
    assert (model(**batch).logits[0, 8:] - expected).abs().max() > 0.01
    check_packing(model)
    torch.testing.assert_close(model(**batch).logits[0, 8:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_passes_models_that_keep_documents_apart(make, dtype):
    model = make().to(dtype).train()
    check_packing(model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


class Leaking(LlamaForCausalLM):
    def forward(self, **inputs):
        return super().forward(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))


class Unplaced(LlamaForCausalLM):
    def forward(self, input_ids, **others):
        return super().forward(input_ids=input_ids)


@pytest.mark.parametrize("kind", [Leaking, Unplaced])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_refuses_models_that_let_documents_see_each_other(kind, dtype):
    model = kind(llama().config).to(dtype)
    with pytest.raises(
        InputError, match=r"lets packed documents attend to each other.*set train.packing: false"
    ):
        check_packing(model)


@pytest.mark.parametrize("implementation", ["sdpa", attention.NAME])
def test_the_check_passes_smollm2_in_the_dtype_it_trains_in(implementation):
    model = smollm2().to(torch.bfloat16)
    model.set_attn_implementation(implementation)
    check_packing(model)


def test_attention_within_documents_does_all_else_as_transformers_does():
    """Padding, generation with its cache, and a window: what documents are not about."""
    torch.manual_seed(0)
    model = llama().eval()
    padded = {"input_ids": torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])}
    padded["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = {}
    for implementation in ("sdpa", attention.NAME):
        model.set_attn_implementation(implementation)
        text = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        found[implementation] = (model(**padded).logits[padded["attention_mask"].bool()], text)
    (logits, text), (expected, expected_text) = found[attention.NAME], found["sdpa"]
    assert torch.equal(text, expected_text)
    torch.testing.assert_close(logits, expected)  # on a CPU as matrix products, which round otherwise

    windowed = MistralForCausalLM(
        MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, num_key_value_heads=1, sliding_window=4, use_cache=False)
    ).eval()  # fmt: skip
    batch = collate_packed(pack(documents([9, 12]), 32))
    inputs = {
        name: value % 64 if name == "input_ids" else value
        for name, value in batch.items()
        if name != "labels"
    }
    expected = windowed(**inputs).logits
    windowed.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(windowed(**inputs).logits, expected)


def test_padded_and_packed_batches_have_one_loss():
    model = llama().eval()
    model.config.use_cache = False
    rows = documents(LENGTHS)
    rows = [{**row, "labels": [IGNORED, *row["labels"][1:]]} for row in rows]
    padded, packed = model(**collate_padded(rows)).loss, model(**collate_packed(pack(rows, 64))).loss
    torch.testing.assert_close(padded, packed)
