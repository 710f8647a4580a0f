"""Every parameter-efficient method: trains what it names and nothing else, saves, loads, merges or says why not."""

import json
from pathlib import Path

import pytest
import test_runs
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from test_runs import rows, write
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PretrainedConfig,
)

import ftdocs.measure
from ftdocs import assets, job, memory, models, plan, runs
from ftdocs.cli import main
from ftdocs.errors import InputError
from ftdocs.evaluate import evaluate_run
from ftdocs.merge import logits, merge_run, rms
from ftdocs.methods.adapters import RATES, add_adapter
from ftdocs.methods.lora import add_lora, target_names
from ftdocs.methods.lora_scratch import LowRankLinear, add_low_rank
from ftdocs.recipe import Method, Recipe
from ftdocs.train import choose_weights, fit, train

tiny_llama = test_runs.tiny_llama  # a fixture
METHODS = [*RATES, "bitfit"]
# What part of a parameter's name says that it belongs to a method.
OWN = {
    **dict.fromkeys(("lora", "qlora", "loftq", "rslora", "dora", "pissa", "adalora"), "lora_"),
    "vera": "vera_lambda",
    "ia3": "ia3_l",
    "prompt": "prompt_encoder",
    "prefix": "prompt_encoder",
    "norms": "norm",
    "bitfit": "bias",
}
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def recipe(tmp_path, tiny_llama):
    """Makes a recipe of a few short steps in float32; data of prompts on a tiny LLaMA, of labels on MiniLM."""

    def make(name: str, format: str = "prompt", **settings) -> Recipe:
        data = write(tmp_path / f"{format}.jsonl", rows(format))
        asked = {
            "max_steps": 2,
            "batch_size": 4,
            "seq_len": 64,
            "precision": "fp32",
            "engine": "loop",
            "warmup": 0,
        }
        method = {"name": name} if name == "full" else {"name": name, **settings.pop("method", {})}
        return Recipe(
            model="minilm" if format == "label" else str(tiny_llama),
            data={"path": data},
            method=method,
            train={**asked, **settings},
        )

    return make


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("format", ["prompt", "label"])
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_moves_its_own_saves_loads_and_merges_or_says_why_not(
    name, format, recipe, tmp_path, monkeypatch
):
    asked = recipe(name, format)
    if name == "bitfit" and format == "prompt":
        with pytest.raises(InputError, match="bitfit trains biases, and this model has none"):
            train(asked, tmp_path / "run")
        return
    seen = {}
    complete = train.__globals__["complete"]

    def watched(work):
        seen["model"], seen["before"] = work.model, values(work.model)
        return complete(work)

    monkeypatch.setitem(train.__globals__, "complete", watched)
    run = train(asked, tmp_path / "run").run
    trained, before = seen["model"], seen["before"]

    moved = {name for name, value in trained.named_parameters() if not torch.equal(value, before[name])}
    # MiniLM's pooler was pretrained: whatever moves in it is the method's own.
    head = "classifier" if format == "label" else "no head"
    assert moved, "nothing was trained"
    strange = [each for each in moved if OWN[name].lower() not in each.lower() and head not in each]
    assert not strange
    if format == "label":
        assert any("classifier" in each for each in moved), "the new head was not trained"
    assert all(value.dtype == torch.float32 for value in trained.parameters() if value.requires_grad)

    loaded, tokenizer = models.load_run(run)
    torch.testing.assert_close(logits(loaded, tokenizer), logits(trained, tokenizer), rtol=0, atol=2e-5)
    assert sorted(path.suffix for path in run.rglob("*model*.safetensors")) and not list(run.rglob("*.bin"))
    assert not (run / "start").exists()
    if name in ("prompt", "prefix"):
        with pytest.raises(InputError, match="nothing to merge"):
            merge_run(run, tmp_path / "whole", check=True)
    elif name == "loftq":
        with pytest.raises(InputError, match="the base in full precision has lost nothing"):
            merge_run(run, tmp_path / "whole", check=True)
    elif name == "bitfit":
        with pytest.raises(InputError, match="is the whole model already"):
            merge_run(run, tmp_path / "whole", check=True)
    else:
        found = merge_run(run, tmp_path / "whole", check=True)
        assert found.dtype == "float32" and found.tuning_difference > 100 * found.float32_difference
        if name != "qlora":  # which was trained over another base than it is merged into
            kind = AutoModelForSequenceClassification if format == "label" else AutoModelForCausalLM
            whole = kind.from_pretrained(tmp_path / "whole")
            off = rms(logits(whole, tokenizer) - logits(trained, tokenizer))
            assert off < 0.05 * found.tuning_difference


