"""Who may enter and with what: request ids, keys, hosts, origins, and bodies that are small and well-formed.

In: ASGI messages, before any route sees them. Out: the same, or an error in the shape of the API that was
asked. Plain ASGI: a stream passes through piece by piece. Does not know: what routes do.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import ServerConfig
from .errors import CLIENT_GONE, error_body, is_anthropic
from .logs import Record, current, describe
from .streaming import ClientGone

OPEN_PATHS = frozenset(
    {"/", "/health", "/favicon.ico"}
)  # what needs no key: the page must load to ask for one
OPEN_PREFIX = "/page/"
MAX_DEPTH = 100  # of a JSON body: as deep as any schema, far from Python's recursion limit
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_GOOD_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


class Front:
    """The outermost layer: a request's id, its record, and an answer whatever happens inside."""

    def __init__(
        self, app: ASGIApp, config: ServerConfig, observers: Sequence[Callable[[Record], None]]
    ) -> None:
        self.app, self.config, self.observers = app, config, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; nothing is raised but cancellation."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = _record(scope)
        scope.setdefault("state", {})["request_id"] = record.id
        token = current.set(record)
        began = time.perf_counter()
        answer = _Answer(scope, record, send, self.config.stall_seconds)
        try:
            await self.app(scope, receive, answer)
        except ClientGone:
            record.status = record.status or CLIENT_GONE
        except Exception as error:
            record.error = describe(error, whole=self.config.log_prompts)
            if not record.status:
                text = f"the server failed ({type(error).__name__}). Its log says where, under {record.id}."
                body = error_body(record.path, 500, text, request_id=record.id)
                await JSONResponse(body, 500)(scope, receive, answer)
        finally:
            current.reset(token)
            record.seconds = time.perf_counter() - began
            record.status = record.status or CLIENT_GONE  # cancelled before it could begin to answer
            record.route = getattr(scope.get("route"), "path", "")
            for observer in self.observers:
                observer(record)


class _Answer:
    """`send`, with the request's id in the headers; raises ClientGone when the client takes nothing."""

    def __init__(self, scope: Scope, record: Record, send: Send, stall_seconds: float) -> None:
        self.scope, self.record, self.send, self.stall_seconds = scope, record, send, stall_seconds

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.record.id
            if is_anthropic(self.record.path):
                headers["request-id"] = self.record.id  # where Anthropic's clients look
        try:
            async with asyncio.timeout(self.stall_seconds):
                await self.send(message)
        except TimeoutError:
            raise ClientGone from None


def _record(scope: Scope) -> Record:
    given = Headers(scope=scope).get("x-request-id", "")
    id = given if _GOOD_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
    client = scope.get("client")
    return Record(id, scope["method"], scope["path"], client[0] if client else "")


class Gate:
    """Lets in who has a key (where there are keys), names the right host and comes from no foreign page."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self.config = app, config
        self._keys = [_digest(key) for key in config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401 or 403, or pass on."""
        if scope["type"] == "http":
            try:
                self._check(scope, Headers(scope=scope))
            except Refused as refused:
                await _refuse(refused, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if self._keys:
            if path not in OPEN_PATHS and not path.startswith(OPEN_PREFIX):
                self._check_key(headers)
            return
        host = _name_of(headers.get("host", ""))
        if self.config.hosts and host not in self.config.hosts:
            raise Refused(
                403,
                f"host {host!r} is not served here. Ask for {self.config.hosts[0]}, or start the server with "
                "--allow-host or --api-key.",
            )
        origin = headers.get("origin")
        if (
            origin is None
            or scope["method"] in SAFE_METHODS
            or not {origin, "*"}.isdisjoint(self.config.cors)
        ):
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise Refused(
                403,
                f"pages of {origin} may not use this server. Start it with --cors {origin}, or use a key.",
            )

    def _check_key(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest, good = _digest(key), False
        for known in self._keys:  # all of them, whichever fits: the time says nothing
            good |= hmac.compare_digest(known, digest)
        if not good:
            what = "the API key is not known here" if key else "there is no API key"
            raise Refused(
                401,
                f"{what}. Send a good one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
                **{"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()  # equal lengths compare in equal time


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]").lower()


class Body:
    """Reads a body, no further than it may be long, and lets only well-formed JSON through."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 400, 408 or 413, or pass on."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            async with asyncio.timeout(self.config.body_seconds):
                body = await self._read(headers, receive)
            if body and "json" in (headers.get("content-type") or "json").lower():
                _check_json(body)
        except TimeoutError:
            text = f"the body did not arrive within {self.config.body_seconds:g} s. Send it faster."
            await _refuse(Refused(408, text, Connection="close"), scope, receive, send)
            return
        except Refused as refused:
            await _refuse(refused, scope, receive, send)
            return
        record = current.get()
        if self.config.log_prompts and record is not None:
            record.body = body.decode("utf-8", "replace")
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        limit, declared = self.config.max_body, headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > limit:
            self._too_large(f"{declared[:20]} bytes")
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                self._too_large("longer")
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _too_large(self, what: str) -> NoReturn:
        limit = self.config.max_body
        raise Refused(
            413, f"the body is {what}; at most {limit} bytes may be sent. Send less, or raise --max-body."
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one piece, then what really comes."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


def _check_json(body: bytes) -> None:
    """Raises Refused for what is no JSON, or JSON that nobody could answer."""
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        text = f"the body is not valid UTF-8: byte {error.start} is {body[error.start]:#04x}. Send UTF-8."
        raise Refused(400, text) from None
    except json.JSONDecodeError as error:
        raise Refused(400, f"the body is no JSON: {error}. Correct it.") from None
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body cannot be read: {reason}.") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise Refused(400, f"the body is nested deeper than {MAX_DEPTH} levels. Send something flatter.")
    if _HALF_CHARACTER.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise Refused(400, f"the body holds {half}, half of a character. Send valid text.") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


def _is_deep(value: Any) -> bool:
    """Is anything more than MAX_DEPTH levels down?"""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return False
    return True


def _containers(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inside if isinstance(item, dict | list))


async def _refuse(refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    request_id = scope.get("state", {}).get("request_id")
    body = error_body(scope["path"], refused.status, refused.text, request_id=request_id)
    await JSONResponse(body, refused.status, refused.headers)(scope, receive, send)
