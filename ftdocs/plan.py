"""Plan a training before a GPU is rented: what it takes, what makes it fit, how long it lasts, what it costs."""

import contextlib
import difflib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ftdocs import memory, shapes
from ftdocs.errors import InputError
from ftdocs.memory import Need, Setting
from ftdocs.recipe import Recipe
from ftdocs.shapes import Shape

CONTEXT = 600_000_000  # bytes that CUDA and its libraries take on a GPU before the first tensor
LOSS_CHUNK = 256  # ftdocs.loss.CHUNK, without importing torch
# What the allocator holds, by what it has handed out: from no gaps to a tenth, which we assume.
GAPS = (1.0, 1.1)
# What was "reserved" at most in benchmarks/memory-measured.csv where nothing was offloaded, by what is counted here.
HELD = 1.35
UTILISATION = 0.35  # of the peak, which a tuned script reaches on one GPU; state yours with --utilisation
# A recipe's methods that are planned, and as what: those of one kind take the same memory.
PLANNED_AS = {
    "full": "full",
    "ulmfit": "full",
    "lora": "lora",
    "rslora": "lora",
    "qlora": "qlora",
    "loftq": "qlora",
}
# By how much longer than its FLOPs say a token takes: assumptions of ours, not measured. QLoRA makes each weight whole
# twice; litgpt's table has 15 to 105 % more for nf4-dq (its tutorials/resource-tables.md, short rows one at a time).
SLOWER = {
    "QLoRA": 0.3,
    "sharded weights": 0.1,
    "a micro-batch of one": 0.1,
    "8-bit state": 0.02,
    "twice the micro-batches": 0.01,
}


@dataclass(frozen=True)
class Step:
    """One thing done to make a training fit.

    Attributes:
        change: in words.
        setting: after it.
        need: of that setting.
        slower: the predicted cost in speed, as a share: 0.33 is a third more time for the same tokens; below 0 faster.
    """

    change: str
    setting: Setting
    need: Need
    slower: float


def means(name: str, known: str) -> bool:
    """Whether somebody who writes ``name`` means this GPU: its whole name, such as A10G-24GB, or the beginning."""
    return name.lower() in (known.lower(), known.lower().split("-")[0])


def gpu(name: str) -> dict[str, Any]:
    """A GPU of the catalogue, by its name, such as A10G-24GB, or the name's beginning.

    Raises:
        InputError: no such GPU; the nearest are named. Or several, of different memory.
    """
    gpus = shapes.catalogue("gpus")
    meant = [known for known in gpus if means(name, known)]
    if len(meant) > 1:
        raise InputError(f"--gpu {name}: is sold with different memory; say {' or '.join(meant)}")
    if not meant:
        by_name = {known.lower(): known for known in gpus} | {
            known.lower().split("-")[0]: known for known in gpus
        }
        near = difflib.get_close_matches(name.lower(), by_name, n=2, cutoff=0.4)
        known = " or ".join(dict.fromkeys(by_name[each] for each in near)) or ", ".join(gpus)
        raise InputError(f"--gpu {name}: not in the catalogue; did you mean {known}?")
    return gpus[meant[0]]


def gpu_bytes(name: str) -> int:
    """The memory of a GPU of the catalogue, as its driver reports it."""
    return int(gpu(name)["mebibytes"]) * 2**20


def at_least_and_most(need: Need) -> tuple[int, int]:
    """Between what a GPU must have: the peak and CUDA's own share, without gaps and with a tenth of it as gaps.

    Where software keeps more than is counted here it is above that: see :data:`HELD`.
    """
    return tuple(round(need.peak.total * gaps) + CONTEXT for gaps in GAPS)  # type: ignore[return-value]


def fits(need: Need, capacity: int) -> bool:
    """Whether it fits with room for a tenth of gaps."""
    return at_least_and_most(need)[1] <= capacity


