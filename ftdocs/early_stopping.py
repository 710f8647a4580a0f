"""Fine-tune a classifier with an eye on rows held out, and go back to where it was best on them."""

from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from ftdocs import evaluate, job, models
from ftdocs.data import pack
from ftdocs.errors import InputError
from ftdocs.evaluate import Encoded


def fit(
    model: Any,
    rows: Encoded,
    validation: Encoded,
    pad_token_id: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    batch_size: int = 16,
    patience: int | None = None,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train with AdamW at a constant rate; stop early if asked to (Prechelt, 1998), with the best weights put back.

    Args:
        model: a classifier, trained in place; parameters that need no gradient stay.
        rows: encoded rows of the format label, as from ``prepare.encode``.
        validation: encoded rows that are measured after each epoch and never trained on.
        pad_token_id: fills up the shorter rows of a batch.
        epochs: passes over ``rows``, at most.
        learning_rate: AdamW's, from the first step to the last.
        weight_decay: AdamW's, not applied to biases and norms.
        batch_size: rows of a step.
        patience: stop after so many epochs without a new lowest validation loss, and put the weights of the lowest
            back; None trains to the end and keeps what is there.
        seed: of the order of the rows and of dropout.

    Returns:
        One row an epoch: ``epoch`` from 1; ``loss``, the mean over its steps, and ``eval_loss``, after it, in nats.

    Raises:
        InputError: no rows in one of the two, or a patience below 1.
    """
    if not len(rows) or not len(validation):
        raise InputError(
            f"{len(rows)} training and {len(validation)} validation rows; give at least one of each"
        )
    if patience is not None and patience < 1:
        raise InputError(f"patience is {patience}; give at least 1 epoch, or None to train to the end")
    device, answers = next(model.parameters()).device, [row["label"] for row in validation]
    optimizer = torch.optim.AdamW(
        job.decay_groups(model.parameters(), weight_decay), lr=learning_rate, fused=True
    )
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # which dropout draws from
    curve: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    model.train()
    for epoch in range(1, epochs + 1):
        losses = []
        for places in torch.randperm(len(rows), generator=order).split(batch_size):
            batch = pack.collate_padded([rows[place] for place in places.tolist()], pad_token_id)
            with models.autocast(device):
                loss = model(**pack.to(batch, device)).loss
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        logits = torch.from_numpy(evaluate.predict(model, validation, pad_token_id))
        held_out = torch.nn.functional.cross_entropy(logits, torch.tensor(answers)).item()
        curve.append({"epoch": epoch, "loss": sum(losses) / len(losses), "eval_loss": held_out})
        lowest = min(curve, key=lambda row: row["eval_loss"])["epoch"]
        if patience is not None and lowest == epoch:
            best = {name: weight.clone() for name, weight in model.state_dict().items()}
        if patience is not None and epoch - lowest >= patience:
            break
    if best:
        model.load_state_dict(best)
    return curve
