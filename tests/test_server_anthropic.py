"""Anthropic's API, by its official client against a real server: streams, thoughts, tools, counts, errors.

In: the bundled model behind a socket, and models that fail on purpose. Out: contracts. Does not know: how
the engine answers (test_chat.py does).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from serving import Served, at_rest, listening, served, untold

from deepfast import LLM, Thinking
from deepfast.server import anthropic as api
from deepfast.server.app import create_app
from deepfast.server.service import Service
from deepfast.types import Delta, EngineError

ASK = [{"role": "user", "content": "What is 47 * 86?"}]
OFF: Any = {"type": "disabled"}
LONG = {"mode": "on", "min_tokens": 1500, "on_loop": "ignore"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"name": "weather", "description": "Says it.", "input_schema": SCHEMA}
CLOCK: Any = {"name": "clock", "input_schema": {**SCHEMA, "properties": {"city": {"const": "Oslo"}}}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "sunny"}
USE: Any = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {}}]}


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with LLM() as llm, served(llm) as running:
        yield running


@pytest.fixture(scope="module")
def client(here: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="none", base_url=here.url, max_retries=0) as made:
        yield made


def body(**changes: Any) -> dict[str, Any]:
    """A request that always gets the same answer."""
    plain = {"model": "deepfast-nano", "max_tokens": 600, "messages": ASK, "extra_body": {"seed": 1}}
    return {**plain, **changes}


# --- answers ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"thinking": OFF},
        {"thinking": {"type": "enabled", "budget_tokens": 20}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "any"}},
        {"tools": [{**WEATHER, "eager_input_streaming": True}], "tool_choice": {"type": "any"}},
        {"stop_sequences": ["04"]},
        {"max_tokens": 60},
    ],
)
def test_a_stream_adds_up_to_the_whole_message(client: anthropic.Anthropic, changes: dict[str, Any]) -> None:
    whole = client.messages.create(**body(**changes))
    with client.messages.stream(**body(**changes)) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(whole.content)
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    for name in ("stop_reason", "stop_sequence", "role", "model"):
        assert getattr(streamed, name) == getattr(whole, name)
    counts = [
        usage.input_tokens + (usage.cache_read_input_tokens or 0) for usage in (whole.usage, streamed.usage)
    ]
    assert counts[0] == counts[1] > 0
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0


def test_the_thought_is_a_block_before_the_answer(client: anthropic.Anthropic) -> None:
    done = client.messages.create(**body())
    thought, answer = done.content
    assert thought.type == "thinking" and thought.thinking and thought.signature.startswith("deepfast-")
    assert answer.type == "text" and answer.text == "4042"
    assert (done.stop_reason, done.stop_sequence) == ("end_turn", None)
    assert 0 < done.usage.output_tokens_details.thinking_tokens < done.usage.output_tokens
    assert done.model_extra["thinking"]["stop"] == "natural" and done.id.startswith("msg")
    again = client.messages.create(**body())
    assert again.content == done.content  # the same signature too


def test_a_thought_obeys_its_controls(client: anthropic.Anthropic) -> None:
    short = client.messages.create(**body(thinking={"type": "enabled", "budget_tokens": 20}))
    assert short.model_extra["thinking"]["stop"] == "budget"
    assert [block.type for block in short.content] == ["thinking", "text"]
    off = client.messages.create(**body(thinking=OFF, output_config={"effort": "high"}))
    assert [block.type for block in off.content] == ["text"]
    ours = client.messages.create(**body(extra_body={"seed": 1, "enable_thinking": False}))
    assert [block.type for block in ours.content] == ["text"]
    effort = client.messages.create(**body(thinking={"type": "adaptive"}, output_config={"effort": "low"}))
    assert effort.model_extra["thinking"]["budget"] == 4096
    both = {"thinking": {"type": "enabled", "budget_tokens": 20}, "output_config": {"effort": "max"}}
    assert client.messages.create(**body(**both)).model_extra["thinking"]["budget"] == 20


def test_a_thought_that_is_not_shown_still_comes_back(client: anthropic.Anthropic) -> None:
    shown, hidden = (
        client.messages.create(**body(thinking={"type": "adaptive", "display": display})).content[0]
        for display in ("summarized", "omitted")
    )
    assert hidden.type == "thinking" and hidden.thinking == "" and "47*6" in shown.thinking
    result = {"role": "user", "content": [RESULT]}
    counts = []
    for thought in ([shown], [hidden], []):
        turns = [*ASK, {"role": "assistant", "content": [*thought, *USE["content"]]}, result]
        counts.append(client.messages.count_tokens(model="deepfast-nano", messages=turns, tools=[WEATHER]))
    assert counts[0].input_tokens == counts[1].input_tokens > counts[2].input_tokens


def test_why_it_stopped_is_said(here: Served, client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(**body(stop_sequences=["nothing", "04"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "04")
    assert stopped.content[-1].text == "4"
    assert client.messages.create(**body(max_tokens=9)).stop_reason == "max_tokens"
    story, off = ASK[0]["content"], Thinking(mode="off")
    while (room := here.llm.max_context - here.llm.count_tokens(story, off)) > 2:
        story += " a" * (room - 2)
    full = client.messages.create(
        **body(messages=[{"role": "user", "content": story}], max_tokens=8000, thinking=OFF)
    )
    assert full.stop_reason == "model_context_window_exceeded"
    assert 0 < full.usage.output_tokens <= 2
    with pytest.raises(anthropic.BadRequestError, match="the context holds 2048"):
        client.messages.create(**body(messages=[{"role": "user", "content": "What is 47 * 86? " * 500}]))


def test_an_answer_that_fits_a_schema(client: anthropic.Anthropic) -> None:
    from pydantic import BaseModel

    class Place(BaseModel):
        yes: bool

    done = client.messages.parse(**body(output_format=Place))
    assert isinstance(done.parsed_output.yes, bool)


# --- tools ---


def test_tools_go_round(client: anthropic.Anthropic) -> None:
    called = client.messages.create(**body(tools=[WEATHER], tool_choice={"type": "any"}))
    assert called.stop_reason == "tool_use"
    use = next(block for block in called.content if block.type == "tool_use")
    assert use.type == "tool_use" and use.name == "weather" and use.input["city"] in ("Oslo", "Rome")
    assert use.id.startswith("toolu_")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [*ASK, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    done = client.messages.create(**body(messages=turns, tools=[WEATHER], tool_choice={"type": "none"}))
    assert done.stop_reason == "end_turn" and done.content[-1].type == "text"
    one = client.messages.create(
        **body(tools=[WEATHER, CLOCK], tool_choice={"type": "tool", "name": "clock"})
    )
    assert [block.name for block in one.content if block.type == "tool_use"][0] == "clock"


def test_at_most_one_call_where_only_one_is_wanted(client: anthropic.Anthropic) -> None:
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    for seed in range(4):
        done = client.messages.create(**body(tools=[WEATHER], tool_choice=choice, extra_body={"seed": seed}))
        assert [block.type for block in done.content].count("tool_use") == 1
        assert done.content[-1].type == "tool_use" and done.stop_reason == "tool_use"


def test_examples_of_a_tool_reach_the_model(client: anthropic.Anthropic) -> None:
    more = {**WEATHER, "input_examples": [{"city": "Oslo"}]}
    few, many = (
        client.messages.count_tokens(model="deepfast-nano", messages=ASK, tools=[tool]).input_tokens
        for tool in (WEATHER, more)
    )
    assert few < many
    done = client.messages.create(**body(tools=[more], tool_choice={"type": "any"}))
    assert done.stop_reason == "tool_use"


# --- counts ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"thinking": OFF},
        {"thinking": {"type": "enabled", "budget_tokens": 20}},
        {"system": "Answer with one number."},
        {"tools": [WEATHER, CLOCK]},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"messages": [*ASK, {"role": "assistant", "content": "4042"}, *ASK]},
    ],
)
def test_counted_tokens_are_those_that_are_used(client: anthropic.Anthropic, changes: dict[str, Any]) -> None:
    counted = client.messages.count_tokens(**{"model": "deepfast-nano", "messages": ASK, **changes})
    usage = client.messages.create(**body(**changes)).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    with client.messages.stream(**body(**changes)) as stream:
        for event in stream:
            if event.type == "message_start":
                assert event.message.usage.input_tokens == counted.input_tokens


# --- errors ---

IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"messages": []}, "messages: there are none"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, r"messages\.0\.content\.0: .* 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document' cannot be read"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "'a' is no tool_use of the turn before"),
        ({"messages": [*ASK, USE, *ASK]}, "'a' before it has no tool_result"),
        ({"messages": [*ASK, USE, {"role": "user", "content": [RESULT, RESULT]}]}, "has a result already"),
        ({"messages": [*ASK, {"role": "assistant", "content": "It"}]}, "cannot be continued"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\.0\.role"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\.0\.content is 3"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "bold": 1}]}]}, "'bold'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"extra_body": {"temperature": -1}}, "temperature=-1"),
        ({"extra_body": {"top_p": 0, "top_k": 3}}, "top_p=0"),
        ({"stop_sequences": [""]}, "stop_sequences holds an empty text"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305'"),
        ({"tools": [{"name": "x"}]}, r"tools\.0\.input_schema is null"),
        ({"tools": [WEATHER, WEATHER]}, "two tools are called 'weather'"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "defer_loading"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "'x' is not among the tools"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type='between_tools'"),
        ({"thinking": {"type": "enabled", "display": "loud"}}, "thinking.display='loud'"),
        ({"thinking": {"type": "disabled", "budget_tokens": 2000}}, "contradict each other"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"metadata": {"user": "x"}}, "'user'"),
        ({"speed": "fast"}, "speed='fast'"),
        ({"container": "c"}, "container is not supported"),
        ({"cache_control": {"type": "forever"}}, "cache_control is not understood"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort='huge'"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"extra_body": {"temprature": 1}}, "Did you mean 'temperature'"),
        ({"extra_body": {"stop": ["x"]}}, "stop_sequences"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: anthropic.Anthropic, changes: dict[str, Any], told: str
) -> None:
    extra = {name: value for name, value in changes.items() if name in ("speed", "container")}
    changes = {name: value for name, value in changes.items() if name not in extra}
    extra |= {name: changes.pop(name) for name in ("service_tier",) if name in changes}
    asked = body(**{"extra_body": extra, **changes})
    with pytest.raises(anthropic.BadRequestError, match=told) as caught:
        client.messages.create(
            **asked, stream=len(told) % 2 == 0
        )  # a stream that was not begun is refused alike
    assert caught.value.type == "invalid_request_error"
    assert "\n" not in caught.value.api_message


def test_a_wrong_model_and_a_full_queue_have_their_own_status(
    here: Served, client: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="deepfast-nano") as caught:
        client.messages.create(**body(model="claude-x"))
    assert caught.value.type == "not_found_error" and caught.value.request_id
    here.service.active += here.service.max_requests
    try:
        with pytest.raises(anthropic.RateLimitError) as full:
            client.messages.create(**body())
    finally:
        here.service.active -= here.service.max_requests
    assert full.value.type == "rate_limit_error" and full.value.response.headers["retry-after"]


def test_a_client_that_leaves_frees_its_blocks(here: Served, client: anthropic.Anthropic) -> None:
    with client.messages.stream(**body(max_tokens=2000, extra_body={"thinking": LONG})) as stream:
        next(iter(stream))
    assert at_rest(here.llm)


class Broken:
    """A model that says a word and fails, or says nothing for a while."""

    async def open(self, messages: Any, variants: Any, tools: Any = None, tool_choice: str = "auto") -> Any:
        return [self]

    async def __aiter__(self) -> Any:
        yield Delta("content", "Well")
        await asyncio.sleep(0.05)
        raise EngineError("the engine failed: it was told to.")

    async def aclose(self) -> None:
        """Nothing runs."""


def test_an_engine_that_fails_is_an_error_before_and_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PING_SECONDS", 0.01)
    app = create_app(Service({"broken": Broken()}), log=untold())  # type: ignore[dict-item]
    with listening(app) as url, anthropic.Anthropic(api_key="x", base_url=url, max_retries=0) as client:
        asked = body(model="broken")
        with pytest.raises(anthropic.InternalServerError) as caught:
            client.messages.create(**asked)
        assert caught.value.type == "api_error"
        raw = client.messages.with_raw_response.create(stream=True, **asked).http_response
        text = raw.read().decode()
        assert text.count("event: ping") > 1
        last = text.strip().split("\n\n")[-1].splitlines()
        assert last[0] == "event: error"
        assert json.loads(last[1].removeprefix("data: "))["error"] == {
            "type": "api_error",
            "message": "the engine failed: it was told to.",
        }
