"""Questions with the answer that is wanted, and the answers that a model writes: greedy, in batches, cut at a limit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ftdocs import evaluate, files, loss, models
from ftdocs.data import prepare
from ftdocs.data.chat import IGNORED, Message, as_messages, as_prompt, encode_chat, render_messages
from ftdocs.errors import InputError

Row = dict[str, Any]
FORMATS = ("messages", "prompt", "instruction")  # those whose rows ask something
PASSAGES = "Answer the question with the help of these passages.\n\n{passages}\n\nQuestion: {question}"


@dataclass(frozen=True)
class Question:
    """What is asked, and what should be answered.

    Attributes:
        row: the checked row it is from, of the format messages, prompt or instruction.
        turns: the conversation up to the reply.
        reference: the reply that the row has.
        document: what it is about, where rows say so.
    """

    row: Row
    turns: list[Message]
    reference: str
    document: str | None = None

    @property
    def text(self) -> str:
        """The words of the one who asks."""
        return self.turns[-1]["content"]


@dataclass(frozen=True)
class Answer:
    """What a model wrote: ``tokens`` without the end token; ``ended`` is False where the limit cut it off."""

    text: str
    tokens: int
    ended: bool


def question(row: Row) -> Question:
    """A row as a question: the last reply is wanted, what stands before it is given."""
    turns = as_messages(row)
    last = max(place for place, turn in enumerate(turns) if turn["role"] == "assistant")
    return Question(row, turns[:last], turns[last]["content"], row.get("group"))


def prompt(
    tokenizer: PreTrainedTokenizerBase,
    asked: Question,
    examples: Sequence[Question] = (),
    passages: Sequence[str] = (),
) -> str:
    """The text after which a model answers.

    Args:
        tokenizer: with its chat template; without one, rows are written one after the other as plain text.
        asked: the question.
        examples: others with their replies, as earlier turns (few-shot).
        passages: what was found for it (retrieval).
    """
    if tokenizer.chat_template is None:
        if "messages" in asked.row:
            raise InputError(
                "the model's tokenizer has no chat template; choose an instruct model, or prompt data"
            )
        shown = ["".join(as_prompt(example.row)) for example in examples]
        return "\n\n".join([*passages, *shown, as_prompt(asked.row)[0]])
    system = [turn for turn in asked.turns if turn["role"] == "system"]
    turns = [turn for turn in asked.turns if turn["role"] != "system"]
    for example in reversed(examples):
        earlier = [turn for turn in example.turns if turn["role"] != "system"]
        turns = [*earlier, {"role": "assistant", "content": example.reference}, *turns]
    if passages:
        numbered = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(passages, 1))
        turns[-1] = {"role": "user", "content": PASSAGES.format(passages=numbered, question=asked.text)}
    return render_messages(tokenizer, [*system, *turns], reply_next=True)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a prompt. A chat template has written its own special tokens; an end token may not stand there."""
    ids: list[int] = tokenizer(text, add_special_tokens=tokenizer.chat_template is None, verbose=False)[
        "input_ids"
    ]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a reply: the tokenizer's, the model's own, and the one that training on chats teaches."""
    own = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        (row,) = encode_chat([{"messages": turns, "row": 1}], tokenizer)
        found.add([token for token in row["labels"] if token != IGNORED][-1])
    return sorted(found)


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 128,
    precision: str = "auto",
) -> list[Answer]:
    """The likeliest next token, again and again, for a batch of prompts (greedy decoding).

    Shorter prompts are filled up at the left and masked, so that every reply begins at the same place. What the
    model's own generation config says of sampling is not used.

    Args:
        model: a causal language model; its mode is put back as it was.
        tokenizer: the model's.
        prompts: as :func:`prompt` writes them; of similar length, or much is filled up.
        max_new_tokens: of a reply.
        precision: a recipe's ``train.precision``.
    """
    ids = [token_ids(tokenizer, text) for text in prompts]
    ends, pad = end_tokens(model, tokenizer), models.pad_token_id(tokenizer)
    width = max(map(len, ids))
    batch = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    how = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, use_cache=True
    )
    with models.evaluating(model), models.autocast(model.device, precision):
        written = model.generate(input_ids=batch, attention_mask=seen, generation_config=how)
    found = []
    for row in written[:, width:].tolist():
        place = next((place for place, token in enumerate(row) if token in ends), None)
        reply = row if place is None else row[:place]
        text = tokenizer.decode(reply, skip_special_tokens=True).strip()
        found.append(Answer(text, len(reply), place is not None))
    return found


def batches(sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of rows in batches of similar size, the largest first: memory runs out at the start or not at all."""
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def row_losses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Row],
    rows: Sequence[Row],
    precision: str = "auto",
) -> list[tuple[float, int]]:
    """Of each row the mean loss in nats over its predicted tokens, and how many these are; none is (0.0, 0).

    Args:
        encoded: rows as :func:`ftdocs.data.prepare.encode` gives them, perhaps several pieces of one, or none.
        rows: what they were encoded from, with their numbers.
    """
    pieces: dict[int, list[Row]] = {row["row"]: [] for row in rows}
    for piece in encoded:
        pieces[piece["row"]].append(piece)
    found, pad = [], models.pad_token_id(tokenizer)
    with loss.chunked(model):  # once around all: whether it may be is found out by trying
        for row in rows:
            own = pieces[row["row"]]
            tokens = sum(label != IGNORED for piece in own for label in piece["labels"][1:])
            nats = evaluate.held_out_loss(model, own, pad, 1, precision=precision) if tokens else 0.0
            found.append((nats, tokens))
    return found


