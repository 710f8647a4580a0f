"""The ``ftdocs`` command: every verb is one function below, and `ftdocs VERB --help` describes it."""

import argparse
import difflib
import importlib.util
import json
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dotenv import load_dotenv

from ftdocs import __version__, files, processes
from ftdocs.errors import InputError

# Modules that import torch are imported by the verbs that need them, so that `--help` answers at once.


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with a mend, like every other wrong input."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the command's own options are known, and not at the top."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"{unknown[0]}: {self.about_unknown(unknown[0])}")
        return found, unknown

    def about_unknown(self, given: str) -> str:
        """What is wrong with an argument that the command does not take, and what was meant."""
        name = given.partition("=")[0]
        if not given.startswith("-"):
            if self.prog == "ftdocs chat":
                return "chat takes no question here; type it when chat asks, or send it to standard input"
            return "one argument too many; put a name with blanks into quotes"
        if name == "--set":
            return "no such option; write the value into the recipe, or into a copy of it"
        known = sorted(option for action in self._actions for option in action.option_strings)
        near = difflib.get_close_matches(name, known, n=1)
        return "no such option" + (f"; did you mean {near[0]}?" if near else "")

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage over several lines."""
        if "invalid choice:" in message and "(choose from" in message:
            given = message.split("invalid choice: ")[1].split(" (")[0].strip("'")
            choices = message.split("(choose from ")[1].rstrip(")").replace("'", "").split(", ")
            near = difflib.get_close_matches(given, choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
            if "inspect" in choices and Path(given).suffix:  # ftdocs data x.csv
                hint = f"did you mean `{self.prog} inspect {given}`?"
            message = f"{given}: no such command; {hint}"
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 when done, 2 when the input was wrong, 1 for anything else."""
    quiet_libraries()
    try:
        load_dotenv(Path.cwd() / ".env")  # a variable that is set already wins
        options = parser().parse_args(arguments)
        options.verb(options)
        sys.stdout.flush()
    except InputError as error:
        tell(str(error))
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        forget_output()
        return 1
    except OSError as error:
        if not (line := files.told(error)):
            raise
        if error.filename is None:
            forget_output()
        tell(line)
        return 2
    except KeyboardInterrupt:
        tell("stopped", all_know=True)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "ftdocs":
            raise
        tell(f"{package} is not installed; `ftdocs doctor` shows the command that mends it")
        return 2
    except Exception as error:
        if processes.lost(error):
            tell("another process of this run has ended, and so does this one; add --resume to go on")
        elif type(error).__name__ in ("Interrupted", "Diverged", "AllFailed", "NotBetter"):
            tell(str(error), all_know=True)
        else:
            raise
        return 1
    return 0


