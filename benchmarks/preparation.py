"""How fast is data prepared, how does that grow with the rows, and how much memory does it take?

    python benchmarks/preparation.py [--rows 5000] [--rounds 3] [NAME …]

Each contestant turns one JSONL file of documentation into packed rows of 512 tokens and reads every one of them once,
in a process of its own: a file of so many rows, and one of ten times as many. The contestants take turns, round after
round, so that a slow minute of the machine meets them all. Printed are seconds by the clock (libraries and the
tokenizer are loaded before) and of all processors, rows and tokens a second, the ratio of speeds to the first
contestant, and the largest memory of the process; for the larger file also how many times the smaller one's time it
took and how much more memory. Ours also checks, cleans and deduplicates the rows, which TRL does not. TRL prepares
when its trainer is made, here for a tiny model, and cuts what is longer than a row into pieces, as ours does.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LENGTH = 512  # tokens of a packed row
TIMES = 10


def write_rows(path: Path, count: int, copies: int) -> None:
    """Some docstrings, each so many times with a first word that no other copy has: so many times the tokens, too."""
    from ftdocs import assets
    from ftdocs.data.read import read_rows

    texts = [row["text"] for row in read_rows(assets.data_path("docstrings"))]
    if count > len(texts):
        sys.exit(f"--rows {count}: there are {len(texts)} docstrings")
    chosen = random.Random(0).sample(texts, count)
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(json.dumps({"text": f"copy{copy} {text}"}) + "\n" for text in chosen)


def ours() -> Callable[[Path], Sequence[dict]]:
    """Read, check, clean, deduplicate, split, tokenise, pack."""
    import numpy  # noqa: F401, loaded before the clock starts

    from ftdocs.data import pack, prepare, split  # noqa: F401
    from ftdocs.recipe import Data

    tokenizer = load_tokenizer()

    def run(path: Path) -> Sequence[dict]:
        splits = prepare.load_splits(Data(path=path, validation=0, test=0), seed=0)
        return pack.pack(prepare.encode(splits.train, splits.format, tokenizer, LENGTH), LENGTH)

    return run


def trl() -> Callable[[Path], Sequence[dict]]:
    """TRL's SFTTrainer, given the file as a data set, up to the point where it could train."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))

    def run(path: Path) -> Sequence[dict]:
        with tempfile.TemporaryDirectory(dir=path.parent) as cache:
            loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
            settings = SFTConfig(
                output_dir=cache, max_length=LENGTH, packing=True, packing_strategy="bfd_split", use_cpu=True,
                bf16=False, report_to="none",
            )  # fmt: skip
            # Its rows are mapped: they can be read after their files have lost their names.
            return SFTTrainer(
                model=model, args=settings, train_dataset=loaded, processing_class=tokenizer
            ).train_dataset

    return run


def load_tokenizer() -> Any:
    """SmolLM2's."""
    from transformers import AutoTokenizer

    from ftdocs import assets

    return AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))


CONTESTANTS = {"ours": ours, "trl": trl}


def measure(name: str, path: Path) -> dict[str, float]:
    """One contestant on one file, in this process."""
    run = CONTESTANTS[name]()
    start, begun = time.perf_counter(), time.process_time()
    tokens = sum(len(row["input_ids"]) for row in run(path))
    seconds, busy = time.perf_counter() - start, time.process_time() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_seconds": busy,
        "tokens": tokens,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def main() -> None:
    """Let the contestants take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.names[0], options.one)))
        return
    names = options.names or list(CONTESTANTS)
    counts = (options.rows, options.rows * TIMES)
    found: dict[tuple[str, int], list[dict[str, float]]] = {
        (name, rows): [] for name in names for rows in counts
    }
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        for rows in counts:
            write_rows(Path(folder, f"{rows}.jsonl"), options.rows, rows // options.rows)
        for number in range(1, options.rounds + 1):
            for name, rows in found:
                command = [sys.executable, __file__, name, "--one", str(Path(folder, f"{rows}.jsonl"))]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr[-2000:]}")
                found[name, rows].append(json.loads(done.stdout.splitlines()[-1]))
                last = found[name, rows][-1]["seconds"]
                print(f"round {number}: {name}, {rows} rows: {last:.1f} s", file=sys.stderr, flush=True)
    seconds, busy = (
        {key: statistics.median(one[unit] for one in several) for key, several in found.items()}
        for unit in ("seconds", "cpu_seconds")
    )
    peaks = {key: max(one["peak_bytes"] for one in several) for key, several in found.items()}
    columns = (
        "contestant, rows, seconds, CPU seconds, rows/s, tokens/s, speed, GB, time of ×10, memory of ×10"
    )
    print(f"| {columns.replace(', ', ' | ')} |\n|{' --- |' * len(columns.split(', '))}")
    for (name, rows), several in found.items():
        taken, small = seconds[name, rows], (name, counts[0])
        growth = (f"×{taken / seconds[small]:.1f}", f"+{(peaks[name, rows] - peaks[small]) / 1e6:.0f} MB")
        cells = (
            name, rows, f"{taken:.1f}", f"{busy[name, rows]:.1f}", f"{rows / taken:.0f}",
            f"{several[0]['tokens'] / taken:.0f}", f"{seconds[names[0], rows] / taken:.2f}",
            f"{peaks[name, rows] / 1e9:.2f}", *(growth if rows != counts[0] else ("", "")),
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
