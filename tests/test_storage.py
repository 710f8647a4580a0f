"""Runs in object storage: the real client, over HTTP, against rclone's server, which checks signatures."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftdocs import checkpoints, runs, storage
from ftdocs.errors import InputError

KEY, SECRET = "reader", "a-secret-of-this-test"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server's folder; ``AWS_ENDPOINT_URL`` of the tests leads to it."""
    folder = tmp_path_factory.mktemp("server")
    program = Path(sys.executable).with_name("rclone")
    log = folder / "log"
    with open(log, "w") as file:
        server = subprocess.Popen(
            [program, "serve", "s3", "disk", "--addr", "127.0.0.1:0"],
            cwd=folder,
            stderr=file,
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{KEY},{SECRET}"', "RCLONE_CONFIG": str(folder / "none")},
        )
        (folder / "disk" / "bucket").mkdir(parents=True)
        while not (found := re.search(r"http://[\d.:]+\d", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        (folder / "url").write_text(found[0])
        yield folder / "disk"
        server.kill()
        server.wait()


@dataclass
class Place:
    """A place of its own in the bucket: its URL, and the folder in which the server keeps it, to look at only."""

    disk: Path
    number: int

    @property
    def url(self) -> str:
        return f"s3://bucket/jobs/{self.number}"

    @property
    def folder(self) -> Path:
        return self.disk / "bucket" / "jobs" / str(self.number)

    def write(self, name: str, content: bytes) -> None:
        filesystem, place = storage.connect(self.url)
        filesystem.pipe_file(f"{place}/{name}", content)


numbers = itertools.count(1)


@pytest.fixture
def bucket(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty place; the variables of this process lead to the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", (disk.parent / "url").read_text())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return Place(disk, next(numbers))


def checkpoint(run: Path, step: int, size: int = 1000) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / ".metadata").write_bytes(bytes([step]) * 100)  # as torch.distributed.checkpoint names its table
    (folder / "shards" / "__0_0.distcp").write_bytes(os.urandom(size))
    (folder / "progress.json").write_text(json.dumps({"step": step}))
    checkpoints.seal(folder)
    with open(run / runs.METRICS, "a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run under way, with two whole checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / runs.ENVIRONMENT).write_text("{}")
    (folder / runs.RECIPE).write_text("model: x\n")
    (folder / ".lock").touch()
    checkpoint(folder, 1)
    checkpoint(folder, 2)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def finish(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(5000))
    (run / runs.RESULT).write_text("{}")


def test_a_run_comes_back_as_it_was(bucket: Place, run: Path, tmp_path: Path):
    assert storage.push(run, bucket.url) == ["checkpoint-1", "checkpoint-2"]
    there = tmp_path / "elsewhere" / "run"
    assert storage.pull(bucket.url, there) == there / "checkpoints" / "checkpoint-2"
    expected = contents(run)
    del expected[".lock"]
    assert contents(there) == expected
    assert checkpoints.last_good(there) == there / "checkpoints" / "checkpoint-2"


def test_only_what_is_new_is_copied_and_what_training_has_removed_goes(
    bucket: Place, run: Path, tmp_path: Path
):
    storage.push(run, bucket.url)
    before = (bucket.folder / "checkpoints/checkpoint-2/seal.json").stat().st_mtime_ns
    checkpoint(run, 3)
    shutil.rmtree(run / "checkpoints" / "checkpoint-1")
    assert storage.push(run, bucket.url) == ["checkpoint-3"]
    assert storage.push(run, bucket.url) == []
    assert (bucket.folder / "checkpoints/checkpoint-2/seal.json").stat().st_mtime_ns == before
    assert storage.pull(bucket.url, tmp_path / "new") == tmp_path / "new/checkpoints/checkpoint-3"
    assert not any("checkpoint-1/" in name for name in contents(bucket.folder))


def test_a_checkpoint_that_was_made_again_takes_the_place_of_the_one_there(
    bucket: Place, run: Path, tmp_path: Path
):
    storage.push(run, bucket.url)
    shutil.rmtree(run / "checkpoints" / "checkpoint-2")
    again = checkpoint(run, 2)
    assert storage.push(run, bucket.url) == ["checkpoint-2"]
    assert contents(storage.pull(bucket.url, tmp_path / "new")) == contents(again)


def test_a_finished_run_has_its_weights_there_and_no_checkpoints(bucket: Place, run: Path, tmp_path: Path):
    storage.push(run, bucket.url)
    finish(run)
    storage.push(run, bucket.url)
    assert storage.pull(bucket.url, tmp_path / "new") is None
    assert runs.state(tmp_path / "new") == "finished"
    assert contents(tmp_path / "new") == {
        name: data for name, data in contents(run).items() if name != ".lock"
    }


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ended", [False, True], ids=["under way", "finished"])
def test_a_push_that_is_cut_off_anywhere_leaves_the_state_before_or_the_one_after(
    bucket: Place, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
):
    before = shutil.copytree(run, tmp_path / "before")
    checkpoint(run, 3)
    if ended:
        finish(run)
    left = -1  # calls until the kill; below 0 none comes

    def counted(real):
        def call(*arguments):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments)

        return call

    for name in ("put_file", "pipe_file", "rm_file"):
        monkeypatch.setattr(storage.Bucket, name, counted(getattr(storage.Bucket, name)))
    seen = set()
    for cut in range(100):
        url, new = f"{bucket.url}-{cut}", tmp_path / f"new-{cut}"
        left = -1
        storage.push(before, url)
        left = cut
        try:
            storage.push(run, url)
            done = True
        except Killed:
            done = False
        left = -1
        newest = storage.pull(url, new)
        state = runs.state(new)
        assert state in ("unfinished", "finished")
        if state == "unfinished":
            assert newest is not None
            assert checkpoints.is_good(newest)
            steps = [row["step"] for row in runs.read_metrics(new)]
            assert steps[: checkpoints.step_of(newest)] == list(range(1, checkpoints.step_of(newest) + 1))
        else:
            assert contents(new / "adapter") == contents(run / "adapter")
        seen.add(state if newest is None else newest.name)
        if done:
            break
    assert done
    assert seen >= ({"checkpoint-2", "finished"} if ended else {"checkpoint-2", "checkpoint-3"})


def test_a_process_that_is_killed_in_a_push_leaves_nothing_that_counts(
    bucket: Place, run: Path, tmp_path: Path
):
    storage.push(run, bucket.url)
    checkpoint(run, 3, size=2_000_000)
    code = """
import os, signal, sys
from pathlib import Path
from ftdocs import storage
real = storage.Bucket.put_file
def until_the_shard(self, source, target):
    real(self, source, target)
    if "checkpoint-3/shards" in target:
        os.kill(os.getpid(), signal.SIGKILL)
storage.Bucket.put_file = until_the_shard
storage.push(Path(sys.argv[1]), sys.argv[2])
"""
    done = subprocess.run([sys.executable, "-c", code, run, bucket.url])
    assert done.returncode == -signal.SIGKILL
    assert any("checkpoint-3/shards" in name for name in contents(bucket.folder))
    assert storage.pull(bucket.url, tmp_path / "new") == tmp_path / "new/checkpoints/checkpoint-2"
    assert not (tmp_path / "new/checkpoints/checkpoint-3").exists()


def test_a_checkpoint_that_is_damaged_there_is_left_out_and_named(
    bucket: Place, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    storage.push(run, bucket.url)
    bucket.write("checkpoints/checkpoint-2/shards/__0_0.distcp", b"half")
    assert storage.pull(bucket.url, tmp_path / "new") == tmp_path / "new/checkpoints/checkpoint-1"
    assert not (tmp_path / "new/checkpoints/checkpoint-2").exists()
    assert "checkpoint-2 is not whole there" in capsys.readouterr().err


def test_a_damaged_or_unfinished_checkpoint_is_not_pushed(bucket: Place, run: Path):
    (run / "checkpoints/checkpoint-2/progress.json").write_text("changed")
    (checkpoint(run, 3) / "seal.json").unlink()
    assert storage.push(run, bucket.url) == ["checkpoint-1"]
    assert not any("checkpoint-2" in name or "checkpoint-3" in name for name in contents(bucket.folder))


def test_a_pull_that_is_cut_off_leaves_no_run(
    bucket: Place, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    storage.push(run, bucket.url)
    real = storage.Bucket.get_file

    def once(self, source, target):
        real(self, source, target)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(storage.Bucket, "get_file", once)
        with pytest.raises(Killed):
            storage.pull(bucket.url, tmp_path / "new")
    assert runs.state(tmp_path / "new") == "new"
    assert storage.pull(bucket.url, tmp_path / "new").name == "checkpoint-2"


def test_nothing_there_is_a_run_that_begins_and_a_run_here_is_left_alone(
    bucket: Place, run: Path, tmp_path: Path
):
    assert storage.pull(bucket.url, tmp_path / "new") is None
    assert not (tmp_path / "new").exists()
    storage.push(run, bucket.url)
    checkpoint(run, 3)
    assert storage.pull(bucket.url, run) == run / "checkpoints/checkpoint-3"


def test_what_lies_beside_a_run_there_is_not_its_own(bucket: Place, run: Path, tmp_path: Path):
    storage.push(run, bucket.url)
    storage.push(run, f"{bucket.url}0")
    assert storage.pull(f"{bucket.url}/", tmp_path / "new") is not None
    assert {name.split("/")[0] for name in contents(tmp_path / "new")} == {
        "checkpoints", runs.ENVIRONMENT, runs.RECIPE, runs.METRICS,
    }  # fmt: skip


def test_while_a_run_trains_its_checkpoints_arrive_and_at_its_end_the_rest(
    bucket: Place, run: Path, tmp_path: Path
):
    with storage.kept(run, bucket.url):
        checkpoint(run, 3)
        seal = bucket.folder / "checkpoints/checkpoint-3/seal.json"
        for _ in range(100):
            if seal.exists():
                break
            time.sleep(0.1)
        assert seal.exists()
        finish(run)
    storage.pull(bucket.url, tmp_path / "new")
    assert runs.state(tmp_path / "new") == "finished"


def test_training_goes_on_when_a_push_fails_and_the_last_one_says_so(
    bucket: Place, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trained = False
    with pytest.raises(InputError, match="no such bucket"), storage.kept(run, "s3://nobody-made-it/run"):  # noqa: PT012
        time.sleep(1)
        trained = True
    assert trained
    assert "not pushed, and tried again" in capsys.readouterr().err


def test_a_folder_will_do_as_well(run: Path, tmp_path: Path):
    url = f"file://{tmp_path}/shared/run"
    storage.push(run, url)
    assert storage.pull(url, tmp_path / "new") == tmp_path / "new/checkpoints/checkpoint-2"


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


HERE = "s3://bucket/jobs/none"


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize(
    ("variables", "url", "message"),
    [
        ({}, "s3://nobody-made-it/run", r"s3://nobody-made-it/run: no such bucket on http://.*; make it, or"),
        ({"AWS_SECRET_ACCESS_KEY": "another"}, HERE, "refuses the credentials; check AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "another"}, HERE, "refuses the credentials; check AWS_ACCESS_KEY_ID"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:{port}"},
            HERE,
            "no answer from http://127.0.0.1:.*; is AWS_ENDPOINT",
        ),
        ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, HERE, "no answer from http://nowhere.invalid; is"),
        ({}, "bucket/run", "give a bucket and a place in it, such as s3://"),
        ({}, "s3://bucket", "give a bucket and a place in it, such as s3://"),
        ({}, "s9://bucket/run", "s9://bucket/run: .*s9"),
    ],
)
def test_what_is_wrong_is_one_line_within_seconds(
    bucket: Place,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    variables,
    url,
    message,
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(port=free_port()))
    started = time.monotonic()
    with pytest.raises(InputError, match=message) as raised:
        storage.push(run, url) if way == "push" else storage.pull(url, tmp_path / "new")
    assert time.monotonic() - started < 20
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_server_that_takes_no_call_is_no_answer(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as deaf:  # its queue is full: a connection is never made
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        full = [socket.create_connection(deaf.getsockname()) for _ in range(1)]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(InputError, match="no answer"):
            storage.pull(bucket.url, tmp_path / "new")
        assert time.monotonic() - started < 30
        for each in full:
            each.close()


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_a_folder_that_is_no_run_is_not_pushed(bucket: Place, tmp_path: Path, make: str):
    folder = tmp_path / "here"
    if make == "empty":
        folder.mkdir()
    if make == "file":
        folder.touch()
    with pytest.raises(InputError, match=r"here: (no such run|is a file)"):
        storage.push(folder, bucket.url)


def test_a_folder_with_something_else_is_not_written_to(bucket: Place, run: Path, tmp_path: Path):
    storage.push(run, bucket.url)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="mine: is not empty and not a run"):
        storage.pull(bucket.url, tmp_path / "mine")


def test_a_process_that_has_pushed_ends_well(bucket: Place, run: Path):
    """With obstore's asynchronous calls, one in three was aborted as it ended."""
    code = """
import sys
from pathlib import Path
from ftdocs import storage
storage.push(Path(sys.argv[1]), sys.argv[2])
"""
    assert subprocess.run([sys.executable, "-c", code, run, bucket.url]).returncode == 0