def forget_output() -> None:
    """What is left to print goes nowhere, since it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(line: str, all_know: bool = False) -> None:
    """One line on standard error, from one process.

    What is wrong is as a rule wrong in all processes, and a launcher ends the others when the first one ends. So the
    others give the main one time to speak, and speak themselves only when it has not ended in half a minute.
    """
    if not processes.is_main():
        time.sleep(1 if all_know else 30)
    if processes.is_main() or not all_know:
        print(f"ftdocs: {line}", file=sys.stderr)


def quiet_libraries() -> None:
    """Keep the libraries' own chatter and progress bars away from the result and from ours."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    import warnings

    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="ftdocs", description="Fine-tune and evaluate language models.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"ftdocs {__version__}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def verb(
        name: str, function: Callable[[argparse.Namespace], None], help: str, within: Any = verbs
    ) -> Parser:
        added: Parser = within.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.add_argument("--json", action="store_true", help="print one JSON object")
        added.set_defaults(verb=function)
        return added

    verb("doctor", doctor, "what this machine has, what is missing, and the command that mends it")

    it = verb("pull", pull, "fetch and convert models and data into the cache")
    it.add_argument(
        "names", nargs="*", metavar="NAME", help="as in `ftdocs assets`; all of the book's when left out"
    )

    verb("assets", show_assets, "models and data by short name, with source, licence and size")

    it = verb("new", new, "look at a data file or documents, and write a commented recipe")
    it.add_argument(
        "data",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="JSONL, JSON, CSV, Parquet, a data set, or documents",
    )
    it.add_argument(
        "--output", type=Path, metavar="RECIPE.yaml", help="NAME.yaml in this folder when left out"
    )

    data = verbs.add_parser("data", help="look at data before training on it", allow_abbrev=False)
    inner = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    it = verb("inspect", inspect_data, "what would be trained on: rows, tokens, and the loss mask", inner)
    it.add_argument(
        "data",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="JSONL, JSON, CSV, Parquet, a data set, or documents",
    )
    it.add_argument(
        "--recipe", type=Path, metavar="R", help="take model, format and lengths from this recipe"
    )
    it.add_argument("--samples", type=int, default=2, metavar="N", help="rows shown with their loss mask (2)")

    it = verb(
        "convert",
        convert_data,
        "an annotation export as rows of text and label, and what was left out",
        inner,
    )
    it.add_argument(
        "data", type=Path, metavar="EXPORT", help="Label Studio's JSON, JSON_MIN or CSV, or Labelbox's"
    )
    it.add_argument("--output", type=Path, metavar="ROWS.jsonl", help="EXPORT-rows.jsonl when left out")
    it.add_argument("--question", metavar="NAME", help="whose choice is the label, where there are several")
    it.add_argument("--text", metavar="FIELD", help="which field is the text, where there are several")
    it.add_argument("--labels", metavar="A,B", help="all labels there may be; another one is refused")

    it = verb("train", train, "fine-tune as a recipe says")
    it.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="what `ftdocs new` writes, or your own")
    it.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="instead of the recipe's value, such as train.max_steps=20; may be given several times",
    )
    it.add_argument("--output", type=Path, metavar="DIR", help="the run's folder; runs/NAME when left out")
    it.add_argument("--resume", action="store_true", help="go on with an unfinished run")

    it = verb("search", search, "try other values of a recipe's keys, and keep the best")
    it.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="its section search says where to look")
    it.add_argument("--trials", type=int, required=True, metavar="N", help="how many settings to try")
    it.add_argument(
        "--engine",
        choices=("optuna", "ray"),
        default="optuna",
        help="optuna: one after the other; ray: side by side, each on a core or GPU of its own",
    )
    it.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="instead of the recipe's value, such as search.sampler=random; may be given several times",
    )
    it.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the search's folder; runs/NAME-search when left out; the same command goes on in it",
    )

    it = verb("plan", plan, "the memory that a training needs on a GPU, before it runs")
    it.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.yaml", help="or give --model")
    it.add_argument("--model", metavar="NAME_OR_CONFIG", help="a name such as Llama-3.1-8B, or a config.json")
    for option, text in {
        "--method": "full, lora or qlora (full)",
        "--dtype": "of weights, gradients and state: bf16, fp16 or fp32 (bf16)",
        "--sharding": "none, ddp, fsdp, zero2 or zero3 (none; fsdp where there are several GPUs)",
        "--optimizer": "adamw, adamw-fused, adamw-8bit, paged-adamw or paged-adamw-8bit (adamw)",
        "--attention": "sdpa, flash or eager (sdpa)",
        "--lora-targets": "names such as q_proj,v_proj (all-linear)",
        "--gpu": "whether it fits on it, such as A10G-24GB",
    }.items():
        it.add_argument(option, metavar=option.rpartition("-")[2].upper(), help=text)
    for option, metavar, text in (
        ("--lora-rank", "R", "rank of the adapters (8)"),
        ("--batch-size", "B", "sequences of a micro-batch on one GPU (1)"),
        ("--accumulation", "A", "micro-batches of a step (1)"),
        ("--seq-len", "S", "tokens of a sequence (512)"),
        ("--gpus", "N", "how many train together (1)"),
        ("--tokens", "T", "to train on in all, for an estimate of hours"),
    ):
        it.add_argument(option, type=int, metavar=metavar, help=text)
    for option, text in {
        "--checkpointing": "compute activations anew in the backward pass",
        "--master-weights": "weights in float32, products in 16 bits",
        "--fused-loss": "make and drop the logits in pieces",
        "--cpu-offload": "optimiser state, and what is sharded, in the CPU's memory",
        "--sync-each-batch": "FSDP divides the gradients of each micro-batch, not of the step's last one alone",
    }.items():
        it.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
    it.add_argument(
        "--fit", action="store_true", help="turn on what makes it fit on --gpu, as cheaply as can be"
    )
    it.add_argument("--price", type=float, metavar="P", help="of a GPU and hour, for an estimate of the cost")
    it.add_argument(
        "--prices", type=Path, metavar="PRICES.csv", help="a table of yours instead: gpu, price, date"
    )
    it.add_argument(
        "--utilisation", type=float, metavar="U", help="share of the GPU's peak that is reached (0.35)"
    )

    it = verb("evaluate", evaluate, "a run's metrics on the test rows that its training never saw")
    it.add_argument("run", type=Path, metavar="RUN_DIR", help="what `ftdocs train` made, such as runs/NAME")

    it = verb("merge", merge, "a run's adapter and its base model as one model, in full precision")
    it.add_argument("run", type=Path, metavar="RUN_DIR", help="what `ftdocs train` made, such as runs/NAME")
    it.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="a folder that is not there yet"
    )
    it.add_argument(
        "--check", action="store_true", help="compare the logits of merged and unmerged before it is written"
    )
    it.add_argument("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16; the base's when left out")

    it = verb("chat", chat, "talk with a tuned model in the terminal")
    it.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="a run, a folder with a model, or a model's name"
    )
    it.add_argument("--system", metavar="TEXT", help="what the model is told first")
    it.add_argument("--max-tokens", type=int, default=256, metavar="N", help="tokens of an answer (256)")

    it = verb("serve", serve, "answer over HTTP as OpenAI's API does: keys, limits, health, metrics")
    it.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="a run, a folder with a model, or a model's name"
    )
    it.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="of this machine (127.0.0.1); others need keys"
    )
    it.add_argument(
        "--port", type=int, default=8000, metavar="N", help="where to listen (8000); 0 takes a free one"
    )
    it.add_argument(
        "--key-file", type=Path, metavar="FILE", help="API keys, one a line; or set FTDOCS_API_KEY"
    )
    for option, metavar, default, text in (
        ("--max-tokens", "N", 512, "tokens of an answer, at most"),
        ("--rate", "N", 120, "requests a minute that each key may send; 0 for any number"),
        ("--queue", "N", 32, "requests that may wait for their turn"),
        ("--timeout", "SECONDS", 120, "for an answer, waiting included"),
        ("--grace", "SECONDS", 30, "for what runs when SIGTERM or Ctrl-C comes"),
    ):
        it.add_argument(option, type=int, default=default, metavar=metavar, help=f"{text} ({default})")
    it.add_argument(
        "--max-prompt-tokens",
        type=int,
        metavar="N",
        help="of a conversation; what the model can see when left out",
    )
    it.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of answers (0: the likeliest)"
    )
    it.add_argument(
        "--batching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer up to 16 requests together; without, one after the other, each with its own temperature",
    )
    it.add_argument(
        "--backend-log",
        type=Path,
        metavar="FILE",
        help="keep what the model's server prints; may hold prompts",
    )

    it.add_argument(
        "--feedback",
        type=Path,
        metavar="FILE",
        help="where the web app keeps feedback; in the run when left out",
    )
    it.add_argument(
        "--app",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a small web app beside the API, at /",
    )

    it = verb("feedback", feedback, "the next training set, from what people said about a run's answers")
    it.add_argument("run", type=Path, metavar="RUN_DIR", help="a run that was served")
    it.add_argument(
        "--output", type=Path, required=True, metavar="ROWS.jsonl", help="a file that is not there yet"
    )
    it.add_argument(
        "--store", type=Path, metavar="FILE", help="what serve --feedback named; in the run when left out"
    )
    it.add_argument(
        "--preference", action="store_true", help="pairs of correction and answer, instead of conversations"
    )
    it.add_argument("--replay", action="store_true", help="the run's own training rows too")

    it = verb(
        "compare",
        compare,
        "runs, and what needs no training, on the same test rows, difference by difference",
    )
    it.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN_DIR", help="what `ftdocs train` made, the newest last"
    )
    it.add_argument(
        "--baselines",
        default="",
        metavar="A,B",
        help="of the first run's base model: base (as it is), few-shot (with training rows as examples), "
        "retrieval (with passages found in all documents)",
    )
    it.add_argument(
        "--gate",
        metavar="METRIC",
        help="exit code 1 unless the last run beats the first one, or a single run every baseline: the 95 %% interval "
        "of the difference leaves out 0",
    )
    it.add_argument("--limit", type=int, metavar="N", help="test rows at most (100; 1000 on a GPU)")
    it.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of an answer, at most (128; 512 on a GPU)"
    )

    return top


