"""What the OpenAI APIs may be sent: pydantic models in which every field is honoured or refused by name.

In: a request's JSON. Out: typed bodies without nulls (null is absent), or a FieldError that names the field,
why it is refused and the way out. Does not know: what the fields do (wishes.py), routes, replies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.requests import Request

from ..types import UsageError

Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=-1, le=2**31 - 1)]
T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]  # a million wrong items are one mistake


def only_first(*kinds: type) -> BeforeValidator:
    """Of an object with wrong values, the first wrong one alone: pydantic would list a million of them."""

    def first(value: Any) -> Any:
        pairs = value.items() if isinstance(value, dict) else ()
        wrong = next(((key, inner) for key, inner in pairs if type(inner) not in kinds), None)
        return value if wrong is None else dict([wrong])

    return BeforeValidator(first)


Biases = Annotated[dict[str, float], only_first(int, float)]
Rule = tuple[tuple[Any, ...], str]  # the values that mean what is done anyway, and why no other one may be

NOT_HERE = {  # fields of the APIs that this server has nothing behind
    "audio": "only text is generated. Leave it out.",
    "moderation": "nothing is moderated here. Leave it out.",
    "prompt_cache_options": "the prefix cache needs no options: what two prompts share is computed once.",
    "access_programs": "there are no such programs here. Leave it out.",
}
RULES: dict[str, Rule] = {
    "service_tier": (("auto", "default"), "all requests are served alike. Use 'auto', or leave it out."),
    "verbosity": (("medium",), "the model has no such setting. Say in a message how long answers should be."),
    "prompt_cache_retention": (("in_memory",), "prompts are cached in memory only. Leave it out."),
}


class FieldError(UsageError):
    """A field that cannot be honoured. param: its name."""

    def __init__(self, param: str, text: str) -> None:
        super().__init__(text)
        self.param = param


class Strict(BaseModel):
    """A body whose unknown fields are refused by name; the first one, where there are many."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        unknown = next(({name: data[name]} for name in data if name not in cls.model_fields), {})
        return {name: value for name, value in data.items() if name in cls.model_fields} | unknown


class Body(BaseModel):
    """A JSON object that is read strictly: unknown fields and wrong types are refused.

    REFUSED: fields that are known and not supported -> why, and the way out. ONLY: fields with one meaning.
    WITHIN: the field of another body that this one is; errors name that.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    REFUSED: ClassVar[dict[str, str]] = {}
    ONLY: ClassVar[dict[str, Rule]] = {}
    WITHIN: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _honour_or_refuse(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        for name, value in given.items():
            wrong = ""
            if name in cls.REFUSED:
                wrong = f"{name} is not supported: {cls.REFUSED[name]}"
            elif name not in cls.model_fields:
                wrong = f"unknown field {shown(name)}. {_similar(name, cls.model_fields)}"
            elif name in cls.ONLY and value not in cls.ONLY[name][0]:
                wrong = f"{name}={shown(value)} is not supported: {cls.ONLY[name][1]}"
            if wrong:
                raise FieldError(cls.WITHIN or name, f"{cls.WITHIN}: {wrong}" if cls.WITHIN else wrong)
        return given

    def given(self) -> dict[str, Any]:
        """The fields that were sent, without nulls."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Controls(Body):
    """Every spelling of a thinking control. `thinking.controls.from_request` reads and checks them."""

    thinking: Any = Field(None, description='{"mode", "budget", "min_tokens", ...}, true or false')
    enable_thinking: Any = Field(None, description="true or false")
    reasoning_effort: Any = Field(
        None, description="none, minimal, low, medium, high, xhigh, max, or a share"
    )
    reasoning: Any = Field(None, description='{"effort", "max_tokens", "enabled"}')
    think: Any = Field(None, description="true, false, or an effort")
    thinking_budget: Any = Field(None, description="tokens inside the thought, at most")
    thinking_token_budget: Any = Field(None, description="as thinking_budget")
    thinking_budget_tokens: Any = Field(None, description="as thinking_budget; -1 is no limit")
    reasoning_budget_tokens: Any = Field(None, description="as thinking_budget; -1 is no limit")
    reasoning_budget: Any = Field(None, description="as thinking_budget; -1 is no limit, 0 is no thought")
    chat_template_kwargs: Any = Field(None, description="an object with thinking controls")
    custom_params: Any = Field(None, description='{"thinking_budget"}')


