"""AdamW for weights that are bfloat16: what rounding takes from an update is kept and added to the next one."""

from typing import Any

import torch


class CompensatedAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with compensated summation (Kahan, 1965) of the updates, for bfloat16 weights.

    A bfloat16 number has eight binary digits, and at usual learning rates most updates are smaller than half the
    distance to the next number. So each weight gets a *rest*, a bfloat16 number too, near 0 and hence with far finer
    steps. AdamW steps on the rest, and what of it the weight can hold moves over. Two bytes a weight, half of a
    float32 copy. The rest is part of the optimiser's state, and of a checkpoint.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One step; ``closure`` as in :class:`torch.optim.AdamW`."""
        moved = [
            (weight, weight.clone(), group["lr"] * group["weight_decay"])
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        for weight, _, _ in moved:
            weight.copy_(self.state[weight]["rest"]) if self.state[weight] else weight.zero_()
        found = super().step(closure)
        for weight, before, decay in moved:
            exact = before.float() * (1 - decay) + weight.float()  # the rest alone did not decay the weight
            weight.copy_(exact)
            self.state[weight]["rest"] = (exact - weight.float()).to(weight.dtype)
        return found


def adamw(model: torch.nn.Module) -> type[torch.optim.AdamW]:
    """AdamW for the weights of ``model`` that are trained: the compensated one where they are bfloat16."""
    low = any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in model.parameters())
    return CompensatedAdamW if low else torch.optim.AdamW