def doctor(options: argparse.Namespace) -> None:
    """Print what this machine can do and what is missing."""
    from ftdocs import assets, hardware

    report = hardware.report()
    report["checks"] += assets.checks()
    if options.json:
        return print_json(report)
    from rich.console import Console
    from rich.table import Table

    table = Table("", "what", "found", "how to mend it", box=None)
    for check in report["checks"]:
        mark, mend = ("[green]ok", "") if check["ok"] else ("[red]no", check["mend"])
        table.add_row(mark, check["name"], check["found"], mend)
    console = Console()
    console.print(table)
    line = f"\n{report['system']}"
    if "device" in report:
        line += f", {report['device_name']}: device {report['device']}, computes in {report['dtype']},"
        line += f" profile {report['profile']}"
    console.print(line, highlight=False)
    console.print(hardware.platform_note(), highlight=False)


def plan(options: argparse.Namespace) -> None:
    """Print what a training would need."""
    from dataclasses import replace

    from ftdocs import plan, shapes
    from ftdocs.memory import CHOICES, Setting
    from ftdocs.prices import age, price_of

    if (options.recipe is None) == (options.model is None):
        raise InputError("give a recipe or --model, one of them, such as --model Llama-3.1-8B")
    check_plan(options)
    if options.method not in (None, *CHOICES["method"]):
        raise InputError(f"--method {options.method}: {plan.not_planned(options.method)}")
    own = {
        name: value
        for name in Setting.__dataclass_fields__
        if (value := getattr(options, {"rank": "lora_rank", "targets": "lora_targets"}.get(name, name), None))
        is not None
    }
    if own.get("gpus", 1) > 1:
        own.setdefault("sharding", "fsdp")
    adapters = [f"--lora-{name}" for name in ("rank", "targets") if name in own]
    recipe = asked = None
    if options.recipe is not None:
        from ftdocs.meant import check_recipe
        from ftdocs.recipe import Recipe

        check_recipe(options.recipe)
        profile = os.environ.get("FTDOCS_PROFILE") or ("gpu" if options.gpu else "cpu")
        recipe = Recipe.load(options.recipe, profile=profile)  # type: ignore[arg-type]
        if options.fit:
            plan.check_fit(recipe, own)
        shape, asked = plan.of_recipe(recipe, options.gpu)
        setting = plan.with_autocast(replace(asked, **own)) if "method" in own else replace(asked, **own)
    else:
        shape, setting = shapes.find(options.model), Setting(**own)
    if adapters and setting.method not in ("lora", "qlora"):
        raise InputError(
            f"{' and '.join(adapters)}: method {setting.method} has no adapters; add --method lora or qlora"
        )
    plan.check(shape, setting, options.gpu)
    if options.sync_each_batch is not None and (setting.sharding != "fsdp" or setting.gpus == 1):
        raise InputError("--sync-each-batch: is about FSDP; add --sharding fsdp and --gpus, or leave it out")
    steps = plan.fit(shape, setting, plan.gpu_bytes(options.gpu), recipe is not None) if options.fit else None
    found = plan.report(shape, setting, options.gpu, steps)
    if steps and recipe and asked:
        found["overrides"] = plan.overrides(recipe, asked, steps[-1].setting)
    if options.gpu:
        chosen = steps[-1].setting if steps else setting
        price, dated = options.price, {}
        if options.prices:
            price, day = price_of(options.prices, options.gpu)
            dated = {"price": price, "price_date": str(day)}
            if old := age(day):
                print(f"ftdocs: {options.prices}: {old}", file=sys.stderr)
        share = plan.UTILISATION if options.utilisation is None else options.utilisation
        found["estimate"] = plan.estimate(shape, chosen, options.gpu, options.tokens, price, share) | dated
    print_json(found) if options.json else print(plan.as_text(found))


