"""How much general ability does fine-tuning on a narrow text cost, and what protects it?

Held fixed: SmolLM2-135M-Instruct, `recipes/forgetting.yaml` (docstrings of Python libraries), its split, and how many
of its tokens are trained on: with replay the general tokens come on top, in more steps. Ways: every weight at a high
rate, and at a tenth of it, each also with a fifth of the tokens being web pages (replay); and LoRA. The seed changes
the order of the rows, the replayed pages, and the adapters' first weights. Columns: perplexity on held-out docstrings,
and on web pages that no way is trained on, before and after.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ftdocs import evaluate, loop, models
from ftdocs.data import pack, prepare
from ftdocs.forgetting import general_perplexity, with_replay
from ftdocs.job import Job
from ftdocs.progress import Progress
from ftdocs.recipe import Recipe
from ftdocs.train import choose_weights

RECIPE = Path(__file__).parents[1] / "recipes/forgetting.yaml"
SEEDS = [0, 1, 2]
WAYS = {  # settings, and the share of replayed tokens
    "high rate": (["method.name=full", "train.learning_rate=2.0e-3"], 0.0),
    "high rate, replay": (["method.name=full", "train.learning_rate=2.0e-3"], 0.2),
    "a tenth": (["method.name=full", "train.learning_rate=2.0e-4"], 0.0),
    "a tenth, replay": (["method.name=full", "train.learning_rate=2.0e-4"], 0.2),
    "LoRA": (["method.name=lora", "train.learning_rate=1.0e-3"], 0.0),
}
TOLERANCE = {"narrow_before": 0.01, "general_before": 0.01, "narrow_after": 0.05, "general_after": 0.05}


def cases() -> list[dict]:
    """Every way with every seed."""
    return [{"way": way, "seed": seed} for way in WAYS for seed in SEEDS]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return Recipe.load(RECIPE, [*WAYS[case["way"]][0], f"train.seed={case['seed']}"], "cpu")


def run(case: dict) -> dict:
    """Perplexity on the narrow and on general text, before and after the training of one case."""
    asked, share = recipe(case), WAYS[case["way"]][1]
    length = asked.train.seq_len
    splits = prepare.load_splits(asked.data, seed=0)
    model, tokenizer = models.load(asked)
    pad = models.pad_token_id(tokenizer)
    train, test = (prepare.encode(rows, "text", tokenizer, length) for rows in (splits.train, splits.test))

    def measure() -> tuple[float, float]:
        narrow = math.exp(evaluate.held_out_loss(model, test, pad))
        return narrow, general_perplexity(model, tokenizer, documents=32)

    before = measure()
    torch.manual_seed(case["seed"])
    trained = choose_weights(model, asked.method)
    blocks = pack.pack(with_replay(train, tokenizer, share, length, case["seed"]), length)
    steps = math.ceil(len(blocks) / asked.train.batch_size)
    with TemporaryDirectory() as name:
        folder = Path(name)
        progress = Progress.start(folder, None)
        loop.run(Job(asked, folder, "text", trained, tokenizer, blocks, [], True, steps, None, progress))
    after = measure()
    return {
        "steps": steps,
        "narrow_before": before[0],
        "narrow_after": after[0],
        "general_before": before[1],
        "general_after": after[1],
    }
