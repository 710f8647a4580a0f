"""Files that are either whole or not there: the cache folder, checksums, atomic writes, locks."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from ftdocs.errors import InputError

WRITING = (
    ".writing"  # the end of the name of a file that is being written, or of what a killed process left of it
)


def home() -> Path:
    """The cache folder: ``$FTDOCS_HOME``, else the platform's cache folder for ``ftdocs``."""
    configured = os.environ.get("FTDOCS_HOME")
    return Path(configured).expanduser() if configured else Path(platformdirs.user_cache_dir("ftdocs"))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces so that size does not matter."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_kept(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object that a run keeps in ``path``.

    Raises:
        InputError: the file is gone or damaged, or lacks one of ``keys``.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and found.keys() >= set(keys):
        return found
    raise InputError(f"{path}: is damaged or gone; restore it, or train again")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file aside, flush it to disk, then rename it into place.

    A reader, or a process killed half-way, sees the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=WRITING)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes it readable by its owner alone
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` + ``.lock`` so that two processes do not make the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that becomes ``target`` when the block ends well.

    What a killed process left behind is swept away by the next one to make the same folder. Two
    processes at once are kept apart by :func:`lock`, which the caller holds.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in target.parent.glob(f".{target.name}.*.making"):
        shutil.rmtree(left_behind, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".making"))
    try:
        yield aside
        os.chmod(aside, 0o755)
        os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def told(error: OSError) -> str:
    """What is wrong with a file or folder that the system refuses, and the mend; "" where a line cannot tell."""
    named = os.fsdecode(error.filename) if error.filename is not None else "standard output, or a file"
    where = named if len(named) < 200 else f"{named[:60]}…"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: the disk is full; free some space or choose another place"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        ours = Path(named).is_relative_to(home())
        return f"{where}: no permission; " + (
            "set FTDOCS_HOME to a folder of yours" if ours else "choose another"
        )
    if error.errno == errno.ENAMETOOLONG:
        return f"{where}: the name is too long; choose a shorter one"
    return ""


@contextmanager
def explain_write_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission under ``where`` into one clear :class:`InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{where}: the disk is full; free some space or choose another folder"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(f"{where}: no permission to write here; choose another folder") from error
        if error.errno == errno.ENOENT and not where.parent.exists():  # as under /proc
            raise InputError(f"{where}: no folder can be made here; choose another one") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{where}: a file is in the way of this folder; choose another one") from error
        raise
    except Exception as error:
        # torch and safetensors report a failed write in words of their own.
        if any(words in str(error) for words in ("inline_container", "No space left", "os error 28")) and (
            shutil.disk_usage(where if where.exists() else where.parent).free < 1 << 26
        ):
            raise InputError(
                f"{where}: the disk is full; free some space or choose another folder"
            ) from error
        raise
