"""What this machine can do: its device, the dtype it is fast at, the size of run it gets.

PyTorch is imported inside the functions that use it, so that ``ftdocs doctor`` can say that it is missing.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ftdocs import files
from ftdocs.errors import InputError
from ftdocs.recipe import PROFILES, Profile

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "evaluate")
CPU_INDEX = "https://pytorch.org/get-started/locally/"  # where PyTorch documents its index of CPU builds
# What pip downloads for torch 2.13.0 and the libraries it needs, by `uv lock`'s list of file sizes.
DOWNLOADS = {"linux cuda": "2.7 GB", "linux cpu": "0.2 GB", "macos": "0.1 GB", "windows cpu": "0.1 GB"}


def device() -> "torch.device":
    """The device to train on: CUDA if there is one, else Apple's MPS, else the CPU.

    Of several processes on one machine, each gets the GPU that its launcher's ``LOCAL_RANK`` names.
    """
    import torch

    if torch.cuda.is_available():
        place = os.environ.get("LOCAL_RANK")
        return torch.device("cuda") if place is None else torch.device("cuda", int(place))
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside the block, large blocks of memory that a step frees stay with the process for the next one (Linux, CPU).

    glibc gives each block over 32 MB back to the system at once, and the system clears it before it is used again. In
    training on a CPU that is every large matrix of every step. At the end of the block the rest is given back.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or device().type != "cpu":
        yield
        return
    trim, threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    for option in (trim, threshold):
        libc.mallopt(option, 2**31 - 1)
    try:
        yield
    finally:
        for option in (trim, threshold):
            libc.mallopt(option, 128 * 1024)  # glibc's own
        give_back()


def give_back() -> None:
    """Let the process give freed memory back to the system, as far as its allocator can (Linux with glibc)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def profile() -> Profile:
    """The size of runs: ``$FTDOCS_PROFILE`` if set, else gpu with a CUDA device, else cpu.

    Raises:
        InputError: ``$FTDOCS_PROFILE`` is not one of smoke, cpu, gpu.
    """
    asked = os.environ.get("FTDOCS_PROFILE")
    if not asked:
        import torch

        return "gpu" if torch.cuda.is_available() else "cpu"
    for name in PROFILES:
        if asked == name:
            return name
    raise InputError(f"FTDOCS_PROFILE={asked}: no such profile; use smoke, cpu or gpu")


def matmul_gflops(dtype: "torch.dtype", size: int = 1024, repeats: int = 5) -> float:
    """GFLOP/s of a ``size`` × ``size`` matrix product in ``dtype`` on :func:`device`: the best of ``repeats``."""
    import torch

    where = device()
    a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up, and is seldom the best
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # .item() waits for a device that works asynchronously
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def dtype() -> "torch.dtype":
    """The dtype to compute in: bfloat16 where the device has units for it, else float32.

    A CPU with AMX or AVX512-BF16 multiplies matrices in bfloat16 several times as fast as in float32; one
    without is slower at it than at float32. :func:`matmul_gflops` shows which this one is.
    """
    import torch

    where = device()
    if where.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if where.type == "mps":
        return torch.float32
    units = torch.cpu.get_capabilities()
    return torch.bfloat16 if units.get("amx_bf16") or units.get("avx512_bf16") else torch.float32


