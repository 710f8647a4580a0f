"""How fast does LLaMA from scratch write, beside Transformers' ``generate``, on the same weights?

    python benchmarks/generation.py [--rounds 5] [--tokens 100] [--batch 1] [--dtype float32]

Both write greedily from the same prompt, with a key-value cache, and must write the same in float32. They take turns,
so that a slow minute of the machine meets both; a round before the first warms up. Above 1, the ratio of the medians
says that ours is faster; where lowest and highest rates overlap widely, it says little.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftdocs import assets, hardware, llama

PROMPT = "The capital of France is Paris. The capital of Italy is"


def main() -> None:
    """Let both take turns, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a LLaMA; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tokens", type=int, default=100, help="written after the prompt; default: %(default)s"
    )
    parser.add_argument("--batch", type=int, default=1, help="copies of the prompt; default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    folder, dtype, device = assets.model_path(options.model), getattr(torch, options.dtype), hardware.device()
    own = llama.load(folder, dtype, device)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    ids = ids.repeat(options.batch, 1).to(device)
    theirs.generation_config.eos_token_id = None  # so that both write as many as asked for
    settings = {"max_new_tokens": options.tokens, "do_sample": False}
    mask = torch.ones_like(ids)  # nothing is padding
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ftdocs.llama": lambda: llama.generate(own, ids, options.tokens),
        "transformers": lambda: theirs.generate(ids, attention_mask=mask, **settings),
    }
    same = torch.equal(*(write() for write in ways.values()))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1, options.rounds + 1):
        for way, write in ways.items():
            began = time.perf_counter()
            write()[0, -1].item()  # .item() waits for a device that works asynchronously
            rates[way].append(options.batch * options.tokens / (time.perf_counter() - began))
            print(f"round {number}: {way}: {rates[way][-1]:.1f} tokens/s", file=sys.stderr, flush=True)
    print(
        f"{options.model}, {options.dtype}, batch {options.batch}, {options.tokens} tokens after {ids.shape[1]};"
    )
    print(
        f"{hardware.device_name()}, {torch.get_num_threads()} threads; the same text: {'yes' if same else 'NO'}"
    )
    print("| way | tokens/s, median | lowest | highest |", "| --- | --- | --- | --- |", sep="\n")
    for way, found in rates.items():
        print(f"| {way} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")
    ratio = statistics.median(rates["ftdocs.llama"]) / statistics.median(rates["transformers"])
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
