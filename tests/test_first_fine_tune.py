"""The page's other pair, GPT-2 on WikiText-2: all of its cells, in order, with a hub that is really asked."""

import json
import re
from pathlib import Path

from transformers import GPT2Config

from ftdocs.data.prepare import check_length
from ftdocs.recipe import Recipe
from ftdocs.shapes import shape

ROOT = Path(__file__).parents[1]


def cells(page: Path) -> str:
    """The code of a page's cells, as one script."""
    found = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(
        "\n".join(line for line in cell.splitlines() if not line.startswith(":tags:")) for cell in found
    )


def test_all_eight_steps_with_gpt2_and_wikitext_from_the_hub(
    hub, tiny_gpt2_repo, tiny_wikitext_repo, run_python
):
    hub.add("openai-community/gpt2", tiny_gpt2_repo)
    hub.add("Salesforce/wikitext", tiny_wikitext_repo, kind="dataset")
    script = f"""
import os, shutil, json, tempfile
os.chdir(tempfile.mkdtemp())
shutil.copy({str(ROOT / "recipes/first-fine-tune.yaml")!r}, ".")
os.symlink({str(ROOT / "results")!r}, "results")
import matplotlib; matplotlib.use("agg")
{cells(ROOT / "docs/first-fine-tune.md")}
print(json.dumps([type(model.base_model.model).__name__, len(splits.train), loss_before, loss_after]))
"""
    done = run_python(
        script,
        HF_ENDPOINT=hub.url,
        FTDOCS_MODEL="gpt2",
        FTDOCS_DATA__NAME="wikitext-2",
        FTDOCS_PROFILE="smoke",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kind, rows, before, after = json.loads(done.stdout.splitlines()[-1])
    assert kind == "GPT2LMHeadModel"
    assert rows > 100 and after < before
    assert any("openai-community/gpt2" in path for path in hub.requests)
    assert any("Salesforce/wikitext" in path for path in hub.requests)


def test_the_gpu_size_is_the_published_model_and_its_thinned_copy_trains(
    hub, tiny_gpt2_repo, tiny_wikitext_repo, run_python
):
    """What of the gpu size can be checked without a GPU: the recipe, the full shape, a step of a thin model."""
    recipe = Recipe.load(ROOT / "recipes/first-fine-tune.yaml", profile="gpu")
    assert (recipe.model, recipe.data.name, recipe.method.name) == ("gpt2", "wikitext-2", "full")
    config = GPT2Config()  # the defaults are those of openai-community/gpt2
    check_length(config, recipe.train.seq_len)
    assert shape(config.to_dict()).parameters == 124_439_808  # 124M, as published

    hub.add("openai-community/gpt2", tiny_gpt2_repo)
    hub.add("Salesforce/wikitext", tiny_wikitext_repo, kind="dataset")
    script = f"""
import json, tempfile
from pathlib import Path
from ftdocs.recipe import Recipe
from ftdocs.train import train
thin = ["train.max_steps=3", "train.seq_len=64", "data.validation=0.1", "data.test=0.1"]
recipe = Recipe.load({str(ROOT / "recipes/first-fine-tune.yaml")!r}, thin, "gpu")
result = train(recipe, Path(tempfile.mkdtemp()) / "run")
print(json.dumps([result.steps, sorted(path.name for path in result.run.iterdir())]))
"""
    done = run_python(script, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr[-3000:]
    steps, files = json.loads(done.stdout.splitlines()[-1])
    assert steps == 3 and "model" in files and "adapter" not in files
