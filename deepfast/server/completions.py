"""POST /v1/completions: OpenAI's older API, for clients that render prompts themselves.

In: a CompletionRequest: texts or ids, continued as they are. Text is read with its control tokens (a rendered
chat template is a prompt), and what the model writes comes back whole: the text of <think> and <tool_call>
too. Out: a text completion, or its chunks as server-sent events. Does not know: templates, thinking controls.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..engine.llm import AsyncLLM
from ..types import Completion, DeepfastError, SamplingParams, TokenLogprob
from .openai_chat import DONE, check_count, check_options, error_event
from .openai_reply import BytesOf, finite, timing, usage
from .schema import STREAMED, CompletionReply, CompletionRequest, FieldError
from .service import RawAsk, Running, Service
from .streaming import event, stream, unless_gone
from .wishes import draw_params

router = APIRouter()
DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is continued. texts: what `echo` puts before each answer (empty without it). each: answers per
    prompt."""

    ids: list[list[int]]
    texts: list[str]
    each: int


@router.post("/v1/completions", response_model=CompletionReply, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several texts, or ids; `stream` sends the text as it is written."""
    service: Service = request.app.state.service
    check_options(body.stream, body.stream_options)
    name, model = service.model(body.model)
    if not isinstance(model, AsyncLLM):
        raise FieldError("model", f"model {name!r} is remote and only chats. Use /v1/chat/completions.")
    params = _params(body)
    tokenizer = model.llm.tokenizer
    check_count(service, _number_of(body.prompt) * len(params), "prompt")
    prompts = await asyncio.to_thread(_read, body, model, len(params))
    ask = RawAsk([ids for ids in prompts.ids for _ in params], params * len(prompts.ids))
    bytes_of = None if body.logprobs is None else tokenizer.bytes_of
    entering = service.run(body.model, ask, prefix="cmpl")
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await stream(
            request, entering, lambda running: _chunks(running, prompts, bytes_of, with_usage)
        )

    async def whole() -> dict[str, Any]:
        async with entering as running:
            return await _whole(running, prompts, bytes_of)

    return JSONResponse(await unless_gone(request, whole()))


def _params(body: CompletionRequest) -> list[SamplingParams]:
    """The params of each answer to a prompt: n of a kind, answer i with seed + i."""
    count = body.n or 1
    if body.best_of not in (None, count):
        raise FieldError(
            "best_of", f"best_of={body.best_of} is not n={count}. Ask for n, and choose yourself."
        )
    if body.echo and body.logprobs is not None:
        raise FieldError(
            "echo", "echo with logprobs needs those of the prompt, which are not computed. Drop one."
        )
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = replace(draw_params(body, None if limit == -1 else limit), logprobs=body.logprobs)
    seeds = [None if params.seed is None else params.seed + i for i in range(count)]
    return [replace(params, seed=seed) for seed in seeds]


def _number_of(prompt: Any) -> int:
    """How many prompts these are. Raises FieldError for none."""
    if len(prompt) == 0:
        raise FieldError("prompt", "prompt is empty. Give a text, ids, or a list of them.")
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _read(body: CompletionRequest, model: AsyncLLM, each: int) -> Prompts:
    """The ids of every prompt. Text is encoded with its control tokens."""
    tokenizer = model.llm.tokenizer
    given: Sequence[Any] = (
        body.prompt
        if isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
        else [body.prompt]
    )
    ids = [tokenizer.encode(one, control=True) if isinstance(one, str) else list(one) for one in given]
    texts = [""] * len(ids)
    if body.echo:
        texts = [one if isinstance(one, str) else tokenizer.decode(one) for one in given]
    return Prompts(ids, texts, each)


class TextChoice:
    """One answer on its way. With bytes_of, its tokens are listed with their log-probabilities."""

    def __init__(self, index: int, echo: str, bytes_of: BytesOf | None) -> None:
        self.index = index
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = len(echo)

    def part(self, text: str, logprobs: Sequence[TokenLogprob], reason: str | None = None) -> dict[str, Any]:
        """A choice that says `text`."""
        listed = self._listed(logprobs) if self._bytes_of is not None else None
        return {"index": self.index, "text": text, "logprobs": listed, "finish_reason": reason}

    def _listed(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's older shape: lists side by side. text_offset counts characters that are complete."""
        assert self._bytes_of is not None
        shown, offsets, tops = [], [], []
        for token in logprobs:
            raw = self._bytes_of(token.token_id)
            shown.append(raw.decode("utf-8", "replace"))
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(raw))
            tops.append({self._bytes_of(i).decode("utf-8", "replace"): finite(p) for i, p in token.top})
        values = [finite(token.logprob) for token in logprobs]
        return {"tokens": shown, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _head(running: Running) -> dict[str, Any]:
    return {
        "id": running.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": running.model,
    }


def _choices(running: Running, prompts: Prompts, bytes_of: BytesOf | None) -> list[TextChoice]:
    return [TextChoice(i, prompts.texts[i // prompts.each], bytes_of) for i in range(len(running.streams))]


async def _whole(running: Running, prompts: Prompts, bytes_of: BytesOf | None) -> dict[str, Any]:
    done = await running.results()
    choices = []
    for choice, one in zip(_choices(running, prompts, bytes_of), done, strict=True):
        kinds = zip(one.kinds, one.logprobs, strict=True) if one.logprobs else ()
        logprobs = [logprob for kind, logprob in kinds if kind is not None and logprob is not None]
        text = prompts.texts[choice.index // prompts.each] + one.content
        choices.append(choice.part(text, logprobs, one.finish_reason))
    return {**_head(running), "choices": choices, "usage": _usage(done, prompts), "timing": timing(done)}


async def _chunks(
    running: Running, prompts: Prompts, bytes_of: BytesOf | None, with_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: each choice's echo, its text, its end; then usage."""
    head = _head(running)
    no_usage = {"usage": None} if with_usage else {}
    choices = _choices(running, prompts, bytes_of)
    for choice in choices:  # also without an echo: the id, at once
        first = choice.part(prompts.texts[choice.index // prompts.each], ())
        yield event({**head, "choices": [first], **no_usage})
    try:
        async for index, item in running.events():
            if isinstance(item, Completion):
                said = choices[index].part("", (), item.finish_reason)
            else:
                said = choices[index].part(item.text, item.logprobs)
            yield event({**head, "choices": [said], **no_usage})
        if with_usage:
            done = [running.completions[choice.index] for choice in choices]
            ended = {"choices": [], "usage": _usage(done, prompts), "timing": timing(done)}
            yield event({**head, **ended})
    except DeepfastError as error:
        yield error_event(error)
    yield DONE


def _usage(done: Sequence[Completion], prompts: Prompts) -> dict[str, Any]:
    """Tokens of all answers to all prompts; each prompt counts once."""
    per_prompt = [usage(done[i : i + prompts.each]) for i in range(0, len(done), prompts.each)]
    total = per_prompt[0]
    for more in per_prompt[1:]:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            total[name] += more[name]
        for name in ("prompt_tokens_details", "completion_tokens_details"):
            total[name] = {key: value + more[name][key] for key, value in total[name].items()}
    return total