class Draws(Body):
    """How tokens are drawn, under the names that all APIs share."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = Field(None, description="-1 and 0 are off")
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Biases | None = Field(None, description="token id -> bias")
    seed: Whole | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None


class ChatDraws(Draws, Controls):
    """What may differ between the variants of one chat request."""

    max_tokens: Count | None = Field(None, description="new tokens at most, those of the thought included")
    max_completion_tokens: Count | None = Field(None, description="as max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: Items[str] | None = None
    structured_outputs: dict[str, Any] | None = None


class ChatVariant(ChatDraws):
    """One of several ways to answer."""

    WITHIN = "variants"


class StreamOptions(Body):
    """Options of a stream."""

    WITHIN = "stream_options"
    ONLY = {"include_obfuscation": ((False,), "nothing is padded here. Leave it out.")}
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Labels(Body):
    """Fields without any effect on the answer."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(ChatDraws, Labels):
    """POST /v1/chat/completions."""

    REFUSED = NOT_HERE | {
        "functions": "it is an old spelling. Use tools.",
        "function_call": "it is an old spelling. Use tool_choice.",
        "prediction": "the engine drafts on its own. Leave it out.",
        "web_search_options": "the server searches nothing. Give a tool that does.",
        "metadata": "chat completions are not stored. Use /v1/responses, or leave it out.",
    }
    ONLY = RULES | {
        "store": ((False,), "chat completions are not stored. Use /v1/responses, or leave it out."),
        "modalities": ((["text"],), "only text is generated. Use ['text'], or leave it out."),
    }
    messages: Items[dict[str, Any]]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    variants: Annotated[Items[ChatVariant], Field(max_length=128)] | None = Field(
        None, description="several ways to answer; each field overrides the request's"
    )
    verbosity: str | None = None
    store: bool | None = None
    modalities: Items[str] | None = None


class CompletionRequest(Draws, Labels):
    """POST /v1/completions."""

    REFUSED = NOT_HERE | {
        "suffix": "the model continues a text, it fills no gaps. Leave it out.",
        **{
            name: "a raw prompt has no thought to control. Use /v1/chat/completions."
            for name in Controls.model_fields
        },
    }
    ONLY = RULES
    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    max_tokens: Count | None = None
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Reply(BaseModel):
    """A part of an answer; more fields may come."""

    model_config = ConfigDict(extra="allow")


class ReplyUsage(Reply):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class ReplyMessage(Reply):
    """The assistant's turn, its thought under both of its names."""

    role: str
    content: str | None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[dict[str, Any]] = []


class ChatChoice(Reply):
    """One answer. thinking: what was applied, and why the thought ended."""

    index: int
    message: ReplyMessage
    logprobs: dict[str, Any] | None
    finish_reason: str
    thinking: dict[str, Any]
    usage: ReplyUsage


class ChatReply(Reply):
    """A chat completion; streamed, it comes as chunks of it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ReplyUsage
    timing: dict[str, float]


class TextChoiceReply(Reply):
    """One continued text."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class CompletionReply(Reply):
    """A text completion; streamed, it comes as chunks of it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoiceReply]
    usage: ReplyUsage
    timing: dict[str, float]


STREAMED: dict[int | str, dict[str, Any]] = {  # what a route says of itself that can also stream
    200: {"description": "The answer, or its stream.", "content": {"text/event-stream": {}}}
}


def explain(error: RequestValidationError, path: str) -> tuple[str, str | None] | None:
    """One line for a body of ours that does not fit its model, and the name of the field at fault; None for
    what is no such body, or no field of it."""
    problems = error.errors()
    first = problems[0]
    where = [part for part in first["loc"] if part != "body"]
    if path not in _FIELDS or first["type"] == "json_invalid" or not where:
        return None
    name = str(where[0])
    if first["type"] == "missing":
        return f"{'.'.join(map(str, where))} is missing. Give it.", name
    same = [problem for problem in problems if name in problem["loc"]]
    told = " or ".join(dict.fromkeys(_told(problem["msg"]) for problem in same[:4]))
    return f"{name}={shown(first['input'])} is not understood. It {told}.", name


def param_of(error: Exception, request: Request) -> str | None:
    """The field that an error's text begins with: every text of ours names the value first."""
    if isinstance(error, FieldError):
        return error.param
    found = re.match(r"(?:the |a )?((?:\d+|one) new token|\w+)", str(error))
    word = found[1] if found else ""
    fields, names = _FIELDS.get(request.url.path, ({}, {}))
    if word in ("JSON", "regex", "Lark"):
        return getattr(request.state, "grammar_field", None)
    if word.endswith(" new token"):
        word = "max_tokens"
    if word == "max_tokens":
        word = getattr(request.state, "limit_field", word)
    word = names.get(word, word)
    return word if word in fields else None


def chat_words(messages: str) -> dict[str, str]:
    """What our texts about a conversation begin with -> the field that is meant."""
    told = {
        messages: ("message", "there", "prompt", "chat"),
        "tools": ("tool", "two", "schema", "parameters", "list", "this"),
        "thinking": ("mode", "budget", "min_tokens", "soft_landing", "answer_reserve"),
    }
    return {word: field for field, words in told.items() for word in words}


# Path -> the fields of its body, and words for them.
_FIELDS: dict[str, tuple[Mapping[str, Any], dict[str, str]]] = {
    "/v1/chat/completions": (ChatRequest.model_fields, chat_words("messages")),
    "/v1/completions": (CompletionRequest.model_fields, {}),
}


def name_fields(path: str, body: type[Body], words: dict[str, str]) -> None:
    """Let errors at this path name fields of `body`. words: what our texts call them -> their names."""
    _FIELDS[path] = (body.model_fields, words)


def shown(value: Any) -> str:
    """A value for an error of one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _told(message: str) -> str:
    told = re.sub(r"^(Input|List) should", "should", message)
    return told[:1].lower() + told[1:]


def _similar(name: str, known: Mapping[str, Any]) -> str:
    """A hint for a field that was misspelled."""
    from difflib import get_close_matches

    close = get_close_matches(name[:80], list(known), 1)
    return f"Did you mean {close[0]!r}?" if close else "Leave it out."