def check_plan(options: argparse.Namespace) -> None:
    """Refuse options of a plan that say nothing, and what no estimate of time and money can be made of.

    Raises:
        InputError: names the option.
    """
    if options.fit and not options.gpu:
        raise InputError("--fit needs a GPU to fit on: add --gpu, such as --gpu A10G-24GB")
    if options.gpu is not None and not options.gpu.strip():
        raise InputError("--gpu: is empty; give one such as A10G-24GB, or leave it out")
    if options.sharding not in (None, "none") and (options.gpus or 1) == 1:
        raise InputError(
            f"--sharding {options.sharding}: one GPU shares with no other; add --gpus, or leave it out"
        )
    if (options.tokens or options.price) and not options.gpu:
        raise InputError("--tokens and --price need a GPU: add --gpu, such as --gpu A10G-24GB")
    for name in ("tokens", "price"):
        if (given := getattr(options, name)) is not None and not 0 < given < float("inf"):
            raise InputError(f"--{name} {given:g}: give a number above 0")
    if options.price and options.prices:
        raise InputError("--price and --prices: give one of them")
    for name in ("price", "prices"):
        if getattr(options, name) and not options.tokens:
            raise InputError(f"--{name} needs --tokens: how many are trained on in all")
    share = options.utilisation
    if share is not None and not 0 < share <= 1:
        raise InputError(f"--utilisation {share:g}: is a share of the peak; give a number above 0, at most 1")


def pull(options: argparse.Namespace) -> None:
    """Fetch assets."""
    from ftdocs import assets

    fetched = assets.pull(options.names or None, progress=not options.json)
    if options.json:
        return print_json({name: str(path) for name, path in fetched.items()})
    for name, path in fetched.items():
        print(f"{name}\t{path}")


def show_assets(options: argparse.Namespace) -> None:
    """List the catalogue."""
    from ftdocs import assets

    if options.json:
        return print_json({"assets": [asset.describe() for asset in assets.catalogue()]})
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "size", "licence", "sources, as tried", "cached", box=None)
    for asset in assets.catalogue():
        sources = ", ".join(source.kind for source in asset.tried())
        cached = ", ".join(source.kind for source, _ in asset.cached())
        size = f"{asset.size_bytes / 1e6:.0f} MB"
        table.add_row(asset.name, asset.kind, size, asset.licence, sources, cached)
    Console().print(table)


def new(options: argparse.Namespace) -> None:
    """Write a recipe."""
    from ftdocs.new import write_recipe

    check_ending(options.data)
    written, note = write_recipe(options.data, options.output)
    if note:
        print(f"ftdocs: {note}", file=sys.stderr)
    if options.json:
        return print_json({"recipe": str(written)})
    print(f"wrote {written}; read it, then: ftdocs train {written}")


def inspect_data(options: argparse.Namespace) -> None:
    """Show data as training would see it."""
    if options.samples < 0:
        raise InputError(f"--samples {options.samples}: must be 0 or more")
    check_ending(options.data)
    from rich.console import Console

    from ftdocs.data import inspect
    from ftdocs.new import first_recipe

    if options.recipe:
        recipe = load_recipe(options.recipe, [])
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"path": options.data, "name": None})}
        )
    else:
        recipe = first_recipe(options.data)
    report = inspect.inspect(recipe, samples=options.samples)
    if options.json:
        return print_json(report)
    inspect.show(report, Console())


def convert_data(options: argparse.Namespace) -> None:
    """Write the rows of an annotation export."""
    from ftdocs import files
    from ftdocs.data import annotation

    export = options.data
    target = options.output or Path(f"{export.name.split('.')[0]}-rows.jsonl")
    if target.exists():
        raise InputError(f"{target}: exists; choose another name with --output, or remove it")
    labels = None if options.labels is None else options.labels.split(",")
    if labels is not None and not all(map(str.strip, labels)):
        raise InputError(
            f"--labels {options.labels!r}: a name is empty; list all labels, such as negative,positive, "
            "or leave it out to take any"
        )
    check_ending(export)
    if options.text is not None:
        check_text_field(export, options.text, options.question)
    tasks = annotation.read_tasks(export, options.question, options.text, labels)
    rows, report = annotation.labelled(tasks, str(export))
    lines = (json.dumps({"text": row["text"], "label": row["label"]}, ensure_ascii=False) for row in rows)
    with files.explain_write_errors(target):
        files.write_atomic(target, "".join(f"{line}\n" for line in lines))
    if options.json:
        return print_json({"output": str(target), "rows": len(rows), **report})
    print(f"wrote {len(rows)} row{'s' * (len(rows) != 1)} of {report['tasks']} tasks to {target}")
    decided = [number for number in report["disagree"] if number not in report["tied"]]
    for name, numbers in {
        "unannotated": report["unannotated"],
        "disagree, with a majority": decided,  # a tie is named once, as tied
        "tied": report["tied"],
    }.items():
        if numbers:
            print(
                f"  {name}: {len(numbers)} (rows {', '.join(map(str, numbers[:20]))}{', …' * (len(numbers) > 20)})"
            )


