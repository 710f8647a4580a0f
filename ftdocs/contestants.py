"""Who is compared: tuned runs, and their base model as it is, with examples, or with passages that were searched."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ftdocs import answer, assets, files, hardware, models, runs
from ftdocs.answer import Question
from ftdocs.data import prepare
from ftdocs.data.clean import clean_row, text_key
from ftdocs.data.folder import folder_rows
from ftdocs.data.formats import check
from ftdocs.data.personal import mask_row
from ftdocs.data.read import is_documents
from ftdocs.errors import InputError
from ftdocs.fingerprint import code_fingerprint
from ftdocs.recipe import Recipe
from ftdocs.retrieve import Retriever, passages

Row = dict[str, Any]
BASELINES = ("base", "few-shot", "retrieval")
PARTS = "answers"
NEW_TOKENS = {"smoke": 8, "cpu": 128, "gpu": 512}  # of an answer, at most
CONTEXT = {"smoke": 128, "cpu": 512, "gpu": 4096}  # tokens of all examples, or of all passages
SHOTS = 8  # examples at most
FOUND = 4  # passages at most


@dataclass
class Run:
    """A finished run that is compared: what it was made from, and its rows."""

    folder: Path
    recipe: Recipe
    prints: dict[str, str]
    splits: prepare.Splits


@dataclass
class Contestant:
    """One whose answers are judged: a run, or a way to do without one.

    Attributes:
        name: in the outcome.
        run: whose weights it has; of a baseline the run whose base model it is.
        tuned: the run's own weights, else those of its base model.
        tokenizer: the model's.
        prompts: for each question; none where no question is asked.
        has_loss: whether its loss on the wanted answers can be held beside the others'.
    """

    name: str
    run: Run
    tuned: bool
    tokenizer: PreTrainedTokenizerBase
    prompts: list[str] = field(default_factory=list)
    has_loss: bool = True

    @cached_property
    def weights(self) -> str:
        """A digest of the weights."""
        base = self.run.prints["model"]
        if not self.tuned:
            return base
        return base + runs.folder_fingerprint(runs.weights(self.run.folder))

    def load(self) -> Any:
        """The model."""
        return models.load_run(self.run.folder)[0] if self.tuned else models.load(self.run.recipe)[0]


def open_run(folder: Path) -> Run:
    """A finished run with its rows, if its data and its base model are still those that it was trained with.

    Raises:
        InputError: they are not, or there is no finished run.
    """
    runs.read_result(folder)
    if not any(path for part in ("adapter", "model") for path in folder.glob(f"{part}/*.safetensors")):
        raise InputError(f"{folder}: its weights are gone; restore adapter/ or model/, or train again")
    recipe = runs.read_recipe(folder)
    runs.check_data(folder, prepare.source(recipe.data))
    runs.check_model(folder, recipe.model)
    return Run(folder, recipe, runs.read_prints(folder), prepare.load_splits(recipe.data, recipe.train.seed))


def stages(run: Run) -> list[Path]:
    """The folders of the runs whose weights a run went on from, the latest first; mostly none."""
    found: list[Path] = []
    model = run.recipe.model
    while (before := assets.model_path(model).parent / runs.RESULT).is_file():
        found.append(before.parent)
        model = runs.read_recipe(before.parent).model
    return found


def untuned(run: Run) -> Run:
    """A run with the model that its tuning began with: where it went on from another run's weights, that one's base."""
    if not (before := stages(run)):
        return run
    prints = runs.read_prints(before[-1])
    recipe = run.recipe.model_copy(update={"model": runs.read_recipe(before[-1]).model})
    return Run(run.folder, recipe, prints, run.splits)


def pairs_of(run: Run, documents: set[str]) -> list[Row]:
    """The questions and answers that the structure of some documents gives, in a random order that stays."""
    masked = run.recipe.data.personal == "mask"
    found = []
    for raw in folder_rows(run.splits.path, "messages"):
        if raw["document"] in documents:
            row = clean_row(check(raw, "messages", str(run.splits.path)))
            found.append({**(mask_row(row) if masked else row), "group": raw["document"]})
    return sorted(found, key=text_key)


def contestants(
    opened: Sequence[Run],
    names: Sequence[str],
    baselines: Sequence[str],
    questions: Sequence[Question],
    max_new_tokens: int,
) -> tuple[list[Contestant], list[str]]:
    """Who answers, each with its prompts, baselines first; and in words what the baselines were given."""
    first, found, notes = untuned(opened[0]), [], list[str]()
    if first.recipe.model != opened[0].recipe.model:
        notes.append(
            f"{names[0]} went on from another run; baselines have what that began with, {first.recipe.model}"
        )
    base = AutoTokenizer.from_pretrained(assets.model_path(first.recipe.model))
    for name in baselines:
        examples: list[Question] = []
        passages_of: list[list[str]] = [[] for _ in questions]
        if name == "few-shot":
            examples = shots(first, base)
            notes.append(f"few-shot: {len(examples)} training rows as examples, the same for all questions")
        elif name == "retrieval":
            passages_of, where = searched(first, base, questions)
            notes.append(f"retrieval: at most {FOUND} passages a question, by BM25 and MiniLM, {where}")
        prompts = [
            answer.prompt(base, asked, examples, texts)
            for asked, texts in zip(questions, passages_of, strict=True)
        ]
        found.append(Contestant(name, first, False, base, prompts, name == "base"))
    wanted = answer.encoded(questions, base, first.recipe.train.seq_len)
    for run, name in zip(opened, names, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(runs.weights(run.folder))
        same = list(answer.encoded(questions, tokenizer, first.recipe.train.seq_len)) == list(wanted)
        if not same:
            notes.append(f"{name}: writes the wanted answers in other tokens, so its loss is left out")
        found.append(
            Contestant(name, run, True, tokenizer, [answer.prompt(tokenizer, q) for q in questions], same)
        )
    for each in found:
        check_lengths(each, max_new_tokens)
    return found, notes


def positions(run: Run) -> int | None:
    """How many tokens the base model has positions for; None where there is no limit."""
    config = AutoConfig.from_pretrained(assets.model_path(run.recipe.model)).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def room(run: Run) -> int:
    """The tokens that examples or passages may take: half of the model's positions at most."""
    size = CONTEXT[hardware.profile()]
    return min(size, (positions(run) or 2 * size) // 2)


def check_lengths(each: Contestant, wanted: int) -> None:
    """Refuse a prompt that leaves no place for an answer.

    Raises:
        InputError: names the row.
    """
    limit = positions(each.run)
    for number, text in enumerate(each.prompts, 1):
        tokens = len(answer.token_ids(each.tokenizer, text))
        if limit is not None and tokens + wanted > limit:
            raise InputError(
                f"{each.run.folder}: the prompt of {each.name} for test row {number} has {tokens} tokens, and with "
                f"{wanted} for the answer that is over the {limit} that the model has positions for; shorten that row"
            )


def shots(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """Training rows as examples, drawn by a fixed seed: as many as fit, at most :data:`SHOTS`.

    Raises:
        InputError: none fits.
    """
    train: Sequence[Row] = run.splits.train
    if run.splits.format == "text":
        train = pairs_of(run, {row["group"] for row in train})
    left, found = room(run), list[Question]()
    for place in np.random.default_rng(0).permutation(len(train))[: 16 * SHOTS]:
        example = answer.question(train[int(place)])
        words = " ".join([*(turn["content"] for turn in example.turns), example.reference])
        tokens = len(answer.token_ids(tokenizer, words))
        if tokens <= left and len(found) < SHOTS:
            found.append(example)
            left -= tokens
    if not found:
        raise InputError(
            f"--baselines few-shot: no training row is short enough for an example of {room(run)} tokens; "
            "leave few-shot out"
        )
    return found


def searched(
    run: Run, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> tuple[list[list[str]], str]:
    """For each question the passages that fit best, as many as there is room for; and where they are from, in words."""
    masked = run.recipe.data.personal == "mask"
    if is_documents(run.splits.path):
        texts = [mask_row(row) if masked else row for row in passages(run.splits.path)]
        where = f"among the {len(texts)} chunks of all documents, those that the questions are about too"
    else:
        trained = [answer.question(row) for row in run.splits.train]
        texts = [{"text": f"{example.text}\n{example.reference}"} for example in trained]
        where = f"among the {len(texts)} training rows, as the data is no folder of documents"
    size, found = room(run), list[list[str]]()
    for hits in Retriever(texts).search_all([asked.text for asked in questions], FOUND):
        taken, left = list[str](), size
        for hit in hits:
            tokens = len(answer.token_ids(tokenizer, hit.text))
            if tokens <= left:
                taken.append(hit.text)
                left -= tokens
        if hits and not taken:  # the best one is longer than the room there is: its beginning
            taken = [hits[0].text[: 3 * size]]
        found.append(taken)
    return found, where


class Holder:
    """One model in memory at a time, for contestants that have the same weights."""

    def __init__(self) -> None:
        self.weights, self.cast = "", False
        self.model: Any = None

    def get(self, each: Contestant) -> Any:
        """The contestant's model, as training computes with it."""
        if each.weights != self.weights or self.cast:
            self.model = None  # the one before goes first
            self.model, self.weights, self.cast = each.load(), each.weights, False
        return self.model

    def for_generation(self, each: Contestant) -> Any:
        """The same with all weights in the dtype of the products: else each is cast again for every token."""
        if each.weights != self.weights or not self.cast:
            self.model = self.get(each).to(models.computes_in(each.run.recipe.train.precision))
            self.cast = True
        return self.model


@cache
def code() -> str:
    """A digest of the code that answers depend on."""
    return code_fingerprint("ftdocs.answer")


def part(each: Contestant, what: str, content: Any) -> Path:
    """The file in which a contestant's answers or losses are kept: its name says what they depend on."""
    fingerprint = [
        content,
        each.weights,
        each.run.recipe.train.precision,
        each.tokenizer.chat_template,
        hardware.device_name(),
        hardware.versions(),
        code(),
    ]
    number = sha256(json.dumps(fingerprint, default=str).encode()).hexdigest()[:16]
    with files.explain_write_errors(each.run.folder):
        (each.run.folder / PARTS).mkdir(exist_ok=True)
    return each.run.folder / PARTS / f"{what}-{number}.jsonl"


def kept_losses(
    each: Contestant,
    holder: Holder,
    encoded: Sequence[Row],
    rows: Sequence[Row],
    done: Callable[[int], object] = lambda count: None,
) -> list[tuple[float, int]]:
    """The loss of a contestant's model on each row, with the tokens it is a mean of, kept row by row."""
    path = part(each, "losses", [[row["row"], row["input_ids"], row["labels"]] for row in encoded])
    groups = [list(range(start, min(start + 16, len(rows)))) for start in range(0, len(rows), 16)]

    def work(places: list[int]) -> list[tuple[float, int]]:
        chosen = [rows[place] for place in places]
        numbers = {row["row"] for row in chosen}
        pieces = [piece for piece in encoded if piece["row"] in numbers]
        return answer.row_losses(
            holder.get(each), each.tokenizer, pieces, chosen, each.run.recipe.train.precision
        )

    return [(nats, tokens) for nats, tokens in answer.kept(path, groups, work, done)]