def kept(
    path: Path,
    groups: list[list[int]],
    work: Callable[[list[int]], list[Any]],
    done: Callable[[int], object] = lambda count: None,
) -> list[Any]:
    """What ``work`` gives for each place, kept in ``path`` batch by batch: after an interrupt only the rest is done.

    Only whole batches are taken over, so that a batch has the same neighbours, and rounds the same way, in every try.

    Args:
        path: one JSON object a line, ``place`` and ``value``.
        groups: the places of each batch; together all of them, from 0.
        work: from the places of a batch to their values, which JSON can write.
        done: is told the size of each batch.
    """
    known: dict[int, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            known[entry["place"]] = entry["value"]
        except (ValueError, KeyError, TypeError):  # a line that a killed process left unfinished
            continue
    whole = {place for group in groups if known.keys() >= set(group) for place in group}
    found = {place: value for place, value in known.items() if place in whole}

    def lines(places: list[int]) -> str:
        return "".join(
            json.dumps({"place": place, "value": found[place]}, ensure_ascii=False) + "\n" for place in places
        )

    with files.explain_write_errors(path.parent):
        files.write_atomic(path, lines(sorted(found)))
    for group in groups:
        if not whole.issuperset(group):
            found |= dict(zip(group, work(group), strict=True))
            with files.explain_write_errors(path.parent), open(path, "a", encoding="utf-8") as file:
                file.write(lines(group))
        done(len(group))
    return [found[place] for place in sorted(found)]


def answers(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    path: Path,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    precision: str = "auto",
    done: Callable[[int], object] = lambda count: None,
) -> list[Answer]:
    """The answer to each prompt, in batches of similar length, kept in ``path`` as they come (:func:`kept`).

    ``model`` is called for the model where there is something left to answer.
    """
    sizes = [len(token_ids(tokenizer, text)) for text in prompts]

    def work(places: list[int]) -> list[Row]:
        chosen = [prompts[place] for place in places]
        return [asdict(each) for each in generate(model(), tokenizer, chosen, max_new_tokens, precision)]

    return [Answer(**row) for row in kept(path, batches(sizes, batch_size), work, done)]


def encoded(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Sequence[Row]:
    """The rows of questions with their wanted replies as training would see them, for :func:`row_losses`."""
    rows = [asked.row for asked in questions]
    format = next(name for name in FORMATS if name in rows[0])  # each is also the name of a column
    return prepare.encode(rows, format, tokenizer, seq_len)
