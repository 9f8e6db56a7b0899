"""What every API of the server shares: models by name, admission, requests that can be found and steered.

In: an Ask (messages, variants, tools) and the name of a model. Out: a Running request: (variant, Delta |
Completion) as they come. Refuses with Overloaded when too many wait. Leaving a Running aborts what is left of
it. Does not know: HTTP, JSON, the shape of any API.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..types import (
    Completion,
    DeepfastError,
    Delta,
    EngineError,
    SamplingParams,
    Thinking,
    UsageError,
    Variant,
)

CUT = "the server is shutting down and could not finish the answer. Try again in a moment."
RETRY_AFTER = 5  # seconds that a server takes to come back
DRAIN_INTERVAL = 0.02  # seconds between two looks at whether all has ended

Tools = list[dict[str, Any]]
Event = tuple[int, Delta | Completion]  # which variant, and what came


class Overloaded(DeepfastError):
    """Too many requests are running and waiting; `retry_after` is in seconds."""

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ShuttingDown(Overloaded):
    """No request is taken any more: the server is about to end."""


class NotFound(UsageError):
    """There is no model or no running request of that name."""


class Stream(Protocol):
    """One running variant: AsyncChatStream, or the same from a remote endpoint."""

    def __aiter__(self) -> AsyncIterator[Delta | Completion]: ...  # Deltas, then the Completion
    async def aclose(self) -> None: ...
    def cancel(self) -> None: ...  # abort; iteration still ends with a Completion
    async def end_thought(self) -> None: ...
    async def extend_thought(self, tokens: int) -> None: ...
    async def set_budget(self, budget: int | None) -> None: ...
    async def hint(self, text: str) -> None: ...


class Model(Protocol):
    """AsyncLLM, or a remote endpoint."""

    async def open(
        self,
        messages: Sequence[Mapping[str, Any]],
        variants: Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: str = "auto",
    ) -> Sequence[Stream]:
        """Start to answer in every way asked for, or raise UsageError and start nothing."""
        ...

    async def count_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: str = "auto",
    ) -> int:
        """How many tokens the prompt of such a chat has. Raises UsageError where that cannot be known."""
        ...

    async def open_raw(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> Sequence[Stream]:
        """Start to continue ids; all text comes as content."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A chat: messages as dicts in OpenAI's shape, one or several ways to answer, tools in OpenAI's shape."""

    messages: list[dict[str, Any]]
    variants: list[Variant] = field(default_factory=lambda: [Variant()])
    tools: Tools | None = None
    tool_choice: str = "auto"


@dataclass(frozen=True, slots=True)
class RawAsk:
    """Ids to continue, each prompt on its own, with params of its own."""

    prompts: list[list[int]]
    params: list[SamplingParams]


class Running:
    """A request that runs, in one or several variants. Made by Service.run, found again by its id."""

    def __init__(self, id: str, model: str, streams: Sequence[Stream]) -> None:
        self.id, self.model, self.streams = id, model, streams
        self.completions: dict[int, Completion] = {}
        self.streamed = False  # its client has seen a part of it already
        self._cancelled = False

    async def events(self) -> AsyncIterator[Event]:
        """What every variant says, as it comes; each ends with its Completion. Raises EngineError when the
        engine failed."""
        if len(self.streams) == 1:
            async for item in self.streams[0]:
                yield self._seen(0, item)
            return
        merged: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        pumps = [asyncio.create_task(_pump(i, stream, merged)) for i, stream in enumerate(self.streams)]
        try:
            left = len(pumps)
            while left:
                event = await merged.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    left -= 1
                else:
                    yield self._seen(*event)
        finally:
            for pump in pumps:
                pump.cancel()

    async def results(self) -> list[Completion]:
        """Wait for the end of all variants."""
        async for _ in self.events():
            pass
        return [self.completions[i] for i in range(len(self.streams))]

    def cancel(self) -> None:
        """Abort what has not ended; who reads the events sees each variant end as "abort"."""
        self._cancelled = True
        for stream in self.streams:
            stream.cancel()

    @property
    def was_cut(self) -> bool:
        """Did `cancel` end it before its end, and nobody has seen anything of it?"""
        done = [self.completions.get(i) for i in range(len(self.streams))]
        short = any(one is None or one.finish_reason == "abort" for one in done)
        return self._cancelled and not self.streamed and short

    def chosen(self, variant: int | None) -> Sequence[Stream]:
        """The streams that a control acts on: one variant's, or all. Raises NotFound."""
        if variant is None:
            return self.streams
        if not 0 <= variant < len(self.streams):
            raise NotFound(f"variant {variant} is not there: request {self.id} has {len(self.streams)}.")
        return [self.streams[variant]]

    def _seen(self, variant: int, item: Delta | Completion) -> Event:
        if isinstance(item, Completion):
            self.completions[variant] = item
        return variant, item


