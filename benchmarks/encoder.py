"""How fast does an encoder train on padded rows, by the kind of attention and with or without dropout?

    python benchmarks/encoder.py [--rounds 3] [--batch-size 32] [--seq-len 52] [--threads N]

The ways take turns on the same random rows, so that a slow minute of the machine meets all of them; a round before the
first warms up. Above 1, the ratio of the medians says that a way is faster than the first, Transformers' default.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from ftdocs import attention, hardware, models
from ftdocs.recipe import Data, Recipe

WAYS = {
    "sdpa, dropout": ("sdpa", 0.1),
    "sdpa, no dropout": ("sdpa", 0.0),
    "eager, dropout": ("eager", 0.1),
    "ftdocs, dropout": (attention.NAME, 0.1),
    "ftdocs, no dropout": (attention.NAME, 0.0),
}


def main() -> None:
    """Let the ways take turns, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm", help="an encoder; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of a way in a round; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=52, help="tokens of a row; default: %(default)s")
    parser.add_argument("--threads", type=int, help="of the CPU; default: all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(model=options.model, data=Data(path=Path("unused")))
    model, _ = models.load(recipe, ["no", "yes"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    shape = (options.batch_size, options.seq_len)
    ids = torch.randint(1000, model.config.vocab_size, shape, device=model.device)
    mask = torch.ones_like(ids)
    mask[::2, -options.seq_len // 4 :] = 0  # half of the rows are shorter
    labels = torch.arange(len(ids), device=model.device) % 2

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in range(options.steps):
            with models.autocast(model.device):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for a device that works asynchronously
        return time.perf_counter() - begun

    model.train()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with hardware.memory_kept():
        for round_ in range(options.rounds + 1):
            for way, (kind, share) in WAYS.items():
                model.set_attn_implementation(kind)
                models.set_dropout(model, share)
                taken = seconds()
                if round_:
                    found[way].append(options.batch_size * options.steps / taken)
    base = statistics.median(found["sdpa, dropout"])
    threads = torch.get_num_threads()
    print(
        f"{options.batch_size} rows of {options.seq_len} tokens, {threads} threads, {hardware.device_name()}"
    )
    print(f"{'way':20} {'rows/s':>8} {'lowest':>8} {'highest':>8} {'ratio':>6}")
    for way, rates in found.items():
        middle = statistics.median(rates)
        print(f"{way:20} {middle:8.1f} {min(rates):8.1f} {max(rates):8.1f} {middle / base:6.2f}")


if __name__ == "__main__":
    main()
