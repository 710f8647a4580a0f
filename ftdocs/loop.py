"""The engine in the open: data, loss, backward, clip, step, log, checkpoint, top to bottom in one function."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from ftdocs import checkpoints, job, loss, models
from ftdocs.data.pack import to
from ftdocs.job import Job

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def run(work: Job) -> int:
    """Train until ``work.total`` optimiser steps are done, or Ctrl-C; the number of steps that were done.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    asked, model, progress = work.recipe.train, work.model, work.progress
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    # AdamW keeps two averages for each weight; the schedule raises the learning rate, then lets it fall to 0.
    groups = job.decay_groups(model, asked.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=work.learning_rate, fused=True)
    warmup = job.warmup_steps(work.recipe, work.total)
    schedule = get_scheduler(SCHEDULES[asked.schedule], optimizer, warmup, work.total)
    state = {"optimizer": optimizer, "schedule": schedule}
    step = done = checkpoints.restore(work.resumed_from, model, state) if work.resumed_from else 0

    if work.held_out and done == 0:
        work.validate(done)
    progress.begin(done, work.total)
    model.config.use_cache = False  # with a cache, of no use here, packed documents would see each other
    model.train()
    with loss.chunked(model):
        for step, micro_batches in enumerate(batches(work, done), start=done + 1):
            # Every labelled token of the step counts the same, whichever micro-batch it is in.
            labels = sum(count_labels(batch) for batch in micro_batches)
            for batch in micro_batches:
                with models.autocast(device, asked.precision):
                    share = model(**to(batch, device)).loss * (count_labels(batch) / labels)
                share.backward()
                progress.loss_sum += share.item()
            progress.step_done(step)
            norm = clip_grad_norm_(trained, asked.max_grad_norm)
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            last = step == work.total
            if last or step % asked.log_every == 0:
                row = {"loss": progress.mean_loss(), "learning_rate": rate, "grad_norm": norm.item()}
                progress.write(step, row)
            if work.held_out and (last or (asked.eval_every and step % asked.eval_every == 0)):
                work.validate(step)
            if progress.stop_asked or (step % asked.save_every == 0 if asked.save_every else progress.late()):
                checkpoints.save(work.folder, step, model, state, progress)
            if progress.stop_asked:
                break
    progress.end()
    return step


def batches(work: Job, done: int) -> Iterator[list[dict[str, Any]]]:
    """The micro-batches of each step after ``done``; every epoch has an order of its own, made from the seed.

    The order depends on nothing but the seed and the epoch, so a resumed run finds its place without keeping one.
    """
    asked = work.recipe.train
    size = asked.batch_size * asked.accumulation
    steps = -(-len(work.rows) // size)  # of an epoch; the last one may be smaller
    for step in range(done, work.total):
        epoch, place = divmod(step, steps)
        order = torch.randperm(len(work.rows), generator=torch.Generator().manual_seed(asked.seed + epoch))
        chosen = [work.rows[index] for index in order[place * size : (place + 1) * size].tolist()]
        work.progress.count(*work.origin(chosen))
        parts = (
            chosen[start : start + asked.batch_size] for start in range(0, len(chosen), asked.batch_size)
        )
        yield [work.collate(part) for part in parts]


def count_labels(batch: dict[str, Any]) -> int:
    """Labels of a batch that are trained; of a language model's rows, the first has none."""
    return int((batch["labels"] != -100).sum())