def check(shape: Shape, setting: Setting, name: str | None = None) -> None:
    """Refuse what no training can be, of this model or on this GPU.

    Raises:
        InputError: names what does not go together.
    """
    if 0 < shape.positions < setting.seq_len:
        raise InputError(
            f"seq_len {setting.seq_len}: this model has positions for {shape.positions} tokens; give less"
        )
    if shape.family == "bert" and setting.fused_loss:
        raise InputError(
            "fused_loss: a classifier has two logits a row, and nothing to take apart; leave it out"
        )
    if not setting.full:
        sides = {each.name: min(each.inputs, each.outputs) for each in shape.targeted(setting.targets)}
        least = min(sides, key=lambda each: sides[each])
        if setting.rank > sides[least]:
            raise InputError(f"rank {setting.rank}: {least} is a matrix of rank {sides[least]}; give less")
    if name and is_old(name) and setting.dtype == "bf16":
        raise InputError(f"--gpu {name}: has no units for bfloat16; add --dtype fp16 or fp32")
    if name and is_old(name) and setting.attention == "flash":
        raise InputError(f"--gpu {name}: FlashAttention needs Ampere or newer; add --attention sdpa")


def is_old(name: str) -> bool:
    """Whether a GPU of the catalogue has no bfloat16, as those before Ampere."""
    return gpu(name).get("dtype") == "fp16"


def of_recipe(recipe: Recipe, name: str | None = None) -> tuple[Shape, Setting]:
    """The shape and the setting of a recipe, as ``ftdocs train`` would run it on one GPU.

    Its loss is made in pieces, but for models that do more than multiply to get their logits.

    Args:
        recipe: what is to be trained.
        name: of a GPU of the catalogue, for ``train.precision: auto``; one with bfloat16 when left out.

    Raises:
        InputError: a model that the planner does not know, or a method that it has no form for.
    """
    method, asked = recipe.method, recipe.train
    if method.name not in PLANNED_AS:
        raise InputError(f"method.name: {method.name}: {not_planned(method.name)}")
    precision = asked.precision
    if precision == "auto":
        precision = "fp32" if name and is_old(name) else "bf16-mixed"
    planned = PLANNED_AS[method.name]
    mixed = precision == "bf16-mixed" or (precision == "bf16" and planned != "full")  # as models.mixed
    shape = shapes.find(recipe.model)
    in_pieces = shape.family not in ("bert", "gemma2")
    setting = Setting(
        method=planned,  # type: ignore[arg-type]
        dtype="fp32" if precision == "fp32" else "bf16",
        batch_size=asked.batch_size,
        accumulation=asked.accumulation,
        seq_len=asked.seq_len,
        optimizer="adamw-fused",
        master_weights=mixed,
        fused_loss=in_pieces,
        loss_chunk=LOSS_CHUNK if in_pieces else 0,
        checkpointing=asked.checkpointing,
        sync_each_batch=asked.engine == "loop",
        rank=method.rank,
        targets=method.targets,
    )
    return shape, setting


# What a recipe says of a setting. What is spread over GPUs is said where processes are started.
KEYS = {
    "method": "method.name",
    "rank": "method.rank",
    "targets": "method.targets",
    "batch_size": "train.batch_size",
    "accumulation": "train.accumulation",
    "seq_len": "train.seq_len",
    "checkpointing": "train.checkpointing",
}
TOGETHER = ("full", "lora", "rslora")  # of PLANNED_AS, what several processes train


def overrides(recipe: Recipe, before: Setting, now: Setting) -> list[str]:
    """What to hand to ``ftdocs train --set`` so that a recipe that is planned as ``before`` trains as ``now``.

    Every weight learns at another rate than adapters, so where one takes the place of the other the rate goes too.
    """
    changed = {
        key: getattr(now, name) for name, key in KEYS.items() if getattr(now, name) != getattr(before, name)
    }
    if before.full != now.full:
        changed["train.learning_rate"] = None
    if recipe.method.name == "rslora" and "method.name" in changed:  # whose scale is alpha / √rank
        changed["method.alpha"] = round(recipe.method.alpha * now.rank**0.5, 6)
    if now.dtype != before.dtype:
        changed["train.precision"] = "bf16-mixed"
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
    ]


