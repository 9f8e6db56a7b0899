"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, and controls of the thought.

In: a MessagesRequest. Out: a message, or its events. Differences that clients can see: without `thinking` the
model's own default holds; a max_tokens beyond the context is cut to it (stop_reason then is
"model_context_window_exceeded"); `thinking` and `timing` of the reply are extensions. Does not know: what
blocks say (anthropic_messages.py), what they become (anthropic_reply.py), how requests run (service.py).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ..thinking.controls import EFFORTS
from ..types import Completion, ContextError, DeepfastError, Grammar, SamplingParams, Thinking, Variant
from .anthropic_messages import cache_control, conversation, tool_choice, tools
from .anthropic_reply import Blocks, error_event, head, message, stopped
from .schema import Controls, FieldError, Items, Reply, Whole, shown
from .service import Ask, Running, Service
from .streaming import event, or_silence, stream, unless_gone
from .wishes import thinking_of

router = APIRouter()
PING_SECONDS = 10.0  # of silence, after which a ping says that the connection lives
ELSEWHERE = {
    "container": "there are no containers here. Leave it out.",
    "inference_geo": "all is computed where the server runs. Leave it out.",
    "mcp_servers": "the server calls none. Connect to them in your client and give their tools as tools.",
    "context_management": "the conversation is used as it is sent. Shorten it in your client.",
    "diagnostics": "earlier requests are not kept. Look at usage.cache_read_input_tokens.",
    "stop": "Anthropic's name for it is stop_sequences. Use that.",
}


class Prompt(Controls):
    """What a prompt is made of: the body of count_tokens, and a part of that of messages."""

    REFUSED = ELSEWHERE
    ONLY = {"speed": (("standard",), "there is one speed. Leave it out.")}
    model: str
    messages: Items[dict[str, Any]]
    system: str | Items[dict[str, Any]] | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Any = Field(
        None, description='{"type": "enabled" | "disabled" | "adaptive", "budget_tokens", "display"}'
    )
    output_config: dict[str, Any] | None = Field(None, description='{"effort", "format"}')
    output_format: dict[str, Any] | None = Field(None, description="as output_config.format")
    cache_control: dict[str, Any] | None = Field(None, description="accepted; prefixes are always cached")
    speed: str | None = None


