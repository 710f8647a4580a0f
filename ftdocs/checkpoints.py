"""Checkpoints that are known to be whole: sealed with checksums after they are written, checked before use."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from ftdocs import files
from ftdocs.progress import Progress

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
    """The newest checkpoint of a run that is whole, or None; those passed over are named on standard error."""
    for folder in newest_first(run):
        if is_good(folder):
            return folder
        print(f"{folder}: not whole, so the checkpoint before it is used", file=sys.stderr)
    return None


def remove_after(run: Path, last: Path | None) -> None:
    """Remove what is newer than the newest whole checkpoint: of the two that are kept, it would take a place."""
    for folder in newest_first(run):
        if last is None or step_of(folder) > step_of(last):
            shutil.rmtree(folder)


def newest_first(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not."""
    found = [folder for folder in (run / "checkpoints").glob("checkpoint-*") if folder.name[11:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def save(run: Path, step: int, model: torch.nn.Module, state: dict[str, Any], progress: Progress) -> None:
    """Write what a run needs to go on from here, aside first; the newest two checkpoints are kept.

    The weights that are trained, the ``state_dict`` of everything in ``state``, the random number generators' places,
    and the run's counts.
    """
    folder = run / "checkpoints" / f"checkpoint-{step}"
    shutil.rmtree(folder, ignore_errors=True)  # one that was damaged, and is made again
    with files.new_folder(folder) as aside:
        weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        save_file(
            {name: weight.contiguous() for name, weight in weights.items()}, aside / "trained.safetensors"
        )
        kept: dict[str, Any] = {name: part.state_dict() for name, part in state.items()}
        kept |= {"step": step, "random": torch.get_rng_state()}
        if torch.cuda.is_available():
            kept["random_cuda"] = torch.cuda.get_rng_state()
        if torch.backends.mps.is_available():
            kept["random_mps"] = torch.mps.get_rng_state()
        torch.save(kept, aside / "state.pt")
        progress.keep(aside, step)
        seal(aside)
    for older in newest_first(run)[2:]:
        shutil.rmtree(older)


def restore(folder: Path, model: torch.nn.Module, state: dict[str, Any]) -> int:
    """Put the model, everything in ``state`` and the random number generators back; the step that was done."""
    missing, unknown = model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if unknown or trained & set(missing):
        raise ValueError(
            f"{folder}: other weights are trained now: {sorted(unknown) or sorted(trained & set(missing))}"
        )
    kept = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")  # maybe from another device
    for name, part in state.items():
        part.load_state_dict(kept[name])
    torch.set_rng_state(kept["random"])
    if torch.cuda.is_available() and "random_cuda" in kept:
        torch.cuda.set_rng_state(kept["random_cuda"])
    if torch.backends.mps.is_available() and "random_mps" in kept:
        torch.mps.set_rng_state(kept["random_mps"])
    return int(kept["step"])


def step_of(folder: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(folder.name.rpartition("-")[2])


def load_weights(folder: Path, model: Any) -> None:
    """Put the weights of a checkpoint of transformers.Trainer into ``model``: adapters, or all of them."""
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
        """Seal the checkpoint of this step."""
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
