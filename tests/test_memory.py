"""The planner: counts against transformers' own models, moments against a trace of the real step, fits, bad input."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from ftdocs import cli, memory, plan, shapes
from ftdocs.errors import InputError
from ftdocs.memory import Setting
from ftdocs.trace import traced_step

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8000,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, wide heads": LlamaConfig(**SIZES, head_dim=64),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=64),
    "phi3": Phi3Config(**SIZES),
    "gemma": GemmaConfig(**SIZES, head_dim=64),
    "gemma2": Gemma2Config(**SIZES, head_dim=64),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=64),
    "phi": PhiConfig(**{**SIZES, "num_key_value_heads": 8}),
    "gpt2": GPT2Config(
        n_embd=256, n_layer=3, n_head=8, vocab_size=8000, bos_token_id=1, eos_token_id=2, **NO_DROPOUT
    ),
}
# What a trace on a CPU does not share with a GPU: how attention lays out its result (phi), masks of dropout (gpt2).
LOOSE = {"phi": 0.02, "phi3": 0.02, "gpt2": 0.02}
SETTINGS = {
    "16 bits": {},
    "few tokens": {"batch_size": 1, "seq_len": 16},
    "few tokens, fused": {"batch_size": 1, "seq_len": 16, "optimizer": "adamw-fused"},
    "32 bits": {"dtype": "fp32"},
    "autocast": {"master_weights": True},
    "checkpointing": {"checkpointing": True},
    "autocast, checkpointing": {"master_weights": True, "checkpointing": True},
    "eager": {"attention": "eager"},
}


def shape_of(config) -> shapes.Shape:
    return shapes.shape(config.to_dict())


def compare(config, setting: Setting, within: float) -> None:
    """The closed form and the trace agree on what rests and on the peak, apart."""

    def adapters(model):
        targets = setting.targets if setting.targets == "all-linear" else str(setting.targets).split(",")
        return get_peft_model(
            model, LoraConfig(r=setting.rank, target_modules=targets, task_type="CAUSAL_LM")
        )

    traced = traced_step(
        config,
        setting.batch_size,
        setting.seq_len,
        dtype="fp32" if setting.master_weights and setting.full else setting.dtype,
        autocast=setting.master_weights,
        checkpointing=setting.checkpointing,
        optimizer=setting.optimizer,
        attention=setting.attention,
        change=(lambda model: model) if setting.full else adapters,
    )
    need = memory.need(shape_of(config), setting)
    assert need.resting_bytes == pytest.approx(traced["resting"], rel=0.002)
    assert need.peak.total == pytest.approx(traced["peak"], rel=within), need.peak


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_linear_layers_are_those_of_transformers(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    tuned = get_peft_model(
        model,
        LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM"),
    )
    assert shape.lora_parameters(4) == sum(w.numel() for w in tuned.parameters() if w.requires_grad)


def test_the_parameters_of_a_classifier():
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert shape_of(config).parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_llama_needs_what_a_trace_of_its_step_holds(kind):
    setting = Setting(**{"batch_size": 4, "seq_len": 256, **SETTINGS[kind]})
    compare(CONFIGS["llama"], setting, 0.005)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "llama"])
def test_other_architectures_do_too(name):
    attention = "eager" if name == "gemma2" else "sdpa"  # which caps its scores
    setting = Setting(batch_size=4, seq_len=256, attention=attention)
    compare(CONFIGS[name], setting, LOOSE.get(name, 0.005))
    compare(CONFIGS[name], replace(setting, checkpointing=True), 0.01)
    if name not in ("gemma2", "phi", "phi3"):
        compare(CONFIGS[name], replace(setting, master_weights=True), LOOSE.get(name, 0.005))


def test_a_classifier_needs_what_a_trace_of_its_step_holds():
    config = BertConfig(
        hidden_size=256, num_hidden_layers=3, num_attention_heads=8, intermediate_size=1024, vocab_size=8000,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    for change in ({}, {"checkpointing": True}, {"batch_size": 1, "seq_len": 16}):
        setting = replace(Setting(batch_size=8, seq_len=256), **change)
        traced = traced_step(
            config, setting.batch_size, setting.seq_len, checkpointing=setting.checkpointing, classes=2
        )
        need = memory.need(shape_of(config), setting)
        # Two dropouts a block, each with a mask of a byte a number: they are off here, and a CPU's would be larger.
        kept = 1 if setting.checkpointing else config.num_hidden_layers
        blocks = kept if "backward" in need.peak.name and setting.seq_len > 16 else 0
        masks = blocks * 2 * config.hidden_size * setting.tokens
        assert need.resting_bytes == pytest.approx(traced["resting"], rel=0.002)
        assert need.peak.total - masks == pytest.approx(traced["peak"], rel=0.02)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
@pytest.mark.parametrize("kind", [{}, {"checkpointing": True}, {"master_weights": True}, {"dtype": "fp32"}])
def test_adapters_too(kind, targets):
    compare(CONFIGS["llama"], Setting("lora", batch_size=4, seq_len=256, targets=targets, **kind), 0.01)


def test_where_the_layers_are_what_counts_the_largest_moment_is_found():
    config = LlamaConfig(**{**SIZES, "vocab_size": 200})
    for setting in (
        Setting(batch_size=8, seq_len=256, checkpointing=True),
        Setting(batch_size=8, seq_len=256),
    ):
        compare(config, setting, 0.02)
    need = memory.need(shape_of(config), Setting(batch_size=8, seq_len=256, checkpointing=True))
    assert need.peak.name.endswith("block's backward")


def test_a_published_model_needs_what_its_trace_holds():
    """Shapes of 8 billion parameters, traced whole: no memory is used."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    assert shape_of(config) == shapes.find("Llama-3.1-8B")
    compare(config, Setting(batch_size=2, seq_len=1024), 0.001)


