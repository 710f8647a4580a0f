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
        """One step, weight by weight, so that no second copy of all is there; ``closure`` is torch's."""
        groups: list[dict[str, Any]] = self.param_groups
        found = None if closure is None else torch.enable_grad()(closure)()
        try:
            for group in groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self.param_groups = [{**group, "params": [weight]}]
                        self.step_one(weight, group["lr"] * group["weight_decay"])
        finally:
            self.param_groups = groups
        return found

    def step_one(self, weight: torch.Tensor, decay: float) -> None:
        """AdamW's step on the rest of one weight, and from there to the weight."""
        exact = weight.float().mul_(1 - decay)  # AdamW itself will only see the rest, and let that decay
        weight.copy_(self.state[weight]["rest"]) if self.state[weight] else weight.zero_()
        super().step()
        exact += weight
        weight.copy_(exact)
        self.state[weight]["rest"] = exact.sub_(weight).to(weight.dtype)


def adamw(model: torch.nn.Module) -> type[torch.optim.AdamW]:
    """AdamW for the weights of ``model`` that are trained: the compensated one where they are bfloat16."""
    low = any(weight.requires_grad and weight.dtype == torch.bfloat16 for weight in model.parameters())
    return CompensatedAdamW if low else torch.optim.AdamW
