"""From a conversation to token ids and labels: the reply and its end are trained, nothing else is."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ftdocs.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Message = dict[str, str]
Span = tuple[int, int]  # characters [start, end) of a text
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
IGNORED = -100  # the label that torch's cross-entropy leaves out
# Wording of the Stanford Alpaca data (https://github.com/tatsu-lab/stanford_alpaca), for base models.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def as_messages(row: Row) -> list[Message]:
    """A row of the format messages, prompt or instruction as a conversation."""
    if "messages" in row:
        return row["messages"]
    if "prompt" in row:
        given, reply = row["prompt"].strip(), row["completion"].strip("\n")
    else:
        given, reply = "\n\n".join(filter(None, (row["instruction"], row.get("input")))), row["output"]
    return [{"role": "user", "content": given}, {"role": "assistant", "content": reply}]


def as_prompt(row: Row) -> tuple[str, str]:
    """A row of the format prompt or instruction as (prompt, completion) for a model without chat template."""
    if "prompt" in row:
        return row["prompt"], row["completion"]
    wording = ALPACA_INPUT if row.get("input") else ALPACA
    return wording.format(instruction=row["instruction"], input=row.get("input")), row["output"]


def render(row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[Span]]:
    """The text that the model sees for a row, and the spans of characters in it to train on.

    With a chat template each assistant turn is trained from its first character up to and with the
    end-of-turn token; the line break that many templates write after it is not. Without one the
    completion is trained.
    """
    if tokenizer.chat_template is None:
        if "messages" in row:
            raise InputError(
                "the model's tokenizer has no chat template; choose an instruct model, or prompt data"
            )
        prompt, completion = as_prompt(row)
        return prompt + completion, [(len(prompt), len(prompt) + len(completion))]
    messages = as_messages(row)
    text = render_messages(tokenizer, messages)
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    return text, [assistant_span(tokenizer, messages, turn, text) for turn in turns]


def render_messages(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], reply_next: bool = False
) -> str:
    """The conversation as its chat template writes it; ``reply_next`` ends it with the head of a reply."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply_next)


def assistant_span(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], turn: int, text: str
) -> Span:
    """Where message ``turn`` and its end-of-turn token stand in ``text``, the whole conversation.

    The template also writes the conversation up to the reply, and up to and with it. Where the whole
    does not begin with these (a template that drops earlier reasoning, say), nothing can be said
    about which characters are the reply, and :class:`InputError` is raised.
    """
    before = render_messages(tokenizer, messages[:turn], reply_next=True)
    through = render_messages(tokenizer, messages[: turn + 1])
    if not (text.startswith(through) and through.startswith(before) and len(before) < len(through)):
        raise InputError(
            f"the chat template writes message {turn + 1} differently with and without what surrounds it, so its "
            f"tokens cannot be told apart; mark them with {{% generation %}} in the template, or split the conversation"
        )
    if through[len(before) :].strip() == messages[turn]["content"].strip():  # white space is the only end
        return len(before), len(through)
    return len(before), len(through.rstrip())


def encode_chat(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Row]:
    """Yield ``{"input_ids", "labels", "row"}`` of each row, whole: nothing is cut here.

    Each text is tokenised once, as a whole, so the tokens at the border of a prompt are those of the
    whole text; a token is trained when it holds a character of a reply. A reply whose template writes
    no end token gets the end-of-sequence token, trained, or the model would never learn to stop.
    Raises :class:`InputError` where the template refuses a row or does not show what the reply is.
    """
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    ends = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    encode_batch = _encode_marked if GENERATION.search(template) else _encode_rendered
    for row, (ids, labels) in zip(rows, encode_batch(rows, tokenizer), strict=True):
        trained = [token for token in labels if token != IGNORED]
        if not template and ids[-1] == tokenizer.eos_token_id:  # some tokenizers add it themselves
            labels[-1] = tokenizer.eos_token_id
        elif not trained or trained[-1] not in ends:
            ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
        yield {"input_ids": ids, "labels": labels, "row": row["row"]}


def _encode_rendered(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[list[int], list[int]]]:
    rendered = [_naming_row(row, lambda row: render(row, tokenizer)) for row in rows]
    encoded = tokenizer(
        [text for text, _ in rendered],
        add_special_tokens=tokenizer.chat_template
        is None,  # a template writes its own beginning-of-sequence token
        return_offsets_mapping=True,
        verbose=False,
    )
    for (_, spans), ids, offsets in zip(
        rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        yield ids, mask(ids, offsets, spans)


def mask(ids: list[int], offsets: list[Span], spans: list[Span]) -> list[int]:
    """Labels for the ids of a text: the id where its characters lie in or overlap a span, else -100."""
    labels = []
    remaining = iter(spans)
    start, end = next(remaining, (0, 0))
    for token, (first, last) in zip(ids, offsets, strict=True):
        while end <= first and (following := next(remaining, None)):
            start, end = following
        labels.append(token if start <= first < end or first < start < last else IGNORED)
    return labels


def _encode_marked(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[list[int], list[int]]]:
    """The same for a template that marks the replies itself with ``{% generation %}``.

    Some such templates leave the end-of-turn token outside the mark: it is trained all the same.
    """
    for row in rows:
        encoded = _naming_row(
            row,
            lambda row: tokenizer.apply_chat_template(
                as_messages(row), return_dict=True, return_assistant_tokens_mask=True, verbose=False
            ),
        )
        ids, marks = encoded["input_ids"], encoded["assistant_masks"]
        labels = [token if mark else IGNORED for token, mark in zip(ids, marks, strict=True)]
        for place in range(1, len(ids)):
            if marks[place - 1] and not marks[place] and ids[place] in tokenizer.all_special_ids:
                labels[place] = ids[place]
        yield ids, labels


def _naming_row(row: Row, work: Callable[[Row], Any]) -> Any:
    """Do the work for a row; what goes wrong names it."""
    try:
        return work(row)
    except TemplateError as error:
        raise InputError(
            f"row {row['row']}: the model's chat template refuses this conversation: {error}"
        ) from error
    except InputError as error:
        raise InputError(f"row {row['row']}: {error}") from error
