"""How fast does each way of fine-tuning train, on the same documents, on this machine?

    python benchmarks/throughput.py [--rounds 3] [--steps 6] [NAME …]

Each contestant trains SmolLM2-135M, all of its weights unless its name says otherwise, on the same documents of at
most 512 tokens, in a process of its own. The contestants take turns, round after round, so that a slow minute of the
machine meets them all. Printed are useful tokens a second (padding does not count, nor does the first step, a
warm-up), their ratio to the first contestant's, the largest memory of the process, the share of the bfloat16
matrix-product peak that was measured in the same process (6 FLOPs a trained weight and token, 4 a frozen one), and
the held-out loss afterwards. The contestants called trl need that package, which the book does not:
``python -m pip install --no-deps trl==1.16.0``.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH = 512  # tokens of a document at most


def documents() -> tuple[list[dict], list[dict], Any]:
    """Encoded training documents and test documents of the docstrings, and the tokenizer."""
    from transformers import AutoTokenizer

    from ftdocs import assets
    from ftdocs.data import prepare
    from ftdocs.recipe import Data

    tokenizer = AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))
    splits = prepare.load_splits(Data(name="docstrings", group="source", limit=2000, test=0.01), seed=0)
    train, test = (prepare.encode(rows, "text", tokenizer, LENGTH) for rows in (splits.train, splits.test))
    return train, test, tokenizer


def ours(engine: str, method: str = "full", precision: str = "auto", batch_size: int = 4) -> Callable:
    """Our recipe on one of our engines."""

    def run(steps: int) -> tuple[float, float, Any]:
        import torch

        from ftdocs import loop, models, runs, trainer
        from ftdocs.data import pack
        from ftdocs.job import Job
        from ftdocs.methods.full import train_all
        from ftdocs.methods.lora import add_lora
        from ftdocs.progress import Progress
        from ftdocs.recipe import Data, Method, Recipe, Train

        encoded, _, tokenizer = documents()
        recipe = Recipe(
            model="smollm2-135m-instruct",
            data=Data(name="docstrings"),
            method=Method(name=method),
            train=Train(max_steps=steps, batch_size=batch_size, accumulation=4 // batch_size, precision=precision,
                        seq_len=LENGTH, warmup=0, learning_rate=1e-3 if method == "lora" else 1e-4),
        )  # fmt: skip
        model, _ = models.load(recipe)
        torch.manual_seed(0)
        model = add_lora(model) if method == "lora" else train_all(model)
        folder = Path(tempfile.mkdtemp())
        rows = pack.pack(encoded, LENGTH)
        progress = Progress.start(folder, None)
        work = Job(recipe, folder, "text", model, tokenizer, rows, [], True, steps, None, progress)
        {"loop": loop, "trainer": trainer}[engine].run(work)
        first, *_, last = runs.read_metrics(folder)
        return last["tokens"] - first["tokens"], last["seconds"] - first["seconds"], model

    return run


def plain_trainer(dtype: str) -> Callable:
    """What most tutorials do: transformers.Trainer, one document a row, padded; float32, or bfloat16 by autocast."""

    def run(steps: int) -> tuple[float, float, Any]:
        from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

        from ftdocs import assets

        encoded, _, tokenizer = documents()
        rows = [{name: row[name] for name in ("input_ids", "labels")} for row in encoded]
        folder = assets.model_path("smollm2-135m-instruct")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        clock = Clock()
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-4,
                bf16=dtype == "bf16", report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
            ),
            train_dataset=rows,
            data_collator=clock.counting(DataCollatorForSeq2Seq(tokenizer)),
            callbacks=[clock.callback()],
        )  # fmt: skip
        trainer.train()
        return clock.tokens, clock.seconds, model

    return run


def trl(**settings: Any) -> Callable:
    """TRL's SFTTrainer on the same documents as text."""

    def run(steps: int) -> tuple[float, float, Any]:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM
        from trl import SFTConfig, SFTTrainer

        from ftdocs import assets

        encoded, _, tokenizer = documents()
        folder = assets.model_path("smollm2-135m-instruct")
        clock = Clock()
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
            args=SFTConfig(
                output_dir=tempfile.mkdtemp(), max_steps=steps, max_length=LENGTH, learning_rate=1e-4, report_to="none",
                save_strategy="no", disable_tqdm=True, use_cpu=True, **settings,
            ),
            train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in encoded]),
            processing_class=tokenizer,
            callbacks=[clock.callback()],
        )  # fmt: skip
        trainer.data_collator = clock.counting(trainer.data_collator)
        trainer.train()
        return clock.tokens, clock.seconds, trainer.model

    return run


