"""Checkpoints that are known to be whole: sealed with checksums after they are written, checked before use."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ftdocs import files

SEAL = "seal.json"


def seal(folder: Path) -> None:
    """Write ``seal.json``, the SHA-256 of every file of a checkpoint; without it a checkpoint does not count."""
    sums = {
        path.name: files.sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != SEAL
    }
    files.write_atomic(folder / SEAL, json.dumps(sums, indent=1))


def is_good(folder: Path) -> bool:
    """Whether a checkpoint was sealed and every file of it is still as it was then."""
    try:
        sums = json.loads((folder / SEAL).read_text())
        return all(files.sha256(folder / name) == checksum for name, checksum in sums.items())
    except (OSError, ValueError):
        return False


def last_good(run: Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or None."""
    found = (run / "checkpoints").glob("checkpoint-*")
    newest_first = sorted(found, key=lambda folder: -int(folder.name.rpartition("-")[2]))
    return next((folder for folder in newest_first if is_good(folder)), None)


class Seal(TrainerCallback):
    """Seals each checkpoint that transformers.Trainer writes; it stands last, after all that add files to it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint of this step."""
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