def device_name() -> str:
    """The device in words: the GPU's or the CPU's model, and the CPU's number of cores."""
    if device().type == "cuda":
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{len(names)} × {names[0]}" if len(names) > 1 else names[0]
    return f"{cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def platform_note(system: str | None = None) -> str:
    """What of this book works on a platform, and how much installing PyTorch downloads there.

    Args:
        system: "Linux", "Darwin" or "Windows", as ``platform.system()`` says; this machine's when left out.
    """
    system = system or platform.system()
    if system == "Darwin":
        return (
            f"macOS 14 or newer on Apple silicon: PyTorch ({DOWNLOADS['macos']}) trains on the GPU through MPS, here in"
            " float32; FlashAttention is for CUDA only. Intel Macs have no build of this PyTorch."
        )
    if system == "Windows":
        return (
            f"Windows: pip brings PyTorch's CPU build ({DOWNLOADS['windows cpu']}); {CPU_INDEX} has the command for"
            " an NVIDIA GPU. Shell blocks of the book need Bash; in WSL 2 everything is as on Linux."
        )
    return (
        "Linux: the book is built here. On x86-64 a bare `pip install torch` brings the CUDA build"
        f" ({DOWNLOADS['linux cuda']}); the CPU build ({DOWNLOADS['linux cpu']}) is in PyTorch's own index:"
        f" {CPU_INDEX}"
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's result depends on; a missing package is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def importable(name: str) -> bool:
    """Whether a package can be imported. PyTorch really is, as its libraries may not fit this machine."""
    try:
        if name == "torch":
            importlib.import_module(name)
        return importlib.util.find_spec(name) is not None
    except (ImportError, OSError):
        return False


@dataclass(frozen=True)
class Check:
    """One line of ``ftdocs doctor``: what was looked at, what was found, and what mends it if it is not right."""

    name: str
    found: str
    ok: bool
    mend: str = ""


def checks(needed_disk: float = 3e9, needed_memory: float = 5e9) -> list[Check]:
    """Look at Python, packages, memory, disk and device of this machine.

    Args:
        needed_disk: free bytes that the cache folder should have (the book's models and runs).
        needed_memory: bytes of memory that the book's CPU recipes use at most.
    """
    found = []
    python = platform.python_version()
    found.append(Check("python", python, sys.version_info >= (3, 11), "install Python 3.11 or newer"))
    installed = versions()
    for name in PACKAGES:
        version = installed.get(name)
        works = version is not None and importable(name)
        text = version if works else "installed, but cannot be imported" if version else "not installed"
        again = "--force-reinstall " if version else ""
        mend = f'python -m pip install {again}-c requirements/constraints.txt "{name}"'
        found.append(Check(name, str(text), works, mend))
    memory = psutil.virtual_memory().total
    found.append(
        Check(
            "memory",
            f"{memory / 1e9:.1f} GB",
            memory >= needed_memory,
            f"the CPU recipes use up to {needed_memory / 1e9:.0f} GB; lower train.batch_size and train.seq_len",
        )
    )
    folder = files.home()
    existing = next(parent for parent in [folder, *folder.parents] if os.path.exists(parent))
    free = shutil.disk_usage(existing).free
    found.append(
        Check(
            "disk",
            f"{free / 1e9:.1f} GB free for the cache",
            free >= needed_disk,
            f"free {needed_disk / 1e9:.0f} GB, or set FTDOCS_HOME to a folder on a larger disk",
        )
    )
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    found.append(
        Check(
            "cache",
            "writable" if writable else f"{existing} is no folder that you may write to",
            writable,
            "set FTDOCS_HOME to a folder of yours",
        )
    )
    return found


def report() -> dict[str, Any]:
    """What ``ftdocs doctor`` says about the machine, as one JSON-able dictionary; less of it without PyTorch."""
    result: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}"}
    if importable("torch"):
        result |= compute()
    return result | {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "versions": versions(),
        "checks": [vars(check) for check in checks()],
    }


def compute() -> dict[str, Any]:
    """What PyTorch finds on this machine: device, dtype, profile, speed of matrix products, GPUs."""
    import torch

    where = device()
    result: dict[str, Any] = {
        "device": where.type,
        "device_name": device_name(),
        "dtype": str(dtype()).removeprefix("torch."),
        "profile": profile(),
        "matmul_gflops": {
            str(kind).removeprefix("torch."): round(matmul_gflops(kind))
            for kind in (torch.float32, torch.bfloat16)
        },
    }
    if where.type == "cuda":
        result["gpus"] = [
            {"name": gpu.name, "memory_bytes": gpu.total_memory}
            for gpu in (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        ]
    return result
