"""What goes to an endpoint and what comes back, without a wire: dialects, chunks, thoughts in the content.

In: wishes; lines of streams, made up. Out: contracts. Does not know: connections.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepfast import Grammar, Message, SamplingParams, Thinking, ToolCall, Variant
from deepfast.client_body import chat_body
from deepfast.client_reply import Reader
from deepfast.server.streaming import event
from deepfast.types import Completion, ControlError, Delta, EngineError, UsageError

ASK = "What is 47 * 86?"

# --- what comes back ---


def chunk(reason: str | None = None, **delta: Any) -> str:
    """One line of a stream."""
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return "data: " + json.dumps({"id": "x", "choices": choices})


def read(*lines: str, asked: Thinking | None = None) -> tuple[list[Delta], Completion]:
    """What is made of a stream."""
    reader = Reader("there", None, asked)
    deltas = [delta for line in lines for delta in reader.push(line)]
    return deltas + reader.finish(), reader.completion()


@pytest.mark.parametrize(
    ("pieces", "reasoning", "content"),
    [
        (["<think>\nhm\n</think>\n\nyes"], "hm", "yes"),
        (["<thi", "nk>\nh", "m\n", "</thi", "nk>\n", "\ny", "es"], "hm", "yes"),
        (list("<think>\na < b\n\n</t>\n</think>\n\n<think>"), "a < b\n\n</t>", "<think>"),
        (["<think>half"], "half", ""),
        (["<thin"], "", "<thin"),
        (["a <think>b</think>"], "", "a <think>b</think>"),
    ],
)
def test_a_thought_in_the_content_is_found_however_it_is_split(
    pieces: list[str], reasoning: str, content: str
) -> None:
    deltas, done = read(*[chunk(content=piece) for piece in pieces], chunk("stop"))
    assert (done.reasoning, done.content) == (reasoning, content)
    assert "".join(d.text for d in deltas if d.kind == "content") == content
    assert done.thinking.stop == ("natural" if reasoning and content else "none")


def test_only_a_line_feed_ends_a_line() -> None:
    said = "a\u2028b\x85c"
    raw = chunk(content=said).encode().decode("unicode_escape")  # as others send it: not escaped
    reader = Reader("there", None, None)
    text = f"{raw}\r\n\r\n{chunk('stop')}"
    lines = [line for half in (text[:30], text[30:], "\n") for line in reader.lines(half)]
    assert said in text and "".join(d.text for line in lines for d in reader.push(line)) == said
    assert reader.finish() == []
    assert event({"x": said}).decode().splitlines()[0] == event({"x": said}).decode().rstrip("\n")


def test_other_spellings_of_an_answer() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    deltas, done = read(
        ": a comment",
        "",
        chunk(role="assistant", content=None),
        chunk(reasoning="hm"),
        chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"x": 1}'}}]),
        chunk(tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": '{"y'}}]),
        chunk("length"),
        "data: " + json.dumps({"choices": [], "usage": usage}),
        "data: [DONE]",
        asked=Thinking(budget=9),
    )
    assert done.reasoning == "hm" and done.finish_reason == "length"
    assert done.tool_calls == (ToolCall("f", '{"x": 1}', "a"),)
    assert done.content == '<tool_call>\n{"name": "g", "arguments": {"y' and len(done.malformed) == 1
    assert [delta.malformed for delta in deltas if delta.index == 1][-1]
    assert (done.usage.prompt_tokens, done.usage.cached_tokens, done.usage.reasoning_tokens) == (5, 4, 0)
    assert (done.thinking.mode, done.thinking.budget, done.thinking.stop) == ("on", 9, "natural")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([chunk(content="We")], "broke off in the middle"),
        (['{"choices": []}'], "sent no chat completion as a stream"),
        (["data: {"], "no chunk of a chat completion"),
        (['data: {"choices": 3}'], "no chunk of a chat completion"),
        (["data: 7"], "no chunk of a chat completion"),
        (['data: {"error": {"message": "out of\\nmemory"}}'], "there failed: out of memory."),
    ],
)
def test_a_stream_that_is_none_is_an_error_of_one_line(lines: list[str], told: str) -> None:
    with pytest.raises(EngineError, match=told) as caught:
        read(*lines)
    assert "\n" not in str(caught.value)


# --- what is sent ---


def sent(dialect: str, wish: Thinking | None = None, **params: Any) -> dict[str, Any]:
    """The body, without what is always there."""
    variant = Variant(SamplingParams(**params), wish)
    body = chat_body("there", dialect, "m", ASK, variant, None, "auto")
    assert body.pop("messages") == [{"role": "user", "content": ASK}]
    return {name: body[name] for name in body if name not in ("model", "stream", "stream_options")}


@pytest.mark.parametrize(
    ("dialect", "on", "limited"),
    [
        ("deepfast", {"thinking": {"mode": "on"}}, {"thinking": {"mode": "on", "budget": 9}}),
        (
            "vllm",
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 9},
        ),
        (
            "llamacpp",
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 9},
        ),
        ("dashscope", {"enable_thinking": True}, {"enable_thinking": True, "thinking_budget": 9}),
        ("openrouter", {"reasoning": {"enabled": True}}, {"reasoning": {"enabled": True, "max_tokens": 9}}),
        ("openai", {"reasoning_effort": "medium"}, None),
    ],
)
def test_a_wish_is_spelled_as_the_dialect_has_it(dialect: str, on: Any, limited: Any) -> None:
    assert sent(dialect) == {}
    assert sent(dialect, Thinking(mode="on")) == on
    if limited is not None:
        assert sent(dialect, Thinking(mode="on", budget=9)) == limited
    else:
        with pytest.raises(ControlError, match="budget=9 .*'openai'"):
            sent(dialect, Thinking(budget=9))
    if dialect != "deepfast":
        with pytest.raises(ControlError, match="min_tokens=5"):
            sent(dialect, Thinking(min_tokens=5))


def test_sampling_is_told_or_refused() -> None:
    told = sent("openai", temperature=0.5, max_tokens=9, stop=("x",), logit_bias={3: 1.0}, seed=4)
    assert told == {
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "stop": ("x",),
        "logit_bias": {"3": 1.0},
        "seed": 4,
    }
    assert sent("vllm", top_k=3, max_tokens=9) == {"top_k": 3, "max_tokens": 9}
    for name, value in (("top_k", 3), ("min_p", 0.1), ("ignore_eos", True), ("repetition_penalty", 1.1)):
        with pytest.raises(UsageError, match=f"{name}=.*'openai'"):
            sent("openai", **{name: value})
    with pytest.raises(UsageError, match="logprobs"):
        sent("deepfast", logprobs=2)
    with pytest.raises(UsageError, match="'lark'"):
        sent("openai", grammar=Grammar("lark", "start: /a/"))


def test_old_thoughts_and_results_of_tools_are_sent_as_each_dialect_wants_them() -> None:
    turns = [
        Message("user", "hi"),
        Message("assistant", "", "hm", (ToolCall("f", "{}"), ToolCall("g", "{}", "own"))),
        Message("tool", "1"),
        Message("tool", "2"),
    ]
    for dialect in ("deepfast", "openai"):
        made = chat_body("there", dialect, "m", turns, Variant(), None, "auto")["messages"]
        assert [made[i]["tool_call_id"] for i in (2, 3)] == [call["id"] for call in made[1]["tool_calls"]]
        assert made[3]["tool_call_id"] == "own"
        assert ("reasoning_content" in made[1]) == (dialect == "deepfast")
    for calls in (5, ["x"], [{"id": "a"}], [{"function": 5}], [{"id": 5, "name": "f", "arguments": "{}"}]):
        with pytest.raises(UsageError, match="message 0: tool.call"):
            wrong: Any = [{"role": "assistant", "tool_calls": calls}]
            chat_body("there", "openai", "m", wrong, Variant(), None, "auto")
    with pytest.raises(UsageError, match="answers no call"):
        chat_body("there", "openai", "m", [Message("tool", "1")], Variant(), None, "auto")
