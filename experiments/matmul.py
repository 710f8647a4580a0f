"""How much faster is this device's matrix product in bfloat16 than in float32, and from which size on?

Held fixed: square matrices, this device, all its threads; the best of several products, since everything that
disturbs one makes it slower.
"""

import torch

from ftdocs import hardware

SEEDS: list[int] = []  # rates do not depend on the numbers multiplied
TOLERANCE = {"gflops": 0.5}  # other work on the machine takes its share
SIZES = (128, 256, 512, 1024, 2048)


def cases() -> list[dict]:
    """Every size in both dtypes."""
    return [{"dtype": dtype, "size": size} for dtype in ("float32", "bfloat16") for size in SIZES]


def run(case: dict) -> dict:
    """The rate of one product, in GFLOP/s."""
    return {
        "gflops": round(hardware.matmul_gflops(getattr(torch, case["dtype"]), case["size"], repeats=10), 1)
    }
