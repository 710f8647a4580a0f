"""How much memory a piece of work took, measured while it ran."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from ftdocs import hardware


def measured_peak(work: Callable[[], object], every: float = 0.002) -> int:
    """Run ``work`` and return the most bytes that were in use meanwhile, above those in use before.

    On CUDA what PyTorch's allocator handed out; on MPS what it holds; on the CPU the process's resident memory,
    looked at ``every`` so many seconds by a second thread, so that it differs a little from time to time.
    """
    kind = hardware.device().type
    if kind == "cuda":
        return _allocated_on_cuda(work)
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


def allocated_peak(work: Callable[[], object]) -> int:
    """Run ``work`` and return the most bytes of tensors that it had at once: the same each time on one machine.

    On CUDA and on the CPU what PyTorch's allocator handed out, above what it had handed out before; the work space of
    libraries is not in it. On the CPU each allocation is a row in a trace: for a few steps, not for a training. On MPS
    :func:`measured_peak`.
    """
    kind = hardware.device().type
    if kind == "cuda":
        return _allocated_on_cuda(work)
    if kind != "cpu":
        return measured_peak(work)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        work()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    there: dict[int, int] = {}  # by address: a block taken before, and freed now, is none of this work's
    in_use = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size > 0:
            there[address] = size
            in_use += size
            most = max(most, in_use)
        else:
            in_use -= there.pop(address, 0)
    return most


def _allocated_on_cuda(work: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def process_peak() -> int:
    """The most memory that this process ever had at once, in bytes: what Linux keeps count of (``VmHWM``)."""
    kept = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in kept.splitlines() if line.startswith("VmHWM"))