def test_the_catalogue_counts_what_was_published():
    billions = {
        "Llama-2-7b": 6.74, "Llama-2-13b": 13.02, "Llama-2-70b": 68.98, "Llama-3.1-8B": 8.03,
        "Llama-3.1-70B": 70.55, "Llama-3.1-405B": 405.85, "Llama-3.2-1B": 1.24, "Llama-3.2-3B": 3.21,
        "SmolLM2-1.7B": 1.71, "Mistral-7B-v0.1": 7.24, "Qwen2.5-7B": 7.62, "Qwen3-8B": 8.19, "gemma-2-9b": 9.24,
        "Phi-3-mini-4k-instruct": 3.82, "phi-2": 2.78, "gpt2-xl": 1.56, "bert-base-uncased": 0.11,
    }  # fmt: skip
    found = {name: round(shapes.find(name).parameters / 1e9, 2) for name in billions}
    assert found == billions


def test_the_small_models_of_the_book_are_those_of_the_catalogue():
    from ftdocs import assets

    for name in ("smollm2-135m-instruct", "minilm"):
        config = AutoConfig.from_pretrained(assets.model_path(name))
        assert shapes.shape(config.to_dict()) == shapes.find(name)


def test_quantised_weights_take_what_the_paper_says():
    shape = shapes.find("Llama-2-7b")
    linear = 32 * sum(each.inputs * each.outputs for each in shape.linears)
    rest = 2 * (shape.parameters - linear)
    adapters = 4 * shape.lora_parameters(8)
    bits = 8 * (memory.weight_bytes(shape, Setting("qlora")) - rest - adapters) / linear
    assert bits == pytest.approx(
        4 + 0.127, abs=0.001
    )  # Dettmers et al., 2023: 0.127 bits of constants a weight


def test_eight_bit_and_paged_state():
    shape = shapes.find("Llama-3.2-1B")
    full = memory.state_bytes(shape, Setting(dtype="fp32"))
    assert memory.state_bytes(shape, Setting(dtype="fp32", optimizer="adamw-8bit")) < 0.26 * full
    assert memory.state_bytes(shape, Setting(optimizer="paged-adamw")) == 0
    assert memory.need(
        shape, Setting(cpu_offload=True, sharding="zero2", gpus=4)
    ).resting_bytes == memory.weight_bytes(shape, Setting())


