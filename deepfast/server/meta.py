"""What is around the answers: health, metrics, models, tokens, steering a thought; and what is refused.

In: HTTP. Out: JSON in the shapes of OpenAI (models), vLLM (tokenize, detokenize), llama.cpp (one of the two
controls), with our extensions. Does not know: how answers are asked for.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..config import NO_THINK_DEFAULTS, THINK_DEFAULTS
from ..engine.llm import LLM, AsyncLLM
from ..types import ControlError, ModelError, UsageError, as_dict
from .metrics import CONTENT_TYPE
from .schema import Items, Strict
from .service import NotFound, Running, Service, Stream
from .wishes import thinking_of

router = APIRouter()
MODES = {"hybrid": ["on", "off"], "think": ["on"], "no_think": ["off"]}
JSON_OBJECT = {"content": {"application/json": {"schema": {"type": "object"}}}}


class Health(BaseModel):
    """How the server is. active: answers that run or wait."""

    status: Literal["ok", "closing", "failed"]
    active: int
    models: list[str]


class ModelCard(BaseModel):
    """One model, for clients of OpenAI and of Anthropic at once. modes: what `thinking` may be; defaults: the
    sampling parameters of each mode; both are unknown of a remote model, as is all about its lengths."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["deepfast", "remote"]
    type: Literal["model"] = "model"
    display_name: str
    created_at: str
    context_length: int | None = None
    max_model_len: int | None = None
    max_output_tokens: int | None = None
    modes: list[str] | None = None
    defaults: dict[str, dict[str, float]] | None = None


class ModelList(BaseModel):
    """All models; the first one answers where no model is named."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    has_more: Literal[False] = False
    first_id: str
    last_id: str


class TokenizeBody(Strict):
    """A text, or a conversation as its model reads it. Control tokens in a text are text, as everywhere."""

    model: str | None = None
    prompt: str | None = None
    messages: Items[dict[str, Any]] | None = None
    tools: Items[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = Field(
        default=True, description="Qwen's tokenizer adds none: both values are obeyed."
    )
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        for name in ("tools", "chat_template_kwargs"):
            if self.prompt is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to messages; a prompt is taken as it is")
        if self.chat_template_kwargs and not self.add_generation_prompt:
            raise ValueError("chat_template_kwargs belongs to the generation prompt, which is not wanted")
        return self


class Tokens(BaseModel):
    """vLLM's answer to /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeBody(Strict):
    """Ids of one model."""

    model: str | None = None
    tokens: Items[int]


class Text(BaseModel):
    """vLLM's answer to /detokenize."""

    prompt: str


class ControlBody(Strict):
    """What to do with the open thought. tokens: of "extend"; budget: of "budget", null for none; text: of
    "hint"; variant: the one that is meant, where there are several (left out: all that still think)."""

    action: Literal["end", "extend", "budget", "hint"]
    tokens: int | None = Field(default=None, ge=1, le=2**31)
    budget: int | None = Field(default=None, ge=0, le=2**31)
    text: str | None = None
    variant: int | None = None

    @model_validator(mode="after")
    def _what_belongs_together(self) -> ControlBody:
        needed = {"extend": "tokens", "budget": "budget", "hint": "text"}.get(self.action)
        given = self.model_fields_set - {"action", "variant"}
        for name in sorted(given):
            if name != needed:
                raise ValueError(f"{name} does not belong to action {self.action!r}. Leave it out")
        if needed is not None and needed not in given:
            raise ValueError(f"action {self.action!r} needs {needed}")
        if self.action in ("extend", "hint") and getattr(self, str(needed)) is None:
            raise ValueError(f"action {self.action!r} needs {needed}, and null is none")
        return self


class LlamaControlBody(Strict):
    """llama.cpp's spelling. id may be left out while one request runs."""

    action: Literal["reasoning_end"]
    id: str | None = None


class Done(BaseModel):
    """It was done. variants: how many were told."""

    ok: Literal[True] = True
    variants: int


class AnyBody(BaseModel):
    """Whatever was sent."""

    model_config = ConfigDict(extra="allow")


def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _llm(request: Request, name: str | None) -> LLM:
    """The local model of that name. Raises NotFound, and UsageError for a remote one."""
    found, model = _service(request).model(name)
    if not isinstance(model, AsyncLLM):
        raise UsageError(f"model {found!r} runs elsewhere: its tokens are not known here. Name a local one.")
    return model.llm


@router.get("/health", response_model=Health, responses={503: {"model": Health}}, tags=["server"])
async def health(request: Request) -> Response:
    """200 while requests are taken; 503 when the server is about to end, or an engine has failed."""
    service = _service(request)
    engines = [model.llm.engine for model in service.models.values() if isinstance(model, AsyncLLM)]
    failed = not all(engine.is_alive for engine in engines)
    status = "failed" if failed else "closing" if service.closing else "ok"
    body = {"status": status, "active": service.active, "models": list(service.models)}
    return JSONResponse(body, 200 if status == "ok" else 503)