class Clock:
    """Counts useful tokens and seconds of all steps but the first."""

    def __init__(self) -> None:
        self.tokens = self.seen = 0
        self.seconds = self.began = 0.0

    def counting(self, collate: Callable) -> Callable:
        """The collator, counting what is not padding."""

        def counted(rows: list[dict]) -> dict:
            self.seen += sum(len(row["input_ids"]) for row in rows)
            return collate(rows)

        return counted

    def callback(self) -> Any:
        """Starts after the first step, stops at the end."""
        from transformers import TrainerCallback

        clock = self

        class Timer(TrainerCallback):
            """Reads the clock at the ends of steps."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 1:
                    clock.began, clock.seen = time.perf_counter(), 0
                else:
                    clock.tokens, clock.seconds = clock.seen, time.perf_counter() - clock.began

        return Timer()


CONTESTANTS = {
    "loop": ours("loop"),
    "trainer": ours("trainer"),
    "loop, bf16 weights": ours("loop", precision="bf16"),
    "loop, lora": ours("loop", "lora"),
    "trainer, lora": ours("trainer", "lora"),
    "loop, lora, batch 1": ours("loop", "lora", batch_size=1),
    "loop, batch 1": ours("loop", batch_size=1),
    "trl, defaults": trl(),
    "trl, packed, no checkpointing": trl(
        packing=True, gradient_checkpointing=False, per_device_train_batch_size=4
    ),
    "padded Trainer, bf16": plain_trainer("bf16"),
    "padded Trainer, fp32": plain_trainer("fp32"),
}


def measure(name: str, steps: int) -> dict:
    """One contestant, in this process."""
    import torch

    from ftdocs import evaluate, models
    from ftdocs.hardware import matmul_gflops

    tokens, seconds, model = CONTESTANTS[name](steps)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = matmul_gflops(torch.bfloat16, repeats=30)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters())
    work = 6 * trained + 4 * (weights - trained)
    _, test, tokenizer = documents()
    loss = evaluate.held_out_loss(model, test, models.pad_token_id(tokenizer))
    return {
        "name": name,
        "tokens_per_second": tokens / seconds,
        "share_of_peak": work * tokens / seconds / 1e9 / peak,
        "peak_gflops": peak,
        "peak_bytes": peak_bytes,
        "held_out_loss": loss,
    }


def main() -> None:
    """Let the contestants take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.steps)))
        return
    names = options.names or list(CONTESTANTS)
    found: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(1, options.rounds + 1):
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            last = found[name][-1]
            print(
                f"round {number}: {name}: {last['tokens_per_second']:.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    rates = {
        name: statistics.median(row["tokens_per_second"] for row in rows) for name, rows in found.items()
    }
    print(
        "| contestant | tokens/s | ratio | share of peak | GB | held-out loss |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, rows in found.items():
        share = statistics.median(row["share_of_peak"] for row in rows)
        size = max(row["peak_bytes"] for row in rows) / 1e9
        ratio = rates[name] / rates[names[0]]
        print(
            f"| {name} | {rates[name]:.0f} | {ratio:.2f} | {share:.2f} | {size:.2f} | {rows[0]['held_out_loss']:.3f} |"
        )


if __name__ == "__main__":
    main()
