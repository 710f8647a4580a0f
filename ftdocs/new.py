"""Look at a data file and write a commented recipe for it."""

import os
from pathlib import Path

from ftdocs import files
from ftdocs.data import prepare
from ftdocs.errors import InputError
from ftdocs.recipe import Data, Recipe

TEMPLATE = """\
# Written by `ftdocs new` after a look at {name}: {rows} rows{duplicates}, format {format}{labels}.
# Train with `ftdocs train {recipe}`; see what will be trained on with `ftdocs data inspect {data} --recipe {recipe}`.
model: {model}
data:
  path: {data}
  format: {format}{format_note}
  validation: {share}           # share of the rows held out to watch the training
  test: {share}                 # share held out for the final figure; `ftdocs evaluate` uses it
method:
  name: {method}{method_keys}
train:
  epochs: {epochs}                  # passes over the training rows
  batch_size: {batch_size}              # sequences at once; halve it when memory runs out
  accumulation: {accumulation}            # batches per optimiser step; double it when you halve batch_size
  seq_len: {seq_len}               # tokens; longer rows are {longer}
  learning_rate: {learning_rate}      # the first thing to try values of
  seed: 0
profiles:                     # what changes with size: FTDOCS_PROFILE=smoke tries the recipe in seconds
  smoke: {{data: {{limit: 64}}, train: {{max_steps: 2, batch_size: 2, seq_len: 128}}}}
"""
FORMAT_NOTES = {
    "messages": "            # chats: only the assistant's words and its end-of-turn token are trained",
    "prompt": "              # prompt/completion: only the completion is trained",
    "instruction": "         # instruction/input/output: only the output is trained",
    "text": "                # plain text: every token is trained (continued pretraining)",
    "label": "               # text/label: a classifier",
}


def write_recipe(data_file: Path, output: Path | None = None) -> Path:
    """Write a recipe for ``data_file`` (to ``NAME.yaml`` in the working folder when ``output`` is left out).

    The whole file is read and checked first, so a broken row is found now and not after a night.

    Raises:
        InputError: the data cannot be used, or a file is there already (it is not overwritten).
    """
    target = output or Path(f"{data_file.name.split('.')[0]}.yaml")
    if target.exists():
        raise InputError(f"{target}: exists; choose another name with --output, or remove it")
    if not data_file.exists():
        raise InputError(f"{data_file}: no such file or folder")
    share = 0.1
    splits = prepare.load_splits(Data(path=data_file, validation=share, test=share), seed=0)
    is_label = splits.format == "label"
    rows = sum(len(part) for part in (splits.train, splits.validation, splits.test))
    dropped = splits.report["duplicates"]
    # A path that starts from the recipe's own folder goes on working when both are moved together.
    relative = Path(os.path.relpath(data_file.resolve(), target.resolve().parent)).as_posix()
    text = TEMPLATE.format(
        name=data_file.name,
        rows=rows,
        duplicates=f" ({dropped} repeated ones left out)" if dropped else "",
        format=splits.format,
        format_note=FORMAT_NOTES[splits.format],
        labels=f" with the classes {', '.join(splits.labels)}" if splits.labels else "",
        recipe=target,
        model="minilm                 # a small BERT"
        if is_label
        else "smollm2-135m-instruct  # a small LLaMA",
        data=relative,
        share=share,
        method="full                  # every weight; lora trains small adapters" if is_label else "lora",
        method_keys="" if is_label else "\n  rank: 8\n  targets: all-linear",
        epochs=3 if is_label else 1,
        batch_size=16 if is_label else 2,
        accumulation=1 if is_label else 4,
        seq_len=256 if is_label else 512,
        longer="cut" if splits.format != "text" else "split, nothing is lost",
        learning_rate="5.0e-5" if is_label else "1.0e-3",
    )
    with files.explain_write_errors(target):
        files.write_atomic(target, text)
    Recipe.load(target)
    return target
