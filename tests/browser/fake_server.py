"""A server that plays models: slow thoughts, errors, a full queue, several models, as the text asks.

In: the page's requests; a word in the question chooses the scene. Out: the same shapes as the real server's.
Does not know: any model. Made for what a fast model on a good day never shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from deepfast.config import ServerConfig
from deepfast.server import web
from deepfast.server.access import Gate
from deepfast.server.errors import answer_error, error_body
from deepfast.types import DeepfastError

TICK = 0.02  # seconds between two tokens
SVG = '<svg viewBox="0 0 60 60" xmlns="http://www.w3.org/2000/svg"><circle cx="30" cy="30" r="20"/></svg>'
HTML = """<!doctype html><h1 id="t">Static</h1><script>
document.getElementById("t").textContent = "Scripted";
fetch("http://127.0.0.1:9/leak").catch(() => {});
</script>"""
SCENES = {  # a word in the question -> the answer
    "markdown": "# Title\n\nText with **bold**, $x^2$ and `code`.\n\n| a | b |\n|--:|---|\n| 1 | 2 |\n\n"
    "```python\ndef f(x):\n    return x  # comment\n```\n<script>document.title = 'hacked'</script>",
    "svg": f"Here:\n\n```svg\n{SVG}\n```\n",
    "html": f"Here:\n\n```html\n{HTML}\n```\n",
}


class Playing:
    """One running answer, which controls act on."""

    def __init__(self, body: dict[str, Any], wish: dict[str, Any]) -> None:
        thinking = {**(body.get("thinking") or {}), **(wish.get("thinking") or {})}
        self.thinks = thinking.get("mode") != "off"
        self.budget = thinking.get("budget")
        self.stop = "natural"
        self.length = 400 if "slow" in body["messages"][-1]["content"] else 6
        self.used, self.ended = 0, False

    def control(self, wish: dict[str, Any]) -> None:
        """As the real one."""
        if wish["action"] == "end":
            self.ended, self.stop = True, "user"
        elif wish["action"] == "extend":
            self.length = self.used + wish["tokens"]
        elif wish["action"] == "budget":
            self.budget = wish["budget"]

    def over(self) -> bool:
        """Is the thought over?"""
        if self.budget is not None and self.used >= self.budget:
            self.stop = "budget" if not self.ended else self.stop
            return True
        return self.ended or self.used >= self.length


def fake_app(*, keys: tuple[str, ...] = (), models: tuple[str, ...] = ("fake-thinker",)) -> FastAPI:
    """The application. Its state: asked, all bodies; controls; busy and loading, how many times to be so."""
    app = FastAPI()
    app.include_router(web.router)
    app.add_exception_handler(DeepfastError, answer_error)
    app.add_middleware(Gate, config=ServerConfig(api_keys=keys))
    state = app.state
    state.asked, state.busy, state.controls, state.playing, state.loading = [], 0, [], {}, 0

    state.scenes = dict(SCENES)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models() -> Response:
        if state.loading > 0:
            state.loading -= 1
            return JSONResponse(error_body("/", 503, "the model is being loaded"), 503)
        cards = [{"id": name, "owned_by": "remote" if "remote" in name else "deepfast"} for name in models]
        cards[0] |= {
            "modes": ["on", "off"],
            "defaults": {"on": {"temperature": 0.6}, "off": {"temperature": 0.7}},
        }
        return JSONResponse({"data": cards})

    @app.post("/v1/chat/completions/{id}/control")
    async def control(id: str, request: Request) -> dict[str, bool]:
        wish = await request.json()
        state.controls.append(wish)
        index = wish.get("variant")
        for playing in state.playing[id] if index is None else [state.playing[id][index]]:
            playing.control(wish)
        return {"ok": True}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        text = body["messages"][-1]["content"]
        state.asked.append(body)
        if "busy" in text and state.busy > 0:
            state.busy -= 1
            return JSONResponse(
                error_body("/", 429, "too many requests run or wait"), 429, {"Retry-After": "2"}
            )
        if "mistake" in text:
            return JSONResponse(error_body("/", 400, "the prompt has 9 tokens, and at most 8 fit."), 400)
        id = f"chatcmpl-{len(state.asked)}"
        state.playing[id] = [Playing(body, wish) for wish in body.get("variants") or [{}]]
        return StreamingResponse(
            _events(id, state.playing[id], text, state.scenes), media_type="text/event-stream"
        )

    return app


async def _events(id: str, playing: list[Playing], text: str, scenes: dict[str, str]) -> AsyncIterator[str]:
    def chunk(index: int, **more: Any) -> str:
        choice = {"index": index, "delta": {}, "finish_reason": None} | more
        return f"data: {json.dumps({'id': id, 'choices': [choice]})}\n\n"

    for index in range(len(playing)):
        yield chunk(index, delta={"role": "assistant", "content": ""})
    if "late" in text:  # as with a long prompt
        await asyncio.sleep(0.5)
    for one in playing:
        if not one.thinks:
            one.length, one.stop = 0, "none"
    scene = next((answer for word, answer in scenes.items() if word in text), f"Answer to: {text}")
    pieces = [scene[at : at + 12] for at in range(0, len(scene), 12)]
    left = list(range(len(playing)))
    while left:
        for index in list(left):
            one = playing[index]
            if not one.over():
                one.used += 1
                word = f"step {one.used}" + (",\n" if one.used % 8 == 0 else ", ")
                yield chunk(index, delta={"reasoning_content": word})
                continue
            left.remove(index)
            for number, piece in enumerate(pieces):
                if "cut" in text and number == 1:
                    return
                yield chunk(index, delta={"content": piece})
                await asyncio.sleep(TICK if "long" in text else 0)
            usage = {
                "prompt_tokens": 9,
                "completion_tokens": one.used + len(pieces),
                "completion_tokens_details": {"reasoning_tokens": one.used},
                "prompt_tokens_details": {"cached_tokens": 4},
            }
            report = {"stop": one.stop, "seconds": one.used * TICK}
            yield chunk(index, finish_reason="stop", thinking=report, usage=usage)
        await asyncio.sleep(TICK)
    yield "data: [DONE]\n\n"
