"""The engine in the open: data, loss, backward, clip, step, log, checkpoint, top to bottom in one function."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from ftdocs import checkpoints, job, loss, models, processes, runs
from ftdocs.data.pack import to
from ftdocs.job import Job


def run(work: Job) -> int:
    """Train until ``work.total`` steps are done, patience is at its end, or Ctrl-C; the optimiser steps that were done.

    Raises:
        Diverged: the loss or the gradient is no number, or the loss has exploded.
    """
    asked, model, progress = work.recipe.train, work.model, work.progress
    device = next(model.parameters()).device
    model.config.use_cache = False  # with a cache, of no use here, packed documents would see each other
    with loss.chunked(model):
        processes.shard(model)  # where there are several

        # AdamW keeps two averages for each weight; the schedule raises the learning rate, then lets it fall to 0.
        optimizer = torch.optim.AdamW(job.parameter_groups(work), lr=work.learning_rate, fused=True)
        schedule = job.schedule(work, optimizer)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if work.resumed_from:
            work.begin_step(checkpoints.step_of(work.resumed_from))  # what was trained then is what was kept
        step = done = checkpoints.restore(work.resumed_from, model, optimizer, schedule)

        if work.held_out and done == 0:
            work.validate(done)
        progress.begin(done, work.total)
        model.train()
        for step, micro_batches in enumerate(batches(work, done), start=done + 1):
            work.begin_step(step)
            # Every labelled token of the step counts the same, whichever micro-batch and process it is in.
            [labels] = processes.total(sum(count for _, count in micro_batches))
            for batch, count in micro_batches:
                with models.autocast(device, asked.precision):
                    share = model(**to(batch, device)).loss * (count / labels)
                share.backward()
                progress.step_loss += share.item()
            norm = processes.whole(clip_grad_norm_(trained, asked.max_grad_norm))
            progress.grad_norm = norm.item()
            progress.step_done(step)  # which stops here when the loss or the gradient is no number
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            last = step == work.total
            if last or step % asked.log_every == 0:
                row = {"loss": progress.mean_loss(), "learning_rate": rate, "grad_norm": progress.grad_norm}
                progress.write(step, row)
            if work.held_out and (last or (asked.eval_every and step % asked.eval_every == 0)):
                work.validate(step)
            if work.had_enough:
                break
            due = step % asked.save_every == 0 if asked.save_every else progress.save_due
            if due or progress.stop_asked or (step == work.best_step and not last):
                checkpoints.save(work.folder, step, model, optimizer, schedule, progress, work.best_step)
            if progress.stop_asked:
                break
    progress.end()
    return step


def batches(work: Job, done: int) -> Iterator[list[tuple[dict[str, Any], int]]]:
    """This process's micro-batches of each step after ``done``, each with the number of its labels that count.

    Micro-batches are dealt out in turn. All processes take the same number of them, since they go through the layers
    together: where too few are left at the end of an epoch, one takes a row once more, of which no label counts.
    """
    asked = work.recipe.train
    size = runs.rows_per_step(work.recipe)
    steps = -(-len(work.rows) // size)  # of an epoch; the last one may be smaller
    for step in range(done, work.total):
        epoch, place = divmod(step, steps)
        order = work.order(epoch)[place * size : (place + 1) * size]
        chosen = [work.rows[index] for index in order.tolist()]
        parts = [
            chosen[start : start + asked.batch_size] for start in range(0, len(chosen), asked.batch_size)
        ]
        mine = parts[processes.rank() :: processes.count()]
        work.progress.count(*work.origin([row for part in mine for row in part]))
        micro_batches = [(batch, count_labels(batch)) for batch in map(work.collate, mine)]
        if len(mine) * processes.count() < len(parts):
            micro_batches.append((work.collate(chosen[:1]), 0))
        yield micro_batches


def count_labels(batch: dict[str, Any]) -> int:
    """Labels of a batch that are trained; what stands at the beginning of a document has none."""
    return int((batch["labels"] != -100).sum())
