"""Does LoRA lose more in large batches, once the small ones have a rate low enough?

`regret` tried three rates for steps of 8 rows, and the lowest was the best for every weight and for adapters alike, so
the better one may lie below and its fourth finding could not be judged. Here is the next lower rate of each way, and
nothing else is changed: the same model, sentences, seeds and columns.
"""

from experiments import regret
from ftdocs.recipe import Recipe

SEEDS = regret.SEEDS
TOLERANCE = regret.TOLERANCE
RATES = {"full": 1e-5, "lora": 1e-4}


def cases() -> list[dict]:
    """The cases of 8 rows a step at their lowest rate, at a lower one instead."""
    lowest = {"full": regret.FULL_RATES[0], "lora": regret.LORA_RATES[0]}
    return [
        {**case, "rate": RATES[case["way"]]}
        for case in regret.cases()
        if case["factor"] == "batch" and case["batch"] == 8 and case["rate"] == lowest[case["way"]]
    ]


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return regret.recipe(case)


def run(case: dict) -> dict:
    """One case, on one thread."""
    return regret.run(case)
