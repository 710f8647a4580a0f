"""How much memory a piece of work took, measured while it ran."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from ftdocs import hardware


def measured_peak(work: Callable[[], object], every: float = 0.002) -> int:
    """Run ``work`` and return the most bytes that were in use meanwhile, above those in use before.

    On CUDA what PyTorch's allocator handed out; on MPS what it holds; on the CPU the process's resident memory,
    looked at ``every`` so many seconds by a second thread.
    """
    kind = hardware.device().type
    if kind == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    in_use = (
        torch.mps.driver_allocated_memory if kind == "mps" else lambda: psutil.Process().memory_info().rss
    )
    hardware.give_back()  # or the work fills blocks that were freed before, and nothing seems to be taken
    before = most = in_use()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, in_use())
            time.sleep(every)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(most, in_use()) - before


def process_peak() -> int:
    """The most memory that this process ever had at once, in bytes: what Linux keeps count of (``VmHWM``)."""
    kept = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in kept.splitlines() if line.startswith("VmHWM"))
