"""Plan a training before a GPU is rented: what it takes, what makes it fit, how long it lasts, what it costs."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ftdocs import memory, shapes
from ftdocs.errors import InputError
from ftdocs.memory import Need, Setting
from ftdocs.recipe import Recipe
from ftdocs.shapes import Shape

CONTEXT = 600_000_000  # bytes that CUDA and its libraries take on a GPU before the first tensor
GAPS = (1.0, 1.1)  # what the allocator holds, by what it has handed out: from no gaps to those often seen
UTILISATION = 0.35  # of the peak, which a tuned script reaches on one GPU; state yours with --utilisation
CHEAP = 0.0  # what costs less than a hundredth of the speed


@dataclass(frozen=True)
class Step:
    """One thing done to make a training fit.

    Attributes:
        change: in words.
        setting: after it.
        need: of that setting.
        slower: the predicted cost in speed, as a share: 0.33 is a third more time for the same tokens.
    """

    change: str
    setting: Setting
    need: Need
    slower: float


def gpu(name: str) -> dict[str, Any]:
    """A GPU of the catalogue, by its name, such as A10G-24GB, or the name's beginning.

    Raises:
        InputError: no such GPU; the nearest are named.
    """
    gpus = shapes.catalogue("gpus")
    by_name = {known.lower(): known for known in gpus} | {
        known.lower().split("-")[0]: known for known in gpus
    }
    if name.lower() not in by_name:
        near = difflib.get_close_matches(name.lower(), by_name, n=2, cutoff=0.4)
        known = " or ".join(dict.fromkeys(by_name[each] for each in near)) or ", ".join(gpus)
        raise InputError(f"--gpu {name}: not in the catalogue; did you mean {known}?")
    return gpus[by_name[name.lower()]]


def gpu_bytes(name: str) -> int:
    """The memory of a GPU of the catalogue, as its driver reports it."""
    return int(gpu(name)["mebibytes"]) * 2**20


def at_least_and_most(need: Need) -> tuple[int, int]:
    """Between what a GPU must have: the peak and CUDA's own share, without gaps and with many."""
    return tuple(round(need.peak.total * gaps) + CONTEXT for gaps in GAPS)  # type: ignore[return-value]


def fits(need: Need, capacity: int) -> bool:
    """Whether it fits with room for gaps."""
    return at_least_and_most(need)[1] <= capacity


def of_recipe(recipe: Recipe) -> tuple[Shape, Setting]:
    """The shape and the setting of a recipe, as ``ftdocs train`` would run it on one GPU: its loss is made in pieces.

    Raises:
        InputError: a model that the planner does not know, or a method that it has no form for.
    """
    method, asked = recipe.method, recipe.train
    kinds = {
        "full": "full",
        "ulmfit": "full",
        "lora": "lora",
        "rslora": "lora",
        "pissa": "lora",
        "qlora": "qlora",
    }
    if method.name not in kinds:
        raise InputError(
            f"method.name: {method.name}: the planner knows full, lora and qlora; measure a step"
        )
    mixed = asked.precision in ("auto", "bf16-mixed")
    setting = Setting(
        method=kinds[method.name],  # type: ignore[arg-type]
        dtype="fp32" if asked.precision == "fp32" else "bf16",
        batch_size=asked.batch_size,
        seq_len=asked.seq_len,
        optimizer="adamw-fused",
        master_weights=mixed,
        fused_loss=True,
        rank=method.rank,
        targets=method.targets,
    )
    return shapes.find(recipe.model), setting


