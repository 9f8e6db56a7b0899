"""What the responses API may be sent, and what it answers: every field is honoured or refused by name.

In: a request's JSON or query. Out: typed bodies, or a FieldError. Does not know: what the fields do, routes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from starlette.requests import Request

from .schema import (
    NOT_HERE,
    RULES,
    Controls,
    Draws,
    FieldError,
    Items,
    Labels,
    Reply,
    StreamOptions,
    chat_words,
    name_fields,
    only_first,
    shown,
)

INCLUDES = ("message.output_text.logprobs", "reasoning.encrypted_content")


class ResponseRequest(Draws, Controls, Labels):
    """POST /v1/responses."""

    REFUSED = NOT_HERE | {
        "background_options": "answers are written while you wait. Leave it out.",
        "context_management": "nothing is left out of a conversation. Shorten it yourself.",
        "conversation": "conversations are found by previous_response_id. Use that.",
        "image": "only text can be read. Leave it out.",
        "max_tool_calls": "it limits tools that the server runs, and there are none. Leave it out.",
        "max_tokens": "this API calls it max_output_tokens.",
        "max_completion_tokens": "this API calls it max_output_tokens.",
        "messages": "this API calls it input.",
        "prompt": "the server keeps no prompt templates. Send input and instructions.",
        "response_format": "this API calls it text.format.",
        "n": "this API gives one answer. Use /v1/chat/completions.",
    }
    ONLY = RULES | {
        "background": ((False,), "answers are written while you wait. Leave it out."),
        "truncation": (("disabled",), "nothing is left out of a conversation. Shorten it yourself."),
    }
    # Keys of `reasoning` that choose what is told of a thought, not how it goes -> the values obeyed.
    NOT_CONTROLS: ClassVar[dict[str, tuple[Any, ...]]] = {
        "summary": ("auto",),
        "generate_summary": ("auto",),
        "context": ("auto", "current_turn"),
        "mode": ("standard",),
    }

    input: str | Items[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    reasoning: dict[str, Any] | None = Field(None, description='{"effort", "max_tokens", "enabled"}')
    text: dict[str, Any] | None = Field(None, description='{"format"}')
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: Items[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, str], only_first(str)] | None = None
    background: bool | None = None
    truncation: str | None = None

    @model_validator(mode="after")
    def _honour_or_refuse_within(self) -> ResponseRequest:
        for name, allowed in self.NOT_CONTROLS.items():
            value = (self.reasoning or {}).get(name)
            if value is not None and value not in allowed:
                raise FieldError(
                    "reasoning",
                    f"reasoning.{name}={shown(value)} is not supported: thoughts are sent whole, and kept "
                    f"until the next question. Use {' or '.join(map(repr, allowed))}, or leave it out.",
                )
        for one in self.include or ():
            if one not in INCLUDES:
                raise FieldError("include", f"include={shown(one)} is unknown. Use {' or '.join(INCLUDES)}.")
        if self.stream_options is not None and self.stream_options.include_usage is not None:
            raise FieldError(
                "stream_options", "include_usage belongs to chats: here usage always comes last."
            )
        self._check_text()
        self._check_metadata()
        return self

    def _check_text(self) -> None:
        if self.text is None:
            return
        self.text = {name: value for name, value in self.text.items() if value is not None}
        self.text.setdefault("format", {"type": "text"})
        for name, value in self.text.items():
            if name not in ("format", "verbosity"):
                raise FieldError("text", f"text has the unknown key {shown(name)}. Use format.")
            if name == "format" and not isinstance(value, dict):
                raise FieldError("text", f"text.format={shown(value)} is no object. Give one with a type.")
            if name == "verbosity" and value not in RULES["verbosity"][0]:
                raise FieldError("text", f"text.verbosity={shown(value)}: {RULES['verbosity'][1]}")

    def _check_metadata(self) -> None:
        given = self.metadata or {}
        long = [key for key, value in given.items() if len(key) > 64 or len(value) > 512]
        if len(given) > 16 or long:
            what = f"the entry {shown(long[0])} is too long" if long else f"{len(given)} entries are too many"
            raise FieldError(
                "metadata", f"metadata: {what}. Send at most 16, keys to 64 and values to 512 characters."
            )


class ResponseReply(Reply):
    """An answer. output: thoughts, texts and calls, in order; thinking: how the thought went."""

    id: str
    object: str
    created_at: int
    status: str
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    metadata: dict[str, str]
    previous_response_id: str | None


class DeletedReply(Reply):
    """An answer that is gone."""

    id: str
    object: str
    deleted: bool


class ItemsReply(Reply):
    """A page of input items."""

    object: str
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


def check_query(request: Request, known: Collection[str]) -> None:
    """Refuse unknown parameters of the query, by name."""
    for name in request.query_params:
        if name not in known:
            what = f"Use {', '.join(sorted(known))}." if known else "Leave it out."
            raise FieldError(name, f"the query parameter {shown(name)} is not supported here. {what}")


WORDS = chat_words("input") | {"max_tokens": "max_output_tokens", "no": "previous_response_id"}
name_fields("/v1/responses", ResponseRequest, WORDS)
