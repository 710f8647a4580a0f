"""LLaMA from scratch computes what Transformers' does, and refuses what it would compute wrongly."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ftdocs import llama
from ftdocs.errors import InputError

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough that attention is far from uniform and greedy text does not repeat itself
}
SCALING = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# The five shapes, small: what differs is what differs between the real ones.
SHAPES = {
    "llama-1": {"rms_norm_eps": 1e-6},
    "llama-2": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "llama-3": {"num_key_value_heads": 2, "rope_theta": 500_000.0},
    "llama-3.1": {
        "num_key_value_heads": 2,
        "rope_theta": 500_000.0,
        # As short a context before the stretching that each of the three kinds of pairs is there.
        "rope_scaling": {**SCALING, "factor": 8.0, "original_max_position_embeddings": 250},
    },
    "llama-3.2": {
        "num_key_value_heads": 3,
        "head_dim": 16,  # not hidden_size / heads
        "rope_theta": 500_000.0,
        "rope_scaling": {**SCALING, "factor": 32.0, "original_max_position_embeddings": 250},
        "tie_word_embeddings": True,
    },
}


def theirs(shape: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**SIZES, **SHAPES[shape], eos_token_id=None, pad_token_id=None)
    ).eval()
    with torch.no_grad():
        for layer in model.modules():
            if type(layer).__name__ == "LlamaRMSNorm":
                layer.weight.normal_(1, 0.3)  # all ones would hide a norm that forgets its weight
    return model


def named(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Its weights as a file has them: one that is tied stands there once."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: weight for name, weight in model.state_dict().items() if name not in tied}


@pytest.fixture(params=SHAPES)
def pair(request) -> tuple[llama.Llama, LlamaForCausalLM]:
    """The same random weights in both."""
    reference = theirs(request.param)
    own = llama.Llama(llama.read_config(reference.config.to_dict()))
    llama.fill(own, named(reference))
    return own, reference


def tokens(rows: int = 3, length: int = 100) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_transformers(pair):
    own, reference = pair
    ids = tokens(length=200)
    with torch.no_grad():
        logits, wanted = own(ids), reference(ids).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(logits, wanted, rtol=0, atol=3e-5)


def test_rotary_angles_are_those_of_transformers(pair):
    own, reference = pair
    rotary = reference.model.rotary_emb
    torch.testing.assert_close(llama.rope_frequencies(own.config), rotary.inv_freq, rtol=1e-6, atol=0)
    wanted_cos, wanted_sin = rotary(torch.zeros(1), torch.arange(7, 40)[None])
    for found, wanted in zip(llama.rope(own.config, 7, 33), (wanted_cos, wanted_sin), strict=True):
        torch.testing.assert_close(torch.cat((found, found), -1), wanted[0], rtol=0, atol=1e-5)


def test_scaling_has_pairs_of_each_kind():
    """Else the parity above would not see a fault in one of them."""
    for shape in ("llama-3.1", "llama-3.2"):
        config = llama.read_config(theirs(shape).config.to_dict())
        plain = llama.Config(**{**vars(config), "rope_scaling": None})
        slower = llama.rope_frequencies(plain) / llama.rope_frequencies(config)
        assert slower.min() == 1
        assert slower.max() == pytest.approx(config.rope_scaling.factor)
        assert ((slower > 1.01) & (slower < config.rope_scaling.factor * 0.99)).any()


def test_loss_and_gradients_are_those_of_transformers(pair):
    own, reference = pair
    ids = tokens()
    labels = ids.clone()
    labels[0, :60] = -100  # as in a prompt, which is not trained
    loss = llama.next_token_loss(own(ids), labels)
    loss.backward()
    wanted = reference(ids, labels=labels).loss
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    parameters = dict(reference.named_parameters())
    assert len(parameters) == len(list(own.parameters()))
    for name, weight in own.named_parameters():
        gradient = parameters[name if name == "lm_head.weight" else f"model.{name}"].grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            weight.grad, gradient, rtol=1e-3, atol=1e-6 + 1e-4 * gradient.abs().max().item()
        )


def test_the_padding_token_learns_here_and_not_in_transformers():
    """The one difference: Transformers gives the embedding of ``pad_token_id`` no gradient."""
    reference = theirs("llama-3")
    reference.model.embed_tokens.padding_idx = 7
    own = llama.Llama(llama.read_config(reference.config.to_dict()))
    llama.fill(own, named(reference))
    ids = tokens()
    assert 7 in ids
    llama.next_token_loss(own(ids), ids).backward()
    reference(ids, labels=ids).loss.backward()
    found, wanted = own.embed_tokens.weight.grad, reference.model.embed_tokens.weight.grad
    assert found[7].abs().max() > 0 and not wanted[7].any()
    found[7] = 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_greedy_text_is_that_of_transformers_with_and_without_cache(pair):
    own, reference = pair
    ids = tokens(length=20)
    wanted = reference.generate(ids, max_new_tokens=60, do_sample=False)
    assert torch.equal(llama.generate(own, ids, 60), wanted)
    assert torch.equal(llama.generate(own, ids, 60, use_cache=False), wanted)
    assert len(wanted[:, 20:].unique()) > 30  # a text that repeats one token would prove little


def test_a_text_read_in_pieces_gives_the_logits_of_the_whole(pair):
    own, _ = pair
    ids = tokens(length=40)
    cache = llama.Cache(own.config, 3, 40, own.norm.weight)
    with torch.no_grad():
        pieces = [own(piece, cache) for piece in ids.split([7, 1, 20, 1, 11], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), own(ids), rtol=0, atol=1e-5)
    assert cache.length == 40


def test_no_token_sees_a_later_one(pair):
    own, _ = pair
    ids = tokens()
    changed = ids.clone()
    changed[:, 50] = (changed[:, 50] + 1) % 300
    with torch.no_grad():
        before, after = own(ids), own(changed)
    assert torch.equal(before[:, :50], after[:, :50])
    assert not torch.isclose(before[:, 50:], after[:, 50:]).all(-1).any()


def test_bfloat16_keeps_the_angles_of_float32():
    config = llama.read_config(theirs("llama-3.1").config.to_dict())
    own = llama.Llama(config).to(torch.bfloat16)
    assert {weight.dtype for weight in own.parameters()} == {torch.bfloat16}
    assert own(tokens()).dtype == torch.bfloat16
    assert not list(own.buffers())  # a buffer would have been rounded


def test_generation_stops_each_row_at_its_end(pair):
    own, _ = pair
    ids = tokens(length=20)
    free = llama.generate(own, ids, 30)
    stop = free[0, 25].item()
    stopped = llama.generate(own, ids, 30, stop=[stop])
    for row, wanted in zip(stopped[:, 20:].tolist(), free[:, 20:].tolist(), strict=True):
        if stop in wanted:
            end = wanted.index(stop) + 1
            assert row[:end] == wanted[:end] and set(row[end:]) <= {stop}
        else:
            assert row == wanted
    alone = llama.generate(own, ids[:1], 30, stop=[stop])
    assert alone.shape[1] == 20 + free[0, 20:].tolist().index(stop) + 1


def test_sampling_draws_from_the_softmax():
    own = llama.Llama(llama.read_config(theirs("llama-3.2").config.to_dict()))
    with torch.no_grad():
        own.embed_tokens.weight.mul_(10)
        wanted = (own(tokens(1, 5))[0, -1] / 2).softmax(-1)
    torch.manual_seed(0)
    drawn = llama.generate(own, tokens(1, 5).repeat(20_000, 1), 1, temperature=2.0)[:, -1]
    found = torch.bincount(drawn, minlength=300) / 20_000
    assert wanted.max() > 0.01
    assert (found - wanted).abs().max() < 0.01 and (found - wanted).abs().sum() < 0.2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"sliding_window": 64}, "sliding_window is 64"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 4}, "6 query heads cannot share 4"),
        ({"head_dim": 7}, "heads of 7 numbers"),
    ],
)
def test_a_config_of_another_architecture_is_refused(change, words):
    config = {**SIZES, "model_type": "llama"}
    assert llama.read_config(config).num_key_value_heads == 6
    with pytest.raises(InputError, match=words) as error:
        llama.read_config({**config, **change}, "here/config.json")
    assert str(error.value).startswith("here/config.json: ")


def test_configs_of_both_formats_are_read_alike():
    old = {**SIZES, **SHAPES["llama-3.1"]}
    new = LlamaConfig(**old).to_dict()
    assert "rope_theta" not in new and "rope_theta" not in new["rope_parameters"].get("rope_scaling", {})
    assert llama.read_config(old) == llama.read_config(new)


def test_weights_that_do_not_fit_are_refused(pair):
    own, reference = pair
    weights = named(reference)
    before = {name: weight.clone() for name, weight in own.state_dict().items()}
    one, other = "model.layers.1.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight"
    wrong = [
        (
            {name: weight for name, weight in weights.items() if name != one},
            "1 weights missing, such as layers.1",
        ),
        (
            {**weights, "model.layers.2.mlp.up_proj.weight": weights[one]},
            "1 weights not used, such as layers.2",
        ),
        ({**weights, "model.layers.1.self_attn.k_proj.bias": torch.zeros(9)}, "k_proj.bias"),
        ({**weights, other: weights[other].T}, "up_proj.weight is torch.float32"),
        ({**weights, one: weights[one][:1]}, "k_proj.weight"),  # would be broadcast
        ({**weights, one: weights[one].to(torch.int8)}, "k_proj.weight is torch.int8"),
        ({**weights, one.removeprefix("model."): weights[one]}, "there twice"),
        (
            {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(own.config.head_dim // 2)},
            "other angles",
        ),
    ]
    if own.lm_head is None:
        wrong.append(
            ({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, "ties them together")
        )
    for given, words in wrong:
        with pytest.raises(InputError, match=words):
            llama.fill(own, given)
        assert all(torch.equal(weight, before[name]) for name, weight in own.state_dict().items())


def test_what_other_files_have_besides_is_read(pair):
    """Older files hold the rotary angles, some of tied models the head once more; weights may be in 16 bits."""
    own, reference = pair
    angles = reference.model.rotary_emb.inv_freq
    weights = {**reference.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": angles}
    llama.fill(own, {name: weight.to(torch.bfloat16) for name, weight in weights.items()})
    for name, weight in own.state_dict().items():
        wanted = weights[name if name == "lm_head.weight" else f"model.{name}"]
        assert weight.dtype == torch.float32 and torch.equal(weight, wanted.bfloat16().float())


def test_a_folder_is_loaded_whole_or_not_at_all(pair, tmp_path):
    own, reference = pair
    reference.save_pretrained(tmp_path / "one")
    reference.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in (tmp_path / "one", tmp_path / "shards"):
        loaded = llama.load(folder)
        assert loaded.config == own.config
        for (name, weight), (same, wanted) in zip(
            loaded.named_parameters(), own.named_parameters(), strict=True
        ):
            assert name == same and torch.equal(weight, wanted) and weight.requires_grad
    assert llama.load(folder, torch.bfloat16).norm.weight.dtype == torch.bfloat16
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="not a whole model"):
        llama.load(tmp_path / "shards")
    with pytest.raises(InputError, match=r"config\.json"):
        llama.load(tmp_path)
    config = tmp_path / "one" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"not used, such as layers\.1"):
        llama.load(tmp_path / "one")


def test_our_weights_go_back_into_transformers(pair, tmp_path):
    own, reference = pair
    reference.config.save_pretrained(tmp_path)
    names = {name: name if name == "lm_head.weight" else f"model.{name}" for name in own.state_dict()}
    save_file({names[name]: weight for name, weight in own.state_dict().items()}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens()).logits, reference(tokens()).logits)


def test_more_than_the_context_is_refused(pair):
    own, _ = pair
    ids = tokens(1, 250)
    assert llama.generate(own, ids, 6).shape == (1, 256)
    for use_cache in (True, False):
        with pytest.raises(InputError, match="256"):
            llama.generate(own, ids, 7, use_cache=use_cache)
    with pytest.raises(InputError, match="context"):
        own(tokens(1, 257))
    with pytest.raises(InputError, match="a cache of 257 tokens"):
        llama.Cache(own.config, 1, 257, own.norm.weight)
    cache = llama.Cache(own.config, 1, 10, own.norm.weight)
    own(ids[:, :8], cache)
    with pytest.raises(InputError, match="11 tokens: the cache has room for 10"):
        own(ids[:, 8:11], cache)
    assert cache.length == 8  # as before: what was refused left nothing behind


def test_a_new_model_gives_all_tokens_about_the_same_probability():
    torch.manual_seed(0)
    for shape in SHAPES:
        own = llama.Llama(llama.read_config(theirs(shape).config.to_dict()))
        loss = llama.next_token_loss(own(tokens()), tokens())
        assert loss.item() == pytest.approx(torch.tensor(300.0).log().item(), abs=0.1)
