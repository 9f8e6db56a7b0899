"""The ASGI application: routes of every API, errors in the shape of the API that was asked.

In: a Service. Out: a FastAPI application. Does not know: what any API's fields mean.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..types import DeepfastError, UsageError
from .schema import explain, param_of
from .service import NotFound, Overloaded, Service
from .streaming import ClientGone

ROUTERS: tuple[str, ...] = ("openai_chat", "anthropic")  # modules of this folder, each with a `router`


def create_app(service: Service) -> FastAPI:
    """The application; `request.app.state.service` is the service."""
    app = FastAPI(title="Deepfast")
    app.state.service = service
    for name in ROUTERS:
        app.include_router(import_module(f".{name}", __package__).router)
    for error in (RequestValidationError, DeepfastError, ClientGone):
        app.add_exception_handler(error, _answer_error)
    return app


def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        return Response(status_code=499)
    status, headers = 500, {}
    if isinstance(error, NotFound):
        status = 404
    elif isinstance(error, UsageError | RequestValidationError):
        status = 400
    elif isinstance(error, Overloaded):
        status, headers = 429, {"Retry-After": str(error.retry_after)}
    text, param = (
        explain(error) if isinstance(error, RequestValidationError) else (str(error), param_of(error))
    )
    return JSONResponse(error_body(request.url.path, status, text, param), status, headers)


def error_body(path: str, status: int, text: str, param: str | None = None) -> dict[str, Any]:
    """An error in the shape of the API that the path belongs to. param: the field at fault."""
    kinds = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "api_error")
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": kind, "message": text}}
    return {"error": {"message": text, "type": kind, "param": param, "code": None}}
