"""Full fine-tuning: every weight moves."""

from transformers import PreTrainedModel


def train_all(model: PreTrainedModel) -> PreTrainedModel:
    """Let the optimiser change every parameter of ``model``, in place, and return it."""
    for parameter in model.parameters():
        parameter.requires_grad = True
    return model
