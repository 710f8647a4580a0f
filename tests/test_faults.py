"""What a run outlives: a kill at any moment, a damaged checkpoint, a full disk; it goes on to the same last bit.

`nox -s faults` kills fifty times; here a few kinds of moments are tried once each.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_runs
from forked import Command

from ftdocs import checkpoints, progress, runs
from ftdocs import train as training

job, tiny_llama = test_runs.job, test_runs.tiny_llama  # fixtures
curve, run = test_runs.curve, test_runs.run
ENGINES = pytest.mark.parametrize("engine", ["trainer", "loop"])
# Dropout draws random numbers at each step, and a row of the curve is a mean over three of them.
SETTINGS = ["train.max_steps=12", "train.save_every=2", "train.log_every=3", "method.dropout=0.1"]


def training_command(
    job: Path, engine: str, folder: Path, *more: str, settings: list[str] = SETTINGS
) -> list[str]:
    words = [word for setting in [f"train.engine={engine}", *settings] for word in ("--set", setting)]
    return ["train", str(job), *words, "--output", str(folder), "--json", *more]


def weights(folder: Path) -> dict[str, bytes]:
    """The tuned weights, as they are on the disk."""
    return {path.name: path.read_bytes() for path in folder.glob("*/*.safetensors")}


def assert_same(folder: Path, whole: Path) -> None:
    """Every figure of the curve and every bit of the weights are those of the undisturbed run."""
    assert curve(folder) == curve(whole)
    assert weights(folder) == weights(whole) != {}
    assert names(folder) == names(whole), "something is left behind"


def names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()


def written(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 while it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def newest_good(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    return max(
        (checkpoints.step_of(each) for each in checkpoints.newest_first(folder) if checkpoints.is_good(each)),
        default=0,
    )


def torn(folder: Path) -> set[str]:
    """What lies among the checkpoints and is none: one that is being written, or removed."""
    return {
        name
        for name in names(folder / "checkpoints")
        if not checkpoints.is_good(folder / "checkpoints" / name)
    }


def kill(
    process: Command, folder: Path, moment: str, chance: random.Random, seconds: dict[str, float]
) -> None:
    """Kill a run at a moment of one of four kinds, unless it ends before."""
    started, saved = folder / runs.ENVIRONMENT, folder / "checkpoints"
    match moment:
        case "starting":
            process.kill_after(chance.uniform(0, seconds["starting"]))
        case "training":
            before = written(started)
            if process.until(lambda: written(started) != before):
                process.kill_after(chance.uniform(0, seconds["training"]))
        case "saving":  # folders come and go as it saves: the first change, or a later one
            for _ in range(chance.randint(1, 4)):
                before = names(saved)
                process.until(lambda before=before: names(saved) != before)
            process.kill_after(chance.uniform(0, 0.01))
        case "ending":
            if process.until(lambda: any("adapter" in name for name in names(folder))):
                process.kill_after(chance.uniform(0, 0.05))


MOMENTS = ("saving", "training", "ending", "saving", "starting")


@ENGINES
def test_a_run_that_is_killed_again_and_again_goes_on_bitwise(job, engine, request):
    """Killed, resumed, killed; when it has reached its end, another one, until there were enough kills."""
    kills, whole = request.config.getoption("kills"), Path("whole")
    assert Command("train", "nowhere.yaml").end()[0] == 2  # what all are forked from has started now
    began = time.time()
    code, said = Command(*training_command(job, engine, whole)).end()
    assert code == 0, said
    starting = written(whole / runs.ENVIRONMENT) / 1e9 - began
    seconds = {"starting": starting, "training": time.time() - began - starting}

    chance, killed, in_a_save, finished = random.Random(engine), Counter(), 0, 0
    while not finished or killed.total() < kills:
        folder = Path(f"killed-{finished}")
        good, broken = newest_good(folder), torn(folder)
        process = Command(*training_command(job, engine, folder, "--resume"))
        if killed.total() < kills:
            moment = MOMENTS[killed.total() % len(MOMENTS)]
            kill(process, folder, moment, chance, seconds)
        code, said = process.end()
        assert code in (0, -9), said
        if code == 0:
            assert_same(folder, whole)
            finished += 1
            continue
        killed[moment] += 1
        if not (folder / runs.RESULT).exists():
            assert newest_good(folder) >= good, f"{moment}: a whole checkpoint is gone"
            in_a_save += bool(torn(folder) - broken)
    print(f"{engine}: {dict(killed)}, {in_a_save} of them within a save; {finished} runs reached their end")
    assert kills < 50 or in_a_save >= 5


# From here on a run stops after its last step, before the model is written: checkpoints 6 and 4 lie there.
SHORT = ["train.max_steps=6", "train.save_every=2", "train.log_every=3"]


@pytest.fixture(scope="module", params=["trainer", "loop"])
def made(request, tiny_llama, tmp_path_factory) -> tuple[Path, str]:
    """A folder with the run `stopped` and with `whole`, what has to come out of it; and their engine."""
    folder = tmp_path_factory.mktemp("made")
    data = test_runs.write(folder / "faq.jsonl", test_runs.rows("prompt"))
    job = test_runs.recipe_file(folder, data, tiny_llama)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*training_command(job, request.param, Path("whole"), settings=SHORT)) == 0
        patch.setattr(training, "save", lambda *_: sys.exit("stopped"))
        with pytest.raises(SystemExit, match="stopped"):
            run(*training_command(job, request.param, Path("stopped"), settings=SHORT))
    return folder, request.param


@pytest.fixture
def stopped(made, tmp_path, monkeypatch) -> list[str]:
    """The command that resumes a copy of the run `stopped`."""
    folder, engine = made
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert [checkpoints.step_of(each) for each in checkpoints.newest_first(Path("stopped"))] == [6, 4]
    return training_command(Path("job.yaml"), engine, Path("stopped"), "--resume", settings=SHORT)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"cut": cut, "bit-flipped": flip, "missing": Path.unlink}


def files(checkpoint: Path) -> list[Path]:
    """Every file of a checkpoint, the largest first."""
    return sorted(
        (p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, reverse=True
    )


def test_damage_to_any_file_of_a_checkpoint_is_noticed(stopped, capsys):
    newest, older = checkpoints.newest_first(Path("stopped"))
    assert len(files(newest)) >= 3 and checkpoints.last_good(Path("stopped")) == newest
    for path in files(newest):
        for name, damage in DAMAGES.items():
            content = path.read_bytes()
            damage(path)
            capsys.readouterr()
            assert checkpoints.last_good(Path("stopped")) == older, f"{path} {name}"
            assert f"{newest}: not whole" in capsys.readouterr().err
            path.write_bytes(content)
    assert checkpoints.last_good(Path("stopped")) == newest


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_it_says_so(stopped, capsys, damage):
    newest, _ = checkpoints.newest_first(Path("stopped"))
    DAMAGES[damage](files(newest)[0])
    capsys.readouterr()
    assert run(*stopped) == 0
    said = capsys.readouterr().err
    assert f"{newest}: not whole" in said and "stopped: going on after step 4" in said
    assert_same(Path("stopped"), Path("whole"))


def test_without_a_whole_checkpoint_it_begins_anew_and_says_so(stopped, capsys):
    for checkpoint in checkpoints.newest_first(Path("stopped")):
        flip(files(checkpoint)[0])
    capsys.readouterr()
    assert run(*stopped) == 0
    said = capsys.readouterr().err
    assert (
        said.count("not whole") == 2
        and "stopped: no checkpoint to go on from; starting from the beginning" in said
    )
    assert_same(Path("stopped"), Path("whole"))


def test_a_damaged_checkpoint_does_not_push_a_whole_one_out(stopped, monkeypatch):
    """Two are kept. Saving by the clock, killed while step 5 is saved, with a broken step 6, the run has step 4."""
    flip(files(checkpoints.newest_first(Path("stopped"))[0])[0])
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "seal", lambda folder: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        run(*stopped, "--set", "train.save_every=null")
    assert newest_good(Path("stopped")) == 4


def test_an_unfinished_run_is_not_touched_without_resume(stopped, capsys):
    before = {path: path.read_bytes() for path in files(Path("stopped"))}
    capsys.readouterr()
    assert run(*(word for word in stopped if word != "--resume")) == 2
    assert "stopped: holds an unfinished run; add --resume to go on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files(Path("stopped"))} == before


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """A file system of ``size`` in ``folder``; what is given changes its size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if os.geteuid() or subprocess.run([*mount, f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("a small file system can only be mounted as root")
    try:
        yield lambda option: subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@ENGINES
@pytest.mark.parametrize(("size", "kept"), [("1m", 0), ("4m", 2)], ids=["the first", "the second"])
def test_a_full_disk_is_one_line_and_loses_nothing(job, tmp_path, engine, size, kept):
    """All weights are trained, so a checkpoint is weights and two averages of AdamW's: 2.3 MB."""
    settings = [*SHORT, "method.name=full"]
    assert Command(*training_command(job, engine, Path("whole"), settings=settings)).end()[0] == 0
    with small_disk(tmp_path / "small", size) as remount:
        out = Path("small/out")
        code, said = Command(*training_command(job, engine, out, settings=settings)).end()
        assert code == 2 and "disk is full" in said.splitlines()[-1] and "Traceback" not in said
        assert newest_good(out) == kept
        remount("size=300m")
        code, said = Command(*training_command(job, engine, out, "--resume", settings=settings)).end()
        assert code == 0, said
        assert ("going on after step 2" if kept else "starting from the beginning") in said
        assert_same(out, Path("whole"))


def test_a_disk_that_may_only_be_read_is_one_line(job, tmp_path, capsys):
    with small_disk(tmp_path / "small", "3m") as remount:
        remount("ro")
        assert run("train", job, "--output", tmp_path / "small" / "out") == 2
        assert "no permission" in capsys.readouterr().err.splitlines()[-1]