def fit(shape: Shape, setting: Setting, capacity: int) -> list[Step]:
    """What to turn on until a training fits, in the order of least cost; the last step's setting is the plan.

    Raises:
        InputError: nothing does; says how much is missing at the end.
    """
    chosen: list[Remedy] = []
    for remedy in remedies(setting):
        if fits(after(shape, setting, chosen)[-1].need, capacity):
            break
        chosen.append(remedy)
    if not fits(after(shape, setting, chosen)[-1].need, capacity):
        steps = after(shape, setting, chosen)
        raise InputError(
            f"even with {', '.join(step.change for step in steps[1:]) or 'nothing left to turn on'}, one GPU needs"
            f" {at_least_and_most(steps[-1].need)[1] / 1e9:.1f} GB and has {capacity / 1e9:.1f};"
            " take more GPUs (--gpus), a larger one, or shorter sequences (--seq-len)"
        )
    for remedy in sorted(
        chosen[:-1], key=lambda each: -each.slower
    ):  # a later one may have made it unnecessary
        rest = [each for each in chosen if each is not remedy]
        if fits(after(shape, setting, rest)[-1].need, capacity):
            chosen = rest
    return after(shape, setting, chosen)


@dataclass(frozen=True)
class Remedy:
    """A change of a setting that saves memory: in words, as a function, and how much slower it makes a step."""

    change: str
    apply: Callable[[Setting], Setting]
    slower: float


def after(shape: Shape, setting: Setting, chosen: list[Remedy]) -> list[Step]:
    """The steps of some remedies, one after the other; what changes nothing is left out.

    One that saves nothing by itself may do so with a later one, such as checkpointing, while the optimiser's step is
    the largest moment.
    """
    steps = [Step("as asked", setting, memory.need(shape, setting), CHEAP)]
    for remedy in chosen:
        wanted = remedy.apply(steps[-1].setting)
        if wanted != steps[-1].setting:
            steps.append(Step(remedy.change, wanted, memory.need(shape, wanted), remedy.slower))
    return steps


