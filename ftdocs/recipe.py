"""A recipe: what to do, as a file. Every key is described here and checked when the file is read."""

import difflib
import json
import os
import runpy
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from ftdocs.errors import InputError

Profile = Literal["smoke", "cpu", "gpu"]
PROFILES: tuple[Profile, ...] = ("smoke", "cpu", "gpu")


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error: a misspelt one must not be ignored silently."""

    model_config = ConfigDict(extra="forbid")


class Data(Section):
    """Which rows to train on, and which to hold out."""

    path: Path | None = Field(None, description="a data file or folder, relative to the recipe")
    name: str | None = Field(None, description="instead of a path: one of the data sets of `ftdocs assets`")
    format: Literal["messages", "prompt", "instruction", "text", "label", "preference"] | None = Field(
        None, description="how a row is written; recognised from the first row when left out"
    )
    validation: float = Field(0.1, ge=0, lt=1, description="share of the rows held out to watch the training")
    test: float = Field(0.1, ge=0, lt=1, description="share of the rows held out for the final figure")
    limit: int | None = Field(None, ge=1, description="use at most this many rows, after deduplication")
    group: str | None = Field(None, description="rows with the same value in this column stay in one split")

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Exactly one of path and name; the held-out shares leave something to train on."""
        if (self.path is None) == (self.name is None):
            raise ValueError("give exactly one of `path` (your file) and `name` (one of the book's data sets)")
        if self.validation + self.test >= 1:
            raise ValueError("`validation` and `test` together must be below 1, or no row is left to train on")
        return self


class Method(Section):
    """Which weights move."""

    name: Literal["full", "lora"] = Field("lora", description="full: every weight; lora: low-rank adapters")
    rank: int = Field(8, ge=1, description="lora: rank r of the update B·A")
    alpha: float = Field(16.0, gt=0, description="lora: the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="lora: dropout on the adapter's input")
    targets: str | list[str] = Field(
        "all-linear", description="lora: names of the linear layers that get an adapter, or all-linear"
    )


class Train(Section):
    """How long, how fast, and how often something is written down."""

    epochs: float = Field(1.0, gt=0, description="passes over the training rows; max_steps wins over it")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(8, ge=1, description="sequences per device and micro-batch")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    seq_len: int = Field(512, ge=8, description="tokens of a training sequence")
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate; when left out 1e-3 for lora and 1e-4 for full (labels: 5e-5)"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay after the warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, not applied to biases and norms")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    packing: bool = Field(True, description="several documents in one sequence, kept apart by their positions")
    precision: Literal["auto", "fp32", "bf16", "bf16-mixed"] = Field(
        "auto",
        description="bf16: weights and arithmetic; bf16-mixed: fp32 weights, bf16 arithmetic; auto: bf16-mixed where the"
        " device is fast at it, else fp32",
    )
    seed: int = Field(0, ge=0, description="of the initialisation, the order of the rows, and the splits")
    log_every: int = Field(1, ge=1, description="steps between rows of metrics.jsonl")
    eval_every: int | None = Field(None, ge=1, description="steps between validations; left out: before and after")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; left out: ten in a run")
    engine: Literal["trainer"] = Field("trainer", description="what runs the steps: transformers.Trainer")
    report_to: list[str] = Field([], description="further loggers of transformers.Trainer, such as tensorboard")


