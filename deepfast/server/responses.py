"""/v1/responses: OpenAI's responses API, with conversations that the server keeps.

In: a ResponseRequest; ids of answers that were kept. Out: a response, its typed events, or what was kept.
Does not know: how items become messages (response_items.py), how events look (response_events.py), SQL.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..types import Completion, DeepfastError, UsageError, Variant
from .openai_chat import token_bytes
from .openai_reply import BytesOf, extensions, timing
from .response_events import Writer
from .response_items import Item, as_items, as_messages
from .response_schema import DeletedReply, ItemsReply, ResponseReply, ResponseRequest, check_query
from .schema import STREAMED, FieldError
from .service import CUT, Ask, NotFound, Running, Service
from .store import Store, Stored
from .streaming import event, stream, unless_gone
from .wishes import chat_messages, chosen_tools, draw_params, format_grammar, thinking_of

router = APIRouter()
STATUS = {"stop": "completed", "tool_calls": "completed", "length": "incomplete", "abort": "failed"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One request, read: what is asked for and what is said about it in the response. store: None when the
    answer is not to be kept."""

    body: ResponseRequest
    ask: Ask
    input: list[Item]
    before: list[Item]  # the conversation so far
    bytes_of: BytesOf | None
    store: Store | None

    def response(self, running: Running, created: int, status: str, writer: Writer) -> dict[str, Any]:
        """The response object at this moment."""
        body = self.body
        return {
            "id": running.id,
            "object": "response",
            "created_at": created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": running.model,
            "output": [dict(item) for item in writer.items],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "service_tier": "default",
            "store": self.store is not None,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def ended(self, running: Running, created: int, writer: Writer) -> dict[str, Any]:
        """The response object of the whole answer."""
        done = running.completions[0]
        status = STATUS.get(done.finish_reason, "failed")
        more: dict[str, Any] = {"usage": _usage(done), "timing": timing([done])}
        more["thinking"] = extensions(done)["thinking"]
        if status == "completed":
            more["completed_at"] = int(time.time())
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "failed":
            more["error"] = {"code": "server_error", "message": CUT}
        return self.response(running, created, status, writer) | more

    async def keep(self, response: dict[str, Any]) -> None:
        """Put the answer into the store, if it is to be kept and came to its end."""
        if self.store is not None and response["status"] != "failed":
            conversation = [*self.before, *self.input, *as_items(response["output"])]
            await self.store.put(Stored(response, self.input, conversation))


@router.post("/v1/responses", response_model=ResponseReply, responses=STREAMED)
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer an input, or go on from an earlier answer; `stream` sends typed events."""
    turn = await _read(body, request)
    request.state.grammar_field = "text"  # for errors of its compilation
    service: Service = request.app.state.service
    entering = service.run(body.model, turn.ask, prefix="resp")
    if body.stream:
        return await stream(request, entering, lambda running: _events(running, turn))

    async def whole() -> dict[str, Any]:
        async with entering as running:
            created, writer = int(time.time()), _writer(turn)
            async for _, item in running.events():
                if isinstance(item, Completion):
                    writer.finish(item)
                else:
                    writer.push(item)
            response = turn.ended(running, created, writer)
            await turn.keep(response)
            return response

    return JSONResponse(await unless_gone(request, whole()))


@router.get("/v1/responses/{response_id}", response_model=ResponseReply)
async def get_response(response_id: str, request: Request) -> Response:
    """An answer that was kept, as it was sent."""
    check_query(request, {})
    return JSONResponse((await _kept(request, response_id)).response)


@router.delete("/v1/responses/{response_id}", response_model=DeletedReply)
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget an answer. Answers that went on from it keep what they were told."""
    check_query(request, {})
    if not await _store(request, "response_id").delete(response_id):
        raise _not_kept(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", response_model=ItemsReply)
async def get_input_items(
    response_id: str, request: Request, limit: int = 20, order: str = "desc", after: str | None = None
) -> Response:
    """What was sent to get an answer, latest first."""
    check_query(request, {"limit", "order", "after"})
    if not 1 <= limit <= 100:
        raise FieldError("limit", f"limit={limit} is outside 1 to 100. Give a number in that range.")
    if order not in ("asc", "desc"):
        raise FieldError("order", f"order={order!r} is not 'asc' or 'desc'.")
    items = (await _kept(request, response_id)).input
    items = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise FieldError("after", f"after={after!r} is not the id of one of these items.")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else "", "last_id": page[-1]["id"] if page else ""}
    return JSONResponse({"object": "list", "data": page, "has_more": len(items) > limit, **ends})


# --- reading a request ---


async def _read(body: ResponseRequest, request: Request) -> Turn:
    """What a request asks for. Raises UsageError, mostly as FieldError; NotFound for an answer not kept."""
    items = as_items(body.input)
    before: list[Item] = []
    if body.previous_response_id is not None:
        _store(request, "previous_response_id")
        before = (await _kept(request, body.previous_response_id)).conversation
    if body.stream_options is not None and not body.stream:
        raise FieldError("stream_options", "stream_options needs stream=true. Leave it out, or stream.")
    messages = as_messages([*before, *items], body.instructions)
    tools, choice = chosen_tools(body.tools, body.tool_choice)
    ask = Ask(chat_messages(messages, "input"), [_variant(body)], tools, choice)
    service: Service = request.app.state.service
    bytes_of = token_bytes(service.model(body.model)[1], ask)
    keeps = body.store if body.store is not None else _store_or_none(request) is not None
    store = _store(request, "store") if keeps else None
    return Turn(body, ask, items, before, bytes_of, store)


def _variant(body: ResponseRequest) -> Variant:
    """The sampling and the thinking of a request."""
    grammar = format_grammar(body.text["format"], "text.format") if body.text else None
    wants = "message.output_text.logprobs" in (body.include or ())
    if body.top_logprobs is not None and not wants:
        raise FieldError(
            "top_logprobs", "top_logprobs needs include=['message.output_text.logprobs']. Add it."
        )
    params = replace(
        draw_params(body, body.max_output_tokens),
        logprobs=(body.top_logprobs or 0) if wants else None,
        grammar=grammar,
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )
    given: Mapping[str, Any] = body.given()
    if body.reasoning is not None:
        ours = {key: value for key, value in body.reasoning.items() if key not in body.NOT_CONTROLS}
        given = {**given, "reasoning": ours}
    return Variant(params, thinking_of(given))


def _store_or_none(request: Request) -> Store | None:
    found: Store | None = getattr(request.app.state, "store", None)
    return found


def _store(request: Request, field: str) -> Store:
    store = _store_or_none(request)
    if store is None:
        raise FieldError(
            field, f"{field}: this server keeps no answers. Send the whole conversation as input."
        )
    return store


async def _kept(request: Request, id: str) -> Stored:
    found = await _store(request, "response_id").get(id)
    if found is None:
        raise _not_kept(id)
    return found


def _not_kept(id: str) -> NotFound:
    return NotFound(f"no response {id!r} is kept. It was deleted, dropped for newer ones, or never stored.")


# --- answering ---


def _writer(turn: Turn) -> Writer:
    encoded = "reasoning.encrypted_content" in (turn.body.include or ())
    return Writer(turn.bytes_of, with_encoded=encoded)


async def _events(running: Running, turn: Turn) -> AsyncIterator[bytes]:
    """Typed events, as the answer is written; it is kept before its end is told."""
    created, writer = int(time.time()), _writer(turn)
    for kind in ("response.created", "response.in_progress"):
        response = turn.response(running, created, "in_progress", writer)
        yield _sent(writer.event(kind, response=response))
    try:
        async for _, item in running.events():
            said = writer.finish(item) if isinstance(item, Completion) else writer.push(item)
            for one in said:
                yield _sent(one)
        response = turn.ended(running, created, writer)
        await turn.keep(response)
        yield _sent(writer.event(f"response.{response['status']}", response=response))
    except DeepfastError as error:
        code = "invalid_prompt" if isinstance(error, UsageError) else "server_error"
        response = turn.response(running, created, "failed", writer)
        response["error"] = {"code": code, "message": str(error)}
        yield _sent(writer.event("response.failed", response=response))


def _sent(one: dict[str, Any]) -> bytes:
    return event(one, one["type"])


def _usage(done: Completion) -> dict[str, Any]:
    used = done.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
