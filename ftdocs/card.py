"""The model card that a run leaves beside its weights: every figure in it is read from the run."""

import json
import math
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ftdocs import assets, files, runs
from ftdocs.data.chat import as_prompt
from ftdocs.models import BASE, IN_FOUR_BITS
from ftdocs.recipe import Recipe

# How to use a run; {run} is its path as a Python string.
CLASSIFY = """\
from pathlib import Path

from transformers import pipeline

from ftdocs.models import load_run

model, tokenizer = load_run(Path({run}))
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(classify("A text of yours", truncation=True, max_length={seq_len}))
"""
GENERATE = """\
from pathlib import Path

from ftdocs.models import load_run

model, tokenizer = load_run(Path({run}))
{inputs}
output = model.generate(**inputs.to(model.device), max_new_tokens=50, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
CHAT = """\
chat = [{"role": "user", "content": "Your question"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
SMOKE = "**A smoke run** (profile smoke): a few steps on a few rows, to test the set-up. Its figures mean nothing."
PLAIN = 'inputs = tokenizer({text}, return_tensors="pt")'


def model_card(folder: Path, result: runs.Result, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a run's ``README.md``: what was trained on what, how it went, and how to load it."""
    recipe = runs.read_recipe(folder)
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    splits = json.loads((folder / runs.SPLITS).read_text())
    validations = [row for row in runs.read_metrics(folder) if "eval_loss" in row]
    base = assets.public_name(recipe.model)
    data = recipe.data.name or (recipe.data.path.name if recipe.data.path else "")
    part = runs.weights(folder).name
    cut = {
        f"training rows cut at {recipe.train.seq_len} tokens": splits.get("truncated"),
        "training rows left out, with nothing to train on so far": splits.get("dropped"),
    }
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {'peft' if part == 'adapter' else 'transformers'}",
        "---",
        "",
        f"# {folder.name}",
        "",
        *([SMOKE, ""] if environment["profile"] == "smoke" else []),
        f"`{base}`, tuned with `ftdocs` ({recipe.method.name}) on `{data}`.",
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| base model from | {' '.join(environment['model_source'].values()) or 'a local folder'} |",
        *(f"| rows for {name} | {len(rows)} |" for name, rows in splits["rows"].items()),
        *(f"| {what} | {count} |" for what, count in cut.items() if count),
        f"| optimiser steps | {result.steps} |",
        f"| tokens trained | {result.train_tokens:,} |",
        f"| training loss at the end | {result.loss:.3f} |",
    ]
    if recipe.train.patience:
        step = runs.kept(validations, recipe)["step"]
        lines.append(f"| weights kept | those of step {step}, where the validation loss was lowest |")
    if validations:
        first, last = validations[0], runs.kept(validations, recipe)
        lines.append(
            f"| validation loss, before → after | {first['eval_loss']:.3f} → {last['eval_loss']:.3f} |"
        )
        if splits["labels"] is None:
            before, after = (math.exp(min(row["eval_loss"], 700)) for row in (first, last))
            lines.append(f"| validation perplexity, before → after | {before:.2f} → {after:.2f} |")
        else:
            count = len(splits["rows"]["validation"])
            from ftdocs import intervals  # of use for classifiers alone, and slow to import

            after = intervals.share_interval(round(last["eval_accuracy"] * count), count)
            lines += [
                f"| validation accuracy, before → after | {first['eval_accuracy']:.3f} → {last['eval_accuracy']:.3f} |",
                f"| its 95 % interval, for {count} rows | {after.low:.3f} to {after.high:.3f} |",
            ]
    held_out = len(splits["rows"]["validation"])
    warning = runs.rough(held_out, "validation") if validations else ""
    lines += [
        f"| training time | {result.train_seconds:.0f} s on {environment['device']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in environment['versions'].items())} |",
        f"| date | {environment['started'][:10]} |",
        "",
        "The validation rows were held out before anything else touched the data. `ftdocs evaluate` gives the figures",
        "for the test rows, which this training never looked at.",
        *([f"Careful: {warning}."] if warning else []),
        "",
        f"Weights: `{part}/`. Settings: `recipe.yaml`. Curve: `metrics.jsonl`.",
        "",
    ]
    if splits["labels"]:
        lines += [f"Classes: {', '.join(splits['labels'])}.", ""]
    return "\n".join(lines) + usage(folder, recipe, splits["format"], splits["labels"], base, tokenizer)


def usage(
    folder: Path,
    recipe: Recipe,
    format: str,
    labels: list[str] | None,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """How to use the run: with ``load_run``, as code that runs from the folder that holds it, and without."""
    part = runs.weights(folder).name
    run = folder.name if folder.is_absolute() else folder.as_posix()
    if labels:
        code = CLASSIFY.format(run=json.dumps(run), seq_len=recipe.train.seq_len)
    else:
        code = GENERATE.format(run=json.dumps(run), inputs=inputs(format, tokenizer))
    loader = f"AutoModelFor{'SequenceClassification' if labels else 'CausalLM'}.from_pretrained"
    count = f", num_labels={len(labels)}" if labels else ""
    source = f'"{base}"' if "/" in base else "FOLDER_OF_THE_BASE_MODEL"
    facts = files.read_kept(folder / part / BASE) if (folder / part / BASE).is_file() else {}
    if facts.get("commit"):
        source += f', revision="{facts["commit"]}"'
    careful = ""
    if "converted" in facts:
        careful += (
            f" The adapter was trained on the weights in {facts['id']} ({facts['converted']}), which may not be those"
            " of the hub; base.json has their checksums."
        )
    if recipe.method.name in IN_FOUR_BITS:
        careful += (
            f" It was trained over that base in 4 bits (nf4, double quantisation): {recipe.method.name}."
        )
    without = (
        f'`{loader}("{run}/model")` loads the model'
        if part == "model"
        else f"`base = {loader}({source}{count})` loads the base model and"
        f' `PeftModel.from_pretrained(base, "{run}/adapter")` puts the adapter on it'
    )
    return (
        f"\n## Use\n\nFrom the folder that holds `{run}`:\n\n```python\n{code}```\n\n"
        f'Without `ftdocs`: {without}; `AutoTokenizer.from_pretrained("{run}/{part}")` loads the tokenizer.{careful}\n'
    )


def inputs(format: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The line that makes the model's input, written as its training rows were."""
    if format == "text":
        return PLAIN.format(text='"The beginning of a text"')
    if tokenizer.chat_template:
        return CHAT
    row = {"instruction": "Your instruction"} if format == "instruction" else {"prompt": "Your prompt"}
    return PLAIN.format(text=json.dumps(as_prompt({"output": "", "completion": "", **row})[0]))
