"""The two engines give the same losses, and what must be exact in training is."""

import math
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
)

from ftdocs import assets, checkpoints, job, loop, runs, trainer
from ftdocs.data import pack
from ftdocs.errors import InputError
from ftdocs.job import Job
from ftdocs.methods.full import train_all
from ftdocs.methods.lora import add_lora
from ftdocs.progress import Diverged, Progress
from ftdocs.recipe import Data, Method, Recipe, Train

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
STEPS = 20


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=500, num_key_value_heads=2, attention_dropout=0.0, **SIZES)
    )


def documents(count: int = 60) -> list[dict]:
    """Documents of different lengths with something to learn: tokens follow each other with a fixed step."""
    rows = []
    for number in range(1, count + 1):
        ids = [(number + 3 * place) % 500 for place in range(5 + 7 * number % 40)]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]], "row": number})
    return rows


def work(folder: Path, model=None, rows=None, kind: str = "text", method: str = "full", **train) -> Job:
    """A job in fp32, so that the engines can be compared closely."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / runs.METRICS).write_text("")
    settings = {"batch_size": 2, "seq_len": 64, "learning_rate": 1e-3, "precision": "fp32", **train}
    recipe = Recipe(
        model="tiny", data=Data(name="docstrings"), method=Method(name=method), train=Train(**settings)
    )
    model = model or llama()
    torch.manual_seed(0)
    model = add_lora(model, 4) if method == "lora" else train_all(model)
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))
    rows = rows if rows is not None else pack.pack(documents(), 64)
    packed = "position_ids" in rows[0]
    total = recipe.train.max_steps or STEPS
    return Job(
        recipe, folder, kind, model, tokenizer, rows, [], packed, total, None, Progress.start(folder, None)
    )


def curve(folder: Path, key: str = "loss") -> torch.Tensor:
    return torch.tensor([row[key] for row in runs.read_metrics(folder) if "loss" in row])


def same(first: torch.Tensor, second: torch.Tensor, atol: float) -> None:
    """Equal step by step, and without a drift to one side."""
    assert len(first) == len(second) > 0
    torch.testing.assert_close(first, second, rtol=0, atol=atol)
    assert (first - second).mean().abs() <= atol / 4


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "settings", [{"log_every": 3}, {"accumulation": 3}, {"schedule": "cosine", "warmup": 0.2}]
)
def test_loop_and_trainer_give_the_same_losses(tmp_path, method, settings):
    for engine in (loop, trainer):
        assert engine.run(work(tmp_path / engine.__name__, method=method, **settings)) == STEPS
    one, other = tmp_path / loop.__name__, tmp_path / trainer.__name__
    same(curve(one), curve(other), 2e-5)
    same(curve(one, "grad_norm"), curve(other, "grad_norm"), 2e-4)
    torch.testing.assert_close(curve(one, "learning_rate"), curve(other, "learning_rate"))
    assert torch.equal(curve(one, "tokens"), curve(other, "tokens"))
    assert curve(one)[-1] < curve(one)[0]


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=500, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES)
    )


def labelled(rows: list[dict]) -> list[dict]:
    return [{"input_ids": row["input_ids"], "label": row["row"] % 2, "row": row["row"]} for row in rows]


def test_loop_and_trainer_agree_on_a_classifier(tmp_path):
    for engine in (loop, trainer):
        folder = tmp_path / engine.__name__
        engine.run(work(folder, classifier(), labelled(documents()), kind="label", accumulation=2))
    same(curve(tmp_path / loop.__name__), curve(tmp_path / trainer.__name__), 2e-5)


@pytest.mark.parametrize("engine", [loop, trainer])
def test_accumulation_of_small_batches_is_one_large_batch(tmp_path, engine):
    """Rows of different lengths: weighting each micro-batch the same would give another loss and gradient."""
    one_by_one = work(tmp_path / "1x8", batch_size=1, accumulation=8)
    at_once = work(tmp_path / "8x1", batch_size=8, accumulation=1)
    lengths = {sum(label != -100 for label in row["labels"]) for row in one_by_one.rows}
    assert len(lengths) > 3
    for each in (one_by_one, at_once):
        engine.run(each)
    same(curve(tmp_path / "1x8"), curve(tmp_path / "8x1"), 2e-5)
    same(curve(tmp_path / "1x8", "grad_norm"), curve(tmp_path / "8x1", "grad_norm"), 2e-4)


@pytest.mark.parametrize("engine", [loop, trainer])
def test_a_run_is_bitwise_repeatable(tmp_path, engine):
    weights = []
    for name in ("first", "second"):
        each = work(tmp_path / name, method="lora", max_steps=4)
        engine.run(each)
        weights.append([parameter.clone() for parameter in each.model.parameters()])
    assert torch.equal(curve(tmp_path / "first"), curve(tmp_path / "second"))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("engine", [loop, trainer])
def test_a_run_that_stopped_after_its_last_step_is_not_trained_further(tmp_path, engine, method):
    """As after a kill, or on a full disk, while the finished model is written."""
    first = work(tmp_path / "run", method=method, max_steps=4, save_every=4, schedule="constant")
    assert engine.run(first) == 4
    again = work(tmp_path / "again", method=method, max_steps=4, save_every=4, schedule="constant")
    again.resumed_from = checkpoints.last_good(tmp_path / "run")
    assert engine.run(again) == 4 and len(curve(tmp_path / "again")) == 0
    for (name, one), (_, other) in zip(
        first.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("engine", [loop, trainer])
def test_a_resume_is_bitwise_where_a_weight_gets_no_gradient(tmp_path, engine):
    def job_with_an_idle_layer(name: str) -> Job:
        model = llama()
        model.model.layers[0].idle = torch.nn.Linear(4, 4)  # AdamW keeps nothing for it
        return work(tmp_path / name, model, max_steps=8, save_every=4)

    engine.run(job_with_an_idle_layer("whole"))
    again = job_with_an_idle_layer("again")
    again.resumed_from = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    engine.run(again)
    assert torch.equal(curve(tmp_path / "whole")[4:], curve(tmp_path / "again"))


@pytest.mark.parametrize("engine", [loop, trainer])
def test_a_loss_that_is_no_number_leaves_no_checkpoint_of_it(tmp_path, engine):
    each = work(tmp_path, learning_rate=1e30, log_every=12, save_every=1, max_steps=12)
    with pytest.raises(Diverged) as stopped:
        engine.run(each)
    last = checkpoints.last_good(tmp_path)
    assert last is not None and f"step {checkpoints.step_of(last) + 1}," in str(stopped.value)


@pytest.mark.parametrize("engine", [loop, trainer])
@pytest.mark.parametrize("step", [2, 3])
def test_a_gradient_that_is_no_number_is_neither_saved_nor_the_end_of_a_run(tmp_path, engine, step):
    """The loss is still fine when the gradient is not; after the update no weight would be."""
    each = work(tmp_path, max_steps=3, save_every=1, log_every=3, accumulation=2)
    backward = 0

    def broken(gradient):
        nonlocal backward
        backward += 1
        return gradient * math.nan if backward > 2 * (step - 1) else gradient

    each.model.model.norm.weight.register_hook(broken)
    with pytest.raises(Diverged, match=f"gradient norm is nan at step {step}, on rows .* of the data"):
        engine.run(each)
    last = checkpoints.last_good(tmp_path)
    assert last is not None and checkpoints.step_of(last) == step - 1


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    each = work(tmp_path)
    each.model.lm_head.weight.data *= 1e5
    with pytest.raises(Diverged, match=r"the loss is [0-9]{3,}\..* at step 1, on rows"):
        loop.run(each)


@pytest.mark.parametrize("engine", [loop, trainer])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedule_rises_and_ends_where_it_says(tmp_path, engine, schedule):
    engine.run(work(tmp_path, schedule=schedule, warmup=0.2, max_steps=10))
    rates = curve(tmp_path, "learning_rate").tolist()
    assert rates[0] == 0.0 and max(rates) == pytest.approx(1e-3) and rates[2] == max(rates)
    # The last step still learns; a step further the rate would be 0.
    ends = {"linear": 1e-3 / 8, "cosine": 1e-3 * (1 + math.cos(math.pi * 7 / 8)) / 2, "constant": 1e-3}
    assert rates[-1] == pytest.approx(ends[schedule])


def test_norms_and_biases_do_not_decay_and_trainer_agrees(tmp_path):
    for model in (llama(), BertForSequenceClassification(BertConfig(vocab_size=500, **SIZES))):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decaying, others = (
            {names[id(p)] for p in group["params"]} for group in job.decay_groups(model.parameters(), 0.1)
        )
        assert decaying == set(
            Trainer(model=model, args=trainer.arguments(work(tmp_path))).get_decay_parameter_names(model)
        )
        assert others and all("norm" in name.lower() or "bias" in name for name in others)


def test_every_row_is_trained_once_an_epoch_in_an_order_of_its_own(tmp_path):
    each = work(tmp_path, batch_size=2, accumulation=3)
    steps = -(-len(each.rows) // 6)
    each.total = 2 * steps
    seen = [
        [number for part, _ in step for number in part["position_ids"].shape]
        for step in loop.batches(each, 0)
    ]
    assert len(seen) == 2 * steps
    orders = []
    for epoch in range(2):
        tokens = []
        each.total = (epoch + 1) * steps
        for micro_batches in loop.batches(each, epoch * steps):
            tokens += [batch["input_ids"][0].tolist() for batch, _ in micro_batches]
        orders.append(tokens)
    flat = [sorted(token for batch in order for token in batch) for order in orders]
    assert flat[0] == flat[1] == sorted(token for row in each.rows for token in row["input_ids"])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_would_lose_small_updates_are_refused(tmp_path, dtype):
    """As loaded for a recipe without a method, which is LoRA, and then trained whole: nothing else would show it."""
    with pytest.raises(InputError, match=r"embed_tokens\.weight is to be trained and was loaded in 16 bits"):
        work(tmp_path, llama().to(dtype))
    work(tmp_path, llama().to(dtype), method="lora")  # its own weights are float32
    work(tmp_path, llama().to(torch.bfloat16), precision="bf16")