@router.get(
    "/metrics", response_class=Response, tags=["server"], responses={200: {"content": {"text/plain": {}}}}
)
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/models", response_model=ModelList, response_model_exclude_none=True, tags=["models"])
async def models(request: Request) -> ModelList:
    """Every model that is served."""
    cards = [_card(request, name) for name in _service(request).models]
    return ModelList(data=cards, first_id=cards[0].id, last_id=cards[-1].id)


@router.get(
    "/v1/models/{id:path}", response_model=ModelCard, response_model_exclude_none=True, tags=["models"]
)
async def model(request: Request, id: str) -> ModelCard:
    """One model."""
    return _card(request, _service(request).model(id)[0])


def _card(request: Request, name: str) -> ModelCard:
    service = _service(request)
    local = service.models[name]
    created = int(service.since)
    stamp = datetime.fromtimestamp(created, UTC).isoformat()
    card = ModelCard(id=name, display_name=name, created=created, created_at=stamp, owned_by="remote")
    if not isinstance(local, AsyncLLM):
        return card
    llm = local.llm
    modes = _modes(llm)
    defaults = {"on": as_dict(THINK_DEFAULTS), "off": as_dict(NO_THINK_DEFAULTS)}
    limit = request.app.state.config.max_tokens
    known: dict[str, Any] = {"owned_by": "deepfast", "modes": modes}
    known |= {"context_length": llm.max_context, "max_model_len": llm.max_context}
    known |= {"max_output_tokens": min(limit or llm.max_context, llm.max_context)}
    return card.model_copy(update={**known, "defaults": {mode: defaults[mode] for mode in modes}})


def _modes(llm: LLM) -> list[str]:
    try:
        return MODES[llm.template.modes.kind]
    except ModelError:  # no chat template: ids in, ids out
        return []


@router.post("/tokenize", response_model=Tokens, response_model_exclude_none=True, tags=["tokens"])
async def tokenize(request: Request, body: TokenizeBody) -> Tokens:
    """Ids of a text, or of a conversation as its model reads it."""
    llm = _llm(request, body.model)
    tokens = await asyncio.to_thread(_tokens, llm, body)
    texts = await asyncio.to_thread(_texts, llm, tokens) if body.return_token_strs else None
    return Tokens(tokens=tokens, count=len(tokens), max_model_len=llm.max_context, token_strs=texts)


def _texts(llm: LLM, tokens: list[int]) -> list[str]:
    return [llm.tokenizer.decode([token]) for token in tokens]


def _tokens(llm: LLM, body: TokenizeBody) -> list[int]:
    if body.messages is None:
        return llm.tokenizer.encode(body.prompt or "")
    conversation = llm.requests.conversation(body.messages, body.tools)
    if not body.add_generation_prompt:
        return llm.template.encode(conversation.turns, tools=conversation.tools, add_generation_prompt=False)
    wish = thinking_of({"chat_template_kwargs": body.chat_template_kwargs})
    return llm.requests.prompt_ids(conversation, wish)


@router.post("/detokenize", response_model=Text, tags=["tokens"])
async def detokenize(request: Request, body: DetokenizeBody) -> Text:
    """The text of ids, control tokens included."""
    tokenizer = _llm(request, body.model).tokenizer
    return Text(prompt=await asyncio.to_thread(tokenizer.decode, body.tokens))


@router.post("/v1/chat/completions/control", response_model=Done, tags=["control"])
async def llama_control(request: Request, body: LlamaControlBody) -> Done:
    """End the thought of a running request (llama.cpp's spelling)."""
    service = _service(request)
    if body.id is not None:
        running = service.running(body.id)
    else:
        candidates = service.all_running
        if len(candidates) != 1:
            how = "none is running" if not candidates else f"{len(candidates)} are running"
            raise NotFound(f"id is left out, but {how}. Send the id of a running request.")
        running = candidates[0]
    return await _steer(running, ControlBody(action="end"))


@router.post("/v1/chat/completions/{id}/control", response_model=Done, tags=["control"])
async def control(request: Request, id: str, body: ControlBody) -> Done:
    """Steer the thought of a running request: end it, extend it, change its budget, or put words into it."""
    return await _steer(_service(request).running(id), body)


async def _steer(running: Running, body: ControlBody) -> Done:
    """Tell every variant that is meant. Raises ControlError when not one could obey."""
    streams = running.chosen(body.variant)
    told = await asyncio.gather(*(_tell(stream, body) for stream in streams), return_exceptions=True)
    errors = [error for error in told if isinstance(error, BaseException)]
    for error in errors:
        if not isinstance(error, ControlError) or len(errors) == len(streams):
            raise error
    return Done(variants=len(streams) - len(errors))


async def _tell(stream: Stream, body: ControlBody) -> None:
    if body.action == "end":
        await stream.end_thought()
    elif body.action == "extend":
        await stream.extend_thought(body.tokens or 1)
    elif body.action == "budget":
        await stream.set_budget(body.budget)
    else:
        await stream.hint(body.text or "")


@router.post("/v1/embeddings", response_model=None, responses={400: JSON_OBJECT}, tags=["refused"])
async def embeddings(body: AnyBody) -> None:
    """Refused: a language model has no embeddings to give."""
    raise UsageError(
        "embeddings are not served here: these models write text. Use /v1/chat/completions, or a server "
        "with an embedding model."
    )
