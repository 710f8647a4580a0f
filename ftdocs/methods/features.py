"""The feature-based approach: the pretrained model stays, and a linear classifier learns from what it gives."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import PreTrainedModel

from ftdocs.errors import InputError

PENALTY = 0.1  # LogisticRegression's C: small, as there are hundreds of features and often few rows


def logistic_regression(features: np.ndarray, labels: Sequence[int], bias: bool = True) -> Pipeline:
    """Fit a linear classifier with scikit-learn: each feature scaled to variance 1, then logistic regression.

    Args:
        features: (rows, D), float32, such as :func:`ftdocs.embed.embed` makes of texts.
        labels: the class of each row, from 0.
        bias: whether a constant is learnt for each class; the head of a decoder has none.
    """
    classifier = make_pipeline(
        StandardScaler(with_mean=bias), LogisticRegression(C=PENALTY, fit_intercept=bias, max_iter=1000)
    )
    return classifier.fit(features.astype(np.float64), labels)


def linear_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that turns a classifier's features into logits.

    Raises:
        InputError: what the model has above its pretrained part is more than one linear layer.
    """
    above = [
        (name, part)
        for name, part in model.named_modules()
        if not name.startswith(model.base_model_prefix) and any(True for _ in part.parameters(recurse=False))
    ]
    if len(above) != 1 or not isinstance(above[0][1], nn.Linear):
        names = ", ".join(name for name, _ in above) or "nothing"
        raise InputError(
            f"method.name: features needs a model whose head is one linear layer; this one has {names};"
            " use layers with method.layers: 0"
        )
    return above[0][1]


def train_head(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze everything but the head, in place, and return the model.

    Raises:
        InputError: as :func:`linear_head`.
    """
    head = linear_head(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    return model


@contextmanager
def headless(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the classifier gives, in place of logits, what its head is given: (B, D)."""
    head = linear_head(model)
    head.forward = lambda input: input  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward


def fill_head(model: PreTrainedModel, classifier: Pipeline) -> None:
    """Write a fitted :func:`logistic_regression` into the model's head, so that the model gives its logits.

    Scaling is a linear map too, and goes into the weights: w · (x - mean) / scale = (w / scale) · x - w · mean / scale.
    """
    head, scaler, regression = linear_head(model), classifier[0], classifier[-1]
    weight = regression.coef_ / scaler.scale_  # (classes, D); one row where there are two classes
    bias = regression.intercept_ - (0 if head.bias is None else weight @ scaler.mean_)
    if (
        len(weight) == 1
    ):  # the logit of the second class against the first: half to the one, half from the other
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))
