"""Contracts of /v1/chat/completions and /v1/completions, seen through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_chats import QUESTION, SHORT, TOOLS, as_joined, ask, joined, refused

from deepfast.server.schema import ChatRequest, Controls
from deepfast.thinking.controls import CONTROL_FIELDS

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "maximum": 9999, "minimum": 0}},
    "required": ["answer"],
    "additionalProperties": False,
}

# --- answers ---


def test_an_answer_with_its_thought(client):
    done = ask(client, temperature=0)
    message = done.choices[0].message
    assert message.content == "4042" and done.choices[0].finish_reason == "stop"
    assert message.reasoning == message.reasoning_content and message.reasoning.endswith("=4042")
    assert done.id.startswith("chatcmpl-") and done.model == "nano"
    usage = done.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    thinking = done.choices[0].thinking
    assert thinking["mode"] == "on" and thinking["stop"] == "natural" and done.timing["total_s"] > 0


def test_a_stream_begins_with_role_and_id_and_ends_with_usage(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, temperature=0))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].choices[0].thinking["mode"] == "on"
    assert joined(chunks)[0]["content"] == "4042"


def test_no_usage_unless_asked_for(client):
    assert all(chunk.usage is None for chunk in ask(client, stream=True, max_tokens=8))


SAMPLING = st.fixed_dictionaries(
    {"seed": st.integers(0, 5), "max_tokens": st.sampled_from([5, 40, 120])},
    optional={
        "temperature": st.sampled_from([0, 0.5, 1.5]),
        "stop": st.sampled_from(["4", ["0", "2"]]),
        "n": st.sampled_from([2, 3]),
        "tools": st.just(TOOLS),
        "tool_choice": st.sampled_from(["auto", "none", "required"]),
        "logprobs": st.just(True),
        "reasoning_effort": st.sampled_from(["none", "low"]),
        "response_format": st.just({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}),
    },
).map(lambda f: f if "tools" in f else {k: v for k, v in f.items() if k != "tool_choice"})


@given(fields=SAMPLING)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_chunks_joined_are_the_answer(client, fields):
    whole = as_joined(ask(client, **fields))
    assert joined(ask(client, **fields, stream=True)) == whole


def test_n_answers_differ_by_their_seeds(client):
    done = ask(client, n=3, seed=5, temperature=1.5, reasoning_effort="none", max_tokens=6)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    alone = ask(client, seed=6, temperature=1.5, reasoning_effort="none", max_tokens=6)
    assert done.choices[1].message.content == alone.choices[0].message.content
    written = sum(choice.usage["completion_tokens"] for choice in done.choices)
    assert done.usage.completion_tokens == written


def test_variants_override_the_request(client):
    variants = [
        {"enable_thinking": False, "max_tokens": 3},
        {"thinking": {"budget": 10}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SHORT}}},
    ]
    body = {"variants": variants, "reasoning_effort": "high"}
    done = ask(client, extra_body=body, temperature=0)
    off, short, formed = done.choices
    assert off.message.reasoning is None and off.usage["completion_tokens"] == 3
    assert short.thinking["stop"] == "budget" and short.thinking["budget"] == 10
    assert json.loads(formed.message.content)["a"] in (1, 2) and formed.thinking["budget"] == 32768
    assert joined(ask(client, extra_body=body, temperature=0, stream=True)) == as_joined(done)
    assert refused(client, extra_body=body, n=2).param == "n"
    bad = refused(client, extra_body={"variants": [{}, {"temperature": -1}]})
    assert bad.param == "variants" and "variant 1: temperature=-1" in bad.message
    assert refused(client, extra_body={"variants": [{"n": 2}]}).param == "variants"


@pytest.mark.parametrize(
    "control",
    [
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"think": False},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"effort": "none"}},
        {"reasoning_budget": 0},
    ],
)
def test_every_spelling_of_no_thought(client, control):
    done = ask(client, extra_body=control, max_tokens=8)
    assert (
        done.choices[0].message.reasoning is None
        and done.usage.completion_tokens_details.reasoning_tokens == 0
    )


def test_every_thinking_control_is_a_field():
    assert CONTROL_FIELDS == set(Controls.model_fields) and CONTROL_FIELDS <= set(ChatRequest.model_fields)


def test_a_budget_ends_the_thought(client):
    done = ask(client, extra_body={"thinking_budget": 12})
    assert done.choices[0].thinking["stop"] == "budget"
    assert done.choices[0].thinking["source"] == "thinking_budget"


def test_logprobs_of_every_token_and_its_rivals(client):
    done = ask(client, logprobs=True, top_logprobs=3, temperature=0)
    content = done.choices[0].logprobs.content
    assert "".join(token.token for token in content).strip() == "4042"
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)
    assert content[0].top_logprobs[0].token == content[0].token
    assert bytes(content[-1].bytes).decode() == content[-1].token
    thought = "".join(token["token"] for token in done.choices[0].logprobs.reasoning)
    assert thought.strip() == done.choices[0].message.reasoning


def test_what_is_banned_by_bias_is_not_written(client, served):
    tokenizer = served.llm.tokenizer
    (four,) = tokenizer.encode("4")
    done = ask(client, logit_bias={str(four): -100}, reasoning_effort="none", temperature=0, max_tokens=4)
    assert "4" not in done.choices[0].message.content


# --- structured output and tools ---


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
            }
        },
        {"extra_body": {"guided_json": SCHEMA}},
        {"extra_body": {"guided_json": json.dumps(SCHEMA)}},
        {"extra_body": {"structured_outputs": {"json": SCHEMA}}},
    ],
)
def test_json_of_a_schema(client, fields):
    answer = json.loads(ask(client, **fields, seed=1).choices[0].message.content)
    assert list(answer) == ["answer"] and isinstance(answer["answer"], int)


def test_other_grammars(client):
    def content(**body: Any) -> str:
        return ask(client, extra_body=body, seed=1).choices[0].message.content

    assert content(guided_regex="[ab]{3}x").endswith("x")
    assert content(guided_choice=["a b", "c\nd", "(e|f)"]) in ("a b", "c\nd", "(e|f)")
    assert content(guided_grammar='start: "yes" | "no"') in ("yes", "no")
    assert content(structured_outputs={"choice": ["é", "ß"]}) in ("é", "ß")
    both = refused(client, extra_body={"guided_regex": "a", "guided_choice": ["a"]})
    assert both.param == "guided_choice" and "guided_regex" in both.message


def test_the_client_parses_what_it_asked_for(client):
    from pydantic import BaseModel, Field

    class Product(BaseModel):
        answer: int = Field(ge=0, le=9999)

    done = client.chat.completions.parse(model="nano", messages=QUESTION, response_format=Product, seed=1)
    assert isinstance(done.choices[0].message.parsed, Product)


def test_the_clients_own_stream_helper_reads_the_chunks(client):
    with client.chat.completions.stream(model="nano", messages=QUESTION, temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == "4042"
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_a_tool_is_called_and_its_result_read(client):
    done = ask(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "add"}}, seed=1)
    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "add" and json.loads(call.function.arguments)["a"] in (1, 2)
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    turns = [*QUESTION, choice.message.model_dump(), result]
    after = client.chat.completions.create(model="nano", messages=turns, tools=TOOLS, max_tokens=20)
    assert after.usage.prompt_tokens > done.usage.prompt_tokens
    stray = [*turns[:-1], result | {"tool_call_id": "call_x"}]
    with pytest.raises(openai.BadRequestError, match="call_x") as caught:
        client.chat.completions.create(model="nano", messages=stray, tools=TOOLS)
    assert caught.value.param == "messages"


def test_results_stand_in_the_order_of_their_calls(client):
    calls = [
        {"id": name, "type": "function", "function": {"name": "mul", "arguments": "{}"}}
        for name in ("one", "two")
    ]
    results = [{"role": "tool", "tool_call_id": id, "content": id * 20} for id in ("one", "two")]

    def prompt(answers) -> dict[int, dict[str, Any]]:
        turns = [*QUESTION, {"role": "assistant", "tool_calls": calls}, *answers]
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "logprobs": True, "tool_choice": "none"}
        return as_joined(client.chat.completions.create(model="nano", messages=turns, tools=TOOLS, **fields))

    assert prompt(results) == prompt(results[::-1])


def test_only_allowed_tools_are_called(client):
    allowed = [{"type": "function", "function": {"name": "add"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    for seed in range(3):
        done = ask(client, tools=TOOLS, tool_choice=choice, seed=seed, temperature=1.5)
        assert {call.function.name for call in done.choices[0].message.tool_calls} == {"add"}


def test_one_call_at_most_where_calls_must_not_be_parallel(client, served):
    opens = served.llm.tokenizer.control_id("<tool_call>")
    eager: dict[str, Any] = {
        "logit_bias": {str(opens): 50},
        "reasoning_effort": "none",
        "max_tokens": 90,
        "seed": 1,
    }
    many = ask(client, tools=TOOLS, **eager).choices[0]
    one = ask(client, tools=TOOLS, **eager, parallel_tool_calls=False).choices[0]
    assert len(many.message.tool_calls) > 1 and len(one.message.tool_calls) == 1
    assert one.finish_reason == "tool_calls" and one.message.content is None


def test_no_calls_without_tools(client, served):
    opens = served.llm.tokenizer.control_id("<tool_call>")
    message = ask(client, logit_bias={str(opens): 100}, max_tokens=20).choices[0].message
    assert message.tool_calls is None and "<tool_call>" not in message.content


def test_a_call_that_is_cut_off_is_the_same_streamed_and_whole(client):
    long = {"type": "object", "properties": {"a": {"type": "string", "minLength": 400}}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "mul", "parameters": long}}]
    fields: dict[str, Any] = {"tools": tools, "tool_choice": "required", "max_tokens": 60, "seed": 1}
    whole = as_joined(ask(client, **fields, reasoning_effort="none"))
    assert whole[0]["finish_reason"] == "length" and whole[0]["content"] == ""
    assert whole[0]["calls"][0]["name"] == "mul" and whole[0]["calls"][0]["arguments"].startswith('{"a": "')
    assert joined(ask(client, **fields, reasoning_effort="none", stream=True)) == whole