class Recipe(Section):
    """A whole job: a base model, data, a method, a training schedule, and what changes with size."""

    model: str = Field(description="a name from `ftdocs assets`, a hub id (org/name), or a local folder")
    data: Data
    method: Method = Method()  # type: ignore[call-arg]
    train: Train = Train()  # type: ignore[call-arg]
    profiles: dict[Profile, dict[str, Any]] = Field({}, description="what changes in the smoke, cpu and gpu size")

    @classmethod
    def load(cls, path: Path | str, overrides: list[str] | None = None, profile: Profile | None = None) -> "Recipe":
        """Read a recipe (.yaml, .json, or .py that binds ``recipe``) and resolve it for one size.

        Later wins: the file, its section for ``profile``, ``FTDOCS_TRAIN__SEED=1``-like environment
        variables, ``overrides`` such as ``"train.max_steps=2"``. Relative paths in the file are made
        absolute from the recipe's folder. The other profiles are validated too, so that a slip in the
        ``gpu`` section is found on a laptop.

        Raises:
            InputError: no such file, broken syntax, an unknown key (the nearest is named), a wrong value.
        """
        path = Path(path)
        raw = read_mapping(path)
        profiles = raw.get("profiles") or {}
        if not isinstance(profiles, dict):
            raise InputError(f"{path}: profiles: wants a mapping with the keys smoke, cpu and gpu")
        for name, section in profiles.items():
            if name in PROFILES and isinstance(section, dict):
                _validate(cls, merge(raw, section), f"{path}: profiles.{name}")
        _validate(cls, raw, str(path))
        chosen = merge(raw, profiles.get(profile) or {}) if profile else raw
        for key, value in environment_overrides():
            chosen = merge(chosen, nested(key, value))
        for override in overrides or []:
            key, equals, text = override.partition("=")
            if not equals:
                raise InputError(f"--set {override}: wants key=value, such as --set train.max_steps=2")
            if key.split(".")[0] == "profiles":
                raise InputError(f"--set {key}: set the key itself, not the profile's, such as --set train.seed=1")
            chosen = merge(chosen, nested(key, yaml.safe_load(text)))
        recipe = _validate(cls, chosen, str(path))
        return recipe.anchored(path.parent.resolve())

    def anchored(self, folder: Path) -> "Recipe":
        """The same recipe with relative paths (data, a local model folder) made absolute from ``folder``."""
        data = self.data
        if data.path is not None:
            data = data.model_copy(update={"path": folder / data.path.expanduser()})
        model = self.model
        if model.startswith((".", "~", "/")) or (folder / model / "config.json").is_file():
            model = str((folder / Path(model).expanduser()).resolve())
        return self.model_copy(update={"data": data, "model": model})

    def to_yaml(self) -> str:
        """The recipe as YAML that :meth:`load` reads back to the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


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
    try:
        if path.suffix == ".py":
            recipe = runpy.run_path(str(path)).get("recipe")
            if not isinstance(recipe, Recipe):
                raise InputError(f"{path}: binds no `recipe`; end the file with recipe = Recipe(…)")
            return recipe.model_dump(mode="json", exclude_unset=True)
        text = path.read_text(encoding="utf-8-sig")
        raw = json.loads(text, object_pairs_hook=_no_duplicates) if path.suffix == ".json" else _yaml(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; `ftdocs new DATA_FILE` writes one for your data") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the recipe file inside it") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}: line {line}: not valid YAML ({error.problem}); mend that line") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({error}); save it as plain UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}); mend that line") from None
    except DuplicateKey as error:
        raise InputError(f"{path}: {error.args[0]}: this key stands twice; keep one of them") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds no keys; a recipe needs at least `model:` and `data:`")
    return raw


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


def environment_overrides() -> list[tuple[str, Any]]:
    """``FTDOCS_TRAIN__SEED=1`` in the environment, as ``("train.seed", 1)``; sections only, so no secret fits."""
    found = []
    for name, text in sorted(os.environ.items()):
        key = name.removeprefix("FTDOCS_").lower().replace("__", ".")
        if name.startswith("FTDOCS_") and (key.startswith(("data.", "method.", "train.")) or key == "model"):
            found.append((key, yaml.safe_load(text)))
    return found


class DuplicateKey(Exception):
    """A mapping names one key twice; YAML and JSON readers would keep the last one silently."""


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise DuplicateKey(key)
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return _no_duplicates([(loader.construct_object(k, True), loader.construct_object(v, True)) for k, v in node.value])


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _validate(cls: type[Recipe], raw: dict[str, Any], where: str) -> Recipe:
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        problems = error.errors()
        # An unknown key comes first: it is often the reason why another one is "missing".
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{where}: {_explain(problems[0])}{more}") from None


def _explain(problem: Any) -> str:
    keys = [str(part) for part in problem["loc"] if part not in ("str", "list[str]", "[key]")]
    dotted = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        section: Any = Recipe
        for key in keys[:-1]:
            section = section.model_fields[key].annotation
        valid = list(section.model_fields)
        near = difflib.get_close_matches(keys[-1], valid, n=1)
        return f"{dotted}: unknown key; " + (f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}")
    if problem["type"] == "missing":
        return f"{dotted}: is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{dotted}: {message}" + ("" if problem["type"] == "value_error" else f", got {problem['input']!r}"[:200])
