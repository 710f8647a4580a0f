"""Where the best rate was the first or the last one that was tried, does a further one change what is found?

`regret` tried three rates for steps of 8 rows, and the lowest was the best for every weight and for adapters alike;
`regret_llama` tried three for every weight of SmolLM2, and the highest was the best. Here is one rate more for each of
them, the next lower or the next higher, and nothing else is changed: models, rows, seeds and columns are theirs.
"""

from experiments import regret, regret_llama
from ftdocs.recipe import Recipe

SEEDS = regret.SEEDS
TOLERANCE = {**regret.TOLERANCE, **regret_llama.TOLERANCE}
LOWER = {"full": 1e-5, "lora": 1e-4}
HIGHER = 1e-3


def cases() -> list[dict]:
    """The cases at the end of what was tried, at the next rate instead."""
    lowest = {"full": regret.FULL_RATES[0], "lora": regret.LORA_RATES[0]}
    few_rows = [
        {"model": "minilm", **case, "rate": LOWER[case["way"]]}
        for case in regret.cases()
        if case["factor"] == "batch" and case["batch"] == 8 and case["rate"] == lowest[case["way"]]
    ]
    decoder = [
        {"model": "smollm2-135m-instruct", **case, "rate": HIGHER}
        for case in regret_llama.cases()
        if case["way"] == "full" and case["rate"] == regret_llama.FULL_RATES[-1]
    ]
    return few_rows + decoder


def recipe(case: dict) -> Recipe:
    """The recipe of a case."""
    return (regret if case["model"] == "minilm" else regret_llama).recipe(case)


def run(case: dict) -> dict:
    """One case, on one thread."""
    return (regret if case["model"] == "minilm" else regret_llama).run(case)
