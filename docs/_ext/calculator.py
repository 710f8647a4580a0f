"""The planner's calculator: ``{calculator}`` puts its form on a page, and its shapes and constants come from Python."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ftdocs import memory, plan, shapes

DATA = "planner-data.js"
CHOICES = {
    "method": ("Method", memory.CHOICES["method"], "lora"),
    "dtype": ("Numbers", memory.CHOICES["dtype"], "bf16"),
    "optimizer": ("Optimiser", memory.CHOICES["optimizer"], "adamw-fused"),
    "attention": ("Attention", ("sdpa", "eager"), "sdpa"),
    "sharding": ("Sharing", memory.CHOICES["sharding"], "none"),
}
NUMBERS = {
    "batch_size": ("Micro-batch, sequences", 1),
    "accumulation": ("Micro-batches of a step", 1),
    "seq_len": ("Sequence length, tokens", 2048),
    "rank": ("LoRA rank", 8),
    "gpus": ("GPUs", 1),
}
SWITCHES = {
    "checkpointing": ("Activation checkpointing", True),
    "fused_loss": ("Loss in pieces", False),
    "master_weights": ("float32 weights, autocast", False),
}


def data() -> dict[str, Any]:
    """All that the calculator knows: shapes by name, GPUs by name with their bytes, and the planner's constants."""
    return {
        "models": {
            name: described(shapes.shape(config, name)) for name, config in shapes.catalogue().items()
        },
        "gpus": {name: plan.gpu_bytes(name) for name in shapes.catalogue("gpus")},
        "without_bf16": [name for name in shapes.catalogue("gpus") if plan.is_old(name)],
        "constants": {
            "nf4": memory.NF4,
            "eight_bit": memory.EIGHT_BIT,
            "bucket": memory.BUCKET,
            "most": memory.MOST,
            "context": plan.CONTEXT,
            "gaps": plan.GAPS,
            "held": plan.HELD,
        },
    }


def described(shape: shapes.Shape) -> dict[str, Any]:
    """A shape with what follows from it."""
    derived = ("queries", "keys", "gated", "parameters", "embedding")
    return {
        **asdict(shape),
        **{name: getattr(shape, name) for name in derived},
        "ends": memory.outputs_of(shape),
    }


def script() -> str:
    """``planner-data.js``."""
    return f"const PLANNER = {json.dumps(data())};\n"


class Calculator(SphinxDirective):
    """``{calculator}``: the form, which works without a server and with the keyboard."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", form(), format="html")]


def form() -> str:
    """The calculator's HTML; models and GPUs are put in by its script."""
    rows = ['<label>Model <select name="model"></select></label>']
    for name, (label, values, chosen) in CHOICES.items():
        options = "".join(f"<option{' selected' * (each == chosen)}>{each}</option>" for each in values)
        rows.append(f'<label>{label} <select name="{name}">{options}</select></label>')
    for name, (label, value) in NUMBERS.items():
        rows.append(f'<label>{label} <input type="number" min="1" name="{name}" value="{value}"></label>')
    rows.append('<label>GPU <select name="gpu"></select></label>')
    for name, (label, on) in SWITCHES.items():
        rows.append(
            f'<label class="calculator-switch"><input type="checkbox" name="{name}"{" checked" * on}> {label}</label>'
        )
    inner = "\n".join(rows)
    return (
        '<form id="calculator" aria-label="Memory of a training step">\n<div class="calculator-fields">\n'
        f'{inner}\n</div>\n<output aria-live="polite">This calculator needs JavaScript.</output>\n</form>\n'
    )


def write_data(app: Sphinx) -> None:
    """Write the script's data beside the site's other static files."""
    target = Path(app.outdir) / "_static" / DATA
    if app.builder.format == "html":
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(script(), encoding="utf-8")


def add_scripts(
    app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Load the scripts on the calculator's page alone."""
    if doctree and any("calculator-fields" in raw.astext() for raw in doctree.findall(nodes.raw)):
        for name in (DATA, "planner.js", "calculator.js"):
            app.add_js_file(name, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; called by Sphinx."""
    app.add_directive("calculator", Calculator)
    app.connect("builder-inited", write_data)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
