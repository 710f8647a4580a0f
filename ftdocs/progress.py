"""How a run goes: its curve on disk, its counts over a resume, its bar, and the two ways in which it stops early."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ftdocs import files, processes, runs

EXPLODED = 100.0  # nats a token: guessing among all tokens of any vocabulary costs less than 20
WORDS = {"loss": "loss", "eval_loss": "held-out loss", "grad_norm": "gradient norm"}
SAVE_SECONDS = 120.0  # between checkpoints, where the recipe does not count them in steps
Watch = Callable[[int, dict[str, float]], None]  # of a step and its held-out metrics, such as eval_loss


class Interrupted(Exception):
    """The user stopped the run; its message says at which step, and how to go on."""


class Diverged(RuntimeError):
    """The loss is no longer a number; its message says at which step, on which rows, and what the usual causes are."""


@dataclass
class Progress:
    """Counts, clock, curve and bar of a run; both engines write through it.

    Each process has one. What a step adds is summed over all of them when it is done, and the main one writes.

    Attributes:
        folder: the run's folder.
        tokens: tokens that went through the model so far, over all parts of a resumed run; padding is not counted.
        before: seconds of training in the parts before this one.
        paused: seconds in this part that were no training, such as validations.
        saved: when the last checkpoint was written, by the clock of ``time.perf_counter``.
        loss_sum: of the losses of the steps since the last row of the curve; ``loss_steps`` counts them.
        step_loss: this process's share of the loss of the step that is under way; ``step_tokens`` of its tokens.
        grad_norm: of the step that is under way, before clipping.
        rows: where in the data file this process's part of the last step comes from, to name when it breaks the loss.
        interrupted: the user pressed Ctrl-C; ``stop_asked`` says so when every process knows, after a step.
        save_due: the last checkpoint was so long ago that another one is due by the clock.
        total: steps of the run, once it has begun.
        watch: is told the step and the metrics of each validation before the last; what it raises ends the run.
        validations: held-out loss by step, of the steps done so far; what was there before the first is not among them.
    """

    folder: Path
    bar: tqdm
    tokens: int = 0
    before: float = 0.0
    paused: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    saved: float = field(default_factory=time.perf_counter)
    loss_sum: float = 0.0
    loss_steps: int = 0
    step_loss: float = 0.0
    grad_norm: float = 0.0
    step_tokens: int = 0
    rows: list[int] = field(default_factory=list)
    interrupted: bool = False
    stop_asked: bool = False
    save_due: bool = False
    total: int = 0
    watch: Watch | None = None
    validations: dict[int, float] = field(default_factory=dict)

    @classmethod
    def start(
        cls, folder: Path, resumed_from: Path | None, show: bool = False, watch: Watch | None = None
    ) -> "Progress":
        """The counts of a new run, or those kept beside the checkpoint that it goes on from."""
        show = show and processes.is_main()
        progress = cls(folder, tqdm(desc="training", unit="step", disable=not show), watch=watch)
        if resumed_from is not None:
            kept = json.loads((resumed_from / "progress.json").read_text())
            progress.tokens, progress.before = kept["tokens"], kept["seconds"]
            progress.loss_sum, progress.loss_steps = kept["loss_sum"], kept["loss_steps"]
            # Steps after the checkpoint are trained again, so their rows are written again.
            rows = [row for row in runs.read_metrics(folder) if row["step"] <= kept["step"]]
            progress.validations = {
                row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row and row["step"]
            }
            text = "".join(json.dumps(row) + "\n" for row in rows)
            processes.from_main(lambda: files.write_atomic(folder / runs.METRICS, text))
        return progress

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all parts of a resumed run, validations left out."""
        return self.before + (self.ended or time.perf_counter()) - self.began - self.paused

    def begin(self, step: int, total: int) -> None:
        """Start the clock when the first batch is near, not when the model was loaded."""
        self.began = self.saved = time.perf_counter()
        self.paused, self.total = 0.0, total
        self.bar.reset(total)
        self.bar.update(step)

    def end(self) -> None:
        """Stop the clock."""
        self.ended = time.perf_counter()

    def count(self, tokens: int, rows: list[int]) -> None:
        """Count tokens that go through the model, and remember which rows of the data they come from."""
        self.step_tokens += tokens
        self.rows = [*self.rows, *rows]

    def step_done(self, step: int) -> None:
        """Sum the step's counts over all processes, let them agree on what comes next, and move the bar.

        A loss or a gradient that is no number, or a loss beyond all reason, stops the run here, before a checkpoint of
        it is written.

        Raises:
            Diverged: says at which step, and why that may be.
        """
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        loss, tokens, interrupted, due = processes.total(
            self.step_loss, self.step_tokens, self.interrupted, late
        )
        self.step_loss, self.step_tokens = 0.0, 0
        self.loss_sum, self.tokens = self.loss_sum + loss, self.tokens + int(tokens)
        self.stop_asked, self.save_due = interrupted > 0, due > 0
        self.bar.update()
        self.loss_steps += 1
        if not (loss < EXPLODED and math.isfinite(self.grad_norm)):
            self.rows = [row for rows in processes.gathered(self.rows) for row in rows]
            self.write(step, {"loss": loss, "grad_norm": self.grad_norm})
        self.rows = []

    def mean_loss(self) -> float:
        """The mean loss of the steps since the last call, over a resume too."""
        mean = self.loss_sum / max(1, self.loss_steps)
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean

    def write(self, step: int, row: dict[str, float]) -> None:
        """Append a row to ``metrics.jsonl`` and flush it, so that a killed run keeps what it had logged.

        Every process comes here with the same row, and the main one writes it.

        Raises:
            Diverged: the row's loss or gradient norm is NaN or infinite, or its loss has exploded.
        """
        if "loss" in row:
            row = {**row, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
            self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {self.tokens / self.seconds:.0f} tokens/s")
        # JSON has no NaN: what is no number is null.
        written = {name: value if math.isfinite(value) else None for name, value in row.items()}
        if processes.is_main():
            with open(self.folder / runs.METRICS, "a") as file:
                file.write(json.dumps({"step": step, **written, "time": round(time.time(), 3)}) + "\n")
        for name, limit in (("loss", EXPLODED), ("eval_loss", EXPLODED), ("grad_norm", math.inf)):
            if not row.get(name, 0.0) < limit:
                named, more = ", ".join(map(str, self.rows[:8])), len(self.rows) - 8
                where = f", on rows {named}{f' and {more} more' if more > 0 else ''} of the data"
                raise Diverged(
                    f"{self.folder}: the {WORDS[name]} is {row[name]} at step {step}{where if self.rows else ''}"
                    "; usual causes: a learning rate that is too high, broken rows, fp16 overflow"
                )

    def validate(self, step: int, found: dict[str, float], seconds: float) -> dict[str, float]:
        """Write down the held-out metrics as ``eval_…``, and take their time out of the training's."""
        named = {f"eval_{name}": value for name, value in found.items()}
        self.paused += seconds
        self.write(step, named)
        if step:
            self.validations[step] = named["eval_loss"]
        if self.watch is not None and step < self.total:  # the last one comes too late to stop anything
            self.watch(step, named)
        return named

    def keep(self, folder: Path, step: int) -> None:
        """Keep the counts beside a checkpoint."""
        self.saved = time.perf_counter()
        if not processes.is_main():
            return
        content = {
            "step": step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
        }
        files.write_atomic(folder / "progress.json", json.dumps(content))

    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the logged steps."""
        losses = [row["loss"] for row in runs.read_metrics(self.folder) if "loss" in row]
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail) if tail else math.nan

    @contextmanager
    def stop_on_interrupt(self) -> Iterator[None]:
        """Inside the block, the first Ctrl-C asks to finish the step and save; a second one stops at once.

        Launchers hand Ctrl-C on to each process.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can be interrupted
            return

        def ask(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self.bar.close()
