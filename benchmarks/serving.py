"""A thousand clients at once against `ftdocs serve`: what became of each, how long it took, and memory.

python benchmarks/serving.py [--requests 1000] [--model smollm2-135m-instruct]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter

import httpx2
import numpy as np
import psutil

from ftdocs.listen import more_files


async def one(client: httpx2.AsyncClient, url: str, model: str) -> tuple[str, float, int]:
    """What became of a request, its seconds, and the tokens of its answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 16}
    began = time.perf_counter()
    try:
        answer = await client.post(f"{url}/chat/completions", json=body)
    except httpx2.TransportError as error:
        return type(error).__name__, time.perf_counter() - began, 0
    made = answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else 0
    return str(answer.status_code), time.perf_counter() - began, made


async def crowd(url: str, model: str, count: int) -> list[tuple[str, float, int]]:
    """All of them at once."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        return await asyncio.gather(*(one(client, url, model) for _ in range(count)))


def main() -> None:
    """Start a server, send the crowd, print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name or a run's folder")
    options = parser.parse_args()
    more_files()
    for way in ("--batching", "--no-batching"):
        command = [
            sys.executable,
            "-m",
            "ftdocs.cli",
            "serve",
            options.model,
            "--json",
            "--no-app",
            "--port",
            "0",
        ]
        server = subprocess.Popen(
            [*command, "--rate", "0", way], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert server.stdout
        told = json.loads(server.stdout.readline())
        gateway, *below = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        before = [process.memory_info().rss for process in (gateway, *below)]
        began = time.perf_counter()
        found = asyncio.run(crowd(told["url"], told["model"], options.requests))
        seconds = time.perf_counter() - began
        after = [process.memory_info().rss for process in (gateway, *below)]
        answered = [took for status, took, _ in found if status == "200"]
        print(f"{way}: {dict(Counter(status for status, _, _ in found))} in {seconds:.1f} s")
        if answered:
            p50, p95 = np.percentile(answered, [50, 95])
            tokens = sum(made for _, _, made in found) / seconds
            print(f"  answered: p50 {p50:.2f} s, p95 {p95:.2f} s, {tokens:.0f} tokens/s")
        print(
            "  memory, MB, gateway and model:",
            *(f"{a / 1e6:.0f} → {b / 1e6:.0f}" for a, b in zip(before, after, strict=True)),
        )
        print("  one more is answered:", asyncio.run(crowd(told["url"], told["model"], 1))[0][0] == "200")
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
