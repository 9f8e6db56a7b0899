"""A running request as an HTTP response: server-sent events, or one JSON body; gone when the client is gone.

In: an entered Service.run, bytes to send. Out: Starlette responses. Whatever happens (the end, an error, a
client that disconnects before the first byte), the request is left and its blocks are free.
Does not know: the shape of any API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .service import Running

T = TypeVar("T")


class ClientGone(Exception):
    """The client disconnected: there is nobody to answer."""


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event; data is made JSON, unless it is text already."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for end in "\x85\u2028\u2029":  # clients that read by str.splitlines would break the line there
        text = text.replace(end, f"\\u{ord(end):04x}")
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


class EventStream(StreamingResponse):
    """Server-sent events of one running request. Made by `stream`."""

    def __init__(self, stack: AsyncExitStack, events: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; the request is left even if not one event could be sent."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stack.aclose()


async def stream(
    request: Request,
    entering: AbstractAsyncContextManager[Running],
    events: Callable[[Running], AsyncIterator[bytes]],
) -> EventStream:
    """Enter the request, so that a refusal is still an error with its own status, then stream its events. A
    remote model may take minutes to begin: a client that leaves meanwhile ends that too."""
    stack = AsyncExitStack()
    running = await unless_gone(request, stack.enter_async_context(entering))
    running.streamed = True
    return EventStream(stack, events(running))


async def or_silence(items: AsyncIterator[T], seconds: float) -> AsyncIterator[T | None]:
    """The items as they come, and None whenever nothing came for so long: time for a sign of life."""
    coming: asyncio.Future[T] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items))
            if not (await asyncio.wait((coming,), timeout=seconds))[0]:
                yield None
                continue
            try:
                item = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects. Raises ClientGone then. The
    body must have been read before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
