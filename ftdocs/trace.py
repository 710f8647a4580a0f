"""What a training step would take, traced: every operation of the real model, on tensors that have no memory."""

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# In a real step no mask is made where no row is padded. A trace cannot look at the rows, so here none is made either.
AttentionInterface.register("sdpa-without-mask", sdpa_attention_forward)
AttentionMaskInterface.register("sdpa-without-mask", lambda *arguments, **settings: None)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def traced_step(
    config: PreTrainedConfig,
    batch_size: int,
    seq_len: int,
    dtype: str = "bf16",
    autocast: bool = False,
    checkpointing: bool = False,
    optimizer: str = "adamw",
    attention: str = "sdpa",
    classes: int | None = None,
    change: Callable[[Any], Any] = lambda model: model,
    accumulation: int = 1,
) -> dict[str, int]:
    """Bytes that a step takes when AdamW has its averages: at its peak, and when it is over and gradients are freed.

    A step of transformers' own model, forward, backward and AdamW, runs under ``FakeTensorMode``: the operations are
    those of a real one, the tensors have shapes and no storage, so the largest model needs no memory. What they would
    hold is counted, storage by storage, as they come and go.

    Args:
        config: of a decoder, or with ``classes`` of a classifier.
        batch_size: sequences.
        seq_len: tokens of each.
        dtype: of the weights.
        autocast: weights as they are, matrix products in bfloat16.
        checkpointing: each layer computed anew in the backward pass.
        optimizer: "adamw" (``foreach``) or "adamw-fused".
        attention: "sdpa" or "eager".
        classes: of a classifier.
        change: what is done to the model before, such as adding adapters.
        accumulation: micro-batches of the step, one after the other.

    Returns:
        ``{"peak": …, "resting": …}``
    """
    config = copy.deepcopy(config)  # the caller's stays as it is
    config.use_cache = False
    auto = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
    if classes:
        config.num_labels = classes
    own = "sdpa-without-mask" if attention == "sdpa" else attention
    with torch.device("meta"):  # shapes alone
        model = change(auto.from_config(config, dtype=DTYPES[dtype], attn_implementation=own))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.tie_weights()  # which each had a tensor of its own after that
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        fused = optimizer == "adamw-fused"
        adamw = torch.optim.AdamW(trained, lr=1e-3, foreach=not fused, fused=fused)
        ids = torch.zeros(batch_size, seq_len, dtype=torch.long)
        labels = torch.zeros(batch_size, dtype=torch.long) if classes else ids
        live = Live([*model.parameters(), *model.buffers(), ids, labels])
        mixed: AbstractContextManager[Any] = (
            torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
        )
        with live:  # AdamW makes its averages in its first step
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
            adamw.step()
            adamw.zero_grad()
        live.peak = live.bytes
        with live:
            for _ in range(accumulation):
                with mixed:
                    loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                del loss
            adamw.step()
            adamw.zero_grad()
        return {"peak": live.peak, "resting": live.bytes}


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside of it make, until nobody holds them any more.

    PyTorch's own ``MemTracker`` does so too, and more, but refuses models with frozen weights.
    """

    def __init__(self, tensors: list[torch.Tensor]):
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()
        for tensor in tensors:
            self.add(tensor)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count what it made."""
        made = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return made

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001
        if key in self.known:
            return
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        """Nobody holds the storage any more."""
        self.known.discard(key)
        self.bytes -= size
