"""Merging: the whole model gives the adapter's logits; what cannot be merged is refused, and nothing half-written."""

import json
import shutil

import pytest
import test_runs
import torch
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
    from safetensors.torch import load_file, save_file

    weights = {
        name: tensor * (1e-6 if "lora_B" in name else 1) for name, tensor in load_file(adapter).items()
    }
    save_file(weights, adapter)
    with pytest.raises(InputError, match="--dtype float32"):
        merge_run(tuned, tmp_path / "faint", check=True, dtype="bfloat16")
    assert not (tmp_path / "faint").exists()


def test_a_merge_that_changes_the_model_is_not_written(job, tmp_path):
    """The head shares its weight with the embedding: merged into the one, an adapter changes the other too."""
    settings = ["method.targets=lm_head", "train.max_steps=4", "train.learning_rate=1.0e-2"]
    tuned = train(Recipe.load(job, settings), tmp_path / "head").run
    with pytest.raises(InputError, match="merged and unmerged differ by"):
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
