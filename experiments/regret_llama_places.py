"""Are adapters in the attention alone worse than in the MLP alone, in a decoder of 135 million weights?

All as in `regret_llama`, but for where the adapters are: in the attention or in the MLP of every layer, of ranks that
give both the same number of weights, at three rates.
"""

from experiments import regret_llama
from ftdocs.recipe import Recipe

SEEDS = regret_llama.SEEDS
TOLERANCE = regret_llama.TOLERANCE
# A layer has 3,840 r weights in its attention, of 576, 192, 192 and 576, and 6,336 r in its MLP, of 1,536.
RANKS = {"attention": 33, "mlp": 20}


def cases() -> list[dict]:
    """Both places at every rate, with every seed."""
    return [
        {"factor": "place", "way": "lora", "rank": rank, "targets": targets, "rate": rate, "seed": seed}
        for targets, rank in RANKS.items()
        for rate in regret_llama.LORA_RATES[1:]
        for seed in SEEDS
    ]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return regret_llama.recipe(case)


def run(case: dict) -> dict:
    """One case, on one thread."""
    return regret_llama.run(case)
