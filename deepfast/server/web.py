"""The chat page: its files, the frame for previews, and Markdown made HTML for it.

In: requests for `/`, `/page/...` and `/render`. Out: files with strict security headers; HTML of texts.
Does not know: models, conversations, which stay in the browser.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..types import UsageError
from .render import MAX_SECONDS, code_css, render
from .schema import Strict
from .service import NotFound

router = APIRouter()

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
MAX_TEXTS = 100  # of one request for HTML
ALL_SECONDS = 5.0  # of processor time for all of them

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A preview may show what it brings along and nothing else: no network, no access to the page. Its frame gets
# the text by a message; its own policy holds for whatever is written into it.
_PREVIEW_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; script-src "
)
_COMMON_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}


class _File(NamedTuple):
    body: bytes
    headers: dict[str, str]


class RenderBody(Strict):
    """One text, or several at once."""

    text: str | None = None
    texts: list[str] | None = Field(None, max_length=MAX_TEXTS, fail_fast=True)


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.get("/page/{file}", include_in_schema=False)
async def file(request: Request, file: str) -> Response:
    """One of its files. Raises NotFound."""
    return _answer(request, file)


@router.post("/render")
async def markdown(body: RenderBody) -> dict[str, str | list[str]]:
    """Markdown with LaTeX and code, made safe HTML: `text` gives `html`, `texts` give a list `html`."""
    if (body.text is None) == (body.texts is None):
        raise UsageError("give either text (a string) or texts (a list of strings).")
    loop = asyncio.get_running_loop()
    if body.text is not None:
        return {"html": await loop.run_in_executor(_threads(), render, body.text)}
    return {"html": await loop.run_in_executor(_threads(), _render_all, body.texts or [])}


def _render_all(texts: list[str]) -> list[str]:
    """HTML of each; when the time for all is used up, the rest is shown as it is."""
    began = time.thread_time()
    return [
        render(text, min(MAX_SECONDS, max(0.0, ALL_SECONDS - time.thread_time() + began))) for text in texts
    ]


@cache
def _threads() -> ThreadPoolExecutor:
    """Few: rendering must not take the processors from the models."""
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="render")


def _answer(request: Request, name: str) -> Response:
    found = _files().get(name)
    if found is None:
        raise NotFound(f"the page has no file {name[:80]!r}. Open / instead.")
    known = request.headers.get("If-None-Match", "")
    if found.headers["ETag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=found.headers)
    return Response(found.body, headers=found.headers)


@cache
def _files() -> dict[str, _File]:
    """Name -> content, read once: what is not in here cannot be asked for."""
    made = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}
    made["code.css"] = code_css().encode()
    made["preview-scripts.html"] = made["preview.html"]
    return {name: _File(body, _headers(name, body)) for name, body in made.items()}


def _headers(name: str, body: bytes) -> dict[str, str]:
    headers = _COMMON_HEADERS | {"Content-Type": TYPES[Path(name).suffix]}
    headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    if name == "index.html":
        headers |= {"Content-Security-Policy": _PAGE_POLICY, "Cross-Origin-Opener-Policy": "same-origin"}
    elif name == "preview-scripts.html":
        headers["Content-Security-Policy"] = _PREVIEW_POLICY + "'unsafe-inline'"
    elif name == "preview.html":
        own = re.search(rb"<script>(.*?)</script>", body, re.S)
        assert own is not None
        digest = base64.b64encode(hashlib.sha256(own[1]).digest()).decode()
        headers["Content-Security-Policy"] = f"{_PREVIEW_POLICY}'sha256-{digest}'"
    return headers
