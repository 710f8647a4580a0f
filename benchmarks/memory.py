"""How far from what others measured are the planner and three rules of thumb?

    python benchmarks/memory.py

Every row of benchmarks/memory-measured.csv is a figure that somebody published for one GPU, with all that the planner
asks stated beside it or in that software's code. None was used to fit anything. Of each way the difference to it:

- planner: `ftdocs plan`;
- estimate: `accelerate estimate-memory`, "training using Adam" in 16 bits: 8 bytes a parameter, whatever is trained;
- Eleuther: the calculator of EleutherAI's cookbook: 2 + 4 + 12 bytes a parameter, and activations by ZeRO's formula;
- bytes: 8 a parameter where all are trained in 16 bits, 2 where they are frozen, a half in nf4.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ftdocs import memory, shapes
from ftdocs.memory import Setting
from ftdocs.shapes import Shape

TABLE = Path(__file__).with_name("memory-measured.csv")


def eleuther(shape: Shape, asked: Setting) -> float:
    """Bytes; https://github.com/EleutherAI/cookbook/blob/main/calc/calc_transformer_mem.py, which knows no adapters.

    ZeRO-3 where there are several GPUs, without the buffers that it adds for DeepSpeed's communication.
    """
    attention = 0 if asked.checkpointing else 5 * shape.heads * asked.seq_len / shape.hidden
    activations = asked.batch_size * asked.seq_len * shape.hidden * shape.layers * (34 + attention)
    return 18 * shape.parameters / asked.gpus + activations


RULES: dict[str, Callable[[Shape, Setting], float]] = {
    "planner": lambda shape, asked: memory.need(shape, asked).peak.total,
    "estimate": lambda shape, _: 8 * shape.parameters,
    "Eleuther": eleuther,
    "bytes": lambda shape, asked: (
        {"full": 8, "lora": 2, "qlora": 0.5}[asked.method] * shape.parameters / asked.gpus
    ),
}


def compared() -> list[dict[str, Any]]:
    """The rows, and of each rule its relative difference."""
    with TABLE.open(encoding="utf-8") as file:
        return [{**row, **differences(row)} for row in csv.DictReader(file)]


def differences(row: dict[str, str]) -> dict[str, float]:
    """By how much each rule is above what was published, as a share of it."""
    asked = Setting(
        row["method"],
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
        gpus=int(row["gpus"]),
        sharding=row["sharding"],
        checkpointing=row["checkpointing"] == "yes",
        fused_loss=row["fused_loss"] == "yes",
        optimizer=row["optimizer"],
        rank=int(row["rank"]),
        targets=row["targets"],
    )
    shape, published = shapes.find(row["model"]), 1e9 * float(row["gigabytes"])
    return {name: rule(shape, asked) / published - 1 for name, rule in RULES.items()}


def plain(row: dict[str, Any]) -> bool:
    """One GPU, a LLaMA in 16 bits, neither compiled nor "reserved": the least that the software can add of its own."""
    alone = row["gpus"] == "1" and "," not in row["stack"]
    return alone and row["model"].startswith("Llama") and row["method"] != "qlora"


def main() -> None:
    """Print the table."""
    rows, width = compared(), {name: max(6, len(name)) for name in RULES}
    head = f"{'model':13}{'method':6}{'tokens':>7}{'GPUs':>5} {'stack':20}{'GB':>6}"
    print(head, *(f"{name:>{width[name]}}" for name in RULES))
    for row in rows:
        tokens, gigabytes = f"{row['batch_size']}×{row['seq_len']}", float(row["gigabytes"])
        case = (
            f"{row['model']:13}{row['method']:6}{tokens:>7}{row['gpus']:>5} {row['stack']:20}{gigabytes:6.2f}"
        )
        print(case, *(f"{row[name]:>+{width[name]}.0%}" for name in RULES))
    alone = [row for row in rows if plain(row)]
    for what, chosen in (("all", rows), ("one GPU, LLaMA, 16 bits, as allocated", alone)):
        for said, summary in (("median", median), ("worst", max)):
            found = {name: summary([abs(row[name]) for row in chosen]) for name in RULES}
            print(
                f"{f'{what}: {said} of {len(chosen)}':58}",
                *(f"{found[name]:>{width[name]}.1%}" for name in RULES),
            )


if __name__ == "__main__":
    main()
