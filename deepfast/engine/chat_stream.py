"""One running request as its caller sees it: Deltas to iterate over, live steering, a Completion at the end.

In: a Sequence that was handed to the engine. Out: Deltas in a thread (ChatStream) or on an event loop
(AsyncChatStream). Leaving early aborts the request. Does not know: rendering, models, HTTP.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..types import Completion, DeepfastError, Delta, EngineError, Usage, UsageError
from .engine import Engine
from .output import Emit
from .sequence import Sequence


class Request:
    """What both streams share. owner: whatever must stay loaded as long as somebody reads from it."""

    def __init__(self, engine: Engine, owner: object, encode_hint: Callable[[str], list[int]]) -> None:
        self._engine, self._owner, self._encode_hint = engine, owner, encode_hint
        self._ended = False
        self.seq: Sequence | None = None  # set before it is submitted

    @property
    def completion(self) -> Completion:
        """What came out. Raises UsageError before the end, EngineError when the engine failed."""
        if self.seq is None or self.seq.finish_reason is None:
            raise UsageError("the stream has not ended, or was closed before. Iterate to its end.")
        self._raise_if_failed()
        return self.seq.completion()

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt, known from the start."""
        return self._running().num_prompt

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self.seq.usage if self.seq is not None else Usage()

    def cancel(self) -> None:
        """Abort the request; iteration ends after what was already produced."""
        if self.seq is not None:
            self._engine.cancel(self.seq)

    def __del__(self) -> None:
        """A stream that nobody reads any more must not keep the engine busy."""
        if not self._ended:
            self.cancel()

    def _steer(self, function: Callable[..., None], *args: Any) -> Future[None]:
        return self._engine.call(lambda: function(*args))

    def _running(self) -> Sequence:
        if self.seq is None:
            raise UsageError("the request has not been handed in yet.")
        return self.seq

    def _raise_if_failed(self) -> None:
        error = self.seq.error if self.seq is not None else None
        if isinstance(error, DeepfastError):
            raise error
        if error is not None:
            raise EngineError(f"the engine failed: {type(error).__name__}: {error}") from error


class ChatStream(Request):
    """Iterate over the Deltas of one request; leave early (or `cancel`) and the request is aborted.

    The four steering methods act on the open thought of the running request, between two tokens. They raise
    ControlError when no thought is open, or when they cannot be obeyed.
    """

    def __init__(self, engine: Engine, owner: object, encode_hint: Callable[[str], list[int]]) -> None:
        super().__init__(engine, owner, encode_hint)
        self._deltas = deltas = queue.SimpleQueue[Delta | None]()
        self._finished = finished = threading.Event()

        def emit(delta: Delta | None) -> None:  # knows no self: the engine must not keep a stream alive
            deltas.put(delta)
            if delta is None:
                finished.set()

        self.emit: Emit = emit

    def __iter__(self) -> ChatStream:
        """Deltas, as they come."""
        return self

    def __next__(self) -> Delta:
        """Wait for the next Delta. Raises EngineError when the engine failed."""
        delta = None if self._ended else self._deltas.get()
        if delta is None:
            self._ended = True
            self._raise_if_failed()
            raise StopIteration
        return delta

    def result(self) -> Completion:
        """Wait for the end and return the whole."""
        if not self._ended:
            self._finished.wait()  # not for each Delta: waking up takes a processor from the engine
        for _ in self:
            pass
        return self.completion

    def end_thought(self) -> None:
        """Close the thought now; the answer follows."""
        self._steer(self._running().end_thought).result()

    def extend_thought(self, tokens: int) -> None:
        """Let the thought go on for at least `tokens` more; its budget grows if need be."""
        self._steer(self._running().extend_thought, tokens).result()

    def set_budget(self, budget: int | None) -> None:
        """Change the budget of the thought; below what it has used, it ends now."""
        self._steer(self._running().set_budget, budget).result()

    def hint(self, text: str) -> None:
        """Put `text` into the thought, as if the model had thought of it."""
        self._steer(self._running().hint, self._encode_hint(text)).result()

    def __enter__(self) -> ChatStream:
        """`with llm.stream(...) as stream:` aborts the request when the block is left early."""
        return self

    def __exit__(self, *_: object) -> None:
        """Abort the request unless it has ended."""
        if not self._ended:
            self.cancel()


class AsyncChatStream(Request):
    """The same for an event loop: Deltas as they come, then the Completion. `aclose` aborts."""

    def __init__(self, engine: Engine, owner: object, encode_hint: Callable[[str], list[int]]) -> None:
        super().__init__(engine, owner, encode_hint)
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        loop, deltas, this = asyncio.get_running_loop(), self._deltas, weakref.ref(self)

        def emit(delta: Delta | None) -> None:  # holds no stream: one that nobody reads must go, and abort
            try:
                loop.call_soon_threadsafe(deltas.put_nowait, delta)
            except RuntimeError:  # the loop is gone, and with it whoever was reading
                if (stream := this()) is not None:
                    stream.cancel()

        self.emit: Emit = emit

    def __aiter__(self) -> AsyncChatStream:
        """Deltas, then the Completion."""
        return self

    async def __anext__(self) -> Delta | Completion:
        """Wait for the next item. Raises EngineError when the engine failed; cancelled, it aborts."""
        if self._ended:
            raise StopAsyncIteration
        try:
            delta = await self._deltas.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if delta is not None:
            return delta
        self._ended = True
        return self.completion

    async def result(self) -> Completion:
        """Wait for the end and return the whole."""
        async for item in self:
            if isinstance(item, Completion):
                return item
        return self.completion

    async def __aenter__(self) -> AsyncChatStream:
        """`async with model.stream(...) as stream:` aborts the request when the block is left early."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Abort the request unless it has ended."""
        await self.aclose()

    async def aclose(self) -> None:
        """Abort the request unless it has ended."""
        if not self._ended:
            self._ended = True
            self.cancel()

    async def end_thought(self) -> None:
        """As ChatStream.end_thought."""
        await asyncio.wrap_future(self._steer(self._running().end_thought))

    async def extend_thought(self, tokens: int) -> None:
        """As ChatStream.extend_thought."""
        await asyncio.wrap_future(self._steer(self._running().extend_thought, tokens))

    async def set_budget(self, budget: int | None) -> None:
        """As ChatStream.set_budget."""
        await asyncio.wrap_future(self._steer(self._running().set_budget, budget))

    async def hint(self, text: str) -> None:
        """As ChatStream.hint."""
        await asyncio.wrap_future(self._steer(self._running().hint, self._encode_hint(text)))
