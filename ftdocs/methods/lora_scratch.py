"""LoRA without a library, to read: what PEFT's adapters compute, in one small module."""

import math

import torch
from torch import nn


class LowRankLinear(nn.Module):
    """A frozen linear layer W and a trained update of low rank, ``y = x Wᵀ + s · x Aᵀ Bᵀ`` (Hu et al., 2021).

    Args:
        base: the pretrained layer, D to E; it is frozen.
        rank: r, the rows of A (r, D) and the columns of B (E, r), both float32.
        alpha: the scale s is alpha / r, so that a good learning rate stays good when r changes.
        dropout: share of the update's input that is left out at random in training.
        by_root: s is alpha / √r instead (rsLoRA; Kalajdzievski, 2023), or the update fades as r grows.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        by_root: bool = False,
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / (math.sqrt(rank) if by_root else rank)
        self.dropout = nn.Dropout(dropout)
        where = {"device": base.weight.device, "dtype": torch.float32}
        self.A = nn.Parameter(torch.empty(rank, base.in_features, **where))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, **where))  # zero: nothing changes at first
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # random: or no gradient would ever reach B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (…, D) to (…, E), in the dtype of the base; the r numbers in between are all that the update sees."""
        between = self.dropout(x).to(self.A.dtype) @ self.A.T  # (…, r)
        return self.base(x) + (self.scale * (between @ self.B.T)).to(x.dtype)

    def update(self) -> torch.Tensor:
        """s B A, (E, D) as the weight: all that was learnt, in a matrix of rank r."""
        return self.scale * self.B @ self.A

    def merged(self) -> nn.Linear:
        """The base layer with the update added to its weight, in place: as fast as it was before."""
        with torch.no_grad():
            self.base.weight += self.update().to(self.base.weight.dtype)
            self.B.zero_()  # or this layer would add it once more
        return self.base


def add_low_rank(model: nn.Module, targets: list[str], rank: int = 8, alpha: float = 16.0) -> nn.Module:
    """Freeze a model and put a :class:`LowRankLinear` in the place of each linear layer that is named, in place.

    Args:
        model: any.
        targets: last parts of names, such as ``["q_proj", "v_proj"]``.
        rank: of the updates.
        alpha: of the updates.

    Raises:
        ValueError: no linear layer has such a name; nothing would be trained.
    """
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets
    ]
    if not found:
        raise ValueError(f"targets: no linear layer is named {' or '.join(targets)}")
    model.requires_grad_(False)
    for name, layer in found:
        model.set_submodule(name, LowRankLinear(layer, rank, alpha))
    return model
