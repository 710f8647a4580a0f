"""The model card that a run leaves beside its weights: every figure in it is read from the run."""

import json
import math
from pathlib import Path

from ftdocs import assets, runs


def model_card(folder: Path, result: runs.Result) -> str:
    """The text of a run's ``README.md``: what was trained on what, how it went, and how to load it."""
    recipe = runs.read_recipe(folder)
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    splits = json.loads((folder / runs.SPLITS).read_text())
    validations = [row for row in runs.read_metrics(folder) if "eval_loss" in row]
    base = assets.public_name(recipe.model)
    data = recipe.data.name or (recipe.data.path.name if recipe.data.path else "")
    part = "adapter" if (folder / "adapter").is_dir() else "model"
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {'peft' if part == 'adapter' else 'transformers'}",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"`{base}`, tuned with `ftdocs` ({recipe.method.name}) on `{data}`.",
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| base model from | {' '.join(environment['model_source'].values()) or 'a local folder'} |",
        *(f"| rows for {name} | {len(rows)} |" for name, rows in splits["rows"].items()),
        f"| optimiser steps | {result.steps} |",
        f"| tokens trained | {result.train_tokens:,} |",
        f"| training loss at the end | {result.loss:.3f} |",
    ]
    if validations:
        first, last = validations[0], validations[-1]
        lines.append(
            f"| validation loss, before → after | {first['eval_loss']:.3f} → {last['eval_loss']:.3f} |"
        )
        if splits["labels"] is None:
            before, after = (math.exp(min(row["eval_loss"], 700)) for row in (first, last))
            lines.append(f"| validation perplexity, before → after | {before:.2f} → {after:.2f} |")
        else:
            lines.append(
                f"| validation accuracy, before → after | {first['eval_accuracy']:.3f} → {last['eval_accuracy']:.3f} |"
            )
    lines += [
        f"| training time | {result.train_seconds:.0f} s on {environment['device']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in environment['versions'].items())} |",
        f"| date | {environment['started'][:10]} |",
        "",
        "The validation rows were held out before anything else touched the data. `ftdocs evaluate` gives the figures",
        "for the test rows, which this training never looked at.",
        "",
        f"Weights: `{part}/`. Settings: `recipe.yaml`. Curve: `metrics.jsonl`.",
        "",
    ]
    if splits["labels"]:
        lines += [f"Classes: {', '.join(splits['labels'])}.", ""]
    return "\n".join(lines)
