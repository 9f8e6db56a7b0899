"""The ASGI application: routes of every API behind one door, errors in the shape of the API asked.

In: a Service and a ServerConfig. Out: a FastAPI application. Does not know: what any API's fields mean, how
it is reached (cli/serve.py).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..config import ServerConfig
from ..types import DeepfastError
from .access import Body, Front, Gate
from .errors import ANTHROPIC, answer_error
from .logs import Log, note_running
from .metrics import Metrics
from .service import Service
from .store import Store

ROUTERS: tuple[str, ...] = (
    "meta",
    "openai_chat",
    "completions",
    "responses",
    "anthropic",
    "web",
)  # modules of this folder, each with a `router`


def create_app(
    service: Service,
    config: ServerConfig | None = None,
    log: Log | None = None,
    store: Store | None = None,
) -> FastAPI:
    """The application. `request.app.state` holds `service`, `config`, `metrics` and `store`. store: where
    answers of /v1/responses are kept; None keeps none."""
    settings = config or ServerConfig()
    log = log or Log(settings.log_format)
    # No page of documentation: FastAPI's loads its scripts from elsewhere.
    app = FastAPI(
        title="Deepfast",
        version=importlib.metadata.version("deepfast"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(service)
    app.state.service, app.state.config, app.state.metrics = service, settings, metrics
    app.state.store = store
    service.max_tokens = settings.max_tokens
    service.listeners += [metrics.note_running, note_running]
    for name in ROUTERS:
        app.include_router(importlib.import_module(f"{__package__}.{name}").router)
    for error in (RequestValidationError, HTTPException, DeepfastError):
        app.add_exception_handler(error, answer_error)
    app.add_middleware(Body, config=settings)  # the last one added is the first to see a request
    app.add_middleware(Gate, config=settings)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Front, config=settings, observers=(metrics.note_http, log.request))
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    return app


def _schema(app: FastAPI) -> dict[str, Any]:
    """OpenAPI's description, with the errors as we send them instead of FastAPI's own."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(ERRORS)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        for path, methods in schema["paths"].items():
            kind = "AnthropicError" if path.startswith(ANTHROPIC) else "Error"
            said = {"$ref": f"#/components/schemas/{kind}"}
            for operation in methods.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = {
                    "description": "An error: its message says what to do.",
                    "content": {"application/json": {"schema": said}},
                }
        app.openapi_schema = schema
    return app.openapi_schema


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT, _MAYBE = {"type": "string"}, {"type": ["string", "null"]}
ERRORS = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE, code=_MAYBE)),
    "AnthropicError": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)),
}
