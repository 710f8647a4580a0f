"""A run in object storage, so that it outlives its machine: pushed while it trains, pulled on the next machine.

What a kill leaves half-way is never taken for good: a checkpoint's seal is copied after its other files, and what is
pulled is checked against it. ``fsspec`` is the interface; ``s3://`` is spoken by obstore.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from ftdocs import checkpoints, files, runs
from ftdocs.errors import InputError

LOOK_SECONDS = 0.2  # between two looks at the run's folder for a new checkpoint


class Bucket(fsspec.AbstractFileSystem):
    """A bucket that speaks S3, as far as a run needs one.

    Place and credentials come from AWS's own variables, such as ``AWS_ENDPOINT_URL`` for a server that is not AWS. Each
    call is obstore's synchronous one: after the others, a process may be aborted as it ends.
    """

    cachable = False  # the variables may be other ones next time

    def __init__(self, name: str):
        super().__init__()
        from obstore.store import S3Store

        self.store = S3Store(
            name,
            client_options={
                "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:"),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(minutes=1),
                "timeout": timedelta(hours=2),  # of a request, and so of a file
            },
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
        )

    def find(self, path: str, *arguments: Any, **options: Any) -> list[str]:
        """The names of all that lies below ``path``."""
        return [each["path"] for page in self.store.list(f"{path}/") for each in page]

    def pipe_file(self, path: str, value: bytes, *arguments: Any, **options: Any) -> None:
        """Put bytes under a name; it is there whole, or as it was before."""
        self.store.put(path, value)

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **options: Any) -> None:
        """Copy a file there, a large one in parts; it is there whole, or as it was before."""
        self.store.put(rpath, Path(lpath))

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        """What lies under a name."""
        return bytes(self.store.get(path).bytes())

    def get_file(self, rpath: str, lpath: str, *arguments: Any, **options: Any) -> None:
        """Copy a file from there, piece by piece."""
        with open(lpath, "wb") as file:
            for piece in self.store.get(rpath).stream():
                file.write(piece)

    def rm_file(self, path: str) -> None:
        """Remove what lies under a name."""
        self.store.delete(path)


def push(run: Path, url: str) -> list[str]:
    """Copy a run to ``url``, such as ``s3://my-bucket/my-run``; the names of the checkpoints that are new there.

    Of a run that is under way, its whole checkpoints; of a finished one, the weights and the result, and the
    checkpoints there are removed. May be called while the run trains.

    Raises:
        InputError: no run in ``run``, no such bucket, refused credentials, or no answer.
    """
    state = runs.state(run)
    if state == "new":
        raise InputError(f"{run}: no such run; `ftdocs train RECIPE.yaml` makes one")
    with explained(url):
        storage, place = connect(url)
        there = listed(storage, place)
        whole = [] if state == "finished" else whole_checkpoints(run)
        # After the look at the checkpoints and before their copy: the curve is never shorter than their steps.
        for name in own_files(run):
            storage.put_file(str(run / name), f"{place}/{name}")
        new = []
        for folder in reversed(whole):  # the oldest first, as they are removed in this order too
            name, seal = f"checkpoints/{folder.name}", (folder / checkpoints.SEAL).read_bytes()
            sealed = f"{name}/{checkpoints.SEAL}"
            if sealed in there and storage.cat_file(f"{place}/{sealed}") == seal:
                continue
            for each in json.loads(seal):
                storage.put_file(str(folder / each), f"{place}/{name}/{each}")
            storage.pipe_file(f"{place}/{sealed}", seal)  # last: without it the others do not count
            new.append(folder.name)
        if state == "finished":  # last: it says that all the rest is there
            storage.put_file(str(run / runs.RESULT), f"{place}/{runs.RESULT}")
        kept = {folder.name for folder in whole}
        if kept or state == "finished":
            for name in there:
                if name.startswith("checkpoints/") and name.split("/")[1] not in kept:
                    storage.rm_file(f"{place}/{name}")
    return new


def pull(url: str, run: Path) -> Path | None:
    """Bring a run back from ``url`` into the folder ``run``; its newest whole checkpoint, or None where it has none.

    A folder that holds a run already is left as it is, and where there is nothing at ``url`` nothing is made. What was
    cut off half-way by a kill, in the push or in the pull, is left out, and named on standard error.

    Raises:
        InputError: no such bucket, refused credentials, no answer, or something else is in ``run``.
    """
    if runs.state(run) != "new":
        return checkpoints.last_good(run)
    with explained(url):
        storage, place = connect(url)
        there = listed(storage, place)
        if runs.ENVIRONMENT not in there:  # the first thing that a run writes
            return None
        with files.explain_write_errors(run), files.new_folder(run) as aside:
            for name in there:
                folder = PurePosixPath(name).parent
                seal = PurePosixPath(*folder.parts[:2], checkpoints.SEAL)
                if folder.parts[:1] == ("checkpoints",) and seal.as_posix() not in there:
                    continue
                (aside / folder).mkdir(parents=True, exist_ok=True)
                storage.get_file(f"{place}/{name}", str(aside / name))
            for folder in checkpoints.newest_first(aside):
                if not checkpoints.is_good(folder):
                    print(f"{url}: {folder.name} is not whole there, so it is left out", file=sys.stderr)
                    shutil.rmtree(folder)
    return next(iter(checkpoints.newest_first(run)), None)


@contextmanager
def kept(run: Path, url: str) -> Iterator[None]:
    """Inside the block, each new checkpoint of ``run`` goes to ``url`` as soon as it is whole; at its end, the rest.

    A push that fails while the run trains is named on standard error and tried again: training goes on without it.

    Raises:
        InputError: the last push failed.
    """
    ended = threading.Event()

    def watch() -> None:
        pushed: Path | None = None
        while not ended.wait(LOOK_SECONDS):
            newest = next((folder for folder in checkpoints.newest_first(run) if sealed(folder)), None)
            if newest in (None, pushed):
                continue
            try:
                push(run, url)
                pushed = newest
            except (InputError, OSError) as error:  # OSError: training has removed what was being copied
                print(f"ftdocs: not pushed, and tried again: {error}", file=sys.stderr)
                ended.wait(30 if isinstance(error, InputError) else LOOK_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if runs.state(run) != "new":
            push(run, url)


def sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint is written to its end."""
    return (checkpoint / checkpoints.SEAL).is_file()


