"""What the machine is said to be, against what it is."""

import json
import platform
import sys

import psutil
import pytest
import torch

from ftdocs import hardware
from ftdocs.errors import InputError


def test_the_profile_that_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTDOCS_PROFILE", "gpu")
    assert hardware.profile() == "gpu"


def test_without_being_asked_the_hardware_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTDOCS_PROFILE", raising=False)
    assert hardware.profile() == ("gpu" if torch.cuda.is_available() else "cpu")


def test_an_unknown_profile_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTDOCS_PROFILE", "huge")
    with pytest.raises(InputError, match=r"FTDOCS_PROFILE=huge.*smoke, cpu or gpu"):
        hardware.profile()


def test_the_report_is_json_and_agrees_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTDOCS_PROFILE", "smoke")
    report = json.loads(json.dumps(hardware.report()))
    assert report["profile"] == "smoke"
    assert report["memory_bytes"] == psutil.virtual_memory().total
    assert torch.__version__.startswith(report["versions"]["torch"].split("+")[0])
    assert report["versions"]["python"] == platform.python_version()
    assert report["dtype"] in ("float32", "bfloat16")
    assert all(speed > 0 for speed in report["matmul_gflops"].values())


def test_the_chosen_dtype_can_be_trained_in() -> None:
    weight = torch.ones(4, 4, dtype=hardware.dtype(), device=hardware.device(), requires_grad=True)
    (weight @ weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, 8))


@pytest.mark.parametrize(
    ("wanted", "name"), [({"needed_disk": 1e30}, "disk"), ({"needed_memory": 1e30}, "memory")]
)
def test_what_is_too_small_is_said_with_a_mend(wanted: dict[str, float], name: str) -> None:
    check = next(check for check in hardware.checks(**wanted) if check.name == name)
    assert not check.ok
    assert check.mend


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "PACKAGES", ("torch", "no-such-package"))
    check = next(check for check in hardware.checks() if check.name == "no-such-package")
    assert not check.ok
    assert "pip install" in check.mend
    assert "no-such-package" in check.mend


def test_the_cache_may_lie_in_a_folder_that_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("FTDOCS_HOME", str(tmp_path / "not" / "yet"))
    found = {check.name: check for check in hardware.checks(needed_disk=1)}
    assert found["disk"].ok
    assert found["cache"].ok
    assert not (tmp_path / "not").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cpu_has_a_name() -> None:
    assert len(hardware.cpu_name()) > 3


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_every_platform_has_a_note_with_a_size(system: str) -> None:
    assert " GB" in hardware.platform_note(system)


def test_the_note_is_of_this_platform_when_none_is_named() -> None:
    assert hardware.platform_note() == hardware.platform_note(platform.system())