def check_fit(recipe: Recipe, given: dict[str, Any]) -> None:
    """Refuse options that a recipe could not say, or processes that its method does not train with.

    Raises:
        InputError: names them.
    """
    foreign = [name for name in given if name not in (*KEYS, "gpus", "sharding", "sync_each_batch")]
    if foreign:
        names = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise InputError(
            f"{names} with --fit and a recipe: `ftdocs train` has no such key; leave it out, or plan --model"
        )
    method = given.get("method", recipe.method.name)
    if given.get("gpus", 1) > 1 and method not in TOGETHER:
        raise InputError(f"--gpus: method.name {method} trains with one process; add --method lora")
    if given.get("sharding") == "zero3":
        raise InputError("--sharding zero3: `ftdocs train` refuses it; choose fsdp or zero2")


def not_planned(method: str) -> str:
    """What to do about a method that :class:`~ftdocs.memory.Setting` does not know."""
    if method in PLANNED_AS:
        return f"is planned as {PLANNED_AS[method]}, which takes the same memory"
    return (
        "the planner knows full, lora and qlora; for another method measure a step on the machine that will train:"
        " in Python, ftdocs.measure.measured_peak(lambda: train(Recipe.load(FILE, ['train.max_steps=1'])))"
    )


def fit(shape: Shape, setting: Setting, capacity: int, recipe: bool = False) -> list[Step]:
    """What to turn on so that a training fits: of all combinations the cheapest; the last step's setting is the plan.

    Cheapest is first what keeps the method, then what is predicted to be fastest, then the fewest changes.

    Args:
        shape: of the model.
        setting: of the training.
        capacity: bytes of a GPU.
        recipe: only what ``ftdocs train`` has too.

    Raises:
        InputError: nothing does; says how much is missing with what needs least.
    """
    found = [(chosen, wanted, memory.need(shape, wanted)) for chosen, wanted in combinations(setting, recipe)]
    fitting = [(chosen, wanted) for chosen, wanted, need in found if fits(need, capacity)]
    if not fitting:
        chosen, _, need = min(found, key=lambda each: each[2].peak.total)
        raise InputError(
            f"even with {', '.join(remedy.change for remedy in chosen) or 'nothing left to turn on'}, one GPU needs"
            f" {at_least_and_most(need)[1] / 1e9:.1f} GB and has {capacity / 1e9:.1f};"
            " take more GPUs (--gpus), a larger one, or shorter sequences (--seq-len)"
        )
    methods = memory.CHOICES["method"]
    chosen, _ = min(
        fitting,
        key=lambda each: (
            methods.index(each[1].method),
            round(work(shape, each[1]) / work(shape, setting), 6),
            len(each[0]),
        ),
    )
    return after(shape, setting, chosen)


def combinations(setting: Setting, recipe: bool = False) -> Iterator[tuple[list["Remedy"], Setting]]:
    """Remedies that can be taken together, in their order, with the setting after them; first none at all."""
    waiting: list[tuple[list[Remedy], Setting]] = [([], setting)]
    for remedy in remedies(setting, recipe):
        if recipe and not (remedy.in_recipes and (setting.gpus == 1 or remedy.together)):
            continue
        for chosen, now in list(waiting):
            with contextlib.suppress(InputError):  # what Setting refuses is no plan
                if (wanted := remedy.apply(now)) != now:
                    waiting.append(([*chosen, remedy], wanted))
    yield from waiting


@dataclass(frozen=True)
class Remedy:
    """A change of a setting that saves memory: in words, and as a function."""

    change: str
    apply: Callable[[Setting], Setting]
    in_recipes: bool = True  # whether ``ftdocs train`` has it
    together: bool = True  # and with several processes


def after(shape: Shape, setting: Setting, chosen: list[Remedy]) -> list[Step]:
    """The steps of some remedies, one after the other; what changes nothing is left out.

    One that saves nothing by itself may do so with a later one, such as checkpointing, while the optimiser's step is
    the largest moment.
    """
    steps = [Step("as asked", setting, memory.need(shape, setting), 0.0)]
    for remedy in chosen:
        before = steps[-1].setting
        if (wanted := remedy.apply(before)) != before:
            slower = round(work(shape, wanted) / work(shape, before) - 1, 3)
            steps.append(Step(remedy.change, wanted, memory.need(shape, wanted), slower))
    return steps


