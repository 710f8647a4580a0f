"""The loss of a language model in pieces: the matrix of all logits, the largest thing in training, is never there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional

from ftdocs import processes

CHUNK = 256  # positions at once; with 49,152 tokens to choose from, their float32 logits take 50 MB


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of ``hidden @ weight.T``, with its gradients made on the way, chunk by chunk.

    The idea is that of Hsu et al., 2024 (Liger Kernel). ``torch.nn.functional.linear_cross_entropy`` does it too, but
    with bfloat16 inputs its sum is a bfloat16, good to two digits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        """``hidden`` (N, D) and ``weight`` (V, D) of one dtype, ``labels`` (N,) int64: a float32 scalar."""
        total = torch.zeros((), device=hidden.device)
        # In float32: rounded to bfloat16 after each chunk, the sum over many would be worse than one product.
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(each, dtype=torch.float32) if each is not None and wanted else None
            for each, wanted in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for start in range(0, len(hidden), CHUNK):
            h, y = hidden[start : start + CHUNK], labels[start : start + CHUNK]
            logits = functional.linear(h, weight, bias).float()  # (CHUNK, V)
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += (normaliser - logits.gather(1, y[:, None])).sum()
            if not any(ctx.needs_input_grad):
                del logits
                continue
            # The loss's gradient by the logits is the softmax less 1 at the label.
            gradient = logits.sub_(normaliser).exp_()
            gradient[torch.arange(len(y)), y] -= 1
            gradient = gradient.to(hidden.dtype)
            if by_hidden is not None:
                by_hidden[start : start + CHUNK] = gradient @ weight
            if by_weight is not None:
                by_weight += gradient.T @ h
            if by_bias is not None:
                by_bias += gradient.sum(0)
            del logits, gradient  # before the next chunk's are made
        ctx.gradients, ctx.dtype = (by_hidden, by_weight, by_bias), hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kept gradients, times that of what was made of the sum."""
        gradients, ctx.gradients = ctx.gradients, None  # as large as the head: not kept for a second time
        return (*(None if each is None else each.mul_(upstream[0]).to(ctx.dtype) for each in gradients), None)


def chunked_loss(
    hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy in nats over the labelled positions, without the logits of all positions at once.

    Each chunk's logits are made, used for the loss and at once for its gradient, and dropped. Positions without a
    label cost nothing, not even their product with the head.

    Args:
        hidden: (B, T, D), the last layer's output.
        head: the output layer, D to V, its weight perhaps that of the embedding.
        labels: (B, T), int64; position t is asked for the label at t + 1; -100 is not trained.
        items: what the sum is divided by, instead of the number of labelled positions.

    Returns:
        A scalar, float32. NaN where no position has a label and no ``items`` are given, as torch's ``cross_entropy``.
    """
    wanted = functional.pad(labels[:, 1:], (0, 1), value=-100)
    kept = wanted != -100
    inside = torch.is_autocast_enabled(hidden.device.type)
    dtype = torch.get_autocast_dtype(hidden.device.type) if inside else hidden.dtype
    weight, bias = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
    if not torch.is_grad_enabled():  # which a Function cannot see
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        total: torch.Tensor = ChunkedCrossEntropy.apply(hidden[kept].to(dtype), weight, bias, wanted[kept])
    return total / (kept.sum() if items is None else items)


@contextmanager
def chunked(model: Any) -> Iterator[None]:
    """Inside the block, ``model(labels=…)`` computes it by :func:`chunked_loss`; its ``logits`` are hidden states.

    The output layer hands the hidden states on, and the model's loss function, which Transformers lets one set,
    multiplies them piece by piece. All else of the forward pass is the model's own. A model of which that is not the
    whole story (a classifier; one that caps or scales its logits; a head that is no plain linear layer) keeps its loss.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head: Any = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if (
        head is not None and vars(head).get("forward") is hand_on
    ):  # a block around this one has found out already
        yield
        return
    # A model in shards cannot be tried out here; whoever took it apart stands in such a block already.
    if processes.is_sharded(model) or not is_plain(base):
        yield
        return
    with _handing_on(base):
        yield


@contextmanager
def _handing_on(base: Any) -> Iterator[None]:
    head: Any = base.get_output_embeddings()
    loss_function = base.loss_function

    def from_hidden(logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Trainer divides by the labels of a whole step, of which this batch may have none.
        return chunked_loss(logits, head, labels, kwargs.get("num_items_in_batch"))

    head.forward, base.loss_function = hand_on, from_hidden
    try:
        yield
    finally:
        del head.forward
        base.loss_function = loss_function


def hand_on(input: torch.Tensor) -> torch.Tensor:
    """What the output layer does inside :func:`chunked`: nothing."""
    return input


@torch.no_grad()
def is_plain(model: Any) -> bool:
    """Whether a model's loss is cross-entropy of its output layer's product and nothing else, found out by trying."""
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is not nn.Linear or "forward" in vars(head):
        return False  # no head, another kind, or one that a library has put a hook on
    ids = torch.arange(1, 9, device=next(model.parameters()).device)[None]
    training = model.training
    model.eval()
    try:
        own = model(input_ids=ids, labels=ids)
        with _handing_on(model):
            found = model(input_ids=ids, labels=ids)
        # The logits to the last bit; the loss but for the rounding of bfloat16 logits.
        logits = nn.Linear.forward(head, found.logits)
        return (
            torch.equal(logits, own.logits) and torch.isclose(found.loss, own.loss, rtol=1e-2).item() is True
        )
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(training)
