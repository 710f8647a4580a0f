"""Measured memory: a peak that is over again is seen, and an error gets through."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ftdocs import hardware, measure

ROOT = Path(__file__).parents[1]


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


@pytest.mark.skipif(hardware.device().type != "cpu", reason="on a GPU the allocator itself keeps count")
def test_a_block_that_an_earlier_measurement_saw_is_none_of_the_next_ones() -> None:
    kept: list[torch.Tensor] = []
    assert measure.allocated_peak(lambda: kept.append(torch.ones(3_000_000))) == 12_000_000

    def frees_first() -> torch.Tensor:
        kept.clear()
        return torch.ones(1_000_000)

    assert measure.allocated_peak(frees_first) == 4_000_000


def test_a_measured_peak_lets_an_error_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure.measured_peak(lambda: 1 / 0)


def test_the_ladder_of_one_gpu_runs_and_holds_the_planner_beside_what_it_measured(
    capsys, monkeypatch
) -> None:
    """In small, on any device: a rung without and one with most means; the planner is within a tenth of both."""
    spec = importlib.util.spec_from_file_location("one_gpu", ROOT / "benchmarks" / "one_gpu.py")
    one_gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "one_gpu", one_gpu)
    spec.loader.exec_module(one_gpu)
    small = ["--steps", "1", "--batch-size", "1", "--seq-len", "64"]
    ways = ["--ways", "float32", "+ checkpointing"]
    monkeypatch.setattr(sys, "argv", ["one_gpu.py", *small, *ways])
    one_gpu.main()
    lines = capsys.readouterr().out.splitlines()
    for line, way in zip(lines[2:], ways[1:], strict=True):
        assert line.startswith(way)
        _, peak, planned, loss = map(float, line.removeprefix(way).split())
        assert peak == pytest.approx(planned, rel=0.1)
        assert 1 < loss < 6
