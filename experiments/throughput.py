"""How fast does each way of fine-tuning train, and with how much memory, on the same documents and machine?

Held fixed: SmolLM2-135M, documents of at most 512 tokens, AdamW with a rate that falls to 0, the number of useful
tokens (padding does not count) that are timed after a first step, which warms up. Each way runs in a process of its
own; they take turns, round after round, so that a slow minute of the machine meets them all. The ways up to "loop" are
a ladder: each adds one thing to the one before it. Columns: useful tokens a second; the largest memory of the process;
the rate of a bfloat16 matrix product, measured in the same process; the share of it that 6 FLOPs a trained weight and
token (4 a frozen one) come to; the held-out loss in nats after the training.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from ftdocs import assets, evaluate, hardware, loop, loss, models, runs, trainer
from ftdocs.data import pack, prepare
from ftdocs.job import Job
from ftdocs.measure import process_peak
from ftdocs.methods.full import train_all
from ftdocs.methods.lora import add_lora
from ftdocs.progress import Progress
from ftdocs.recipe import Data, Method, Recipe, Train

ROUNDS = 1
LENGTH = 512  # tokens of a document at most
TOKENS = 4000  # timed
SEEDS = [0]
# Rates are this machine's; what was learnt is not, but for the order of sums in bfloat16.
TOLERANCE = {
    "tokens_per_second": 0.6,
    "share_of_peak": 0.6,
    "peak_gflops": 0.6,
    "peak_bytes": 0.1,
    "held_out_loss": 0.01,
}
MODEL = "smollm2-135m-instruct"


def cases() -> list[dict]:
    """Every way once, then every way again."""
    return [{"way": way, "round": number} for number in range(1, ROUNDS + 1) for way in WAYS]


def run(case: dict) -> dict:
    """One way, in a process of its own, whose memory is its alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case["way"]).result()


def measure(way: str) -> dict:
    """One way, in this process."""
    train, test, tokenizer = documents()
    tokens, seconds, model = WAYS[way](train, tokenizer)
    peak_bytes = process_peak()
    peak = hardware.matmul_gflops(torch.bfloat16, repeats=50)
    weights = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    flops = sum(count * (6 if trained else 4) for count, trained in weights)  # a token
    return {
        "tokens_per_second": tokens / seconds,
        "share_of_peak": flops * tokens / seconds / 1e9 / peak,
        "peak_gflops": peak,
        "peak_bytes": peak_bytes,
        "held_out_loss": evaluate.held_out_loss(model, test, models.pad_token_id(tokenizer)),
    }