def check_ending(data: Path) -> None:
    """Refuse Labelbox's NDJSON under the ending .json, as which a single row of it reads like a wrong object."""
    if data.suffix.lower() != ".json":
        return
    try:
        with open(data, "rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):  # who reads the file says what is wrong with it
        return
    if isinstance(first, dict) and "data_row" in first:
        raise InputError(
            f"{data}: one object a line, as Labelbox's NDJSON export has it; "
            f"rename it to {data.with_suffix('.ndjson').name}"
        )


def check_text_field(export: Path, name: str, question: str | None) -> None:
    """Refuse a field that is text in no task at all; where only some tasks lack it, their rows are named later."""
    from ftdocs.data import annotation
    from ftdocs.data.read import read_rows

    fields: dict[str, None] = {}
    for row in read_rows(export):
        kind = annotation.export_of(row)
        if kind is None:  # refused with its row when the tasks are read
            return
        if kind.startswith("Labelbox"):
            raise InputError(f"--text {name}: a task of Labelbox has one text only; leave out --text")
        data = row["data"] if kind == "Label Studio JSON" else row
        about = () if data is not row else (*annotation.ABOUT, question)
        fields |= dict.fromkeys(
            key for key, value in data.items() if isinstance(value, str) and key not in about
        )
    if name not in fields:
        raise InputError(
            f"{export}: no task has text in a field {name!r}; choose with --text from: "
            f"{', '.join(fields) or 'none'}"
        )


def train(options: argparse.Namespace) -> None:
    """Fine-tune."""
    check_deepspeed()
    recipe = load_recipe(options.recipe, options.set)
    check_data(recipe, options.recipe, options.set)
    from ftdocs import runs
    from ftdocs.progress import Interrupted
    from ftdocs.train import train as run

    output = options.output or Path("runs") / options.recipe.stem
    before = runs.state(output)
    if before != "finished" and processes.is_main() and (note := about_rate(recipe, options)):
        print(f"ftdocs: {note}", file=sys.stderr)
    if before == "unfinished" and options.resume:
        check_resumed(recipe, output)
    try:
        result = run(recipe, output, resume=options.resume, progress=not options.json)
    except Interrupted as stopped:
        if processes.count() > 1:  # started by a launcher, whose command is not known here
            raise
        raise Interrupted(f"{stopped}, or with the same settings: {resuming(output)}") from None
    if not processes.is_main():
        return None
    if before == "finished":
        print(f"ftdocs: {output} was trained already with this recipe; nothing was done", file=sys.stderr)
    if options.json:
        return print_json({**vars(result), "run": str(result.run)})
    if before == "finished":
        return print(f"Its card: {result.run / runs.CARD}\nNext: ftdocs evaluate {result.run}")
    print((result.run / runs.CARD).read_text().split("---\n", 2)[2].strip())
    print(f"\nNext: ftdocs evaluate {result.run}")


def resuming(folder: Path) -> str:
    """The command that goes on with a run by the recipe that it keeps, whatever it was started with."""
    from ftdocs import runs

    return (
        f"ftdocs train {shlex.quote(str(folder / runs.RECIPE))} --output {shlex.quote(str(folder))} --resume"
    )


def check_resumed(recipe: Any, folder: Path) -> None:
    """Refuse to go on by another recipe, such as one that lacks a --set of the run's beginning.

    Raises:
        InputError: names the keys that differ, and the command that goes on with the run as it was.
    """
    from ftdocs import runs

    count = json.loads((folder / runs.ENVIRONMENT).read_text(encoding="utf-8")).get("processes", 1)
    changed = runs.changes(runs.read_recipe(folder), recipe, count, spread=False)
    if changed and count == processes.count() == 1:
        raise InputError(
            f"{folder}: holds a run of another recipe ({changed}); go on with it as it was:"
            f" `{resuming(folder)}`; or choose another --output"
        )


def about_rate(recipe: Any, options: argparse.Namespace) -> str:
    """One line where the method is not the file's and the learning rate still is, else ""."""
    from ftdocs import hardware, job
    from ftdocs.meant import origin_of
    from ftdocs.recipe import Recipe

    path, name, rate = options.recipe, recipe.method.name, recipe.train.learning_rate
    written = Recipe.load(path, profile=hardware.profile(), environment=False)
    # A logistic regression, which features fits, has no rate.
    if not rate or name in (written.method.name, "features"):
        return ""
    if origin_of("train.learning_rate", path, options.set) != f"{path}: ":
        return ""
    without = recipe.train.model_copy(update={"learning_rate": None})
    own = job.learning_rate(recipe.model_copy(update={"train": without}), format_of(recipe.data))
    if own == rate:
        return ""
    return (
        f"train.learning_rate: {rate:g}, as {path} has it for {written.method.name}; {name}'s own is {own:g}, and"
        " --set train.learning_rate=null takes it"
    )


def format_of(data: Any) -> str:
    """How the rows of a recipe's ``data`` are written: as it says, or as the first row does."""
    from ftdocs.data import prepare
    from ftdocs.data.annotation import training_rows
    from ftdocs.data.formats import recognise
    from ftdocs.data.read import is_documents

    path = prepare.source(data)
    if data.format or is_documents(path):
        return data.format or "text"
    row = next(training_rows(path))
    return recognise(row, f"{path}, row {row['row']}")


def check_deepspeed() -> None:
    """Refuse ZeRO-3, as `accelerate launch` asks for it: a run would write the main process's shares, which are empty.

    Raises:
        InputError: says what to use instead.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return
    stage: object = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if name != "none":
        try:
            stage = json.loads(Path(name).read_text(encoding="utf-8"))["zero_optimization"]["stage"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name}: no zero_optimization.stage can be read from it ({error!r})") from None
    if str(stage) == "3":
        raise InputError(
            "DeepSpeed's ZeRO-3 is not for ftdocs, which would write empty weights at the end; use FSDP2"
            " (recipes/accelerate/fsdp2.yaml), or ZeRO-2"
        )


def search(options: argparse.Namespace) -> None:
    """Search for better hyperparameters."""
    recipe = load_recipe(options.recipe, options.set)
    check_data(recipe, options.recipe, options.set)
    for package in ("optuna", options.engine):
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed; python -m pip install "ftdocs[search]"')
    from ftdocs.search import BEST, LESS_IS_BETTER, Plan
    from ftdocs.search import one_by_one as engine
    from ftdocs.search import search as run

    if options.engine == "ray":
        from ftdocs.search_ray import by_ray as engine

    def begin(plan: Plan) -> None:  # called when all was checked: a refusal stays one line
        if recipe.search.space is None:
            note = about_space(options.recipe, plan.recipe.search.space or {})
            plan.bar.write(f"ftdocs: {note}", file=sys.stderr)
        engine(plan)

    output = options.output or Path("runs") / f"{options.recipe.stem}-search"
    found = run(recipe, output, options.trials, begin, progress=not options.json)
    if options.json:
        return print_json({key: value for key, value in vars(found).items() if key != "rows"})
    from rich.console import Console
    from rich.table import Table

    sign = 1 if found.metric in LESS_IS_BETTER else -1
    ranked = sorted(found.rows, key=lambda row: math.inf if row["value"] is None else sign * row["value"])
    table = Table("trial", found.metric, *found.best, "seconds", "", box=None)
    for row in ranked:
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        note = (
            row.get("reason", "") if row["state"] == "failed" else row["state"] * (row["state"] != "complete")
        )
        settings = (f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in found.best)
        table.add_row(str(row["trial"]), value, *settings, f"{row.get('seconds', 0):.0f}", note)
    Console().print(table)
    print(f"\nbest: {', '.join(f'{key} {value}' for key, value in found.best.items())}")
    print(f"Next: ftdocs train {found.search / BEST}")


def about_space(recipe: Path, space: dict[str, Any]) -> str:
    """One line on the space that is searched where the recipe has none, as it would stand in the recipe."""
    written = ", ".join(
        f"{key}: {json.dumps(values)}"
        if isinstance(values, list)
        else f"{key}: {{low: {values.low:.3g}, high: {values.high:.3g}, log: {json.dumps(values.log)}}}"
        for key, values in space.items()
    )
    return (
        f"{recipe}: no search.space, so this one is searched: {{{written}}}; "
        "to change it, write a section search: with space: into the recipe"
    )


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a run."""
    from ftdocs import runs

    check_run(options.run)
    runs.read_result(options.run)  # a folder that is no run is refused before torch is loaded
    from ftdocs.evaluate import evaluate_run

    outcome = evaluate_run(options.run, progress=not options.json)
    if warning := runs.rough(outcome["rows"], outcome["split"]):
        print(f"ftdocs: {warning}", file=sys.stderr)
    if options.json:
        return print_json(outcome)
    print_evaluation(outcome)


def chat(options: argparse.Namespace) -> None:
    """Talk with a model."""
    from ftdocs.meant import check_model

    check_model(options.run)
    from ftdocs import backend

    if not (options.run / "adapter").is_dir():
        backend.find(options.run)  # what cannot hold a conversation is refused before torch is loaded
    from ftdocs.chat import Conversation, talk

    conversation = Conversation(options.run, options.system, options.max_tokens)
    talk(conversation, show=not options.json)
    if options.json:
        print_json({"messages": conversation.messages})


def serve(options: argparse.Namespace) -> None:
    """Serve a model."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed; python -m pip install "ftdocs[serve]"')
    from ftdocs.meant import check_model

    check_model(options.run)  # at once, and not after the server's own imports
    from ftdocs import access, listen

    for name, least in {
        "max_tokens": 1,
        "rate": 0,
        "queue": 0,
        "timeout": 1,
        "grace": 0,
        "temperature": 0,
    }.items():
        if not getattr(options, name) >= least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: give {least} or more")
    if not options.temperature <= 2:
        raise InputError(f"--temperature {options.temperature:g}: give 0 to 2")
    keys = access.read_keys(options.key_file)
    # Before the model is found: an adapter is merged there, which takes a while.
    with listen.listen(options.host, options.port, keys) as listener:
        serve_at(listener, options, keys)


def serve_at(listener: socket.socket, options: argparse.Namespace, keys: Any) -> None:
    """Find the model, check what it can see, and answer."""
    from ftdocs import access, backend, listen

    served = backend.find(options.run)
    room = served.context - options.max_tokens
    if options.max_prompt_tokens is None:
        options.max_prompt_tokens = room
    if not 0 < options.max_prompt_tokens <= room:
        raise InputError(
            f"--max-tokens {options.max_tokens} and --max-prompt-tokens {options.max_prompt_tokens}: the model sees"
            f" {served.context} tokens, prompt and answer together"
        )
    limits = access.Limits(
        options.max_prompt_tokens, options.max_tokens, options.rate, 16 if options.batching else 1, options.queue,
        options.timeout,
    )  # fmt: skip
    extend = web_app(options, served)
    who = "with an API key" if keys else "without a key, from this machine only"

    def announce(url: str) -> None:
        if options.json:
            print_json({"url": f"{url}/v1", "model": served.name, "pid": os.getpid()})
            sys.stdout.flush()
        else:
            print(f"{served.name} answers at {url}/v1, {who}; Ctrl-C ends it", flush=True)
            if extend:
                print(f"web app: {url}/", flush=True)

    listen.serve(
        served, listener, limits, keys, announce, options.batching, options.temperature, options.grace,
        options.backend_log, *([extend] if extend else []),
    )  # fmt: skip


def web_app(options: argparse.Namespace, served: Any) -> Any:
    """What adds the web app to the gateway; None without it."""
    if not options.app:
        return None
    if importlib.util.find_spec("gradio") is None:
        raise InputError('gradio is not installed; python -m pip install "ftdocs[serve]", or add --no-app')
    from ftdocs import app
    from ftdocs.feedback import NAME, Store

    path = options.feedback or (served.run / NAME if served.run else None)
    store, search = Store(path) if path else None, app.retriever(served.run)
    return lambda api, gateway: app.add(api, gateway, store, search)


def feedback(options: argparse.Namespace) -> None:
    """Write the next training set."""
    check_run(options.run)
    from ftdocs.feedback import export

    done = export(options.run, options.output, options.store, options.preference, options.replay)
    if options.json:
        return print_json(done)
    replayed = f" and {done['replayed']} of the run's own" if done["replayed"] else ""
    print(f"wrote {done['rows']} row{'s' * (done['rows'] != 1)}{replayed} to {done['output']}")
    if done["replaced"]:
        print(f"  of the run's own, a correction stands for: {done['replaced']}")
    if done["group"]:
        print(f"  train with data.group: {done['group']}, or its rows lie in several splits")
    for reason, count in done["left_out"].items():
        print(f"  left out, {reason}: {count}")


def check_run(folder: Path) -> None:
    """Refuse a search's folder, and what holds no run, and name the run that was meant."""
    from ftdocs import meant

    check_no_search(folder)
    meant.check_run(folder)


def check_no_search(folder: Path) -> None:
    """Refuse the folder of a search, and name the run in it that was meant: only the best trial's weights are kept."""
    if not (folder / "search.json").is_file():  # ftdocs.search.PLAN, without importing torch
        return
    kept = [
        path for path in folder.glob("trials/*") if (path / "model").is_dir() or (path / "adapter").is_dir()
    ]
    if len(kept) == 1:
        raise InputError(
            f"{folder}: is a search, not a run; evaluate its best trial: ftdocs evaluate {kept[0]}"
        )
    raise InputError(f"{folder}: is a search that has not finished; the same `ftdocs search` command goes on")


def compare(options: argparse.Namespace) -> None:
    """Compare runs and baselines."""
    from ftdocs import runs

    for folder in options.runs:
        check_run(folder)
        runs.read_result(folder)  # a folder that is no run is refused before torch is loaded
    baselines = [name.strip() for name in options.baselines.split(",")] if options.baselines else []
    for package in ("rouge_score", "bm25s"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f'{package} is not installed; python -m pip install "ftdocs[documents,judge]"')
    from ftdocs.compare import ANSWERS, NotBetter
    from ftdocs.compare import compare as run

    sizes = options.limit, options.max_new_tokens
    outcome = run(options.runs, baselines, options.gate, *sizes, progress=not options.json)
    if warning := runs.rough(outcome["rows"], outcome["split"]):
        print(f"ftdocs: {warning}", file=sys.stderr)
    if options.json:
        print_json(outcome)
    else:
        print_comparison(outcome)
        print(f"\nrow by row: {options.runs[-1] / ANSWERS}")
    if outcome["gate"] and not outcome["gate"]["passed"]:
        raise NotBetter(f"{options.runs[-1]}: does not beat {'; '.join(outcome['gate']['not_beaten'])}")


def print_comparison(outcome: dict[str, Any]) -> None:
    """What ``ftdocs.compare.compare`` found, for people."""
    from ftdocs.compare import few_drawn

    last, names = outcome["runs"][-1], list(outcome["metrics"])
    metrics = list(outcome["metrics"][last])
    width = max(map(len, names))
    count, few = outcome["documents"], few_drawn(outcome["documents"], outcome["rows"])
    print(f"{outcome['rows']} test rows" + (f" of {count} document{'s' * (count > 1)}" if count else ""))
    for note in outcome["notes"]:
        print(f"  {note}")
    if "max_new_tokens" in outcome:
        print(f"  answers: greedy, of {outcome['max_new_tokens']} tokens at most")
    print("\n" + " ".join([" " * width, *(f"{metric:>12}" for metric in metrics)]))
    for name, found in outcome["metrics"].items():
        figures = ("" if found[metric] is None else f"{found[metric]:.3f}" for metric in metrics)
        print(" ".join([name.ljust(width), *(f"{figure:>12}" for figure in figures)]).rstrip())
    for name, found in outcome["differences"].items():
        print(f"\n{last} less {name}, with its paired 95 % interval over {outcome['resampled']}")
        for metric, difference in found.items():
            if difference is not None:
                estimate, low, high = difference
                told = "" if not (few or low <= 0 <= high) else "  (cannot tell)"
                print(f"  {metric:<12} {estimate:+.3f}  ({low:+.3f} to {high:+.3f}){told}")
        if "mcnemar" in outcome:
            only, others, p_value = outcome["mcnemar"][name].values()
            print(
                f"  right alone: {only} row{'s' * (only != 1)}, the other {others}; McNemar's p = {p_value:.3f}"
            )
    if "errors" in outcome:
        from ftdocs.scores import CATEGORIES

        print("\nwhat is wrong with the answers, by rules")
        print(" ".join([" " * width, *(f"{category:>12}" for category in CATEGORIES)]))
        for name, found in outcome["errors"].items():
            print(" ".join([name.ljust(width), *(f"{count:>12}" for count in found.values())]))
        for category, rule in CATEGORIES.items():
            print(f"  {category}: {rule}")
    if outcome["gate"]:
        print(
            f"\ngate, by {outcome['gate']['metric']}: {'passed' if outcome['gate']['passed'] else 'not passed'}"
        )


def print_evaluation(outcome: dict[str, Any]) -> None:
    """What ``evaluate_run`` found, for people: a line for each metric, with its interval where there is one."""
    print(f"{outcome['run']}: {outcome['rows']} {outcome['split']} row{'s' * (outcome['rows'] != 1)}")
    spans = outcome.get("intervals", {})
    for name, value in outcome["metrics"].items():
        span = "  (95 % interval: {:.4f} to {:.4f})".format(*spans[name]) if name in spans else ""
        if name in spans and spans[name][0] == spans[name][1]:  # every resample is the same: no certainty
            span = "  (95 % interval: none, these rows cannot tell)"
        print(f"  {name:<26} {value:.4f}{span}")
    if "confusion" in outcome:
        print_confusion(**outcome["confusion"])


def print_confusion(labels: list[str], counts: list[list[int]]) -> None:
    """A confusion matrix, a line for each right class; a file with many classes is read more easily as JSON."""
    if len(labels) > 12:
        return print("  confusion matrix: too wide for a terminal, see evaluation.json")
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in labels]
    width = max(8, *map(len, names))
    print("\n  rows of class ↓ that were taken for class →")
    print(" ".join(["  " + " " * width, *(name.rjust(width) for name in names)]))
    for name, row in zip(names, counts, strict=True):
        print(" ".join([f"  {name.ljust(width)}", *(str(count).rjust(width) for count in row)]))


