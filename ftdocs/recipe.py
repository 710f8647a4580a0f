"""A recipe: what to do, as a file. Every key is described here and checked when the file is read."""

import difflib
import json
import os
import re
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ftdocs.errors import InputError

Profile = Literal["smoke", "cpu", "gpu"]
DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # endings that a recipe never has
PROFILES: tuple[Profile, ...] = ("smoke", "cpu", "gpu")
SEEDS = 2**32  # NumPy takes none from here on


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error: a misspelt one must not be ignored silently."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``max_steps: yes`` is no 1: YAML reads yes, no, on and off as true and false."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            truth = str(value).lower()
            raise ValueError(
                f"is {truth}, as YAML reads yes, no, on and off; write a number, or put text in quotes"
            )
        return value


class Data(Section):
    """Which rows to train on, and which to hold out."""

    path: Path | None = Field(None, description="a data file or folder, relative to the recipe")
    name: str | None = Field(None, description="instead of a path: one of the data sets of `ftdocs assets`")
    format: Literal["messages", "prompt", "instruction", "text", "label", "preference"] | None = Field(
        None, description="how a row is written; recognised from the first row when left out"
    )
    validation: float = Field(0.1, ge=0, lt=1, description="share of the rows held out to watch the training")
    test: float = Field(0.1, ge=0, lt=1, description="share of the rows held out for the final figure")
    where: dict[str, str | int] | None = Field(
        None, min_length=1, description="use only rows with these values in these columns: {column: value}"
    )
    limit: int | None = Field(None, ge=1, description="use at most this many rows, after deduplication")
    group: str | None = Field(None, description="rows with the same value in this column stay in one split")
    seed: int | None = Field(
        None,
        ge=0,
        lt=SEEDS,
        description="of the splits alone, to keep them while train.seed changes; left out: train.seed",
    )
    personal: Literal["mask"] | None = Field(
        None,
        description="mask: [e-mail], [telephone] and the like in place of what has such a form; names have none",
    )

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Exactly one of path and name; the held-out shares leave something to train on."""
        if (self.path is None) == (self.name is None):
            raise ValueError(
                "give exactly one of `path` (your file) and `name` (one of the book's data sets)"
            )
        if self.validation + self.test >= 1:
            raise ValueError(
                "`validation` and `test` together must be below 1, or no row is left to train on"
            )
        return self


LORA_KINDS = ("lora", "qlora", "loftq", "rslora", "dora", "pissa", "adalora")
# Which methods use a key of the section; in any other it would be read and forgotten.
USED_BY: dict[str, tuple[str, ...]] = {
    "layers": ("layers",),
    **dict.fromkeys(("language_epochs", "discriminative", "unfreeze"), ("ulmfit",)),
    "rank": (*LORA_KINDS, "vera"),
    "alpha": LORA_KINDS,
    "dropout": (*LORA_KINDS, "vera"),
    "targets": (*LORA_KINDS, "vera"),
    "tokens": ("prompt", "prefix"),
}


class Method(Section):
    """Which weights move."""

    name: Literal[
        "full",
        "lora",
        "features",
        "layers",
        "ulmfit",
        "qlora",
        "loftq",
        "rslora",
        "dora",
        "pissa",
        "adalora",
        "vera",
        "ia3",
        "prompt",
        "prefix",
        "norms",
        "bitfit",
    ] = Field(
        "lora",
        description="full: every weight; lora: low-rank adapters; layers: the top of the model alone; features: of a "
        "classifier its head alone, fitted as a logistic regression; ulmfit: every weight, gently, in three stages; "
        "qlora: lora on a base in 4 bits; loftq: the same, and the adapter begins with what they lost; "
        "rslora, dora, pissa, adalora: kinds of lora; vera, ia3: fewer weights still; "
        "prompt, prefix: vectors before the text; norms, bitfit: the norms' weights, the biases",
    )
    layers: int = Field(2, ge=0, description="layers: how many of the last blocks are trained, with the head")
    language_epochs: float = Field(
        1.0,
        ge=0,
        description="ulmfit: epochs in which the language model learns the texts before their labels; 0: none",
    )
    discriminative: float = Field(
        2.6, ge=1, description="ulmfit: how much slower a group of layers learns than the one above; 1: not"
    )
    unfreeze: bool = Field(
        True, description="ulmfit: train the head first, and set one group of layers free after the other"
    )
    rank: int = Field(
        8, ge=1, description="lora and its kinds: rank r of the update B·A; vera: 256 when left out"
    )
    alpha: float = Field(16.0, gt=0, description="lora and its kinds: the update is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="lora, its kinds, vera: dropout on the adapter's input"
    )
    targets: str | list[str] = Field(
        "all-linear",
        description="lora, its kinds, vera: names of the linear layers that get an adapter, or all-linear",
    )
    tokens: int = Field(20, ge=1, description="prompt, prefix: how many vectors stand before the text")

    @model_validator(mode="before")
    @classmethod
    def rank_of_vera(cls, raw: Any) -> Any:
        """VeRA trains a number for each rank and not a row: it needs many, and they cost little."""
        vera = isinstance(raw, dict) and raw.get("name") == "vera"
        return {"rank": 256, **raw} if vera else raw

    def without_unused(self) -> "Method":
        """The same method with the keys that it does not use as they are by default: they make no other run."""
        kept = {
            key: value
            for key, value in self.model_dump().items()
            if key not in USED_BY or self.name in USED_BY[key]
        }
        return Method.model_validate(kept)


def refuse_unused(method: Any, name: Any, lead: str) -> None:
    """Refuse keys of a file's section ``method`` that its method does not use, unless they say what holds anyway.

    Args:
        method: the section as it stands in the file.
        name: the method's.
        lead: begins the message: the file.

    Raises:
        InputError: names the key, and the methods that use it.
    """
    for key, value in method.items() if isinstance(method, dict) else ():
        if key in USED_BY and name not in USED_BY[key] and value != Method.model_fields[key].default:
            raise InputError(
                f"{lead}method.{key}: counts only with method.name: {', '.join(USED_BY[key])}, and here it is {name};"
                " remove this key, or change the name"
            )


class Train(Section):
    """How long, how fast, and how often something is written down."""

    epochs: float = Field(1.0, gt=0, description="passes over the training rows; max_steps wins over it")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(
        8, ge=1, description="sequences per device (each process has one) and micro-batch"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches per device and optimiser step")
    seq_len: int = Field(512, ge=8, description="tokens of a training sequence")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak learning rate; when left out 1e-3 for lora, 1e-4 for full and layers, 5e-5 with labels; "
        "adapters of another kind have rates of their own",
    )
    schedule: Literal["linear", "cosine", "constant", "slanted"] = Field(
        "linear", description="decay after the warm-up; slanted: ULMFiT's, with a warm-up of its own"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, not applied to biases and norms")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of activations and attention weights left out at random in the pretrained model; left out: "
        "what its config says",
    )
    packing: bool = Field(
        True, description="several documents in one sequence, kept apart by their positions"
    )
    checkpointing: bool = Field(
        False,
        description="activation checkpointing: a layer keeps its input alone, and is computed anew in the backward "
        "pass; less memory, about a third slower, the same weights",
    )
    precision: Literal["auto", "fp32", "bf16", "bf16-mixed"] = Field(
        "auto",
        description="bf16: weights and arithmetic; bf16-mixed: trained weights fp32, frozen ones and arithmetic bf16; "
        "auto: bf16-mixed where the device is fast at it, else fp32",
    )
    seed: int = Field(
        0, ge=0, lt=SEEDS, description="of the initialisation, the order of the rows, and the splits"
    )
    log_every: int = Field(1, ge=1, description="steps between rows of metrics.jsonl")
    eval_every: int | None = Field(
        None, ge=1, description="steps between validations; left out: before and after"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop early: after so many validations in a row without a new lowest held-out loss, keeping the "
        "weights of the lowest; needs eval_every",
    )
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; left out: one every two minutes"
    )
    engine: Literal["trainer", "loop"] = Field(
        "trainer", description="what runs the steps: transformers.Trainer, or the loop of ftdocs/loop.py"
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [], description="further loggers of transformers.Trainer, each a package to be installed"
    )

    @model_validator(mode="after")
    def loggers_of_trainer(self) -> Self:
        """The loop writes ``metrics.jsonl`` and nothing else."""
        if self.engine == "loop" and self.report_to:
            raise ValueError("`report_to` needs `engine: trainer`; the loop writes metrics.jsonl alone")
        return self

    @model_validator(mode="after")
    def patience_counts(self) -> Self:
        """What patience counts are the validations of ``eval_every``."""
        if self.patience and not self.eval_every:
            raise ValueError("`patience` counts validations; set `eval_every`, such as 10 steps")
        return self


class Range(Section):
    """An interval to search in. Two whole numbers give whole numbers, its ends among them."""

    low: int | float = Field(description="the lower end")
    high: int | float = Field(description="the upper end")
    log: bool = Field(False, description="as likely between 1 and 10 as between 10 and 100")

    @model_validator(mode="after")
    def not_empty(self) -> Self:
        """There is something between the ends, and a logarithm of each."""
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; set low above 0, or leave out log")
        return self


EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")  # which YAML 1.1 takes for text if it has no point
Choices = Annotated[list[int | float | str], Field(min_length=1)]
Space = dict[
    str,
    Annotated[
        Annotated[Range, Tag("<range>")] | Annotated[Choices, Tag("<choices>")],
        Discriminator(lambda value: "<range>" if isinstance(value, dict | Range) else "<choices>"),
    ],
]


class Search(Section):
    """How `ftdocs search` looks for better values of other keys."""

    space: Space | None = Field(
        None,
        description="by key, a list or a range, such as `train.learning_rate: {low: 1e-5, high: 1e-3, log: true}`; "
        "left out: learning rate, batch size and epochs, around the recipe's",
    )
    sampler: Literal["grid", "random", "bayes"] = Field(
        "bayes", description="how the next values are chosen; bayes is Optuna's TPE"
    )
    metric: Literal[
        "eval_loss", "eval_perplexity", "eval_accuracy", "eval_precision", "eval_recall", "eval_f1"
    ] = Field("eval_loss", description="of the validation rows, after the last step")
    pruner: Literal["none", "median", "halving"] = Field(
        "none", description="stops a trial that does badly at one of its validations; needs train.eval_every"
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="of the sampler; train.seed is the same in all trials")

    @field_validator("space", mode="before")
    @classmethod
    def dotted_keys(cls, space: Any) -> Any:
        """``train: {epochs: [1, 2]}`` is ``train.epochs: [1, 2]``; 1e-4, which is text in YAML, is a number."""
        if not isinstance(space, dict):
            return space
        flat: dict[Any, Any] = {}
        for key, value in space.items():
            inner = value if key in ("method", "train") and isinstance(value, dict) else None
            flat |= {key: value} if inner is None else {f"{key}.{name}": each for name, each in inner.items()}
        return {
            key: [float(each) if EXPONENT.fullmatch(str(each)) else each for each in value]
            if isinstance(value, list)
            else value
            for key, value in flat.items()
        }


class Recipe(Section):
    """A whole job: a base model, data, a method, a training schedule, and what changes with size."""

    model: str = Field(
        min_length=1, description="a name from `ftdocs assets`, a hub id (org/name), or a local folder"
    )
    data: Data
    method: Method = Method()  # type: ignore[call-arg]
    train: Train = Train()  # type: ignore[call-arg]
    search: Search = Search()  # type: ignore[call-arg]
    profiles: dict[Profile, dict[str, Any]] = Field(
        {}, description="what changes in the smoke, cpu and gpu size"
    )

    @classmethod
    def load(
        cls,
        path: Path | str,
        overrides: list[str] | None = None,
        profile: Profile | None = None,
        environment: bool = True,
    ) -> "Recipe":
        """Read a recipe (.yaml, .json, or .py that binds ``recipe``) and resolve it for one size.

        Later wins: the file, its section for ``profile``, ``FTDOCS_TRAIN__SEED=1``-like environment
        variables, ``overrides`` such as ``"train.max_steps=2"``. Relative paths in the file are made
        absolute from the recipe's folder. The other profiles are validated too, so that a slip in the
        ``gpu`` section is found on a laptop. With ``environment=False`` the variables are left alone: a
        finished run is read as it was made.

        Raises:
            InputError: no such file, broken syntax, an unknown key (the nearest is named), a wrong value.
        """
        path = Path(path)
        raw = read_mapping(path)
        plain = _validate(cls, raw, f"{path}: ")
        profiles = plain.profiles
        if environment:  # a run's own recipe names every key
            refuse_unused(raw.get("method"), plain.method.name, f"{path}: ")
        for name, section in profiles.items():
            if "profiles" in section:
                raise InputError(
                    f"{path}: profiles.{name}.profiles: a profile holds no profiles; remove this key"
                )
            whole = _validate(cls, merge(raw, section), f"{path}: profiles.{name}.")
            if environment:
                refuse_unused(section.get("method"), whole.method.name, f"{path}: profiles.{name}.")
        chosen = merge(raw, profiles.get(profile, {})) if profile else raw
        origins = {}
        variables = environment_overrides() if environment else []
        for origin, key, text in [*variables, *_command_line(overrides or [])]:
            if key.split(".")[0] == "profiles":
                raise InputError(f"{origin}{key}: set the key itself, not the profile's, such as train.seed")
            try:
                chosen = merge(chosen, nested(key, yaml.load(text, Loader=_Loader)))
            except (yaml.YAMLError, DuplicateKey, ValueError, RecursionError):
                raise InputError(f"{origin}{key}: is not a YAML value; put text in quotes") from None
            origins[key] = origin
        recipe = _validate(cls, chosen, f"{path}: ", origins)
        recipe = recipe.model_copy(update={"method": recipe.method.without_unused()})
        return recipe.anchored(path.parent.resolve())

    def anchored(self, folder: Path) -> "Recipe":
        """The same recipe with relative paths (data, a local model folder) made absolute from ``folder``."""
        data = self.data
        if data.path is not None:
            data = data.model_copy(update={"path": Path(os.path.normpath(folder / data.path.expanduser()))})
        model = self.model
        if model.startswith((".", "~", "/")) or (folder / model / "config.json").is_file():
            model = str((folder / Path(model).expanduser()).resolve())
        return self.model_copy(update={"data": data, "model": model})

    def kept_in(self, folder: Path) -> "Recipe":
        """The resolved recipe as a run keeps it: without profiles and search, paths relative to ``folder``."""
        data, model = self.data, self.model
        if data.path is not None:
            data = data.model_copy(update={"path": Path(os.path.relpath(data.path, folder.resolve()))})
        if model.startswith("/"):
            model = os.path.relpath(model, folder.resolve())
        return self.model_copy(update={"data": data, "model": model, "profiles": {}, "search": Search()})

    def changed(self, values: dict[str, Any], lead: str = "") -> "Recipe":
        """The same recipe with other values, by dotted key, checked as those of a file are.

        Raises:
            InputError: an unknown key, or a value that it cannot have; ``lead`` begins the message.
        """
        raw = self.model_dump(mode="json", exclude_none=True)
        for key, value in values.items():
            raw = merge(raw, nested(key, value))
        return _validate(type(self), raw, lead)

    def to_yaml(self) -> str:
        """The recipe as YAML that :meth:`load` reads back to the same recipe; keys that its method does not use are
        left out, since :meth:`load` would refuse them.
        """
        unused = {"profiles"} if not self.profiles else set()
        unused |= {"search"} if self.search == Search() else set()
        written = self.model_copy(update={"method": self.method.without_unused()})
        return yaml.safe_dump(
            written.model_dump(mode="json", exclude_none=True, exclude=unused), sort_keys=False
        )


class Secrets(BaseModel):
    """Tokens, read from the environment only. They are never written to disk and print as ``**********``."""

    hf_token: SecretStr | None = None

    @classmethod
    def load(cls) -> "Secrets":
        """``FTDOCS_HF_TOKEN``, else ``HF_TOKEN``: the token for gated models of the Hugging Face hub."""
        token = os.environ.get("FTDOCS_HF_TOKEN") or os.environ.get("HF_TOKEN")
        return cls(hf_token=SecretStr(token) if token else None)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a .yaml, .yml, .json or .py recipe into a plain dictionary, without judging its keys."""
    if path.suffix.lower() in DATA and path.exists():
        raise InputError(f"{path}: is data, not a recipe; write a recipe for it: ftdocs new {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; `ftdocs new DATA_FILE` writes one for your data") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the recipe file inside it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give another file") from None
    try:
        raw = READERS[path.suffix.lower()](text, path)
    except KeyError:
        raise InputError(f"{path}: a recipe's name ends in {', '.join(READERS)}; rename it") from None
    except DuplicateKey as error:
        raise InputError(f"{path}: {error} stands twice; keep one of them") from None
    except RecursionError:
        raise InputError(
            f"{path}: brackets within brackets without end; a recipe is two levels deep"
        ) from None
    if path.suffix.lower() == ".json" and isinstance(raw, list) and raw:
        raise InputError(f"{path}: is data, not a recipe; write a recipe for it: ftdocs new {path}")
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds no keys; a recipe needs at least `model:` and `data:`")
    return raw