def documents() -> tuple[Any, Any, Any]:
    """Encoded training documents, two dozen test documents, and the tokenizer."""
    splits = prepare.load_splits(Data(name="docstrings", group="source", limit=2000, test=0.01), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(assets.model_path(MODEL))
    train, test = (
        prepare.encode(rows, "text", tokenizer, LENGTH) for rows in (splits.train, splits.test[:24])
    )
    return train, test, tokenizer


def steps(rows: Any, batch_size: int) -> int:
    """Steps of ``batch_size`` rows that have the tokens to be timed, and one before them."""
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    return 1 + round(TOKENS / (mean * batch_size))


class Clock:
    """Counts useful tokens and seconds of all steps but the first."""

    def __init__(self) -> None:
        self.seen = self.tokens = 0
        self.began = self.seconds = 0.0

    def step_done(self, step: int) -> None:
        """Begin after the first step; stop, for now, after each later one."""
        if step == 1:
            self.began, self.seen = time.perf_counter(), 0
        else:
            self.tokens, self.seconds = self.seen, time.perf_counter() - self.began

    def counting(self, collate: Callable) -> Callable:
        """A collator that counts what is not padding."""

        def counted(rows: list[dict]) -> Any:
            self.seen += sum(len(row["input_ids"]) for row in rows)
            return collate(rows)

        return counted


class ReadClock(TrainerCallback):
    """Tells the clock of Trainer's steps."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each optimiser step."""
        self.clock.step_done(state.global_step)


def padded_trainer(dtype: str) -> Callable:
    """What most tutorials do: transformers.Trainer, one document a row, padded; float32, or bfloat16 by autocast."""

    def train(encoded: Any, tokenizer: Any) -> tuple[float, float, Any]:
        rows = [{name: row[name] for name in ("input_ids", "labels")} for row in encoded]
        clock = Clock()
        by = Trainer(
            model=AutoModelForCausalLM.from_pretrained(assets.model_path(MODEL), dtype="float32"),
            args=TrainingArguments(
                output_dir=tempfile.mkdtemp(), max_steps=steps(rows, 8), per_device_train_batch_size=8,
                learning_rate=1e-4, bf16=dtype == "bf16", report_to="none", save_strategy="no", disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            data_collator=clock.counting(DataCollatorForSeq2Seq(tokenizer)),
            callbacks=[ReadClock(clock)],
        )  # fmt: skip
        by.train()
        return clock.tokens, clock.seconds, by.model

    return train


def plain_loop(by_document: bool = False, chunked: bool = False) -> Callable:
    """A loop of a few lines over packed rows, bfloat16 by autocast: the loop's next rungs can be switched on.

    Args:
        by_document: attention document by document; else over whole rows, with a mask that keeps documents apart.
        chunked: the loss in chunks; else from the logits of all positions.
    """

    def train(encoded: Any, tokenizer: Any) -> tuple[float, float, Any]:
        model, _ = models.load(recipe({"way": "loop"}))
        if not by_document:
            model.set_attn_implementation("sdpa")
        train_all(model).train()
        model.config.use_cache = False
        rows = pack.pack(encoded, LENGTH)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        total = steps(rows, 4)
        schedule = get_scheduler("linear", optimizer, 0, total)
        clock = Clock()
        collate = clock.counting(pack.collate_packed if by_document else in_rows)
        with loss.chunked(model) if chunked else nullcontext():
            for step in range(1, 1 + total):
                batch = collate([rows[order.pop()] for _ in range(4)])
                with models.autocast(model.device):
                    found = model(**batch).loss
                found.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                clock.step_done(step)
        return clock.tokens, clock.seconds, model

    return train


def in_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Packed rows as (B, T) with positions that restart, from which Transformers makes the mask between documents."""
    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, filling: Callable[[int], list[int]]) -> torch.Tensor:
        return torch.tensor([row[name] + filling(width - len(row[name])) for row in rows])

    return {
        "input_ids": filled("input_ids", lambda count: [0] * count),
        "labels": filled("labels", lambda count: [-100] * count),
        "position_ids": filled("position_ids", lambda count: list(range(count))),
    }


def ours(way: str) -> Callable:
    """One of the two engines, as ``ftdocs train`` calls it."""

    def train(encoded: Any, tokenizer: Any) -> tuple[float, float, Any]:
        asked = recipe({"way": way})
        model, _ = models.load(asked)
        torch.manual_seed(0)
        model = add_lora(model) if asked.method.name == "lora" else train_all(model)
        if asked.train.checkpointing:
            models.compute_anew(model)
        rows = pack.pack(encoded, LENGTH)
        folder = Path(tempfile.mkdtemp())
        total = steps(rows, 4)
        progress = Progress.start(folder, None)
        work = Job(asked, folder, "text", model, tokenizer, rows, [], True, total, None, progress)
        with hardware.memory_kept():
            (loop if asked.train.engine == "loop" else trainer).run(work)
        first, *_, last = runs.read_metrics(folder)
        return last["tokens"] - first["tokens"], last["seconds"] - first["seconds"], model

    return train


def recipe(case: dict) -> Recipe:
    """The recipe of a way that uses one of our engines; the others take their numbers from that of the loop."""
    settings = OURS.get(case["way"], {})
    rows, method = settings.get("batch_size", 4), settings.get("method", "full")
    return Recipe(
        model=MODEL,
        data=Data(name="docstrings"),
        method=Method(name=method),
        train=Train(
            batch_size=rows,
            accumulation=4 // rows,
            precision=settings.get("precision", "auto"),
            checkpointing=settings.get("checkpointing", False),
            seq_len=LENGTH,
            warmup=0,
            learning_rate=1e-3 if method == "lora" else 1e-4,
            engine=settings.get("engine", "loop"),
        ),
    )


def trl(**settings: Any) -> Callable:
    """TRL's SFTTrainer on the same documents; what is not set is TRL's default."""

    def train(encoded: Any, tokenizer: Any) -> tuple[float, float, Any]:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        clock = Clock()
        rows = pack.pack(encoded, LENGTH) if settings.get("packing") else encoded
        fixed: dict[str, Any] = {"output_dir": tempfile.mkdtemp(), "save_strategy": "no", "report_to": "none"}
        fixed |= {"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-4, "max_length": LENGTH}
        asked = SFTConfig(**fixed, **settings)
        asked.max_steps = steps(rows, asked.per_device_train_batch_size * asked.gradient_accumulation_steps)
        by = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(assets.model_path(MODEL), dtype="float32"),
            args=asked,
            train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in encoded]),
            processing_class=tokenizer,
            callbacks=[ReadClock(clock)],
        )
        by.data_collator = clock.counting(by.data_collator)
        by.train()
        return clock.tokens, clock.seconds, by.model

    return train


OURS: dict[str, dict[str, Any]] = {
    "loop": {},
    "loop, row by row": {"batch_size": 1},
    "loop, row by row, bf16 weights": {"batch_size": 1, "precision": "bf16"},
    "loop, row by row, layers computed twice": {"batch_size": 1, "checkpointing": True},
    "loop, LoRA": {"method": "lora"},
    "loop, LoRA, row by row": {"method": "lora", "batch_size": 1},
    "loop, LoRA, row by row, layers computed twice": {
        "method": "lora",
        "batch_size": 1,
        "checkpointing": True,
    },
    "trainer": {"engine": "trainer"},
}
WAYS: dict[str, Callable] = {
    "padded Trainer, fp32": padded_trainer("fp32"),
    "padded Trainer, bf16": padded_trainer("bf16"),
    "packed": plain_loop(),
    "attention by document": plain_loop(by_document=True),
    "loss in chunks": plain_loop(by_document=True, chunked=True),
    **{way: ours(way) for way in OURS},
    "TRL, defaults": trl(),
    # Its best setting is sought among these: nothing computed twice, and steps of four packed rows.
    **{
        f"TRL, packed, no checkpointing, {4 // count} × {count}": trl(
            packing=True,
            gradient_checkpointing=False,
            per_device_train_batch_size=count,
            gradient_accumulation_steps=4 // count,
        )
        for count in (4, 2, 1)
    },
}