def merge(options: argparse.Namespace) -> None:
    """Merge an adapter."""
    if options.dtype not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"--dtype {options.dtype}: give float32, bfloat16 or float16")
    from ftdocs import runs

    check_run(options.run)
    runs.read_result(options.run)  # a folder that is no run is refused before torch is loaded
    from ftdocs.merge import merge_run

    found = merge_run(options.run, options.output, options.check, options.dtype)
    if options.json:
        return print_json(vars(found))
    print(f"wrote {found.output}: the whole model, in {found.dtype}")
    if options.check:
        print(
            f"  largest difference of a logit, merged against unmerged, float32: {found.float32_difference:.2g}"
        )
        print(
            f"  the written weights change the logits by {found.rounding_difference:.2g},"
            f" the training by {found.tuning_difference:.2g} (root mean square);"
            " the first is what rounding loses, and should be much the smaller"
        )


def load_recipe(path: Path, overrides: list[str]) -> Any:
    """The recipe in the size that this machine (or ``FTDOCS_PROFILE``) gets."""
    from ftdocs.meant import check_recipe
    from ftdocs.recipe import USED_BY, Method, Recipe

    check_recipe(path)
    Recipe.load(path, overrides)  # a wrong recipe is refused before torch is loaded
    from ftdocs import hardware

    recipe = Recipe.load(path, overrides, hardware.profile())
    for override in overrides:
        section, _, key = override.partition("=")[0].strip().partition(".")
        if section == "method" and key in Method.model_fields and key != "name":
            owners = USED_BY[key]
            if recipe.method.name not in owners:  # else another is trained than was meant, without a word
                raise InputError(
                    f"--set {override}: counts only with method.name: {', '.join(owners)}, and the recipe's is "
                    f"{recipe.method.name}; add --set method.name={owners[0]}, or leave it out"
                )
    return recipe


def check_data(recipe: Any, path: Path, overrides: list[str]) -> None:
    """Refuse data that are not there, and say where their path is written.

    Raises:
        InputError: led by the recipe's file, the variable or --set.
    """
    if recipe.data.path is None or recipe.data.path.exists():
        return
    from ftdocs.data import prepare
    from ftdocs.meant import origin_of

    try:
        prepare.source(recipe.data)
    except InputError as error:
        raise InputError(f"{origin_of('data.path', path, overrides)}data.path: {error}") from None


def print_json(value: Any) -> None:
    """One JSON object on standard output, and nothing else."""
    print(json.dumps(value, default=str))


if __name__ == "__main__":
    sys.exit(main())