def with_autocast(setting: Setting) -> Setting:
    """A recipe's setting with another method: ``ftdocs train`` has adapters in float32, which multiply in bfloat16."""
    in_16_bits = setting.dtype == "bf16" and not setting.full
    return replace(setting, master_weights=True) if in_16_bits else setting


def remedies(setting: Setting, recipe: bool = False) -> list[Remedy]:
    """What saves memory, the cheapest first.

    What each costs in speed is :func:`work`'s to say. LoRA comes late because it is another training, not because it is
    slow.
    """

    def shared(now: Setting) -> Setting:
        return now if now.gpus == 1 or now.sharding == "fsdp" else replace(now, sharding="fsdp")

    def eight_bit(now: Setting) -> Setting:
        return replace(now, optimizer="adamw-8bit") if now.full and now.optimizer in memory.TORCHS else now

    def fused(now: Setting) -> Setting:
        return replace(now, optimizer="adamw-fused") if now.optimizer == "adamw" else now

    def adapters(now: Setting) -> Setting:
        if not now.full:
            return now
        adapted = replace(now, method="lora", optimizer="adamw-fused")
        return with_autocast(adapted) if recipe else adapted

    def quantised(now: Setting) -> Setting:
        if now.dtype == "fp32":  # then products are made in bfloat16, as bf16-mixed makes them
            now = replace(now, dtype="bf16", master_weights=True)
        return replace(now, method="qlora")

    def without_matrices(now: Setting) -> Setting:
        return replace(now, attention="sdpa") if now.attention == "eager" else now

    def micro_batch(size: int) -> Callable[[Setting], Setting]:
        def smaller(now: Setting) -> Setting:
            if size >= now.batch_size:
                return now
            # As many rows a step, or up to one micro-batch more.
            return replace(now, batch_size=size, accumulation=-(-now.batch_size * now.accumulation // size))

        return smaller

    asked = setting.batch_size
    parts = {"half the micro-batch": 2, "a quarter of the micro-batch": 4}
    smaller = [
        Remedy(f"{words}, accumulated", micro_batch(asked // part))
        for words, part in parts.items()
        if asked % part == 0 and asked > part
    ]
    smaller += [Remedy("micro-batches of one sequence, accumulated", micro_batch(1))] if asked > 1 else []
    return [
        Remedy("attention without matrices of tokens × tokens", without_matrices),
        Remedy("the loss in pieces", lambda now: replace(now, fused_loss=True), in_recipes=False),
        Remedy("fused AdamW", fused),
        *smaller,
        Remedy("AdamW with 8-bit state", eight_bit, in_recipes=False),
        Remedy("FSDP", shared),
        Remedy("activation checkpointing", lambda now: replace(now, checkpointing=True)),
        Remedy("LoRA instead of all weights", adapters),
        Remedy("QLoRA", quantised, together=False),
    ]


def flops(shape: Shape, setting: Setting) -> float:
    """FLOPs a token of a training step: 6 for each weight that is multiplied with, and attention's.

    A frozen weight has no gradient of its own: 4. Checkpointing makes the forward pass again: 2 more.
    """
    products = shape.layers * sum(each.inputs * each.outputs for each in shape.linears)
    products += 0 if shape.family == "bert" else shape.embedding
    passes = (6 if setting.full else 4) + (2 if setting.checkpointing else 0)
    # Causal attention is half of 4 · T · width, forward.
    attention = (4 if shape.family == "bert" else 2) * shape.layers * shape.queries * setting.seq_len
    return passes * products + (6 + (2 if setting.checkpointing else 0)) / 2 * attention


def work(shape: Shape, setting: Setting) -> float:
    """What a token takes: its :func:`flops`, and the time of :data:`SLOWER` as if it were FLOPs too."""
    holds = {
        "QLoRA": setting.method == "qlora",
        "sharded weights": setting.shares > 1,
        "a micro-batch of one": setting.batch_size == 1,
        "8-bit state": setting.optimizer.endswith("8bit"),
        "twice the micro-batches": math.log2(setting.accumulation),
    }
    return flops(shape, setting) * math.prod(1 + SLOWER[name] * count for name, count in holds.items())


def peak_flops(name: str, dtype: str) -> float:
    """FLOPs a second of a GPU's dense matrix products at most, by its vendor's data sheet.

    In 16 bits its tensor cores'; in fp32 what it does without them, since PyTorch leaves TF32 off. H100 to B200: SXM;
    the A10G's is that of the A10.
    """
    return float(gpu(name)["tflops_fp32" if dtype == "fp32" else "tflops"]) * 1e12


def estimate(
    shape: Shape,
    setting: Setting,
    name: str,
    tokens: int | None = None,
    price: float | None = None,
    utilisation: float = UTILISATION,
) -> dict[str, float]:
    """How fast, how long and how dear: an estimate from :func:`work` and a utilisation, not a measurement.

    Args:
        shape: of the model.
        setting: of the training.
        name: of a GPU of the catalogue.
        tokens: to train on in all; without them hours and cost are left out.
        price: of one GPU and hour.
        utilisation: the share of :func:`peak_flops` that is reached.
    """
    rate = setting.gpus * utilisation * peak_flops(name, setting.dtype) / work(shape, setting)
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
        "assumptions": [*need.assumptions, *([assumed_speed(shape, setting, name)] if name else [])],
        "range_bytes": [low, high],
        "held_bytes": round(need.peak.total * HELD) + CONTEXT,
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
            ("method", "dtype", "batch_size", "accumulation", "seq_len", "gpus", "sharding", "checkpointing",
             "optimizer", "master_weights", "fused_loss", "attention", "cpu_offload")
        }  # fmt: skip
    return found


def assumed_speed(shape: Shape, setting: Setting, name: str) -> str:
    """What an estimate stands on, in words."""
    dtype = "fp32 without TF32" if setting.dtype == "fp32" else setting.dtype
    more = work(shape, setting) / flops(shape, setting) - 1
    return (
        f"the estimate: a share of {peak_flops(name, setting.dtype) / 1e12:g} TFLOPS, the GPU's dense peak in {dtype};"
        f" {more:.0%} more time than FLOPs alone, which we assume and have not measured"
    )


def as_text(found: dict[str, Any]) -> str:
    """A report for people."""

    def gigabytes(size: int) -> str:
        return f"{size / 1e9:8.2f} GB"

    lines = [f"peak     {gigabytes(found['peak_bytes'])} on each GPU, at {found['peak_at']}"]
    lines += [f"  {part:22}{gigabytes(size)}" for part, size in found["breakdown"].items()]
    lines.append(f"resting  {gigabytes(found['resting_bytes'])} between steps")
    low, high = found["range_bytes"]
    lines.append(
        f"a GPU may need {low / 1e9:.1f} to {high / 1e9:.1f} GB, with CUDA's own share and up to a tenth for the"
        f" allocator's gaps; software that keeps more held up to {HELD} times the count,"
        f" {found['held_bytes'] / 1e9:.1f} GB: measure the first step"
    )
    if found["fits"] is not None:
        verdict = "fits" if found["fits"] else "may just fit" if low <= found["gpu_bytes"] else "does not fit"
        lines.append(f"{verdict}: the GPU has {found['gpu_bytes'] / 1e9:.1f} GB")
        if not found["fits"]:  # a plan of --fit does, or was refused
            lines.append("next: add --fit, which turns on what makes it fit and says what that costs")
    for step in found.get("changes", []):
        share = step["slower"]
        slower = (
            f"about {abs(share):.0%} {'slower' if share > 0 else 'faster'}"
            if abs(share) > 0.005
            else "no slower"
        )
        lines.append(f"  + {step['change']}: {step['peak_bytes'] / 1e9:.2f} GB, {slower} (predicted)")
    if found.get("overrides"):
        lines.append("in the recipe: " + " ".join(f"--set {change}" for change in found["overrides"]))
    if "estimate" in found:
        said = ", ".join(
            f"{key.replace('_', ' ')} {value if isinstance(value, str) else format(value, ',')}"
            for key, value in found["estimate"].items()
        )
        lines.append(f"estimate, not measured: {said}")
    lines += [f"- {text}" for text in found["assumptions"]]
    return "\n".join(lines)
