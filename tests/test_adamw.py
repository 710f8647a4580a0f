"""Training in bfloat16: no update is lost, wherever the weights are kept, and a resume is bitwise."""

import copy

import pytest
import torch
from test_engines import curve, llama, work

from ftdocs import loop, models, trainer
from ftdocs.adamw import CompensatedAdamW


def moved(kind: type[torch.optim.AdamW], dtype: torch.dtype, weight_decay: float = 0.0) -> torch.Tensor:
    """Where 1,000 weights are after 100 steps of 1e-4 whose gradients point one way more often than the other."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=generator).bfloat16()
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = kind([weight], lr=1e-4, weight_decay=weight_decay, fused=True)
    for _ in range(100):
        weight.grad = (torch.randn(1000, generator=generator) + 1).to(dtype)
        optimizer.step()
    rest = optimizer.state[weight].get("rest", 0.0)
    return weight.detach().float() + rest - start.float()


@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
def test_what_rounding_takes_is_not_lost(weight_decay):
    exact = moved(torch.optim.AdamW, torch.float32, weight_decay)
    kept = moved(CompensatedAdamW, torch.bfloat16, weight_decay)
    lost = moved(torch.optim.AdamW, torch.bfloat16, weight_decay)
    assert (kept - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert (lost - exact).abs().mean() > 0.5 * exact.abs().mean()


def in_bfloat16(folder, **settings):
    return work(folder, llama().bfloat16(), precision="bf16", max_steps=8, save_every=4, **settings)


@pytest.mark.parametrize("engine", [loop, trainer])
def test_a_resume_is_bitwise_with_weights_in_bfloat16(tmp_path, engine):
    """The rest is part of a checkpoint: without it, the steps after a resume would be others."""
    whole, again = in_bfloat16(tmp_path / "whole"), in_bfloat16(tmp_path / "again")
    engine.run(whole)
    again.resumed_from = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    engine.run(again)
    assert torch.equal(curve(tmp_path / "whole")[4:], curve(tmp_path / "again"))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
@pytest.mark.parametrize("settings", [{}, {"accumulation": 3}])
def test_loop_and_trainer_agree_in_bfloat16(tmp_path, precision, settings):
    """But for the rounding: the loop keeps more in bfloat16 than Trainer's autocast does."""
    for engine in (loop, trainer):
        model = llama().bfloat16() if precision == "bf16" else llama()
        engine.run(work(tmp_path / engine.__name__, model, precision=precision, **settings))
    one, other = (curve(tmp_path / engine.__name__) for engine in (loop, trainer))
    torch.testing.assert_close(one, other, rtol=0, atol=0.03)
    assert (one - other).mean().abs() < 0.01 and one[-1] < one[0]


@pytest.mark.parametrize("tied", [True, False])
def test_working_weights_hand_their_gradients_over_in_float32(tied):
    """Of two micro-batches, added up; what is frozen gets none; and the copies are as good as autocast's."""
    model = llama()
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.norm.weight.requires_grad = False
    other, ids = copy.deepcopy(model), torch.arange(60)[None]
    weights = models.working_weights(model, "bf16-mixed")
    for part in (ids[:, :40], ids[:, 40:]):
        with models.autocast(model.device, "bf16-mixed"):
            torch.func.functional_call(
                model, weights, kwargs={"input_ids": part, "labels": part}
            ).loss.backward()
            other(input_ids=part, labels=part).loss.backward()
    assert all(weight.dtype == torch.bfloat16 and weight.grad is None for weight in weights.values())
    for (name, mine), (_, autocast) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert mine.dtype == torch.float32
        if mine.requires_grad:
            assert mine.grad.dtype == torch.float32, name
            assert (mine.grad - autocast.grad).norm() < 0.03 * autocast.grad.norm(), name
        else:
            assert mine.grad is None


def test_no_weight_is_copied_where_none_need_be():
    assert models.working_weights(llama(), "fp32") == {}
    assert models.working_weights(llama().bfloat16(), "bf16") == {}
