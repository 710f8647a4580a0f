"""ULMFiT (Howard & Ruder, 2018): a pretrained language model is moved gently, from the top down, towards a classifier.

Three ways to be gentle, each usable without the others: lower layers learn more slowly, the learning rate rises for a
short and falls for a long time, and the layers are set free one after the other.
"""

from torch import nn

from ftdocs.methods.layers import by_depth

GROUPS = (
    4  # as many as ULMFiT's own model had: a factor for each of thirty layers would leave the lowest nothing
)


def layer_groups(model: nn.Module, groups: int = GROUPS) -> list[list[nn.Parameter]]:
    """A model's parameters from the top down: what stands above the blocks, then the blocks in equal parts.

    The embeddings go with the lowest blocks.

    Args:
        model: a transformer with at least ``groups - 1`` blocks, or the groups at the bottom stay empty but one.
        groups: how many, that of the head counted.
    """
    below, blocks, above = by_depth(model)
    parts: list[list[nn.Parameter]] = [above]
    downwards = blocks[::-1]
    for part in range(groups - 1):
        first, end = (len(blocks) * place // (groups - 1) for place in (part, part + 1))
        parts.append([parameter for block in downwards[first:end] for parameter in block.parameters()])
    parts[-1] += below
    return parts


def discriminative_rate(rate: float, group: int, factor: float) -> float:
    """The learning rate of a group, counted from the top; each is ``factor`` times smaller than the one above."""
    return rate / factor**group


def slanted_triangular(step: int, total: int, cut: float = 0.1, ratio: float = 32.0) -> float:
    """What the learning rate is multiplied by before step ``step + 1`` of ``total``: up fast, then slowly down.

    Args:
        step: steps done.
        total: steps in all.
        cut: share of the steps in which it rises.
        ratio: how much smaller the smallest is than the largest, 1.
    """
    peak = max(1, int(total * cut))
    share = step / peak if step < peak else max(0.0, 1 - (step - peak) / max(1, total - peak))
    return (1 + share * (ratio - 1)) / ratio


def unfrozen(step: int, total: int, groups: int = GROUPS) -> int:
    """How many groups, from the top, are trained in step ``step``, from 1: one more at a time, all after half of them.

    ULMFiT counts in epochs; steps serve a run of any length.
    """
    return min(groups, 1 + 2 * (groups - 1) * (step - 1) // total)


def unfreeze(model: nn.Module, count: int) -> None:
    """Let the upper ``count`` groups of layers be trained, in place, and freeze the others."""
    for place, parameters in enumerate(layer_groups(model)):
        for parameter in parameters:
            parameter.requires_grad = place < count
