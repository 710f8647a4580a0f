"""Checkpoints that are known to be whole: sealed with checksums after they are written, checked before use."""

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as distributed_checkpoint
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback

from ftdocs import files, processes
from ftdocs.errors import InputError
from ftdocs.progress import Progress

SEAL = "seal.json"


def seal(folder: Path) -> None:
    """Write ``seal.json``, the SHA-256 of every file of a checkpoint; without it a checkpoint does not count."""
    sums = {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / SEAL
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
    """The newest checkpoint of a run that is whole, or None; those passed over are named on standard error."""
    for folder in newest_first(run):
        if is_good(folder):
            return folder
        print(f"{folder}: not whole, so the checkpoint before it is used", file=sys.stderr)
    return None


def remove_after(run: Path, last: Path | None) -> None:
    """Remove what is newer than the newest whole checkpoint, as it would take the place of one, and unfinished ones."""
    for folder in (run / "checkpoints").glob(".checkpoint-*.making"):
        shutil.rmtree(folder)
    for folder in newest_first(run):
        if last is None or step_of(folder) > step_of(last):
            shutil.rmtree(folder)


def newest_first(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not."""
    found = [folder for folder in (run / "checkpoints").glob("checkpoint-*") if folder.name[11:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def save(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    progress: Progress,
    best: int | None = None,
) -> None:
    """Write what a run needs to go on from here, aside first; the newest two and that of step ``best`` stay.

    The weights that are trained, AdamW's averages, the schedule and the run's counts. Each process writes its shards,
    in the format of ``torch.distributed.checkpoint``, which any number of processes reads.
    """
    folder = run / "checkpoints" / f"checkpoint-{step}"
    with ExitStack() as main:

        def begin() -> Path:
            shutil.rmtree(folder, ignore_errors=True)  # one that was damaged, and is made again
            return main.enter_context(files.new_folder(folder))

        aside = processes.from_main(begin)
        with plain_errors():
            kept = contents(model, optimizer, schedule)
            distributed_checkpoint.save(kept, checkpoint_id=aside, no_dist=processes.count() == 1)
        progress.keep(aside, step)
        if processes.is_main():
            seal(aside)
    if processes.is_main():
        for older in newest_first(run)[2:]:
            if step_of(older) != best:
                shutil.rmtree(older)


def restore(folder: Path | None, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> int:
    """Put the model, the optimiser and the schedule back; the step that was done, 0 where there is no checkpoint."""
    if folder is None:
        return 0
    kept = contents(model, optimizer, schedule)
    there = distributed_checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    averages = kept["optimizer"]["state"]
    for name in [name for name in averages if f"optimizer.state.{name}.step" not in there]:
        del averages[name]  # a weight that no gradient had reached had none
    with plain_errors():
        # Into the tensors that are there.
        distributed_checkpoint.load(kept, checkpoint_id=folder, no_dist=processes.count() == 1)
    set_optimizer_state_dict(model, optimizer, kept["optimizer"], options=StateDictOptions(strict=False))
    schedule.load_state_dict(kept["schedule"])
    return step_of(folder)


def contents(model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """What a checkpoint holds, by name and not by place."""
    return {
        "model": trained_weights(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "schedule": schedule.state_dict(),
    }


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """The weights that are trained, by name; the tensors themselves."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Inside the block, what goes wrong in any process is raised in all, as what it was."""
    try:
        with warnings.catch_warnings():  # one process alone is no oversight
            warnings.filterwarnings("ignore", message=".*in a single process")
            yield
    except CheckpointException as error:  # no Exception, so that nothing would handle it
        raise next(iter(error.failures.values()))[0] from None


def step_of(folder: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(folder.name.rpartition("-")[2])


def load_best(run: Path, step: int, model: Any) -> None:
    """Put the weights of the lowest held-out loss, which a checkpoint of ``step`` has, into ``model``.

    Raises:
        InputError: the checkpoint was damaged.
    """
    folder = run / "checkpoints" / f"checkpoint-{step}"
    if not is_good(folder):
        raise InputError(
            f"{folder}: not whole, and the run's best weights were in it; train again with another --output"
        )
    if not (folder / ".metadata").is_file():  # as torch.distributed.checkpoint names its table of contents
        load_weights(folder, model)
        return
    kept = {"model": trained_weights(model)}
    with plain_errors():
        distributed_checkpoint.load(kept, checkpoint_id=folder, no_dist=processes.count() == 1)


def load_weights(folder: Path, model: Any) -> None:
    """Put the weights of a checkpoint of transformers.Trainer into ``model``: adapters, or all of them.

    Raises:
        InputError: they lie there in pieces.
    """
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "model.safetensors")):
        raise InputError(
            f"{folder}: its weights are in pieces, and no step is left to train; remove this folder, and --resume goes"
            " on from the checkpoint before it"
        )
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        model.load_state_dict(
            load_file(folder / "model.safetensors"), strict=False
        )  # tied ones are there once
        model.tie_weights()


class Seal(TrainerCallback):
    """Seals each checkpoint that transformers.Trainer writes; it stands last, after all that add files to it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint of this step, when every process has written its part."""
        processes.barrier()
        if processes.is_main():
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
