"""What several GPUs send each other in a step: computed from the shape, and counted while it happens."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode  # what torch's own counters of FLOPs are made of

from ftdocs import memory, plan
from ftdocs.errors import InputError
from ftdocs.memory import Setting
from ftdocs.shapes import Shape

# PyTorch's names of the collectives, and which of their tensors is the whole: what all GPUs have, or get, together.
COLLECTIVES = {
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
}


def messages(shape: Shape, setting: Setting) -> Counter[str]:
    """Bytes that go into the collectives of one micro-batch's forward and backward pass, by collective.

    DDP sums all gradients; ZeRO-2 sums them, each GPU its share, and hands out the new weights; FSDP and ZeRO-3 gather
    each block's weights for the forward and again for the backward pass, the rest (embedding, last norm, head) once,
    and sum the gradients, each GPU its share. Gradients are of the trained weights alone.
    """
    weights = memory.weight_bytes(shape, setting)
    gradients = memory.gradient_bytes(shape, setting)
    if setting.gpus == 1:
        return Counter()
    if setting.sharding == "ddp":
        return Counter({"all-reduce": gradients})
    if setting.sharding == "zero2":
        return Counter({"reduce-scatter": gradients, "all-gather": gradients})  # as large as the new weights
    blocks = weights - setting.weight * shape.root
    return Counter({"all-gather": weights + blocks, "reduce-scatter": gradients})


def sent(whole: Counter[str], gpus: int) -> float:
    """Bytes that each GPU sends for these collectives, by rings (Patarasuk and Yuan, 2009)."""
    rounds = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
    return sum(rounds[name] * size for name, size in whole.items()) * (gpus - 1) / gpus


def counted(work: Callable[[], object]) -> Counter[str]:
    """Do ``work`` in every process, and count the bytes that this one puts into collectives or gets from them."""
    found: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "c10d":
                called = func.name().removeprefix("c10d::")
                name, place = COLLECTIVES.get(called, (called, 0))  # another one shows by PyTorch's name
                whole = args[place] if isinstance(args[place], list) else [args[place]]
                found[name] += sum(tensor.numel() * tensor.element_size() for tensor in whole)
            return func(*args, **(kwargs or {}))

    with Count():
        work()
    return found


def step_seconds(shape: Shape, setting: Setting, gpu: str, link: float) -> tuple[float, float]:
    """How long a micro-batch takes, predicted: least, when all sending is hidden behind work, and most, when none is.

    Args:
        shape: of the model.
        setting: of the training; of ``gpus`` GPUs.
        gpu: its name in the catalogue.
        link: bytes a second that a GPU can send while it receives as many.

    Raises:
        InputError: a link without speed.
    """
    if not link > 0:
        raise InputError(f"link: {link} bytes a second; give what a GPU can send")
    rate = plan.estimate(shape, setting, gpu)["tokens_per_second"] / setting.gpus
    # What the estimate adds for sharded weights is the sending, and that is counted here.
    rate *= 1 + plan.SLOWER["sharded weights"] * (setting.shares > 1)
    work, sending = setting.tokens / rate, sent(messages(shape, setting), setting.gpus) / link
    return max(work, sending), work + sending
