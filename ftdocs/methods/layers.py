"""Layer-specific fine-tuning: the top of the model moves, the rest keeps what pretraining gave it."""

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
    units = blocks(model)
    if layers > len(units):
        raise InputError(
            f"method.layers: {layers}, but this model has {len(units)} blocks; set that or fewer"
        )
    for parameter in model.parameters():
        parameter.requires_grad = False
    # In a model's list of parameters those of the blocks come after the embeddings and before what stands above.
    in_blocks = {id(parameter) for unit in units for parameter in unit.parameters()}
    parameters = list(model.parameters())
    last = max(place for place, parameter in enumerate(parameters) if id(parameter) in in_blocks)
    trained = parameters[last + 1 :]
    for unit in units[len(units) - layers :]:
        trained += unit.parameters()
    if not trained:
        raise InputError(
            "method.layers: 0, but above this model's blocks there is nothing to train; set 1 or more"
        )
    for parameter in trained:
        parameter.requires_grad = True
    return model
