"""How far from what others measured are the planner and three rules of thumb?

    python benchmarks/memory.py

Every row of benchmarks/memory-measured.csv is a figure that somebody published for a GPU, with all that the planner
asks stated beside it or in that software's code. None was used to fit anything. Of each way the difference to it:

- planner: `ftdocs plan`;
- estimate: `accelerate estimate-memory`, "training using Adam" in 16 bits: 8 bytes a parameter, whatever is trained;
- Eleuther: the calculator of EleutherAI's cookbook: 2 + 4 + 12 bytes a parameter, and activations by ZeRO's formula;
- bytes: 8 a parameter where all are trained in 16 bits, 2 where they are frozen, a half in nf4.

Of rows that differ in their tokens alone, what a token more takes.
"""

import csv
import itertools
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


def setting(row: dict[str, Any]) -> Setting:
    """What a row says of the training."""
    return Setting(
        row["method"],
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
        gpus=int(row["gpus"]),
        sharding=row["sharding"],
        checkpointing=row["checkpointing"] == "yes",
        fused_loss=row["fused_loss"] == "yes",
        optimizer=row["optimizer"],
        cpu_offload=row["cpu_offload"] == "yes",
        rank=int(row["rank"]),
        targets=row["targets"],
    )


def differences(row: dict[str, str]) -> dict[str, float]:
    """By how much each rule is above what was published, as a share of it."""
    shape, published = shapes.find(row["model"]), 1e9 * float(row["gigabytes"])
    return {name: rule(shape, setting(row)) / published - 1 for name, rule in RULES.items()}


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rows that differ in their tokens alone: bytes a token more, as published and as the planner has it.

    At one length an error of what rests and one of what grows can cancel; between two of them they cannot.
    """
    alike: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        same = tuple(row[key] for key in row if key not in ("batch_size", "seq_len", "gigabytes", *RULES))
        alike.setdefault(same, []).append(row)
    found = []
    for group in alike.values():
        group = sorted(group, key=lambda row: setting(row).tokens)
        for few, many in itertools.pairwise(group):
            more = setting(many).tokens - setting(few).tokens
            if more:
                published = 1e9 * (float(many["gigabytes"]) - float(few["gigabytes"])) / more
                peaks = [memory.need(shapes.find(row["model"]), setting(row)).peak for row in (few, many)]
                planned = (peaks[1].total - peaks[0].total) / more
                found.append({"few": few, "many": many, "published": published, "planner": planned})
    return found


def plain(row: dict[str, Any]) -> bool:
    """One GPU, a LLaMA in 16 bits, neither compiled nor "reserved": the least that the software can add of its own."""
    alone = row["gpus"] == "1" and "," not in row["stack"]
    return alone and row["model"].startswith("Llama") and row["method"] != "qlora"


def tokens(row: dict[str, Any]) -> str:
    """Of a micro-batch, as sequences × tokens."""
    return f"{row['batch_size']}×{row['seq_len']}"


def over(row: dict[str, Any]) -> str:
    """Over how many GPUs, and how."""
    how = "offload" if row["cpu_offload"] == "yes" else row["sharding"] if row["gpus"] != "1" else ""
    return f"{row['gpus']} {how}".strip()


def main() -> None:
    """Print the tables."""
    rows, width = compared(), {name: max(6, len(name)) for name in RULES}
    head = f"{'model':16}{'method':6}{'tokens':>8} {'GPUs':9} {'stack':20}{'GB':>6}"
    print(head, *(f"{name:>{width[name]}}" for name in RULES))
    for row in rows:
        case = f"{row['model']:16}{row['method']:6}{tokens(row):>8} {over(row):9} {row['stack']:20}"
        print(f"{case}{float(row['gigabytes']):6.2f}", *(f"{row[name]:>+{width[name]}.0%}" for name in RULES))
    alone = [row for row in rows if plain(row)]
    for what, chosen in (("all", rows), ("one GPU, LLaMA, 16 bits, as allocated", alone)):
        for said, summary in (("median", median), ("worst", max)):
            found = {name: summary([abs(row[name]) for row in chosen]) for name in RULES}
            print(
                f"{f'{what}: {said} of {len(chosen)}':{len(head)}}",
                *(f"{found[name]:>{width[name]}.1%}" for name in RULES),
            )
    print(
        f"\n{'MB a token more':16}{'method':6}{'from':>8} {'to':>8} {'GPUs':9} {'stack':20}published planner"
    )
    for pair in slopes(rows):
        few, many = pair["few"], pair["many"]
        case = f"{few['model']:16}{few['method']:6}{tokens(few):>8} {tokens(many):>8} {over(few):9}"
        sizes = f"{pair['published'] / 1e6:9.3f} {pair['planner'] / 1e6:7.3f}"
        share = f"{pair['planner'] / pair['published'] - 1:+.0%}" if pair["published"] > 0 else ""
        print(f"{case} {few['stack']:20}{sizes} {share:>6}".rstrip())


if __name__ == "__main__":
    main()