def test_more_gpus_never_rest_at_more_and_share_what_they_say():
    shape = shapes.find("Llama-3.1-8B")
    alone = memory.need(shape, Setting())
    for sharding in ("ddp", "zero2", "zero3", "fsdp"):
        resting = [
            memory.need(shape, Setting(sharding=sharding, gpus=gpus)).resting_bytes for gpus in (1, 2, 4, 8)
        ]
        assert resting == sorted(resting, reverse=True)
        if sharding in ("zero3", "fsdp"):
            assert resting[-1] == pytest.approx(alone.resting_bytes / 8, rel=1e-6)
    # Every gradient has a second copy in DDP's buckets.
    buckets = memory.need(shape, Setting(sharding="ddp", gpus=2)).peak.total - alone.peak.total
    assert buckets == memory.gradient_bytes(shape, Setting())


@pytest.mark.parametrize(
    ("change", "less"),
    [
        ({"checkpointing": True}, True), ({"fused_loss": True}, True), ({"batch_size": 1}, True),
        ({"method": "lora", "seq_len": 256}, True), ({"attention": "eager"}, False), ({"seq_len": 4096}, False),
        ({"master_weights": True}, False), ({"dtype": "fp32"}, False),
    ],
)  # fmt: skip
def test_what_saves_memory_saves_some(change, less):
    shape, setting = shapes.find("Llama-3.2-1B"), Setting(batch_size=4, seq_len=2048)
    before, after = (memory.need(shape, each).peak.total for each in (setting, replace(setting, **change)))
    assert after < before if less else after > before


def test_a_plan_that_fits_leaves_out_what_it_does_not_need():
    shape, capacity = shapes.find("Llama-3.1-8B"), plan.gpu_bytes("A10G-24GB")
    steps = plan.fit(shape, Setting(batch_size=8, seq_len=2048), capacity)
    assert plan.fits(steps[-1].need, capacity) and not plan.fits(steps[0].need, capacity)
    assert steps[-1].setting.method == "lora"
    for left_out in steps[1:-1]:
        rest = [
            each for each in plan.remedies(steps[0].setting) if each.change in {s.change for s in steps[1:]}
        ]
        rest = [each for each in rest if each.change != left_out.change]
        assert not plan.fits(plan.after(shape, steps[0].setting, rest)[-1].need, capacity), left_out.change
    assert plan.fit(shape, Setting("lora"), plan.gpu_bytes("H100-80GB"))[1:] == []  # it fits as asked
    with pytest.raises(InputError, match=r"even with .*QLoRA, one GPU needs .* take more GPUs"):
        plan.fit(shapes.find("Llama-3.1-405B"), Setting(), capacity)


def test_an_estimate_counts_flops_as_the_papers_do():
    shape = shapes.find("Llama-2-7b")
    assert plan.flops(shape, Setting(seq_len=8)) == pytest.approx(6 * 6.6e9, rel=0.01)
    lora, checkpointed = (Setting("lora", seq_len=8), Setting(seq_len=8, checkpointing=True))
    assert plan.flops(shape, lora) / plan.flops(shape, Setting(seq_len=8)) == pytest.approx(4 / 6, rel=0.01)
    assert plan.flops(shape, checkpointed) / plan.flops(shape, Setting(seq_len=8)) == pytest.approx(
        8 / 6, rel=0.01
    )
    found = plan.estimate(shape, Setting(), "A100-80GB", tokens=10**9, price=2.0, utilisation=0.5)
    assert found["cost"] == pytest.approx(2 * found["hours"], abs=0.01)
    assert found["hours"] == pytest.approx(1e9 / found["tokens_per_second"] / 3600, rel=0.01)