def whole_checkpoints(run: Path) -> list[Path]:
    """A run's whole checkpoints, the newest first; one that is being written is none."""
    return [each for each in checkpoints.newest_first(run) if checkpoints.is_good(each)]


def own_files(run: Path) -> list[str]:
    """A run's files but its checkpoints, its result, and what is being written, whose name begins with a dot."""
    found = (path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file())
    return [
        path.as_posix()
        for path in found
        if path.parts[0] != "checkpoints"
        and path.name != runs.RESULT
        and not any(part.startswith(".") for part in path.parts)
    ]


def connect(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the place in it.

    Raises:
        InputError: the URL is none, or what speaks its protocol is not installed.
    """
    protocol, _, rest = url.partition("://")
    bucket, _, place = rest.strip("/").partition("/")
    if not bucket or not place:
        raise InputError(f"{url}: give a bucket and a place in it, such as s3://my-bucket/my-run")
    try:
        if protocol == "s3":
            return Bucket(bucket), place
        return fsspec.url_to_fs(url.rstrip("/"), **({"auto_mkdir": True} if protocol == "file" else {}))
    except ImportError as error:
        package = 'python -m pip install "ftdocs[cloud]"' if protocol == "s3" else error
        raise InputError(f"{url}: what speaks {protocol}:// is not installed; {package}") from None
    except ValueError as error:
        raise InputError(f"{url}: {error}; such as s3://my-bucket/my-run") from None


def listed(storage: fsspec.AbstractFileSystem, place: str) -> list[str]:
    """The names of a run's files in object storage, as in its folder."""
    below = place.strip("/") + "/"
    return sorted(name.lstrip("/").removeprefix(below) for name in map(str, storage.find(place)))


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what object storage answers into one line that says what is wrong, and how to mend it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = str(error)
        server = os.environ.get("AWS_ENDPOINT_URL", "the server")
        if not type(error).__module__.startswith("obstore") and "Server returned" not in text:
            raise
        if "NoSuchBucket" in text:
            raise InputError(f"{url}: no such bucket on {server}; make it, or correct its name") from None
        if "169.254." in text:  # where a machine of AWS would find its role
            raise InputError(
                f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        if any(word in text for word in ("403 Forbidden", "401 Unauthorized")):
            raise InputError(
                f"{url}: {server} refuses the credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and what"
                " they may do with this bucket"
            ) from None
        if "error sending request" in text or "timed out" in text:
            raise InputError(
                f"{url}: no answer from {server}; is AWS_ENDPOINT_URL right, and the network there?"
            ) from None
        raise InputError(f"{url}: {text.splitlines()[0]}") from None
