"""How fast does each way of fine-tuning train? Print the table, measured now; nothing is recorded.

    python benchmarks/throughput.py [--rounds 3] [WAY …]

The ways and what is held fixed stand in ``experiments/throughput.py``, whose recorded run the book shows. The column
``ratio`` says how many times as fast the loop is, or where it is not asked for, the first way. Speeds are to be
compared at the same held-out loss; a way whose loss is more than 1 % from that is marked.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import throughput


def main() -> None:
    """Let the ways take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="*", metavar="WAY", help="; ".join(throughput.WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if unknown := set(options.ways) - set(throughput.WAYS):
        parser.error(f"no such way: {', '.join(sorted(unknown))}; there is {'; '.join(throughput.WAYS)}")
    rows: dict[str, list[dict]] = {way: [] for way in options.ways or throughput.WAYS}
    for number in range(1, options.rounds + 1):
        for way, found in rows.items():
            found.append(throughput.run({"way": way}))
            rate = found[-1]["tokens_per_second"]
            print(f"round {number}: {way}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    print(table(rows))


def table(rows: dict[str, list[dict]]) -> str:
    """Medians over the rounds, as Markdown."""
    middle = {
        way: {column: statistics.median(row[column] for row in found) for column in found[0]}
        for way, found in rows.items()
    }
    base = middle.get("loop") or next(iter(middle.values()))
    lines = [
        "| way | tokens/s | ratio | share of peak | GB | held-out loss |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, row in middle.items():
        rate = row["tokens_per_second"]
        other = ", not the same" * (abs(row["held_out_loss"] / base["held_out_loss"] - 1) > 0.01)
        cells = (f"{rate:.0f}", f"{base['tokens_per_second'] / rate:.2f}", f"{row['share_of_peak']:.2f}",
                 f"{row['peak_bytes'] / 1e9:.2f}", f"{row['held_out_loss']:.3f}{other}")  # fmt: skip
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