def answer(capsys, *arguments: str) -> dict:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_says_what_the_contract_says(capsys, tmp_path):
    found = answer(
        capsys, "--model", "Llama-3.1-8B", "--method", "qlora", "--batch-size", "2", "--seq-len", "1024"
    )
    assert {"peak_bytes", "resting_bytes", "peak_at", "breakdown", "fits", "assumptions"} <= found.keys()
    assert found["fits"] is None and sum(found["breakdown"].values()) == found["peak_bytes"]
    assert max(found["moments"].values()) == found["peak_bytes"] == found["moments"][found["peak_at"]]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIGS["llama"].to_dict()))
    everything = [
        "--model", str(config), "--method", "lora", "--lora-rank", "4", "--lora-targets", "q_proj,v_proj",
        "--dtype", "fp16", "--batch-size", "2", "--seq-len", "64", "--gpus", "2", "--sharding", "fsdp",
        "--no-checkpointing", "--optimizer", "adamw-fused", "--no-master-weights", "--fused-loss",
        "--attention", "flash", "--gpu", "T4-16GB",
    ]  # fmt: skip
    assert answer(capsys, *everything)["fits"] is True
    fitted = answer(capsys, "--model", "Llama-3.1-8B", "--gpu", "a10g", "--fit", "--seq-len", "2048")
    assert fitted["fits"] and fitted["plan"]["method"] == "lora" and fitted["changes"]


def test_a_recipe_can_be_planned(capsys, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: smollm2-135m-instruct\ndata: {path: rows.jsonl}\nmethod: {name: full}\n")
    found = answer(capsys, str(recipe))
    assert found["parameters"] == found["trained_parameters"] == 134_515_008
    assert found["breakdown"]["weights"] == 4 * 134_515_008  # bf16-mixed trains float32 weights
    assert answer(capsys, str(recipe), "--method", "lora")["peak_bytes"] < found["peak_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give a recipe or --model"),
        ("--model Llama-9", "not in the catalogue; did you mean"),
        ("--model nowhere/config.json", "no such file"),
        ("--model Llama-3.1-8B --dtype fp8", "dtype: 'fp8' is none of bf16, fp16, fp32"),
        ("--model Llama-3.1-8B --gpus 2 --sharding none", "2 GPUs with sharding none"),
        ("--model Llama-3.1-8B --method qlora --dtype fp32", "qlora with dtype fp32"),
        ("--model Llama-3.1-8B --dtype fp32 --master-weights", "the weights are float32 already"),
        ("--model Llama-3.1-8B --gpus 2 --sharding ddp --cpu-offload", "cpu_offload with ddp"),
        ("--model Llama-3.1-8B --cpu-offload --optimizer paged-adamw", "cpu_offload with a paged optimizer"),
        (
            "--model Llama-3.1-8B --method lora --lora-targets query",
            "has no linear layer query; it has q_proj",
        ),
        ("--model Llama-3.1-8B --lora-rank 8", "--lora-rank: method full has no adapters; add --method lora"),
        (
            "--model Llama-3.1-8B --method full --lora-rank 8 --lora-targets q_proj",
            "--lora-rank and --lora-t",
        ),
        ("recipes/training-in-the-open.yaml --lora-targets q_proj", "--lora-targets: method full"),
        ("--model Llama-3.1-8B --gpu A11", "--gpu A11: not in the catalogue"),
        ("--model Llama-3.1-8B --fit", "--fit needs a GPU"),
        ("--model Llama-3.1-8B --batch-size 0", "batch_size is 0; give at least 1"),
        ("--model Llama-3.1-8B --gpu A10G --price 1", "--price needs --tokens"),
        ("--model Llama-3.1-8B --gpu A10G --tokens -5", "--tokens -5: give a number above 0"),
        ("--model Llama-3.1-8B --gpu A10G --utilisation 2", "is a share of the peak"),
        ("--model Llama-3.1-405B --gpu A10G --fit", "take more GPUs"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert cli.main(["plan", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": "mamba"}', '{"model_type": "llama"}', "{"])
def test_a_file_that_is_no_configuration_of_a_known_model(content, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert cli.main(["plan", "--model", str(path)]) == 2
    assert str(path) in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_it_answers_without_importing_torch():
    began = time.monotonic()
    code = "import sys; from ftdocs import cli; cli.main(['plan', '--model', 'gpt2']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert time.monotonic() - began < 20  # a quarter of a second on an idle machine
