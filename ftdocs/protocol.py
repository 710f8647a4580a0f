"""OpenAI's protocol, as far as it is spoken here: what a request may hold, what an answer and a refusal look like."""

import time
from typing import Any, Literal, Self

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ftdocs.feedback import LONGEST

Chunk = dict[str, Any]


class Refused(Exception):
    """A request that is not answered; it becomes a response in OpenAI's error shape."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response, with `Retry-After` in whole seconds where waiting helps."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.status in (408, 413, 415):  # the rest of the body is not waited for
            headers["Connection"] = "close"
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after + 0.5)))
        return JSONResponse(self.body(), self.status, headers)


class Part(BaseModel):
    """A part of a message's content; of OpenAI's kinds only text."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = (
            self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Asked(BaseModel):
    """The body of a request for a chat completion: those of OpenAI's fields that are honoured.

    Fields that would change the answer and are not honoured are refused, unless they say what happens anyway.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None


class Said(BaseModel):
    """The body of a request that brings feedback."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Turn] = Field(min_length=1)
    answer: str
    rating: Literal[-1, 0, 1] = 0
    correction: str = Field("", max_length=LONGEST)

    @model_validator(mode="after")
    def ends_with_a_question(self) -> Self:
        """What somebody says about an answer is said of the answer to a user."""
        if self.messages[-1].role != "user":
            raise PydanticCustomError(
                "no_question", "The last of the messages must be the user's; the answer is a field of its own"
            )
        return self


def explained(error: ValidationError) -> str:
    """What is wrong with a body, in one line that names the field and does not repeat its value."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][:3] if part not in ("str", "list[Part]"))
    if first["type"] == "extra_forbidden":
        return f"{str(first['loc'][-1])[:40]}: this field is not known here, or would change nothing; leave it out"
    return f"{place or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}"


def whole(chunks: list[Chunk], name: str) -> dict[str, Any]:
    """A chat completion from the chunks of a streamed one."""
    deltas = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in deltas)
    reasons = [choice["finish_reason"] for choice in deltas if choice.get("finish_reason")]
    return {
        "id": chunks[0]["id"] if chunks else "",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reasons[-1] if reasons else "stop",
            }
        ],
        "usage": next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None),
    }
