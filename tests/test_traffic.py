"""What GPUs send each other: by hand from the sizes of a block and of the rest, and what is refused."""

from dataclasses import replace

import pytest

from ftdocs import plan, shapes, traffic
from ftdocs.errors import InputError
from ftdocs.memory import Setting

SHAPE = shapes.find("SmolLM2-135M")
ROOT, BLOCKS = SHAPE.root, SHAPE.layers * SHAPE.block


def test_one_gpu_sends_nothing():
    assert not traffic.messages(SHAPE, Setting())
    assert traffic.sent(traffic.messages(SHAPE, Setting()), 1) == 0


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [
        ("ddp", {"all-reduce": 2 * (ROOT + BLOCKS)}),
        ("zero2", {"reduce-scatter": 2 * (ROOT + BLOCKS), "all-gather": 2 * (ROOT + BLOCKS)}),
        ("fsdp", {"all-gather": 2 * (ROOT + 2 * BLOCKS), "reduce-scatter": 2 * (ROOT + BLOCKS)}),
        ("zero3", {"all-gather": 2 * (ROOT + 2 * BLOCKS), "reduce-scatter": 2 * (ROOT + BLOCKS)}),
    ],
)
def test_every_weight_is_sent_as_often_as_its_way_says(sharding, expected):
    assert traffic.messages(SHAPE, Setting(gpus=4, sharding=sharding)) == expected


def test_frozen_weights_have_no_gradients_to_send():
    setting = Setting(method="lora", gpus=4, sharding="ddp", rank=4)
    adapters = 4 * SHAPE.lora_parameters(4)
    assert traffic.messages(SHAPE, setting) == {"all-reduce": adapters}
    halves = {"reduce-scatter": adapters, "all-gather": adapters}
    assert traffic.messages(SHAPE, replace(setting, sharding="zero2")) == halves
    gathered = traffic.messages(SHAPE, replace(setting, sharding="fsdp"))
    assert gathered == {"all-gather": 2 * (ROOT + 2 * BLOCKS) + 2 * adapters, "reduce-scatter": adapters}


def test_a_ring_sends_twice_for_sums_that_all_get():
    assert traffic.sent(traffic.Counter({"all-reduce": 800}), 4) == 1200
    assert traffic.sent(traffic.Counter({"all-gather": 800, "reduce-scatter": 80}), 4) == 660


def test_work_hides_sending_at_best_and_never_more_than_all_of_it():
    setting = Setting(gpus=8, sharding="fsdp", seq_len=2048)
    shape = shapes.find("Llama-3.1-8B")
    alone = setting.tokens / plan.estimate(shape, Setting(seq_len=2048), "A100-80GB")["tokens_per_second"]
    for link in (1e9, 1e12):
        least, most = traffic.step_seconds(shape, setting, "A100-80GB", link)
        sending = traffic.sent(traffic.messages(shape, setting), 8) / link
        assert least == pytest.approx(max(alone, sending), rel=1e-3)
        assert most == pytest.approx(alone + sending, rel=1e-3)


@pytest.mark.parametrize("link", [0.0, -1.0, float("nan")])
def test_a_link_without_speed_is_refused(link):
    with pytest.raises(InputError, match="bytes a second"):
        traffic.step_seconds(SHAPE, Setting(gpus=2, sharding="ddp"), "A100-80GB", link)