class Service:
    """Models by name, and what runs on them. Lives on one event loop.

    max_requests: variants that may run or wait at once, over all models; one more is refused as Overloaded.
    max_tokens: what one variant may ask for. on_end: called with each Running after it was left, for metrics
    and logs; `listeners` holds it and may be added to.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        max_requests: int = 80,
        max_tokens: int | None = None,
        on_end: Callable[[Running], None] | None = None,
    ) -> None:
        self.models = dict(models)
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.listeners: list[Callable[[Running], None]] = [] if on_end is None else [on_end]
        self.closing = False  # admits nobody
        self._aborting = False  # and lets nobody finish
        self.since = time.time()
        self.active = 0  # variants that run or wait
        self._running: dict[str, Running] = {}

    def model(self, name: str | None) -> tuple[str, Model]:
        """The model of that name, or the first one for None. Raises NotFound."""
        chosen = next(iter(self.models)) if name is None else name
        if chosen not in self.models:
            raise NotFound(f"model {chosen!r} is not served here. Use one of: {', '.join(self.models)}.")
        return chosen, self.models[chosen]

    def running(self, id: str) -> Running:
        """The running request of that id. Raises NotFound."""
        if id not in self._running:
            raise NotFound(f"no request {id!r} is running. It has ended, or never was.")
        return self._running[id]

    @property
    def all_running(self) -> list[Running]:
        """What runs now, oldest first."""
        return list(self._running.values())

    @asynccontextmanager
    async def run(
        self, model: str | None, ask: Ask | RawAsk, prefix: str = "chatcmpl"
    ) -> AsyncIterator[Running]:
        """Start a request; it is aborted when the block is left early.

        Raises NotFound, Overloaded, and UsageError for what cannot run; at the end of the block ShuttingDown
        for half an answer that would otherwise look like a whole one.
        """
        name, chosen = self.model(model)
        count = len(ask.variants) if isinstance(ask, Ask) else len(ask.prompts)
        self._check(ask)
        self._admit(count)
        running: Running | None = None
        try:
            if isinstance(ask, Ask):
                streams = await chosen.open(ask.messages, ask.variants, ask.tools, ask.tool_choice)
            else:
                streams = await chosen.open_raw(ask.prompts, ask.params)
            running = Running(f"{prefix}-{secrets.token_hex(12)}", name, streams)
            self._running[running.id] = running
            if self._aborting:
                running.cancel()
            yield running
            if running.was_cut:
                raise ShuttingDown(CUT, RETRY_AFTER)
        except EngineError as error:
            if running is None or not running.was_cut:
                raise
            raise ShuttingDown(CUT, RETRY_AFTER) from error
        finally:
            self.active -= count
            if running is not None:
                del self._running[running.id]
                for stream in running.streams:
                    await stream.aclose()
                for listener in self.listeners:
                    listener(running)

    async def drain(self, seconds: float) -> int:
        """Admit nobody any more and wait for what runs; what has not ended in time is aborted. Returns how
        many requests that were."""
        self.closing = True
        until = time.monotonic() + seconds
        while self.active and time.monotonic() < until:
            await asyncio.sleep(DRAIN_INTERVAL)
        self._aborting = True
        late = self.all_running
        for running in late:
            running.cancel()
        return len(late)

    def _check(self, ask: Ask | RawAsk) -> None:
        """Raises UsageError for a variant that asks for more tokens than one may."""
        given = [v.params for v in ask.variants] if isinstance(ask, Ask) else ask.params
        most = max((params.max_tokens or 0 for params in given if params is not None), default=0)
        if self.max_tokens is not None and most > self.max_tokens:
            limit = self.max_tokens
            raise UsageError(f"max_tokens={most} is above the limit of {limit}. Ask for at most {limit}.")

    def _admit(self, count: int) -> None:
        if self.closing:
            raise ShuttingDown("the server is shutting down. Try again in a moment.", RETRY_AFTER)
        if count > self.max_requests:
            raise UsageError(
                f"{count} answers at once are more than the {self.max_requests} that may run and wait. "
                "Ask for fewer."
            )
        if self.active + count > self.max_requests:
            raise Overloaded(
                f"{self.active} requests run or wait and at most {self.max_requests} may. Try again soon.",
                retry_after=max(1, self.active // 16),
            )
        self.active += count


async def _pump(variant: int, stream: Stream, to: asyncio.Queue[Event | Exception | None]) -> None:
    """Everything that one stream says, then None; or the error it failed with."""
    try:
        async for item in stream:
            to.put_nowait((variant, item))
        to.put_nowait(None)
    except Exception as error:
        to.put_nowait(error)
