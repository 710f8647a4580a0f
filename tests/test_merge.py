"""Merging: the whole model gives the adapter's logits; what cannot be merged is refused, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import test_runs
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_runs import last_json, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import models, runs
from ftdocs.errors import InputError
from ftdocs.merge import logits, merge_run, rms
from ftdocs.recipe import Recipe
from ftdocs.train import train

tiny_llama, job = test_runs.tiny_llama, test_runs.job  # fixtures


@pytest.fixture
def tuned(job, tmp_path):
    """A finished LoRA run whose adapter does something."""
    recipe = Recipe.load(job, ["train.max_steps=4", "train.learning_rate=1.0e-2", "train.precision=fp32"])
    return train(recipe, tmp_path / "tuned").run


def test_merged_gives_the_logits_of_base_and_adapter_and_loads_with_transformers_alone(
    tuned, tmp_path, capsys
):
    capsys.readouterr()
    assert run("merge", tuned, "--output", tmp_path / "whole", "--check", "--json") == 0
    found = last_json(capsys.readouterr().out)
    assert run("merge", tuned, "--output", tmp_path / "again", "--check") == 0
    assert "the first is what rounding loses, and should be much the smaller" in capsys.readouterr().out
    assert found["dtype"] == "float32" and found["rounding_difference"] < 1e-5 < found["tuning_difference"]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    adapted, own = models.load_run(tuned)
    torch.testing.assert_close(logits(whole, tokenizer), logits(adapted, own), rtol=0, atol=1e-5)
    assert tokenizer.chat_template == own.chat_template
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"model.safetensors", "generation_config.json", "chat_template.jinja"} <= names
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".making")]


def test_rounding_is_measured_and_refused_where_it_undoes_the_training(tuned, tmp_path):
    found = merge_run(tuned, tmp_path / "bf16", check=True, dtype="bfloat16")
    assert 0 < found.rounding_difference < found.tuning_difference
    adapter = tuned / "adapter" / "adapter_model.safetensors"
    weights = {
        name: tensor * (1e-6 if "lora_B" in name else 1) for name, tensor in load_file(adapter).items()
    }
    save_file(weights, adapter)
    (tuned / "adapter" / models.BASE).unlink()  # which has the sum of the file as it was
    with pytest.raises(InputError, match="--dtype float32"):
        merge_run(tuned, tmp_path / "faint", check=True, dtype="bfloat16")
    assert not (tmp_path / "faint").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_on_a_weight_that_two_layers_share_is_not_merged(
    options, tuned, tiny_llama, tmp_path, monkeypatch
):
    """Merged into the head, it would change the embedding too. Such an adapter was made elsewhere, or earlier."""
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    adapter = get_peft_model(base, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **options))
    (tuned / "adapter" / models.BASE).unlink()
    adapter.save_pretrained(tuned / "adapter", save_embedding_layers=False)
    with pytest.raises(
        InputError, match=r"(lm_head|embed_tokens), which shares its weight with another layer"
    ):
        merge_run(tuned, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    if "embed_tokens" in options["target_modules"] or "modules_to_save" in options:
        return
    monkeypatch.setattr("ftdocs.merge.is_tied", lambda *_: False)
    with pytest.raises(
        InputError, match="merged and unmerged differ by"
    ):  # what no rule foresees, --check sees
        merge_run(tuned, tmp_path / "whole", check=True)
    assert not (tmp_path / "whole").exists()


def test_what_cannot_be_merged_says_why(job, tuned, tiny_llama, tmp_path, capsys):
    def refused(*arguments):
        capsys.readouterr()
        assert run("merge", *arguments) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1
        return told.err

    assert "exists; choose another --output" in refused(tuned, "--output", tmp_path)
    assert "no such run" in refused(tmp_path / "nothing", "--output", tmp_path / "out")
    assert "--dtype int8" in refused(tuned, "--output", tmp_path / "out", "--dtype", "int8")
    assert "--output" in refused(tuned)
    full = train(Recipe.load(job, ["method.name=full"]), tmp_path / "full").run
    assert f"{full / 'model'} is the whole model already" in refused(full, "--output", tmp_path / "out")
    (tuned / runs.RESULT).unlink()
    assert "has not finished" in refused(tuned, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_any_more_are_not_written(job, tiny_llama, tmp_path, capsys):
    large = tmp_path / "large"
    shutil.copytree(tiny_llama, large)
    model = AutoModelForCausalLM.from_pretrained(large)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e5  # more than float16 can say
    model.save_pretrained(large)
    tuned = train(Recipe.load(job, [f"model={large}", "train.precision=fp32"]), tmp_path / "tuned").run
    for check in ([], ["--check"]):
        capsys.readouterr()
        assert run("merge", tuned, "--output", tmp_path / "out", "--dtype", "float16", *check) == 2
        assert "down_proj.weight is too large for float16; choose --dtype bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rounded_logits_that_are_no_numbers_are_refused(tuned, tmp_path, monkeypatch):
    """Weights may be finite whose products are not."""
    monkeypatch.setattr("ftdocs.merge.rms", lambda _: float("nan"))
    with pytest.raises(InputError, match="--dtype float32"):
        merge_run(tuned, tmp_path / "out", check=True, dtype="bfloat16")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has a folder where nobody can write")
def test_an_output_that_cannot_be_made_is_told_before_the_model_is_loaded(tuned, monkeypatch):
    monkeypatch.setattr(models, "load_adapted", None)
    with pytest.raises(InputError, match="/proc/ftdocs/whole: no folder can be made here"):
        merge_run(tuned, Path("/proc/ftdocs/whole"))


def test_an_adapter_that_is_not_as_it_was_written_is_refused(tuned, tmp_path, capsys):
    adapter, base = tuned / "adapter" / models.ADAPTER, tuned / "adapter" / models.BASE
    whole, sums = adapter.read_bytes(), base.read_bytes()
    weights = safetensors.torch.load(whole)

    def refused(says: str) -> None:
        capsys.readouterr()
        assert run("merge", tuned, "--output", tmp_path / "out") == 2
        told = capsys.readouterr().err
        assert says in told and told.strip().count("\n") == 0
        with pytest.raises(InputError, match=says):
            models.load_run(tuned)

    adapter.write_bytes(whole[: len(whole) // 2])
    refused("adapter_model.safetensors: is damaged or gone")
    save_file({name: value * 2 for name, value in weights.items()}, adapter)
    refused("or not what the training wrote")
    adapter.unlink()
    refused("is damaged or gone")
    base.unlink()  # one that was made elsewhere has no sum
    adapter.write_bytes(whole[: len(whole) // 2])
    refused("is damaged or gone")
    renamed = {name.replace("layers.0", "layers.7"): value for name, value in weights.items()}
    save_file(renamed, adapter)
    refused("lacks 14 weights of its adapter, such as base_model.model.model.layers.0.")
    save_file({name: value[:1].contiguous() for name, value in weights.items()}, adapter)
    refused("its weights do not fit")
    base.write_bytes(sums)
    adapter.write_bytes(whole)
    assert rms(logits(*models.load_run(tuned))) > 0


@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
def test_whatever_is_damaged_in_a_run_is_told_in_one_line(damage, tuned, tmp_path, capsys):
    """Each file that is read when a run is taken up; ``another``: whole, with something else in it."""
    kept = [runs.RESULT, runs.RECIPE, runs.SPLITS, f"adapter/{models.BASE}", "adapter/adapter_config.json"]
    kept += ["adapter/tokenizer.json", "adapter/tokenizer_config.json"]
    fine = {  # a run without a result has not finished; half a recipe may be one; facts of a base may be missing
        "gone": [runs.RESULT, f"adapter/{models.BASE}", "adapter/tokenizer_config.json"],
        "cut": [runs.RECIPE],
        "another": ["adapter/tokenizer_config.json"],
    }
    for name in sorted(set(kept) - set(fine[damage])):
        path = tuned / name
        whole = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b'{"r": "eight"}')
        for command in (["merge", tuned, "--output", tmp_path / "out"], ["evaluate", tuned]):
            if command[0] == "evaluate" and name == runs.SPLITS:
                continue  # it makes the split anew
            capsys.readouterr()
            assert run(*command) == 2, (name, command)
            told = capsys.readouterr()
            assert told.out == "" and told.err.count("\n") == 1, told.err
            assert path.name in told.err or f"{path.parent}: cannot be loaded" in told.err
        assert not (tmp_path / "out").exists()
        path.write_bytes(whole)
    assert run("merge", tuned, "--output", tmp_path / "out") == 0


def test_an_adapter_on_another_base_is_refused_with_both_names(tuned, tiny_llama, tmp_path):
    kept = json.loads((tuned / "adapter" / models.BASE).read_text())
    assert kept["model"] == tiny_llama.name and len(kept["weights"]["model.safetensors"]) == 64
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.norm.weight.data += 0.5
    model.save_pretrained(other)
    models.check_base(tuned / "adapter", str(tiny_llama))
    with pytest.raises(
        InputError, match=f"was trained on {tiny_llama.name}, whose weights are not those of .*other"
    ):
        models.check_base(tuned / "adapter", str(other))
    recipe = runs.read_recipe(tuned).model_copy(update={"model": str(other)})
    with pytest.raises(InputError, match="was trained on"):
        models.load_adapted(recipe, tuned / "adapter")
    (tuned / "adapter" / models.BASE).unlink()  # a run of an earlier version still loads
    assert rms(logits(*models.load_run(tuned))) > 0
