"""By how much does the first fine-tune lower the held-out loss, compared with the difference between seeds?

Held fixed: the recipe `recipes/first-fine-tune.yaml` in its cpu size, and its split into training and test
documents. The seed changes the order of the documents and the adapters' first weights.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import Trainer

from ftdocs import evaluate, models
from ftdocs.data import pack, prepare
from ftdocs.methods.lora import add_lora
from ftdocs.recipe import Recipe
from ftdocs.train import arguments

RECIPE = Path(__file__).parents[1] / "recipes/first-fine-tune.yaml"
SEEDS = [0, 1, 2]
TOLERANCE = {"loss_before": 0.005, "loss_after": 0.02}  # another CPU rounds bfloat16 sums otherwise


def cases() -> list[dict]:
    """One case a seed."""
    return [{"seed": seed} for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return Recipe.load(RECIPE, [f"train.seed={case['seed']}"], "cpu")


def run(case: dict) -> dict:
    """Held-out loss in nats per token before and after the training."""
    job = recipe(case)
    splits = prepare.load_splits(job.data, seed=0)
    model, tokenizer = models.load(job)
    pad = models.pad_token_id(tokenizer)
    test = prepare.encode(splits.test, splits.format, tokenizer, job.train.seq_len)
    before = evaluate.held_out_loss(model, test, pad)
    encoded = prepare.encode(splits.train, splits.format, tokenizer, job.train.seq_len)
    blocks = pack.pack(encoded, job.train.seq_len)
    torch.manual_seed(case["seed"])
    model = add_lora(model, job.method.rank, job.method.alpha, job.method.targets)
    with TemporaryDirectory() as folder:
        steps = job.train.max_steps or 0
        settings = arguments(job, Path(folder), steps, validates=False, resumed=False)
        settings.save_strategy = "no"
        collate = partial(pack.collate_packed, pad_id=pad)
        Trainer(model=model, args=settings, train_dataset=blocks, data_collator=collate).train()
    return {"loss_before": before, "loss_after": evaluate.held_out_loss(model, test, pad)}
