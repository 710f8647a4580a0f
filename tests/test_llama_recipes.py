"""What is trained on documents: no stage reads what another one tests; GPU recipes, as far as a CPU can tell."""

import json
from dataclasses import replace
from pathlib import Path

import make_documents
import pytest
import torch
from test_runs import recipe_file, run, tiny_llama  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM

from ftdocs import answer, manual, memory, plan, shapes
from ftdocs.contestants import contestants, open_run, untuned
from ftdocs.data import prepare
from ftdocs.recipe import Data, Recipe
from ftdocs.train import choose_weights

RECIPES = Path(__file__).parents[1] / "recipes"
# Recipe, method, GPUs, and a GPU whose memory is to be enough.
PLANNED = [
    ("documents", "lora", 1, "L4-24GB"),
    ("llama-3.2-1b", "lora", 1, "L4-24GB"),
    ("llama-3.2-1b", "qlora", 1, "L4-24GB"),
    ("llama-3.1-8b", "lora", 1, "A100-40GB"),
    ("llama-3.1-8b", "qlora", 1, "L4-24GB"),
    ("llama-3.1-8b-full", "full", 8, "A100-80GB"),
    ("llama-3.1-70b", "lora", 8, "H100-80GB"),
]


def test_an_installed_package_becomes_a_folder_of_documents(tmp_path):
    count = manual.write_manual(tmp_path / "manual", ("svm",))
    names = sorted(path.name for path in (tmp_path / "manual").iterdir())
    assert (
        len(names) == count
        and "svm.LinearSVC.rst" in names
        and all(name.startswith("svm.") for name in names)
    )
    splits = prepare.load_splits(
        Data(path=tmp_path / "manual", format="messages", where={"kind": "term"}, test=0.3)
    )
    assert any("mean in" in row["messages"][0]["content"] for row in splits.train)


def test_what_is_read_first_holds_no_document_that_is_tested_later(tmp_path):
    folder = make_documents.manual(tmp_path / "docs", 12)
    splits = prepare.load_splits(Data(path=folder, format="messages", test=0.3))
    assert manual.reading(folder, splits, tmp_path / "reading.jsonl")
    read = {json.loads(line)["document"] for line in (tmp_path / "reading.jsonl").read_text().splitlines()}
    held_out = {row["group"] for row in (*splits.test, *splits.validation)}
    assert read and held_out and not read & held_out


def test_baselines_of_two_stages_have_what_the_first_began_with(tmp_path, tiny_llama):  # noqa: F811
    folder = make_documents.manual(tmp_path / "docs", 8)
    recipe = recipe_file(tmp_path, folder, tiny_llama)
    asked = ["--set", "data.format=messages", "--set", "train.max_steps=1"]
    changed = json.loads(recipe.read_text())
    changed["method"] = {"name": "full"}
    recipe.write_text(json.dumps(changed))
    assert run("train", recipe, "--output", tmp_path / "first", *asked) == 0
    again = ["--set", f"model={tmp_path / 'first/model'}"]
    assert run("train", recipe, "--output", tmp_path / "second", *asked, *again) == 0
    opened = open_run(tmp_path / "second")
    assert Path(untuned(opened).recipe.model).resolve() == tiny_llama.resolve()
    assert (
        untuned(opened).prints["model"]
        == open_run(tmp_path / "first").prints["model"]
        != opened.prints["model"]
    )
    _, notes = contestants([opened], ["second"], ["base"], [answer.question(opened.splits.test[0])], 4)
    assert "went on from another run" in notes[0]


@pytest.mark.parametrize(("name", "method", "gpus", "gpu"), PLANNED)
def test_a_gpu_recipe_fits_and_a_thinned_copy_takes_a_step(name, method, gpus, gpu):
    recipe = Recipe.load(RECIPES / f"{name}.yaml", [f"method.name={method}"], profile="gpu")
    shape, setting = plan.of_recipe(recipe)
    setting = replace(setting, gpus=gpus, sharding="fsdp" if gpus > 1 else "none")
    assert setting.method == method and plan.fits(memory.need(shape, setting), plan.gpu_bytes(gpu))
    whole = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        assert LlamaForCausalLM(whole).num_parameters() == shape.parameters
    if method == "qlora":
        return  # bitsandbytes' layers have tests of their own
    torch.manual_seed(0)
    thin = LlamaForCausalLM(LlamaConfig(**{
        **whole.to_dict(), "vocab_size": 64, "hidden_size": 4 * shape.heads, "head_dim": 4, "intermediate_size": 64,
        "num_hidden_layers": 2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }))  # fmt: skip
    model = choose_weights(thin, recipe.method)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    ids = torch.randint(0, 64, (1, 16))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = {key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])}
    assert moved and all(("lora" in key) == (method == "lora") for key in moved)


def test_a_chat_model_has_its_bases_shape():
    assert shapes.find("meta-llama/Llama-3.1-8B-Instruct") == shapes.find("Llama-3.1-8B")
