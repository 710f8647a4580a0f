"""The feature-based approach: the pretrained model stays, and a linear classifier learns from what it gives."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import PreTrainedModel

from ftdocs.data.pack import collate_padded, token_counts
from ftdocs.errors import InputError

PENALTY = 0.1  # LogisticRegression's C: small, as there are hundreds of features and often few rows


@torch.no_grad()
def mean_vectors(
    model: PreTrainedModel, rows: Sequence[dict[str, Any]], pad_token_id: int, batch_size: int = 64
) -> np.ndarray:
    """A sentence vector for each row: the mean of what the last layer gives its tokens, (rows, D), float32.

    As sentence encoders are trained to be read (Reimers & Gurevych, 2019).

    Args:
        model: any transformer, with a head or without; nothing of it is changed.
        rows: encoded rows, with ``input_ids``.
        pad_token_id: fills up the shorter rows of a batch; it is left out of the mean.
        batch_size: rows at once, longest first.
    """
    encoder = model.base_model.eval()
    order = np.argsort(-token_counts(rows), kind="stable")
    found = []
    for start in range(0, len(order), batch_size):
        batch = collate_padded([rows[index] for index in order[start : start + batch_size]], pad_token_id)
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)  # (B, T)
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (B, T, D)
        found.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(found).cpu().numpy()[np.argsort(order)]


def logistic_regression(features: np.ndarray, labels: Sequence[int], bias: bool = True) -> Pipeline:
    """Fit a linear classifier with scikit-learn: each feature scaled to variance 1, then logistic regression.

    Args:
        features: (rows, D), float32.
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
