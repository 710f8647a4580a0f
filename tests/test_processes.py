"""Several processes train as one: DDP through Trainer, FSDP2 through the loop, started by their real launchers."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_engines import documents, same, work
from test_engines import curve as column
from torch.distributed.tensor import DTensor

from ftdocs import checkpoints, loop, processes, trainer

SETTINGS = {"packing": False, "batch_size": 2, "accumulation": 2, "max_steps": 20}
ROWS = 57  # of different lengths; the last step of an epoch has one row, so that a process is left without


def cases(folder: Path, engine: str) -> list[dict]:
    return [
        {"engine": engine, "method": method, "folder": str(folder / f"{engine}-{method}")}
        for method in ("full", "lora")
    ]


def run_case(case: dict) -> None:
    """Train one job in this process, or with the others; the trained weights are left as ``weights.safetensors``."""
    engine = {"loop": loop, "trainer": trainer}[case["engine"]]
    folder = Path(case["folder"])
    each = work(folder, rows=documents(ROWS), method=case["method"], **{**SETTINGS, **case.get("train", {})})
    each.resumed_from = Path(case["resume"]) if "resume" in case else None
    engine.run(each)
    if processes.count() > 1 and case["engine"] == "loop":
        assert all(isinstance(parameter, DTensor) for parameter in each.model.parameters())
    weights = processes.whole_weights(each.model, trained_only=True)
    if processes.is_main():
        save_file({name: weight.clone() for name, weight in weights.items()}, folder / "weights.safetensors")


if __name__ == "__main__":
    with processes.joined():
        for each_case in json.loads(sys.argv[1]):
            run_case(each_case)