class MessagesRequest(Prompt):
    """POST /v1/messages."""

    max_tokens: Whole = Field(description="new tokens at most, those of the thought included")
    stop_sequences: Items[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    seed: Whole | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


class MessageReply(Reply):
    """A message; streamed, it comes as events."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(BaseModel):
    """What count_tokens answers."""

    input_tokens: int


class Wish(NamedTuple):
    """A request, understood. hidden: the thought is not shown. eager: tools whose input is streamed."""

    ask: Ask
    hidden: bool
    eager: frozenset[str]


@router.post("/v1/messages", response_model=MessageReply)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation; `stream` sends the answer as it is written."""
    wish = understood(body)
    entering = _fitting(request.app.state.service, body.model, wish.ask)
    if body.stream:
        return await stream(request, entering, lambda running: _events(running, wish, body.max_tokens))

    async def whole() -> dict[str, Any]:
        async with entering as running:
            blocks = Blocks(hidden=wish.hidden)
            async for _, item in running.events():
                if not isinstance(item, Completion):
                    blocks.push(item)
            blocks.finish()
            return message(running, blocks.content, running.completions[0], body.max_tokens)

    # Escapes that a model wrote may stand for half a character: only ASCII can hold them.
    text = json.dumps(await unless_gone(request, whole()), ensure_ascii=True)
    return Response(text, media_type="application/json")


@router.post("/v1/messages/count_tokens", response_model=TokenCount)
async def count_tokens(body: Prompt, request: Request) -> TokenCount:
    """How many tokens the prompt of such a message has, cached ones included."""
    service: Service = request.app.state.service
    _, model = service.model(body.model)
    ask = understood(body).ask
    (variant,) = ask.variants
    count = await model.count_tokens(ask.messages, variant.thinking, ask.tools, ask.tool_choice)
    return TokenCount(input_tokens=count)


def understood(body: Prompt) -> Wish:
    """What a body asks for. Raises UsageError naming what cannot be honoured."""
    cache_control(body.cache_control, "cache_control")
    own = tools(body.tools)
    choice, parallel = tool_choice(body.tool_choice, own)
    if own is None:
        choice = "none"  # what the conversation says of tools is no reason to call one
    effort, grammar = _output(body)
    if grammar is not None and choice not in ("auto", "none"):
        raise FieldError(
            "tool_choice", "tool_choice asks for a call, output_config.format for a text. Drop one of them."
        )
    thinking, hidden = _thinking(body, effort)
    params = SamplingParams(grammar=grammar, parallel_tool_calls=parallel)
    if isinstance(body, MessagesRequest):
        params = _sampling(body, params)
    turns = conversation(body.system, body.messages)
    ask = Ask(turns, [Variant(params, thinking)], own.schemas if own else None, choice)
    return Wish(ask, hidden, own.eager if own else frozenset())


def _sampling(body: MessagesRequest, params: SamplingParams) -> SamplingParams:
    for key, value in (body.metadata or {}).items():
        if key != "user_id" and value is not None:
            raise FieldError("metadata", f"metadata has the unknown key {shown(key)}. Use user_id.")
    stops = tuple(body.stop_sequences or ())
    if not all(stops):
        raise FieldError("stop_sequences", "stop_sequences holds an empty text. Leave it out.")
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
    return replace(params, stop=stops, **{name: getattr(body, name) for name in names})


def _thinking(body: Prompt, effort: str | None) -> tuple[Thinking | None, bool]:
    """What is asked of the thought, and whether it is hidden. An effort is a limit, never a reason to think:
    a budget below it and a thought that is off both stay what they are."""
    given, hidden = body.given(), False
    if isinstance(body.thinking, Mapping) and "display" in body.thinking:
        display = body.thinking["display"]
        if display not in (None, "summarized", "omitted"):
            raise FieldError(
                "thinking", f"thinking.display={shown(display)} is unknown. Use 'summarized' or 'omitted'."
            )
        given["thinking"] = {key: value for key, value in body.thinking.items() if key != "display"}
        hidden = display == "omitted"
    thinking = thinking_of(given)
    if effort is None or (thinking is not None and thinking.mode == "off"):
        return thinking, hidden
    asked = thinking or Thinking(source="output_config.effort")
    limit = EFFORTS[effort] if asked.budget is None else min(asked.budget, EFFORTS[effort])
    return replace(asked, budget=limit), hidden


def _output(body: Prompt) -> tuple[str | None, Grammar | None]:
    """output_config: an effort, and the format of the answer."""
    config = dict(body.output_config or {})
    effort, form = config.pop("effort", None), config.pop("format", None)
    for key, value in config.items():
        if value is not None:
            raise FieldError(
                "output_config", f"output_config has the unknown key {shown(key)}. Use effort and format."
            )
    if effort is not None and not (isinstance(effort, str) and effort in EFFORTS):
        known = ", ".join(EFFORTS)
        raise FieldError(
            "output_config", f"output_config.effort={shown(effort)} is unknown. Use one of {known}."
        )
    if form is not None and body.output_format is not None:
        raise FieldError("output_format", "output_format and output_config.format are the same. Send one.")
    form = body.output_format if form is None else form
    if form is None:
        return effort, None
    if not isinstance(form, Mapping) or form.keys() != {"type", "schema"} or form["type"] != "json_schema":
        raise FieldError(
            "output_config", "output_config.format is not understood. Give {'type': 'json_schema', 'schema'}."
        )
    if not isinstance(form["schema"], Mapping):
        raise FieldError("output_config", "output_config.format.schema is no object. Give a JSON schema.")
    return effort, Grammar("json_schema", json.dumps(form["schema"]))


@asynccontextmanager
async def _fitting(service: Service, model: str, ask: Ask) -> AsyncIterator[Running]:
    """Service.run, with a max_tokens that the context has no room for cut to what fits: clients of this API
    send one that suits another model."""
    async with AsyncExitStack() as stack:
        try:
            running = await stack.enter_async_context(service.run(model, ask, prefix="msg"))
        except ContextError as error:
            if error.most is None:
                raise
            (variant,) = ask.variants
            assert variant.params is not None
            shorter = replace(variant, params=replace(variant.params, max_tokens=error.most))
            running = await stack.enter_async_context(
                service.run(model, replace(ask, variants=[shorter]), prefix="msg")
            )
        yield running


async def _events(running: Running, wish: Wish, max_tokens: int) -> AsyncIterator[bytes]:
    """Server-sent events, in the order that the API promises."""
    yield _named({"type": "message_start", "message": head(running)})
    yield _named({"type": "ping"})
    blocks = Blocks(hidden=wish.hidden, eager=wish.eager)
    try:
        async for said in or_silence(running.events(), PING_SECONDS):
            if said is None:
                yield _named({"type": "ping"})
            elif not isinstance(said[1], Completion):
                for one in blocks.push(said[1]):
                    yield _named(one)
        for one in blocks.finish():
            yield _named(one)
        yield _named(stopped(running.completions[0], max_tokens))
        yield _named({"type": "message_stop"})
    except DeepfastError as error:
        yield _named(error_event(error))


def _named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])