@pytest.mark.parametrize("name", ["lora", "pissa", "adalora", "vera"])
@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("lm_head, q_proj", "method.targets: lm_head shares its weight with another layer"),
        (["embed_tokens"], "method.targets: embed_tokens shares its weight with another layer"),
        ("mlp", "method.targets: 'mlp' names no linear layer of this model; its linear layers: down_proj, "),
        (["q_proj", "input_layernorm"], "'input_layernorm' names no linear layer"),
        ("q_proj, queries", "'queries' names no linear layer"),
        ([], "'' names no linear layer"),
    ],
)
def test_targets_that_cannot_have_an_adapter_are_refused_before_anything_is_written(
    name, targets, says, recipe, tmp_path
):
    with pytest.raises(InputError) as refused:
        train(recipe(name, method={"targets": targets}), tmp_path / "run")
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_head_with_a_weight_of_its_own_can_have_an_adapter_and_an_embedding_cannot():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    assert target_names(model, "lm_head") == ["lm_head"]
    with pytest.raises(InputError, match="'embed_tokens' names no linear layer"):
        target_names(model, "lm_head, embed_tokens")


@pytest.mark.parametrize("name", ["pissa", "loftq"])
def test_a_rank_above_what_a_matrix_has_is_refused_before_anything_is_written(name, recipe, tmp_path):
    with pytest.raises(
        InputError, match=rf"method\.rank: {name} .* of which .*[kv]_proj has 16, not 17; set it"
    ):
        train(recipe(name, method={"rank": 17}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def small(folder: Path, kind: type, config: PretrainedConfig) -> Path:
    """A model of random weights of another kind than the book's, with MiniLM's tokenizer."""
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(assets.model_path("minilm")).save_pretrained(folder)
    return folder


def test_loftq_knows_that_gpt2s_matrices_lie_the_other_way_round(recipe, tmp_path):
    config = GPT2Config(vocab_size=30522, n_embd=64, n_layer=1, n_head=2, n_positions=64)
    folder = small(tmp_path / "gpt2", GPT2LMHeadModel, config)
    asked = recipe("loftq").model_copy(update={"model": str(folder)})
    loaded = GPT2LMHeadModel.from_pretrained(folder)
    model = choose_weights(models.load(asked)[0], asked.method).get_base_model()
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):  # the second is square
        layer = model.get_submodule(f"transformer.h.0.{name}")
        whole = loaded.get_submodule(f"transformer.h.0.{name}").weight.detach().T
        stored = layer.get_base_layer().weight
        lost = whole - dequantize_4bit(stored.data, stored.quant_state)
        left = (lost - layer.get_delta_weight("default")).square().sum()
        assert left < 0.9 * lost.square().sum()


@pytest.mark.parametrize("name", ["lora", "qlora", "loftq", "pissa", "adalora", "vera", "norms"])
@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_classifiers_with_new_parts_below_their_head(kind, name, recipe, tmp_path):
    """PEFT trains DistilBERT's pre_classifier whole; ModernBERT's head is new, and its first block lacks a norm."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 0)
    if kind == "distilbert":
        config: PretrainedConfig = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2)
        folder = small(tmp_path / "base", DistilBertModel, config)
    else:
        folder = small(
            tmp_path / "base", ModernBertModel, ModernBertConfig(vocab_size=30522, **sizes, **ends)
        )
    asked = recipe(name, "label").model_copy(update={"model": str(folder)})
    run = train(asked, tmp_path / "run").run
    loaded, tokenizer = models.load_run(run)
    in_four_bits = [place for place, part in loaded.named_modules() if isinstance(part, Linear4bit)]
    assert bool(in_four_bits) == (name in ("qlora", "loftq"))
    assert not [place for place in in_four_bits if "classifier" in place or "head" in place]
    if kind == "distilbert":
        whole = {
            n.split(".")[2]
            for n, w in load_file(run / "adapter/adapter_model.safetensors").items()
            if "classif" in n
        }
        assert whole == {"pre_classifier", "classifier"}
    assert logits(loaded, tokenizer).isfinite().all()


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("prefix", ModernBertConfig, "modernbert models take none; use lora"),
        ("prefix", AlbertConfig, "albert models take none; use lora"),
        ("prefix", DistilBertConfig, "distilbert models take none; use lora"),
        ("prompt", DistilBertConfig, "prompt does not know how distilbert models are built; use lora"),
        ("ia3", AlbertConfig, "ia3 does not know how albert models are built; use lora"),
    ],
)
def test_what_peft_cannot_do_with_a_kind_of_model_is_said(name, kind, says):
    names = ("hidden_size", "dim", "embedding_size", "hidden_dim", "intermediate_size")
    config = kind(
        **dict.fromkeys(names, 32), num_hidden_layers=1, n_layers=1, num_attention_heads=2, n_heads=2
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(InputError, match=says):
        add_adapter(model, Method(name=name))


class Stopped(Exception):
    """What a test stops a run with, between two checkpoints."""


@pytest.mark.parametrize(
    ("name", "engine"), [("loftq", "trainer"), ("dora", "loop"), ("ia3", "trainer"), ("pissa", "loop")]
)
def test_a_stopped_and_resumed_run_is_the_undisturbed_one(name, engine, recipe, tmp_path):
    asked = recipe(name, engine=engine, max_steps=6, save_every=1, eval_every=1)
    whole = train(asked, tmp_path / "whole").run

    def stop(step, metrics):
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(asked, tmp_path / "stopped", watch=stop)
    assert runs.state(tmp_path / "stopped") == "unfinished"
    stopped = train(asked, tmp_path / "stopped", resume=True).run
    files = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, stopped)]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def test_adalora_is_not_resumed_but_begun_anew(recipe, tmp_path, capsys):
    asked = recipe("adalora", max_steps=6, save_every=1, eval_every=1)
    whole = train(asked, tmp_path / "whole").run
    rank_pattern = json.loads((whole / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    kept = sum(sum(ranks) for ranks in rank_pattern.values())
    assert 0 < kept <= 8 * len(rank_pattern) < sum(len(ranks) for ranks in rank_pattern.values())

    def stop(step, metrics):
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(asked, tmp_path / "stopped", watch=stop)
    capsys.readouterr()
    stopped = train(asked, tmp_path / "stopped", resume=True).run
    assert "starting from the beginning" in capsys.readouterr().err
    files = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, stopped)]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


@pytest.mark.parametrize("format", ["prompt", "label"])
def test_a_run_of_adalora_is_evaluated_without_its_penalty(format, recipe, tmp_path):
    run = train(recipe("adalora", format, max_steps=4), tmp_path / "run").run
    *_, last = [row["eval_loss"] for row in runs.read_metrics(run) if "eval_loss" in row]
    assert evaluate_run(run, "validation")["metrics"]["loss"] == pytest.approx(last, abs=1e-4)
    model, tokenizer = models.load_run(run)
    if format == "prompt":
        ids = tokenizer("A text of some length", return_tensors="pt")["input_ids"]
        found = model(input_ids=ids, labels=ids)
        plain = torch.nn.functional.cross_entropy(found.logits[0, :-1], ids[0, 1:])
        torch.testing.assert_close(found.loss, plain, rtol=0, atol=1e-5)


def test_adalora_is_not_stopped_early(recipe, tmp_path):
    """The checkpoint of an earlier step has other ranks than the model at its end."""
    with pytest.raises(InputError, match=r"train\.patience: adalora chooses its ranks up to its end"):
        train(recipe("adalora", patience=2, eval_every=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["dora", "adalora", "vera"])
def test_both_engines_train_the_same(name, recipe, tmp_path):
    curves = []
    for engine in ("loop", "trainer"):
        run = train(recipe(name, engine=engine, max_steps=4), tmp_path / engine).run
        curves.append([row["loss"] for row in runs.read_metrics(run) if "loss" in row])
    assert curves[0] == pytest.approx(curves[1], abs=2e-5)


def test_every_layer_of_a_base_in_4_bits_gets_its_gradient_after_a_validation(recipe, tmp_path):
    """bitsandbytes has a form of its weights without gradients, and takes it in evaluation unless kept from it."""
    asked = recipe("qlora")
    model, tokenizer = models.load(asked)
    model = choose_weights(model, asked.method)
    ids = tokenizer("A text of some length", return_tensors="pt")
    logits(model, tokenizer)  # without gradients
    model.train()
    model(**ids, labels=ids["input_ids"]).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if "lora_B" in name}
    assert len(trained) == 14
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in trained.values())


def test_loftq_begins_nearer_to_the_weights_than_four_bits_are(recipe):
    """The best update of its rank takes from what was lost what the largest singular values hold."""
    asked = recipe("loftq", "label", method={"rank": 16, "alpha": 8.0})
    whole, _ = models.load(recipe("full", "label"), ["a", "b"])
    model, _ = models.load(asked, ["a", "b"])
    model = choose_weights(model, asked.method)
    name = "bert.encoder.layer.3.attention.self.query"
    layer, weight = model.get_base_model().get_submodule(name), whole.get_submodule(name).weight.detach()
    stored = layer.get_base_layer().weight
    lost = weight - dequantize_4bit(stored.data, stored.quant_state)
    left = (lost - layer.get_delta_weight("default")).square().sum()
    values = torch.linalg.svdvals(lost).square()
    torch.testing.assert_close(left, values[16:].sum(), rtol=0.01, atol=0)
    assert left < 0.95 * values.sum()


def test_vectors_before_a_text_are_not_given_to_packs(recipe, tmp_path, monkeypatch):
    """PEFT drops the positions by which documents of a pack are kept apart."""
    seen = {}
    monkeypatch.setitem(train.__globals__, "complete", lambda work: seen.setdefault("work", work) and 2)
    for name, packed in (("prompt", False), ("prefix", False), ("ia3", True)):
        seen.clear()
        train(recipe(name), tmp_path / name)
        assert seen["work"].packed is packed


@pytest.mark.parametrize(
    "name", ["qlora", "loftq", "dora", "pissa", "adalora", "vera", "ia3", "prompt", "norms", "bitfit"]
)
def test_what_trains_with_one_process_says_so(name, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ftdocs.processes.count", lambda: 2)
    with pytest.raises(InputError, match=rf"method\.name: {name} trains with one process"):
        fit(recipe(name, "label"), tmp_path / "run", {}, resume=False, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["loop", "trainer"])
@pytest.mark.parametrize("name", ["full", "layers", "lora", "qlora", "prompt"])
def test_checkpointing_computes_layers_twice_and_trains_the_same_weights(
    name, engine, recipe, tmp_path, monkeypatch
):
    complete, calls, kept = train.__globals__["complete"], [], {}

    def watched(work):
        hidden = [part for part in work.model.modules() if type(part).__name__ == "LlamaMLP"]
        hidden[-1].register_forward_pre_hook(lambda layer, _: calls.append(layer.training))
        return complete(work)

    monkeypatch.setitem(train.__globals__, "complete", watched)
    for checkpointing in (False, True):
        calls.clear()
        asked = recipe(name, engine=engine, checkpointing=checkpointing, dropout=0.1)
        run = train(asked, tmp_path / f"run-{checkpointing}").run
        [weights] = run.glob("*/*model.safetensors")
        kept[checkpointing] = load_file(weights)
        assert sum(calls) == (4 if checkpointing else 2)  # of two steps; validations keep nothing anyway
    assert all(torch.equal(weight, kept[True][name]) for name, weight in kept[False].items())


def test_checkpointing_is_refused_where_a_layer_would_lose_its_prefix_or_has_none(recipe, tmp_path):
    with pytest.raises(InputError, match=r"train\.checkpointing: a layer that is computed anew"):
        train(recipe("prefix", checkpointing=True), tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.checkpointing: method\.name features has no backward"):
        train(recipe("features", "label", checkpointing=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    plain = LlamaForCausalLM(LlamaConfig(**SIZES))
    plain.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match=r"train\.checkpointing: llama models cannot"):
        models.compute_anew(plain)


def test_bitfit_leaves_a_pretrained_head_alone_and_trains_a_new_one():
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GPTNeoXConfig(**sizes, intermediate_size=32, tie_word_embeddings=False, num_labels=2)
    config.pad_token_id = 0

    def moved(model: torch.nn.Module) -> set[str]:
        trained = choose_weights(model, Method(name="bitfit"))
        return {name for name, weight in trained.named_parameters() if weight.requires_grad}

    predicts, chooses = moved(GPTNeoXForCausalLM(config)), moved(GPTNeoXForSequenceClassification(config))
    assert all(name.endswith(".bias") for name in predicts)
    assert chooses - predicts == {"score.weight"}


def test_prompt_tuning_of_a_decoder_classifier_is_refused(recipe, tmp_path, tiny_llama):
    asked = recipe("prompt", "label").model_copy(update={"model": str(tiny_llama)})
    with pytest.raises(InputError, match="use prefix"):
        train(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_planner_knows_the_kinds_of_lora_by_their_memory(recipe):
    for name, kind in {"lora": "lora", "rslora": "lora", "qlora": "qlora", "loftq": "qlora"}.items():
        asked = recipe(name, precision="bf16-mixed").model_copy(update={"model": "smollm2-135m-instruct"})
        shape, setting = plan.of_recipe(asked)
        assert setting.method == kind and memory.need(shape, setting).peak.total > 0
    for name in (
        "ia3",
        "dora",
        "pissa",
    ):  # pissa's frozen weights are float32, twice what the planner would say
        with pytest.raises(InputError, match=f"{name}: the planner knows"):
            plan.of_recipe(recipe(name))


def test_the_words_on_how_to_measure_a_step_without_a_plan_can_be_pasted(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("FTDOCS_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "ia3.yaml"
    file.write_text(recipe("ia3").to_yaml())
    with pytest.raises(InputError) as refusal:
        plan.of_recipe(recipe("ia3"))
    words = str(refusal.value).partition("in Python, ")[2]
    known = {"ftdocs": ftdocs, "train": train, "Recipe": Recipe, "FILE": file}
    assert eval(words, known) > 0
    [made] = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(made.read_text())["steps"] == 1


def test_rates_are_the_methods_own_unless_given(recipe):
    for name, rate in RATES.items():
        assert job.learning_rate(recipe(name)) == rate
        assert job.learning_rate(recipe(name, learning_rate=0.5)) == 0.5
    assert Method(name="vera").rank == 256 and Method(name="vera", rank=3).rank == 3 and Method().rank == 8


def test_a_files_rate_that_another_method_gets_is_named_with_that_ones_own(
    recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(recipe("lora", learning_rate=1e-3).to_yaml())
    line = (
        "ftdocs: train.learning_rate: 0.001, as job.yaml has it for lora; ia3's own is 0.01, and"
        " --set train.learning_rate=null takes it\n"
    )

    def said(*settings: str) -> str:
        arguments = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", "job.yaml", "--output", f"out{len(list(Path().iterdir()))}", *arguments]) == 0
        return capsys.readouterr().err

    assert line in said("method.name=ia3")
    for settings in (["rslora"], ["ia3", "train.learning_rate=null"], ["ia3", "train.learning_rate=1e-3"]):
        assert "learning_rate" not in said(f"method.name={settings[0]}", *settings[1:])
    assert "full's own is 0.0001" in said("method.name=full")
    monkeypatch.setenv("FTDOCS_METHOD__NAME", "ia3")
    assert line in said()
    monkeypatch.setenv("FTDOCS_TRAIN__LEARNING_RATE", "0.001")
    assert "learning_rate" not in said()


def test_a_key_that_the_method_does_not_use_is_not_ignored(tmp_path, tiny_llama, capsys):
    write(tmp_path / "faq.jsonl", rows("prompt"))

    def file(method: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(f"model: {tiny_llama}\ndata: {{path: faq.jsonl}}\nmethod: {{{method}}}\n")
        return path

    with pytest.raises(
        InputError, match=r"job\.yaml: method\.rank: counts only with method\.name: lora, .*here it is ia3"
    ):
        Recipe.load(file("name: ia3, rank: 16"))
    with pytest.raises(InputError, match=r"method\.tokens: counts only with method\.name: prompt, prefix"):
        Recipe.load(file("tokens: 5"))
    with pytest.raises(InputError, match=r"profiles\.gpu\.method\.rank: counts only"):
        Recipe.load(file("name: full}\nprofiles: {gpu: {method: {rank: 64}}"))
    assert Recipe.load(file("name: full, rank: 8")).method == Method(name="full")  # as it is anyway
    other = Recipe.load(file("name: lora, rank: 16"), ["method.name=full"])
    assert other.method == Method(name="full")  # the same run, whatever stood there for another method
    assert Recipe.load(file("name: dora, rank: 16")).method.rank == 16
    assert main(["train", str(file("name: lora")), "--set", "method.tokens=3"]) == 2
    assert "counts only with method.name: prompt, prefix, and the recipe's is lora" in capsys.readouterr().err
    kept = other.to_yaml().replace("rank: 8", "rank: 16")  # as runs kept it until now
    (tmp_path / "kept.yaml").write_text(kept)
    assert Recipe.load(tmp_path / "kept.yaml", environment=False).method == Method(name="full")


@pytest.mark.parametrize("by_root", [False, True])
def test_lora_from_scratch_is_pefts_in_output_and_gradients(by_root):
    def llama():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SIZES))

    targets = ["q_proj", "v_proj", "down_proj"]
    peft = add_lora(llama(), 4, 16.0, targets, use_rslora=by_root)
    own = llama()
    for name, layer in list(own.named_modules()):
        if name.rpartition(".")[2] in targets:
            own.set_submodule(name, LowRankLinear(layer, 4, 16.0, by_root=by_root))
    theirs = {name.removeprefix("base_model.model."): weight for name, weight in peft.named_parameters()}
    pairs = [
        (weight, theirs[name.removesuffix(f".{kind}") + f".lora_{kind}.default.weight"])
        for name, weight in own.named_parameters()
        if (kind := name.rpartition(".")[2]) in ("A", "B")
    ]
    assert len(pairs) == 12
    for mine, other in pairs:
        other.data.normal_(0, 0.1)
        mine.data.copy_(other.data)
    ids = torch.arange(40).reshape(2, 20)
    outputs = [model(input_ids=ids, labels=ids) for model in (own, peft)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-6)
    for output in outputs:
        output.loss.backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-6)
    before = own(input_ids=ids).logits
    for name, layer in list(own.named_modules()):
        if isinstance(layer, LowRankLinear):
            own.set_submodule(name, layer.merged())
    torch.testing.assert_close(own(input_ids=ids).logits, before, rtol=0, atol=1e-5)


def test_lora_from_scratch_begins_where_pefts_does_and_drops_the_same():
    def base():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SIZES))

    place = "model.layers.0.mlp.down_proj"
    peft = add_lora(base(), 4, 16.0, ["down_proj"], dropout=0.5).get_base_model().get_submodule(place)
    layer = base().get_submodule(place)
    torch.manual_seed(1)
    own = LowRankLinear(layer, 4, 16.0, dropout=0.5)
    torch.manual_seed(1)
    peft.reset_lora_parameters("default", init_lora_weights=True)
    a, b = peft.lora_A["default"].weight, peft.lora_B["default"].weight
    assert torch.equal(own.A, a) and a.abs().max() > 0
    assert torch.equal(own.B, b) and b.abs().max() == 0

    b.data.normal_()
    own.B.data.copy_(b.data)
    x = torch.randn(6, own.base.in_features)

    def both(training: bool) -> list[torch.Tensor]:
        found = []
        for part in (own, peft):
            torch.manual_seed(2)
            found.append(part.train(training)(x).detach())
        return found

    mine, other = both(training=True)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    whole, theirs = both(training=False)
    torch.testing.assert_close(whole, theirs, rtol=0, atol=1e-5)
    undropped = own.base(x) + x @ own.update().T
    torch.testing.assert_close(whole, undropped, rtol=0, atol=1e-5)
    torch.manual_seed(2)
    dropped = own.base(x) + torch.nn.functional.dropout(x, 0.5) @ own.update().T  # of A's input alone
    torch.testing.assert_close(mine, dropped, rtol=0, atol=1e-5)
    assert (mine - whole).abs().max() > 0.1


def test_lora_from_scratch_trains_something_and_is_merged_once():
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="no linear layer is named q_prj"):
        add_low_rank(model, ["q_prj"])
    assert all(weight.requires_grad for weight in model.parameters())  # a refused model is left as it was
    layer = LowRankLinear(torch.nn.Linear(4, 4).bfloat16(), rank=2)
    assert layer.A.dtype == layer.B.dtype == torch.float32
    layer = LowRankLinear(torch.nn.Linear(4, 4), rank=2)
    torch.nn.init.normal_(layer.B)
    x = torch.randn(3, 4)
    before = layer(x)
    for merged in (layer.merged(), layer):  # the update is in the base, and not added once more
        assert torch.allclose(merged(x), before, atol=1e-6)


def test_from_scratch_nothing_but_the_updates_is_trained():
    model = add_low_rank(LlamaForCausalLM(LlamaConfig(**SIZES)), ["q_proj"], rank=4)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 4 and all(name.endswith(("q_proj.A", "q_proj.B")) for name in trained)
