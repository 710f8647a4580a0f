"""Measured memory: a peak that is over again is seen, and an error gets through."""

import pytest
import torch

from ftdocs import hardware, measure


@pytest.mark.skipif(hardware.device().type != "cpu", reason="looks at the memory of the process")
def test_a_measured_peak_sees_memory_that_is_freed_again(run_python) -> None:
    """In a process of its own: memory that earlier tests freed would be used again and hide the peak."""
    done = run_python("""
import time
import torch
from ftdocs import measure

def work():
    block = torch.ones(50_000_000)
    time.sleep(0.5)  # on a busy machine the thread that looks has to get its turn
    del block

print(measure.measured_peak(work), measure.measured_peak(lambda: None))
""")
    assert done.returncode == 0, done.stderr
    block, nothing = map(int, done.stdout.split())
    assert block == pytest.approx(200e6, rel=0.05)
    assert nothing < 20e6


@pytest.mark.skipif(hardware.device().type == "mps", reason="MPS counts what the allocator holds")
def test_an_allocated_peak_is_exact() -> None:
    device = hardware.device()
    there = torch.ones(1_000_000, device=device)

    def work() -> torch.Tensor:
        a = torch.ones(2_000_000, device=device)  # 8 MB
        b = a + 1  # 8 MB more
        del a
        return b[:1_000_000] * there  # 4 MB beside b

    assert measure.allocated_peak(work) == pytest.approx(16e6, abs=64)  # and a number or two
    assert measure.allocated_peak(lambda: None) == 0


def test_a_measured_peak_lets_an_error_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure.measured_peak(lambda: 1 / 0)
