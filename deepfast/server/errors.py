"""Errors as bodies of responses, in the shape of the API that was asked.

In: an exception or a status, the path, the request's id. Out: status, headers and JSON. The text is one line
that a client can show; a traceback is never part of it. Does not know: logs, routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..types import UsageError
from .schema import explain, param_of
from .service import NotFound, Overloaded, ShuttingDown

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 429: "rate_limit_exceeded"}
ANTHROPIC = "/v1/messages"
MAX_SHOWN = 3  # mistakes named in one error
MAX_READ = 100  # mistakes that are looked at
MAX_TEXT = 2000  # characters of an error's text
CLIENT_GONE = 499  # nobody will read it; the log does


def error_body(
    path: str,
    status: int,
    text: str,
    *,
    param: str | None = None,
    code: str | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """An error in the shape of the API that the path belongs to."""
    kind = KINDS.get(status, "api_error")
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    line = line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}..."
    if is_anthropic(path):
        body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": line}}
        return body if request_id is None else {**body, "request_id": request_id}
    return {"error": {"message": line, "type": kind, "param": param, "code": code or CODES.get(status)}}


def is_anthropic(path: str) -> bool:
    """Does the path belong to Anthropic's API?"""
    return path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/")


def error_response(
    request: Request,
    status: int,
    text: str,
    headers: Mapping[str, str] | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
) -> Response:
    """The error as a response to this request."""
    request_id = getattr(request.state, "request_id", None)
    body = error_body(request.url.path, status, text, param=param, code=code, request_id=request_id)
    return JSONResponse(body, status, dict(headers or {}))


def answer_error(request: Request, error: Exception) -> Response:
    """The response to what a route raised: DeepfastError, a refused body, a route that is not there."""
    text, param = str(error), None
    status, headers = 500, dict[str, str]()
    if isinstance(error, RequestValidationError):
        status = 400
        text, param = explain(error, request.url.path) or _mistakes(request, error.errors())
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        text = _of_http(request, error)
    elif isinstance(error, NotFound):
        status, param = 404, param_of(error, request)
    elif isinstance(error, UsageError):
        status, param = 400, param_of(error, request)
    elif isinstance(error, Overloaded):
        status = 503 if isinstance(error, ShuttingDown) else 429
        headers = {"Retry-After": str(error.retry_after)}
    return error_response(request, status, text, headers, param=param)


def _of_http(request: Request, error: HTTPException) -> str:
    path = request.url.path
    if error.status_code == 404 and error.detail == "Not Found":
        return f"there is nothing at {path}. GET /openapi.json lists what there is."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.method} is not possible at {path}. Use {allowed}."
    return str(error.detail)


def _mistakes(request: Request, errors: Sequence[Any]) -> tuple[str, str | None]:
    """One line over the first mistakes of a body, and the field of the first one."""
    lines: list[str] = []
    first: str | None = None
    for mistake in errors[:MAX_READ]:
        where = ".".join(str(part) for part in mistake["loc"] if part not in ("body", "query", "path"))
        line = _mistake(request, where, mistake)
        if line not in lines:
            lines.append(line)
            first = first if first is not None else where or None
    more = f" And {len(lines) - MAX_SHOWN} more." if len(lines) > MAX_SHOWN else ""
    return " ".join(lines[:MAX_SHOWN]) + more, first


def _mistake(request: Request, where: str, mistake: Mapping[str, Any]) -> str:
    kind, text = mistake["type"], str(mistake["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{where} is not a field of {request.url.path}. Leave it out."
    if kind == "missing":
        return f"{where or 'the body'} is missing. Send {'it' if where else 'JSON'}."
    if kind == "json_invalid":
        return f"the body is no JSON: {mistake.get('ctx', {}).get('error', text)} at {where}."
    if not where and "json" not in request.headers.get("content-type", ""):
        return "the body is not marked as JSON. Send the header Content-Type: application/json."
    ending = "" if text.endswith((".", "?", "!")) else "."
    return f"{where or 'the body'}: {text}{ending}"
