"""Remote models: against our own server, and against endpoints that are scripted, rude, broken or not there.

In: RemoteChat and RemoteModel. Out: that they are as good as a model of our own, and that nothing of a wish
is lost on the way. Does not know: how our server answers.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from serve_process import soon
from serving import Served, at_rest, listening, served, untold
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deepfast import LLM, Grammar, Message, SamplingParams, Thinking, Variant
from deepfast.client import Endpoint, RemoteChat, RemoteModel
from deepfast.server.app import create_app
from deepfast.server.service import Ask, Service
from deepfast.types import Completion, ControlError, Delta, EngineError, UsageError

ASK = "What is 47 * 86?"
ONE = SamplingParams(seed=1)
LONG = Thinking(mode="on", on_loop="ignore")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with LLM() as llm, served(llm) as running:
        yield running


@pytest.fixture(scope="module")
def chat(here: Served) -> Iterator[RemoteChat]:
    with RemoteChat(ours(here)) as made:
        yield made


def ours(here: Served, **changes: Any) -> Endpoint:
    return Endpoint(f"{here.url}/v1", here.llm.name, dialect="deepfast", **changes)


def endless(here: Served) -> Variant:
    """A thought that nobody ends but the caller."""
    ids = here.llm.requests.ids
    never = {token: -100.0 for token in (ids.think_close, *ids.stops) if token is not None}
    return Variant(SamplingParams(max_tokens=1000, logit_bias=never), LONG)


@asynccontextmanager
async def remote(endpoint: Endpoint) -> AsyncIterator[RemoteModel]:
    model = RemoteModel(endpoint)
    try:
        yield model
    finally:
        await model.aclose()


# --- as good as a model of our own ---


@pytest.mark.parametrize(
    "wish", [None, Thinking(mode="off"), Thinking(mode="on", budget=20), Thinking(soft_landing=8, budget=40)]
)
def test_a_remote_answer_is_the_local_one(here: Served, chat: RemoteChat, wish: Thinking | None) -> None:
    local, far = here.llm.chat(ASK, ONE, wish), chat.chat(ASK, ONE, wish)
    for name in ("reasoning", "content", "finish_reason", "tool_calls"):
        assert getattr(far, name) == getattr(local, name)
    assert far.usage.completion_tokens == local.usage.completion_tokens
    assert far.usage.reasoning_tokens == local.usage.reasoning_tokens
    assert (far.thinking.mode, far.thinking.stop) == (local.thinking.mode, local.thinking.stop)
    assert far.thinking.budget == local.thinking.budget
    assert 0 < far.timing.first_token_s <= far.timing.total_s
    deltas = list(chat.stream(ASK, ONE, wish))
    for kind in ("reasoning", "content"):
        assert "".join(delta.text for delta in deltas if delta.kind == kind) == getattr(far, kind)


def test_sampling_grammar_and_stop_arrive(here: Served, chat: RemoteChat) -> None:
    params = SamplingParams(seed=2, temperature=0.9, top_k=5, min_p=0.01, max_tokens=60, stop=("4",))
    local, far = here.llm.chat(ASK, params), chat.chat(ASK, params)
    assert (far.content, far.reasoning) == (local.content, local.reasoning)
    only = SamplingParams(seed=1, grammar=Grammar("regex", "[ab]{3}"))
    assert chat.chat(ASK, only).content == here.llm.chat(ASK, only).content
    schema = json.dumps(TOOL["function"]["parameters"])  # type: ignore[index]
    fits = chat.chat(ASK, SamplingParams(grammar=Grammar("json_schema", schema))).content
    assert json.loads(fits)["city"] in ("Oslo", "Rome")


def test_tools_go_round_a_remote_model(chat: RemoteChat) -> None:
    called = chat.chat(ASK, SamplingParams(seed=1, parallel_tool_calls=False), None, [TOOL], "weather")
    assert called.finish_reason == "tool_calls" and called.tool_calls[0].name == "weather"
    assert json.loads(called.tool_calls[0].arguments)["city"] in ("Oslo", "Rome")
    turns = [
        Message("user", ASK),
        Message("assistant", called.content, called.reasoning or "hm", called.tool_calls),
        Message("tool", "sunny"),
    ]
    assert chat.chat(turns, ONE, None, [TOOL], "none").content


def test_a_remote_model_serves_like_a_local_one(here: Served) -> None:
    async def both() -> None:
        async with remote(ours(here)) as model:
            service = Service({"far": model})
            ask = Ask([{"role": "user", "content": ASK}], Variant.branches(2, ONE))
            async with service.run("far", ask) as running:
                results = await running.results()
            assert [done.content for done in results] == [done.content for done in await local(ask)]
            assert service.active == 0

    async def local(ask: Ask) -> list[Completion]:
        return here.llm.fork(ask.messages, ask.variants)

    asyncio.run(both())


def test_a_remote_model_behind_our_own_apis(here: Served) -> None:
    model = RemoteModel(ours(here))
    app = create_app(Service({"far": model}))
    with listening(app) as url, RemoteChat(Endpoint(f"{url}/v1", "far", dialect="deepfast")) as twice:
        far = twice.chat(ASK, ONE, Thinking(mode="on", budget=20))
        assert far.thinking.stop == "budget" and far.content
        with pytest.raises(UsageError, match="refuses the request: .* 900 for the answer"):
            twice.chat(ASK, SamplingParams(max_tokens=4), Thinking(answer_reserve=900))


# --- steering and leaving ---


def test_a_remote_thought_is_steered(here: Served) -> None:
    async def steer() -> None:
        async with remote(ours(here)) as model:
            (stream,) = await model.open([{"role": "user", "content": ASK}], [endless(here)])
            await stream.extend_thought(5)
            await stream.set_budget(800)
            await stream.hint("the sum is 7")
            await stream.end_thought()
            items = [item async for item in stream]
            done = items[-1]
            assert isinstance(done, Completion) and done.thinking.stop == "user"
            assert "the sum is 7" in done.reasoning
            assert (
                "".join(i.text for i in items[:-1] if isinstance(i, Delta) and i.kind == "content")
                == done.content
            )
            with pytest.raises(ControlError, match="over"):
                await stream.end_thought()
            await stream.aclose()

    asyncio.run(steer())


def test_who_leaves_a_remote_answer_ends_it_there(here: Served, chat: RemoteChat) -> None:
    next(deltas := chat.stream(ASK, endless(here).params, LONG))
    deltas.close()  # type: ignore[attr-defined]
    assert at_rest(here.llm)

    async def leave() -> None:
        async with remote(ours(here)) as model:
            first, second, third = await model.open(
                [{"role": "user", "content": ASK}],
                [endless(here), endless(here), endless(here)],
            )
            await anext(first)
            await first.aclose()
            second.cancel()
            last = [item async for item in second][-1]
            assert isinstance(last, Completion) and last.finish_reason == "abort"
            await second.aclose()
            waiting = asyncio.ensure_future(model.open([{"role": "user", "content": ASK}], [endless(here)]))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await third.aclose()

    asyncio.run(leave())
    assert at_rest(here.llm)


def test_who_leaves_before_a_remote_answer_begins_ends_it_there() -> None:
    asked, left = threading.Event(), threading.Event()

    async def slow(request: Request) -> Response:
        await request.body()
        asked.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left.set()
        return Response()

    far = Starlette(routes=[Route("/v1/chat/completions", slow, methods=["POST"])])
    with listening(far) as there:
        service = Service({"far": RemoteModel(Endpoint(f"{there}/v1", "m"))})
        with listening(create_app(service, log=untold())) as url:
            body = {"messages": [{"role": "user", "content": ASK}], "stream": True}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=0.5))
            assert asked.is_set() and left.wait(5)
            assert soon(lambda: service.active == 0)


def test_the_stop_string_of_a_remote_answer_is_known(here: Served, chat: RemoteChat) -> None:
    params = SamplingParams(seed=1, stop=tuple("0123456789"))
    off = Thinking(mode="off")
    found = chat.chat(ASK, params, off).stop_string
    assert found is not None and found == here.llm.chat(ASK, params, off).stop_string


# --- what an endpoint may do ---


def rude(status: int, body: Any, headers: dict[str, str] | None = None) -> Any:
    """An application that answers everything alike."""

    async def answer(request: Request) -> Response:
        await request.body()
        return JSONResponse(body, status, headers)

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (
            401,
            {"error": {"message": f"wrong key {KEY}"}},
            EngineError,
            r"API key \(401\): wrong key \*\*\*\.",
        ),
        (404, {"detail": "no model 'm'"}, UsageError, "no model 'm'. Check the URL and model 'm'"),
        (429, {"error": "slow down"}, EngineError, r"slow down\. Try again in 7 s\."),
        (400, {"message": "bad temperature"}, UsageError, "refuses the request: bad temperature"),
        (500, {"a": 1}, EngineError, r"failed \(500\)"),
    ],
)
def test_refusals_are_one_line_without_the_key(status: int, body: Any, kind: type, told: str) -> None:
    with listening(rude(status, body, {"retry-after": "7"})) as url:
        endpoint = Endpoint(f"{url}/v1/", "m", KEY)
        with RemoteChat(endpoint) as chat, pytest.raises(kind, match=told) as caught:
            chat.chat(ASK)

        async def apart() -> None:
            async with remote(endpoint) as model:
                with pytest.raises(kind, match=told):
                    await model.open([{"role": "user", "content": ASK}], [Variant(), Variant()])

        asyncio.run(apart())
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert KEY not in repr(endpoint)


def test_nobody_there_and_nobody_speaking() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = Endpoint(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", "m")
        with RemoteChat(nobody) as chat, pytest.raises(EngineError, match="cannot be reached.*Is it running"):
            chat.chat(ASK)

        async def apart() -> None:
            async with remote(nobody) as model:
                with pytest.raises(EngineError, match="cannot be reached"):
                    await model.open([], [Variant()])

        asyncio.run(apart())

    async def silent(request: Request) -> Response:
        async def never() -> AsyncIterator[str]:
            yield 'data: {"id": "x", "choices": []}\n\n'
            await asyncio.sleep(30)

        return StreamingResponse(never())

    app = Starlette(routes=[Route("/v1/chat/completions", silent, methods=["POST"])])
    with listening(app) as url:
        endpoint = Endpoint(f"{url}/v1", "m", timeout=0.05)
        with RemoteChat(endpoint) as chat, pytest.raises(EngineError, match=r"said nothing for 0\.05 s"):
            chat.chat(ASK)


def test_an_endpoint_is_read_from_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    name, made = Endpoint.parse("far=https://me:pw@host:1/v1/,model=Qwen/Qwen3-4B,dialect=vllm,key=SOME_KEY")
    assert (name, made.model, made.dialect, made.key) == ("far", "Qwen/Qwen3-4B", "vllm", KEY)
    assert made.name == "https://host:1/v1"
    assert Endpoint.parse("far=http://host/v1,timeout=5")[1] == Endpoint("http://host/v1", "far", timeout=5)
    for wrong, told in (
        ("http://host/v1", "is no remote model"),
        ("far=ftp://host", "no address"),
        ("far=http://host,speed=9", "is no remote model"),
        ("far=http://host,dialect=latin", "dialect='latin'"),
        ("far=http://host,key=NOT_THERE", "NOT_THERE"),
        ("far=http://host,timeout=soon", "timeout=soon"),
        ("far=http://host,timeout=0", "timeout=0"),
    ):
        with pytest.raises(UsageError, match=told):
            Endpoint.parse(wrong)


def test_what_no_remote_model_can_do_is_refused_by_name() -> None:
    async def refused() -> None:
        async with remote(Endpoint("http://host/v1", "m")) as model:
            with pytest.raises(UsageError, match="no raw prompts"):
                await model.open_raw([[1]], [SamplingParams()])
            with pytest.raises(UsageError, match="cannot be counted"):
                await model.count_tokens([{"role": "user", "content": "x"}])

    asyncio.run(refused())


def test_only_a_deepfast_is_steered(here: Served) -> None:
    async def steer() -> None:
        async with remote(Endpoint(f"{here.url}/v1", here.llm.name, dialect="vllm")) as model:
            (stream,) = await model.open([{"role": "user", "content": ASK}], [Variant(ONE)])
            with pytest.raises(ControlError, match="no Deepfast server"):
                await stream.end_thought()
            await stream.aclose()

    asyncio.run(steer())