def remedies(setting: Setting) -> list[Remedy]:
    """What saves memory, the cheapest first.

    Checkpointing makes the forward pass twice: 8 instead of 6 FLOPs for each weight and token. Sharding moves the
    weights three times a step over the network. QLoRA makes each weight whole again, twice, before it is used. LoRA
    comes late because it is another training, not because it is slow.
    """

    def shared(now: Setting) -> Setting:
        return now if now.gpus == 1 or now.sharding == "fsdp" else replace(now, sharding="fsdp")

    def eight_bit(now: Setting) -> Setting:
        return replace(now, optimizer="adamw-8bit") if now.full and "8bit" not in now.optimizer else now

    def fused(now: Setting) -> Setting:
        return replace(now, optimizer="adamw-fused") if now.optimizer == "adamw" else now

    def adapters(now: Setting) -> Setting:
        return replace(now, method="lora", master_weights=False, optimizer="adamw-fused") if now.full else now

    def quantised(now: Setting) -> Setting:
        return replace(
            now, method="qlora", dtype="bf16" if now.dtype == "fp32" else now.dtype, master_weights=False
        )

    def without_matrices(now: Setting) -> Setting:
        return replace(now, attention="sdpa") if now.attention == "eager" else now

    def micro_batch(size: int) -> Callable[[Setting], Setting]:
        return lambda now: replace(now, batch_size=min(now.batch_size, size))

    return [
        Remedy("attention without matrices of tokens × tokens", without_matrices, CHEAP),
        Remedy("the loss in pieces", lambda now: replace(now, fused_loss=True), CHEAP),
        Remedy("fused AdamW", fused, CHEAP),
        Remedy("half the micro-batch, accumulated", micro_batch(max(1, setting.batch_size // 2)), 0.01),
        Remedy(
            "a quarter of the micro-batch, accumulated", micro_batch(max(1, setting.batch_size // 4)), 0.02
        ),
        Remedy("AdamW with 8-bit state", eight_bit, 0.02),
        Remedy("FSDP", shared, 0.1),
        Remedy("micro-batches of one sequence, accumulated", micro_batch(1), 0.1),
        Remedy("activation checkpointing", lambda now: replace(now, checkpointing=True), 1 / 3),
        Remedy("LoRA instead of all weights", adapters, CHEAP),
        Remedy("QLoRA", quantised, 0.3),
    ]


def flops(shape: Shape, setting: Setting) -> float:
    """FLOPs a token of a training step: 6 for each weight that is multiplied with, and attention's.

    A frozen weight has no gradient of its own: 4. Checkpointing makes the forward pass again: 2 more.
    """
    products = shape.layers * sum(each.inputs * each.outputs for each in shape.linears) + shape.embedding
    passes = (6 if setting.full else 4) + (2 if setting.checkpointing else 0)
    attention = 2 * shape.layers * shape.queries * setting.seq_len  # causal: half of 4 · T · width, forward
    return passes * products + (6 + (2 if setting.checkpointing else 0)) / 2 * attention


def estimate(
    shape: Shape,
    setting: Setting,
    name: str,
    tokens: int | None = None,
    price: float | None = None,
    utilisation: float = UTILISATION,
) -> dict[str, float]:
    """How fast, how long and how dear: an estimate from FLOPs and a utilisation, not a measurement.

    Args:
        shape: of the model.
        setting: of the training.
        name: of a GPU of the catalogue.
        tokens: to train on in all; without them hours and cost are left out.
        price: of one GPU and hour.
        utilisation: the share of the GPU's dense 16-bit peak that is reached.
    """
    rate = setting.gpus * utilisation * gpu(name)["tflops"] * 1e12 / flops(shape, setting)
    found = {"tokens_per_second": round(rate, 1), "utilisation": utilisation}
    if tokens:
        hours = tokens / rate / 3600
        found["hours"] = round(hours, 3)
        if price:
            found["cost"] = round(hours * price * setting.gpus, 2)
    return found


def report(
    shape: Shape, setting: Setting, name: str | None = None, steps: list[Step] | None = None
) -> dict[str, Any]:
    """What ``ftdocs plan --json`` prints."""
    need = steps[-1].need if steps else memory.need(shape, setting)
    setting = steps[-1].setting if steps else setting
    low, high = at_least_and_most(need)
    found: dict[str, Any] = {
        "peak_bytes": need.peak.total,
        "resting_bytes": need.resting_bytes,
        "peak_at": need.peak.name,
        "breakdown": {part: size for part, size in need.peak.parts.items() if size},
        "fits": fits(need, gpu_bytes(name)) if name else None,
        "assumptions": need.assumptions,
        "range_bytes": [low, high],
        "moments": {moment.name: moment.total for moment in need.moments},
        "parameters": shape.parameters,
        "trained_parameters": memory.trained_parameters(shape, setting),
    }
    if name:
        found["gpu_bytes"] = gpu_bytes(name)
    if steps:
        found["changes"] = [
            {"change": step.change, "peak_bytes": step.need.peak.total, "slower": step.slower}
            for step in steps[1:]
        ]
        found["plan"] = {
            key: getattr(setting, key) for key in
            ("method", "dtype", "batch_size", "seq_len", "gpus", "sharding", "checkpointing", "optimizer",
             "master_weights", "fused_loss", "attention", "cpu_offload")
        }  # fmt: skip
    return found


def as_text(found: dict[str, Any]) -> str:
    """A report for people."""

    def gigabytes(size: int) -> str:
        return f"{size / 1e9:8.2f} GB"

    lines = [f"peak     {gigabytes(found['peak_bytes'])} on each GPU, at {found['peak_at']}"]
    lines += [f"  {part:22}{gigabytes(size)}" for part, size in found["breakdown"].items()]
    lines.append(f"resting  {gigabytes(found['resting_bytes'])} between steps")
    low, high = found["range_bytes"]
    lines.append(
        f"a GPU needs {low / 1e9:.1f} to {high / 1e9:.1f} GB, with CUDA's own share and the allocator's gaps"
    )
    if found["fits"] is not None:
        verdict = "fits" if found["fits"] else "does not fit"
        lines.append(f"{verdict}: the GPU has {found['gpu_bytes'] / 1e9:.1f} GB")
    for step in found.get("changes", []):
        slower = f"about {step['slower']:.0%} slower" if step["slower"] else "no slower"
        lines.append(f"  + {step['change']}: {step['peak_bytes'] / 1e9:.2f} GB, {slower} (predicted)")
    if "estimate" in found:
        said = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in found["estimate"].items())
        lines.append(f"estimate, not measured: {said}")
    lines += [f"- {text}" for text in found["assumptions"]]
    return "\n".join(lines)
