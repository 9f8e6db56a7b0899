"""POST /v1/chat/completions: OpenAI's chat API, with the thought, its controls and variants.

In: a ChatRequest. Out: a chat completion, or its chunks as server-sent events. Does not know: what fields
mean (wishes.py), how chunks look (openai_reply.py), how requests run (service.py).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..engine.llm import AsyncLLM
from ..types import Completion, DeepfastError, UsageError
from .openai_reply import BytesOf, Choice, timing, usage
from .schema import STREAMED, ChatReply, ChatRequest, FieldError, StreamOptions
from .service import Ask, Model, Running, Service
from .streaming import event, stream, unless_gone
from .wishes import chat_ask, grammar_field

router = APIRouter()
DONE = event("[DONE]")


@router.post("/v1/chat/completions", response_model=ChatReply, responses=STREAMED)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation; `stream` sends the answer as it is written."""
    service: Service = request.app.state.service
    check_options(body.stream, body.stream_options)
    ask = chat_ask(body)
    # For errors of the engine, which knows neither name.
    request.state.grammar_field = grammar_field(body)
    request.state.limit_field = "max_tokens" if body.max_tokens else "max_completion_tokens"
    check_count(service, len(ask.variants), "n" if body.variants is None else "variants")
    bytes_of = token_bytes(service.model(body.model)[1], ask)
    entering = service.run(body.model, ask)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await stream(request, entering, lambda running: _chunks(running, bytes_of, with_usage))

    async def whole() -> dict[str, Any]:
        async with entering as running:
            return await _whole(running, bytes_of)

    return JSONResponse(await unless_gone(request, whole()))


def check_options(streams: bool | None, options: StreamOptions | None) -> None:
    """Refuse options of a stream that is none."""
    if options is not None and not streams:
        raise FieldError("stream_options", "stream_options needs stream=true. Leave it out, or stream.")


def check_count(service: Service, count: int, field: str) -> None:
    """Refuse more answers at once than the server will ever run."""
    if count > service.max_requests:
        raise FieldError(
            field,
            f"{field} asks for {count} answers, but at most {service.max_requests} run at once. Lower it.",
        )


def token_bytes(model: Model, ask: Ask) -> BytesOf | None:
    """What token ids stand for, where log-probabilities are asked for. Raises FieldError for a model whose
    tokens are not known here."""
    if all(variant.params is None or variant.params.logprobs is None for variant in ask.variants):
        return None
    if not isinstance(model, AsyncLLM):
        raise FieldError("logprobs", "logprobs are not known of a remote model. Leave them out.")
    return model.llm.tokenizer.bytes_of


def error_event(error: DeepfastError) -> bytes:
    """An error that came after the stream had begun."""
    kind = "invalid_request_error" if isinstance(error, UsageError) else "api_error"
    return event({"error": {"message": str(error), "type": kind, "param": None, "code": None}})


async def _whole(running: Running, bytes_of: BytesOf | None) -> dict[str, Any]:
    choices = [Choice(index, bytes_of) for index in range(len(running.streams))]
    async for index, item in running.events():
        if not isinstance(item, Completion):
            choices[index].push(item)
    done = [running.completions[choice.index] for choice in choices]
    return {
        **_head(running, "chat.completion"),
        "choices": [choice.whole(running.completions[choice.index]) for choice in choices],
        "usage": usage(done),
        "timing": timing(done),
    }


async def _chunks(running: Running, bytes_of: BytesOf | None, with_usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events: each choice's role at once, what it says, its end; then usage."""
    head = _head(running, "chat.completion.chunk")
    no_usage = {"usage": None} if with_usage else {}
    choices = [Choice(index, bytes_of) for index in range(len(running.streams))]
    for choice in choices:
        yield event({**head, "choices": [choice.first()], **no_usage})
    try:
        async for index, item in running.events():
            if isinstance(item, Completion):
                last = choices[index].last(item)
                yield event({**head, "choices": [last], **no_usage, "timing": timing([item])})
            elif (said := choices[index].push(item)) is not None:
                yield event({**head, "choices": [said], **no_usage})
        if with_usage:
            done = [running.completions[choice.index] for choice in choices]
            yield event({**head, "choices": [], "usage": usage(done), "timing": timing(done)})
    except DeepfastError as error:
        yield error_event(error)
    yield DONE


def _head(running: Running, kind: str) -> dict[str, Any]:
    return {"id": running.id, "object": kind, "created": int(time.time()), "model": running.model}
