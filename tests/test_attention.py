"""Attention of padded rows on a CPU is SDPA's, in value and gradient; dropout is what the recipe says."""

import make_repositories
import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ftdocs import attention, models
from ftdocs.recipe import Recipe


def inputs(key_heads: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, 7, 8, requires_grad=True) for heads in (4, key_heads, key_heads)]


def both(mask: torch.Tensor | None, causal: bool, key_heads: int = 4) -> list[list[torch.Tensor]]:
    """Output and gradients by SDPA and by masked_attention."""
    found = []
    for ours in (False, True):
        query, key, value = inputs(key_heads)
        if ours:
            out = attention.masked_attention(query, key, value, mask, causal, 0.0, None).transpose(1, 2)
        else:
            out = functional.scaled_dot_product_attention(
                query, key, value, mask, is_causal=causal, enable_gqa=key_heads < 4
            )
        (out * torch.arange(8.0)).sum().backward()
        found.append([out.detach(), *(each.grad for each in (query, key, value))])
    return found


PADDED = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None].expand(2, 1, 7, 7)


@pytest.mark.parametrize(
    ("mask", "causal"),
    [(None, False), (None, True), (PADDED, False), (torch.randn(2, 1, 7, 7), False)],
    ids=["all", "causal", "padded", "added"],
)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_masked_attention_is_sdpa(mask, causal, key_heads):
    for theirs, mine in zip(*both(mask, causal, key_heads), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_row_that_may_look_at_nothing_gives_numbers():
    mask = PADDED.clone()
    mask[1, :, 0] = False
    query, key, value = inputs()
    out = attention.masked_attention(query, key, value, mask, False, 0.0, None)
    out.sum().backward()
    assert out.isfinite().all() and query.grad.isfinite().all()


def test_a_layer_is_asked_where_its_model_says_nothing_of_the_order():
    query, key, value = inputs()
    for causal in (True, False):
        module = torch.nn.Module()
        module.is_causal = causal
        mine, _ = attention.attend_within_documents(module, query, key, value, None, is_causal=None)
        theirs = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        torch.testing.assert_close(mine.transpose(1, 2), theirs, rtol=1e-4, atol=1e-5)


def models_to_try() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return [
        BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)),
        LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes)),
    ]


@pytest.mark.parametrize("model", models_to_try(), ids=["bert", "llama"])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_model_gives_the_same_logits_and_gradients_with_and_without(model, padding_side):
    ids = torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, slice(6, None) if padding_side == "right" else slice(0, 3)] = 0
    labels = torch.tensor([0, 1])
    if "Llama" in type(model).__name__:  # what a filled position would predict is not trained
        labels = torch.where(mask * mask.roll(1, 1) == 1, ids, -100)
    found = []
    for how in ("sdpa", attention.NAME):
        model.set_attn_implementation(how)
        model.eval()
        model.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        found.append(
            (loss.item(), torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_recipes_dropout_is_the_models(tmp_path, share):
    folder = make_repositories.tiny_bert(tmp_path)
    data = {"path": "x.jsonl"}
    own, _ = models.load(Recipe(model=str(folder), data=data), ["a", "b"])
    asked, _ = models.load(Recipe(model=str(folder), data=data, train={"dropout": share}), ["a", "b"])
    ids = torch.arange(1, 9)[None]
    shares = {part.p for part in asked.modules() if isinstance(part, torch.nn.Dropout)}
    assert shares == {share} != {part.p for part in own.modules() if isinstance(part, torch.nn.Dropout)}
    asked.train()
    first, second = asked(input_ids=ids).logits, asked(input_ids=ids).logits
    assert torch.equal(first, second) == (share == 0)


def test_dropout_reaches_models_that_keep_a_number():
    llama = models_to_try()[1]
    models.set_dropout(llama, 0.25)
    assert {layer.self_attn.attention_dropout for layer in llama.model.layers} == {0.25}
