"""One model, several processes: who is who, what they tell each other, and the model in shards.

``torchrun`` and ``accelerate launch`` start the processes and number them in the environment. With one process, nothing
here does anything.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ftdocs import hardware
from ftdocs.errors import InputError

if TYPE_CHECKING:
    import torch

# PyTorch is imported where it is used: who asks how many processes there are need not wait for it.

Value = TypeVar("Value")


def count() -> int:
    """How many processes train this model."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes the run's files and talks to the user."""
    return rank() == 0


def check(engine: str) -> None:
    """Refuse a start that would train something else than it says, or alone, without a word.

    Raises:
        InputError: says how to start it.
    """
    import torch

    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if hardware.device().type == "cuda" and local > gpus:
        raise InputError(
            f"{local} processes were started on this machine and it has {gpus} GPU{'s' * (gpus > 1)}; start one for"
            " each, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
        )
    several = f"torchrun --nproc-per-node {max(2, torch.cuda.device_count())} -m ftdocs.cli train RECIPE.yaml"
    if count() > 1 and hardware.device().type == "mps":
        raise InputError("an Apple GPU trains with one process; start `ftdocs train` itself")
    if count() == 1 and torch.cuda.device_count() > 1:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs and one process; start one for each: `{several}`, or with"
            " `accelerate launch`; or choose a GPU: CUDA_VISIBLE_DEVICES=0"
        )
    # Without MPI, `accelerate launch --cpu --num_processes 2` starts one process, which learns of no other.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch --cpu was asked for several processes and has started one; start them with"
            f" `accelerate launch --multi_gpu` (on CPUs too), or `{several}`"
        )
    if engine == "trainer" and by_accelerate_fsdp() and hardware.device().type != "cuda":
        raise InputError(
            "Accelerate's FSDP shards nothing on a CPU; set train.engine: loop, which does, and start it with"
            f" `{several}`"
        )


def by_accelerate_fsdp() -> bool:
    """Whether Accelerate's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


@contextmanager
def joined() -> Iterator[None]:
    """Inside the block, the processes can speak with each other; tensors on a GPU by NCCL, all else by gloo."""
    if count() == 1:
        yield
        return
    import torch
    from torch import distributed

    device = hardware.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    total(0)


def total(*numbers: float) -> list[float]:
    """Each number summed over all processes, in float64."""
    if count() == 1:
        return list(numbers)
    import torch
    from torch import distributed

    sums = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def gathered(value: Value) -> list[Value]:
    """What each process has, by rank."""
    if count() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, value)
    return found


def from_main(make: Callable[[], Value]) -> Value:
    """What ``make`` gives in the main process, for all of them; what it raises there is raised in all."""
    if count() == 1:
        return make()
    value, error = None, None
    if is_main():
        try:
            value = make()
        except Exception as raised:
            error = raised
    value, told = gathered((value, error and portable(error)))[0]
    if error is not None:
        raise error
    if told is not None:
        raise told
    return value  # type: ignore[return-value]


@contextmanager
def together() -> Iterator[None]:
    """What goes wrong with one process in the block goes wrong with all of them at its end, so that none waits on.

    Inside the block they do not speak with each other.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if error is not None and count() == 1:
        raise error
    for told in gathered(error and portable(error)):
        if told is not None:
            raise error or told


def portable(error: Exception) -> Exception:
    """What another process is told of an error: itself where it can travel, else its words."""
    plain = isinstance(error, InputError | OSError)
    return error if plain else RuntimeError(f"{type(error).__name__}: {error}")


def lost(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    if count() == 1:
        return False
    from torch import distributed

    words = "Connection closed by peer|Connection reset by peer|Broken pipe|Socket closed|Timed out waiting"
    gone = distributed.DistBackendError | distributed.DistNetworkError | distributed.DistStoreError
    return isinstance(error, gone) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def shard(model: "torch.nn.Module") -> None:
    """FSDP2 (Zhao et al., 2023): each process keeps a share of every parameter, its gradient and AdamW's averages.

    In place. Each block of layers is a unit, gathered when its turn comes and dropped after it; the rest (embedding,
    last norm, head) is one more, so that an embedding and a head that are one tensor stay one. Gradients are summed
    over the processes, not averaged: each process's loss is its share of the step's.

    Raises:
        InputError: the parameters are not sharded after all.
    """
    if count() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(hardware.device().type, (count(),))
    for part in [*blocks(model), model]:
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other way to divide by 1
    check_sharded(model)


def blocks(model: "torch.nn.Module") -> list["torch.nn.Module"]:
    """The layers of a transformer: what its outermost lists of modules hold."""
    from torch import nn

    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    outermost = [
        name for name in lists if not any(name.startswith(f"{other}.") for other in lists if other != name)
    ]
    return [block for name in outermost for block in lists[name]]


def check_sharded(model: "torch.nn.Module") -> None:
    """Refuse a model that is not spread over the processes, whoever was to do it.

    Raises:
        InputError: a parameter, frozen or not, is there whole; or this process holds far more than its share.
    """
    from torch.distributed.tensor import DTensor, Shard

    held = whole = 0
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor) or not any(isinstance(p, Shard) for p in parameter.placements):
            raise InputError(f"FSDP was asked for, but {name} is not sharded; nothing was trained")
        held, whole = held + parameter.to_local().numel(), whole + parameter.numel()
    if held > 1.5 * whole / count():
        raise InputError(
            f"FSDP was asked for, but this process holds {held} of {whole} numbers; nothing was trained"
        )


def is_sharded(model: "torch.nn.Module") -> bool:
    """Whether FSDP2 has taken this model apart: outside its forward pass the weights are then no plain tensors."""
    if count() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for part in model.modules())


def reshard(model: "torch.nn.Module") -> None:
    """Take apart what a forward pass without a backward pass has left gathered: the root unit."""
    if is_sharded(model):
        model.reshard()  # type: ignore[operator]


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor without its shards; every process must ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: "torch.nn.Module", trained_only: bool) -> dict[str, "torch.Tensor"]:
    """The ``state_dict`` of a model, in shards or not, whole and on the CPU in the main process; {} in the others.

    Names of one tensor, such as a tied embedding's and head's, stay names of one tensor.
    """
    state = model.state_dict()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}  # of a tensor's names, the one that it was gathered by
    for name, tensor in state.items():
        parameter = parameters.get(name)
        if trained_only and (parameter is None or not parameter.requires_grad):
            continue
        known = first.setdefault(id(parameter), name) if parameter is not None else name
        gathered_tensor = whole(tensor) if known == name else None
        if is_main():
            weights[name] = weights[known] if gathered_tensor is None else gathered_tensor.cpu()
    return weights
