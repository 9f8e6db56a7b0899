"""Anthropic's shapes and ours: conversations, tools, blocks; whatever is sent is read, or refused by name.

In: JSON and Deltas, made up. Out: contracts of the translation. Does not know: HTTP, models.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deepfast.server import anthropic as api
from deepfast.server.anthropic_messages import conversation, tool_choice, tools
from deepfast.server.anthropic_reply import Blocks, as_input
from deepfast.types import Delta, UsageError

ASK = [{"role": "user", "content": "What is 47 * 86?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"name": "weather", "description": "Says it.", "input_schema": SCHEMA}


def test_results_stand_in_the_order_of_their_calls() -> None:
    calls = [
        {"type": "thinking", "thinking": "hm", "signature": "from elsewhere"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "text", "text": "Let me see.", "citations": None},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}, "caller": None},
        {"type": "tool_use", "id": "b", "name": "clock", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": "no clock"},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "sunny"}]},
        {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    made = conversation(
        [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "user", "content": "there"},
            {"role": "assistant", "content": calls},
            {"role": "user", "content": results},
        ],
    )
    assert [turn["role"] for turn in made] == ["system", "user", "assistant", "tool", "tool", "user"]
    said = ["Be brief.\nBe kind.", "Hi\nthere", "Let me see.", "sunny", "Error: no clock", "Well?"]
    assert [turn["content"] for turn in made] == said
    assert made[2]["reasoning"] == "hm"
    assert made[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}


def test_thousands_of_results_find_their_calls_at_once() -> None:
    ids = [f"c{i}" for i in range(20_000)]
    calls = [{"type": "tool_use", "id": id, "name": "f", "input": {}} for id in ids]
    results = [{"type": "tool_result", "tool_use_id": id} for id in ids]
    began = time.thread_time()
    made = conversation(None, [{"role": "assistant", "content": calls}, {"role": "user", "content": results}])
    assert len(made) == 20_001 and time.thread_time() - began < 2


def test_tools_take_our_shape() -> None:
    made = tools([{**WEATHER, "input_examples": [{"city": "Oslo"}], "strict": True, "type": "custom"}])
    assert made is not None and not made.eager
    assert made.schemas[0]["function"]["parameters"] == {**SCHEMA, "examples": [{"city": "Oslo"}]}
    assert tool_choice({"type": "any", "disable_parallel_tool_use": True}, made) == ("required", False)
    assert tool_choice({"type": "auto"}, None) == ("auto", True)


def test_a_call_that_is_cut_off_is_text_unless_its_tool_is_eager() -> None:
    deltas = [
        Delta("tool_call", "", 0, "call_1", "weather"),
        Delta("tool_call", '{"city": "Os', 0),
        Delta("tool_call", "", 0, malformed="cut off"),
        Delta("content", '<tool_call>\n{"city": "Os'),
    ]
    held, eager = Blocks(), Blocks(eager={"weather"})
    events = [[event["type"] for delta in deltas for event in blocks.push(delta)] for blocks in (held, eager)]
    for blocks in (held, eager):
        blocks.finish()
    assert [block["type"] for block in held.content] == ["text"]
    assert [block["type"] for block in eager.content] == ["tool_use", "text"]
    assert eager.content[0]["input"] == {} and held.content[0]["text"] == eager.content[1]["text"]
    assert len(events[0]) < len(events[1])


def test_white_space_between_calls_is_no_text() -> None:
    blocks = Blocks()
    for delta in (
        Delta("reasoning", "hm"),
        Delta("content", "\n\n"),
        Delta("tool_call", "", 0, "call_1", "weather"),
        Delta("tool_call", '{"big": ' + "9" * 5000 + ', "far": 1e999}', 0),
        Delta("content", "\n"),
        Delta("tool_call", "", 1, "call_2", "clock"),
        Delta("tool_call", "{}", 1),
    ):
        blocks.push(delta)
    blocks.finish()
    assert [block["type"] for block in blocks.content] == ["thinking", "tool_use", "tool_use"]
    assert blocks.content[1]["input"] == {"big": "9" * 5000, "far": "1e999"}
    assert as_input("[1]") == as_input("{") == {}


WORDS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["x", "text", "auto", "a", ""])
WILD = st.recursive(
    WORDS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "name", "content", "effort", "display"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
KINDS = st.sampled_from(["text", "thinking", "tool_use", "tool_result", "redacted_thinking", "image"])
PARTS = {
    name: WILD for name in ("text", "thinking", "id", "name", "input", "tool_use_id", "content", "signature")
}
BLOCKS = st.lists(st.fixed_dictionaries({"type": KINDS}, optional=PARTS) | WILD, max_size=3)
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.just("hi") | BLOCKS | WILD}
)
FIELDS = sorted(api.MessagesRequest.model_fields)


@given(st.lists(TURNS, max_size=4), st.dictionaries(st.sampled_from(FIELDS), WILD, max_size=2))
@settings(max_examples=80, deadline=None, database=None)
def test_whatever_is_sent_is_understood_or_refused_in_words(turns: list[Any], others: dict[str, Any]) -> None:
    sent = {"model": "m", "max_tokens": 9} | others | {"messages": [*turns, *ASK]}
    try:
        wish = api.understood(api.MessagesRequest.model_validate(sent))
    except (UsageError, ValidationError):
        return
    assert all(isinstance(turn["content"], str) for turn in wish.ask.messages)


def test_a_damaged_seal_is_refused() -> None:
    block = {"type": "thinking", "thinking": "", "signature": "deepfast-thought-AAAA"}
    with pytest.raises(UsageError, match="damaged"):
        conversation(None, [*ASK, {"role": "assistant", "content": [block]}, *ASK])
