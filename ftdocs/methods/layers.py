"""Layer-specific fine-tuning: the top of the model moves, the rest keeps what pretraining gave it."""

from torch import nn
from transformers import PreTrainedModel

from ftdocs.errors import InputError
from ftdocs.processes import blocks


def train_top(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Let the optimiser change the last ``layers`` blocks and what stands above them, in place; return the model.

    Above the blocks stand, by architecture, a last norm or a pooler, and the head. A head that shares its weight with
    the embedding stays frozen with it. How transferable each layer is: Yosinski et al., 2014; for BERT, Merchant
    et al., 2020.

    Args:
        model: a transformer; every parameter is frozen or trained anew, whatever it was before.
        layers: how many blocks, from the last one down; 0 trains only what stands above.

    Raises:
        InputError: the model has fewer blocks; or with 0 there is nothing to train.
    """
    below, units, above = by_depth(model)
    if layers > len(units):
        raise InputError(
            f"method.layers: {layers}, but this model has {len(units)} blocks; set that or fewer"
        )
    trained = above + [parameter for unit in units[len(units) - layers :] for parameter in unit.parameters()]
    if not trained:
        raise InputError(
            "method.layers: 0, but above this model's blocks there is nothing to train; set 1 or more"
        )
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in trained:
        parameter.requires_grad = True
    return model


def by_depth(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module], list[nn.Parameter]]:
    """The embeddings' parameters, the blocks from the lowest up, and the parameters of what stands above them.

    In a model's list of parameters those of the blocks come after the embeddings and before the last norm or pooler
    and the head.
    """
    units = blocks(model)
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    parameters = list(model.parameters())
    places = [place for place, parameter in enumerate(parameters) if id(parameter) in inside]
    outside = [parameter for parameter in parameters[: places[-1]] if id(parameter) not in inside]
    return outside, units, parameters[places[-1] + 1 :]