def _read_yaml(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}: line {line}: not valid YAML ({error.problem}); mend that line") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({error}); mend that value, or put it in quotes") from None


def _read_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}: not valid JSON ({error.msg}); mend that line"
        ) from None


def _read_python(_: str, path: Path) -> dict[str, Any]:
    """Run a .py recipe: it is code, with all that code may do, so run your own only."""
    try:
        recipe = runpy.run_path(str(path)).get("recipe")
    except ValidationError as error:
        raise InputError(_first(error, f"{path}: ", {})) from None
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", 1)
        what = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        raise InputError(
            f"{path}: line {line}: the recipe's own code fails ({what}); mend that line"
        ) from error
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path}: binds no `recipe`; end the file with recipe = Recipe(…)")
    return recipe.model_dump(mode="json", exclude_unset=True)


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` in which the leaves of ``change`` have won."""
    result = dict(base)
    for key, value in change.items():
        inner = result.get(key)
        result[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """``nested("train.seed", 1)`` is ``{"train": {"seed": 1}}``."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def environment_overrides() -> list[tuple[str, str, str]]:
    """``FTDOCS_TRAIN__SEED=1`` in the environment, as ``("FTDOCS_TRAIN__SEED: ", "train.seed", "1")``.

    A variable counts when its name goes on with a key of the recipe, so ``FTDOCS_HF_TOKEN`` and the other
    settings do not; a misspelt one such as ``FTDOCS_TRAIN_SEED`` does, and is refused like any unknown key.
    """
    found = []
    for name, text in sorted(os.environ.items()):
        key = name.removeprefix("FTDOCS_").lower().replace("__", ".")
        if name.startswith("FTDOCS_") and ("." in key or key.split("_")[0] in Recipe.model_fields):
            found.append((f"{name}: ", key, text))
    return found


def _command_line(overrides: list[str]) -> Iterator[tuple[str, str, str]]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not (key and equals):
            raise InputError(f"--set {override}: wants key=value, such as --set train.max_steps=2")
        yield "--set ", key, text


HIDDEN = object()  # stands for the value of an environment variable in a message


class DuplicateKey(Exception):
    """A mapping names one key twice; YAML and JSON readers would keep the last one silently."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise DuplicateKey(f"`{key}`")
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if key.value in seen:  # before merge keys (<<) are put in: what stands beside one may win over it
            raise DuplicateKey(f"line {key.start_mark.line + 1}: `{key.value}`")
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json, ".py": _read_python}


def _validate(
    cls: type[Recipe], raw: dict[str, Any], lead: str, origins: dict[str, str] | None = None
) -> Recipe:
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise InputError(_first(error, lead, origins or {})) from None


def _first(error: ValidationError, lead: str, origins: dict[str, str]) -> str:
    """The most telling problem as one line, led by where it comes from: the file, a variable or ``--set``."""
    problems = error.errors()
    # An unknown key comes first: it is often the reason why another one is "missing".
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    key = _dotted(problems[0])
    # A list where text was possible too has two problems: the wrong item says more than that it is no text.
    problem = max(
        (problem for problem in problems if _dotted(problem) == key), key=lambda problem: len(problem["loc"])
    )
    for overridden, origin in origins.items():
        if f"{key}.".startswith(f"{overridden}.") or f"{overridden}.".startswith(f"{key}."):
            lead = origin
            if origin != "--set ":  # a variable may hold what nobody should read
                problem = {**problem, "input": HIDDEN}
    more = len({_dotted(problem) for problem in problems}) - 1
    return f"{lead}{_explain(problem)}" + (f" (and {more} more)" if more else "")


def _dotted(problem: Any) -> str:
    """The key of a problem, without pydantic's names for the members of a union and numbers of items."""
    inner = ("str", "list[str]", "[key]", "<range>", "<choices>", "int", "float")
    return ".".join(part for part in problem["loc"] if isinstance(part, str) and part not in inner)


def _explain(problem: Any) -> str:
    given = "null" if problem["input"] is None else repr(problem["input"])[:80]
    if problem["input"] is HIDDEN:
        given = "another value"
    dotted, kind = _dotted(problem), problem["type"]
    items = [f", item {part + 1}" for part in problem["loc"] if isinstance(part, int)]
    where = f"{dotted}{''.join(items)}: "
    if kind == "extra_forbidden":
        return f"{where}unknown key; {_nearest(dotted)}"
    if kind == "invalid_key":
        return f"key {given}: must be text"
    if kind == "missing":
        return f"{where}is missing; add it"
    if kind == "value_error":
        return where + problem["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        allowed = problem["ctx"]["expected"]
        near = difflib.get_close_matches(str(problem["input"]), allowed.split("'"), n=1)
        return f"{where}must be {allowed}, got {given}" + (f"; did you mean {near[0]}?" if near else "")
    must = WANTED.get(kind) or problem["msg"].replace("Input should", "must").replace("String should", "must")
    return f"{where}{must}, got {given}"


WANTED = {
    "model_type": "must hold keys, written below it and indented",
    "dict_type": "must hold keys, written below it and indented",
    "list_type": "must be a list, such as [a, b]",
    "too_short": "must have an item at least",
    "string_type": "must be text",
    "path_type": "must be text, a path",
    **dict.fromkeys(["int_type", "int_parsing", "int_from_float"], "must be a whole number"),
    **dict.fromkeys(["float_type", "float_parsing"], "must be a number"),
    **dict.fromkeys(["bool_type", "bool_parsing"], "must be true or false"),
}


def _nearest(dotted: str) -> str:
    """Advice on an unknown key: what is very like it anywhere in the recipe, else the nearest of its section."""
    keys = {"": list(Recipe.model_fields)}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys[name] = list(field.annotation.model_fields)
    section, _, last = dotted.rpartition(".")
    if section.startswith("search.space."):
        keys[section] = list(Range.model_fields)
    near = difflib.get_close_matches(last, keys[section], n=1, cutoff=0.55)
    # By its own name, as learning_rate written beside model, or by its full one, as train_seed.
    everywhere = {spelling: f"{name}.{key}" for name in keys if name for key in keys[name]
                  for spelling in (key, f"{name}.{key}")}  # fmt: skip
    like = difflib.get_close_matches(last, everywhere, n=1, cutoff=0.85)
    if like and not (near and near[0] == like[0]):
        near = [everywhere[like[0]]]
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(keys[section])}"
