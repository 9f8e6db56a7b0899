"""Whatever is sent to a route in the served schema: the server does not fail, and answers as described."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from serving import at_rest, untold
from starlette.testclient import TestClient

from deepfast import LLM, AsyncLLM
from deepfast.server.app import create_app
from deepfast.server.response_schema import ResponseRequest
from deepfast.server.schema import ChatRequest, CompletionRequest
from deepfast.server.service import Service
from deepfast.server.store import Store

CHECKS = (
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "responses.sqlite3")
    with LLM() as llm:
        yield create_app(Service({"nano": AsyncLLM(llm)}), log=untold(), store=store)
    store.close()


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def described(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_route_keeps_to_its_description(described, mode):
    labels = []
    for operation in (found.ok() for found in described.get_all_operations()):
        labels.append(operation.label)
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # any text will do in a path

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def check(case):
            case.call_and_validate(checks=CHECKS)

        check()
    assert {"POST /v1/chat/completions", "POST /v1/responses", "GET /v1/models"} <= set(labels)


# --- requests that are almost right: random JSON is refused at the door and reaches nothing behind it ---

WORDS = [
    *("hi", "What is 1 + 2?", "2 * 3?", "/no_think", " ", ""),
    *("<|im_end|><think>", "</think><tool_call>", "\0é🙂"),
]
TEXTS = st.sampled_from(WORDS)
NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, 1.5, 3, 1e300, 2**63, -(10**30), True])
WILD = st.recursive(
    st.none() | TEXTS | NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "name", "text", "effort", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
OBJECT = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
SCHEMAS = st.sampled_from(
    [OBJECT, True, {}, {"type": "string", "pattern": "a{3}"}, {"type": "nothing"}, {"$ref": "#/x"}]
)
CALLS = st.fixed_dictionaries({"name": TEXTS, "arguments": st.sampled_from(["{}", "{", '{"a": 1}'])})
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "image"]), "text": TEXTS}),
    max_size=2,
)
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "user", "assistant", "system", "developer", "tool"]),
        "content": TEXTS | PARTS,
    },
    optional={
        "reasoning_content": TEXTS,
        "tool_call_id": TEXTS,
        "tool_calls": st.lists(st.fixed_dictionaries({"id": TEXTS, "function": CALLS}), max_size=2),
    },
)
ITEMS = MESSAGES | st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "x"])},
    optional={
        "role": st.just("user"),
        "content": TEXTS | PARTS,
        "encrypted_content": TEXTS,
        "call_id": TEXTS,
        "name": TEXTS,
        "arguments": st.just("{}"),
        "output": TEXTS,
    },
)
FUNCTIONS = st.fixed_dictionaries(
    {"name": TEXTS, "parameters": SCHEMAS}, optional={"description": TEXTS, "strict": WILD}
)
TOOLS = st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTIONS}) | FUNCTIONS.map(
    lambda function: {"type": "function", **function}
)
FORMATS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    optional={
        "json_schema": st.fixed_dictionaries({"name": TEXTS, "schema": SCHEMAS}),
        "schema": SCHEMAS,
        "name": TEXTS,
    },
)
SENSIBLE = {
    "messages": st.lists(MESSAGES, min_size=1, max_size=4),
    "input": TEXTS | st.lists(ITEMS, max_size=4),
    "prompt": TEXTS | st.lists(TEXTS, max_size=2) | st.lists(st.integers(-1, 700), max_size=4),
    "model": st.sampled_from(["nano", "nano", "other"]),
    "tools": st.lists(TOOLS, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "name": "hi"}]),
    "response_format": FORMATS,
    "text": st.fixed_dictionaries({"format": FORMATS}),
    "stop": TEXTS | st.lists(TEXTS, max_size=2),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "5", "x", "700"]), NUMBERS, max_size=2),
    "logprobs": st.booleans() | st.integers(0, 3),
    "top_logprobs": st.integers(0, 3),
    "variants": st.lists(
        st.fixed_dictionaries({}, optional={"temperature": NUMBERS, "thinking": WILD}), max_size=2
    ),
    "stream": st.booleans(),
    "temperature": NUMBERS,
    "seed": NUMBERS,
    "reasoning_effort": st.sampled_from(["none", "low", 0.1]),
    "thinking_budget": st.integers(0, 9),
    "n": st.sampled_from([1, 2]),
    "guided_regex": st.sampled_from(["a+", "(", "", "[ab]{2}"]),
    "structured_outputs": st.fixed_dictionaries({"json": SCHEMAS}),
    "include": st.just(["message.output_text.logprobs"]),
    "metadata": st.dictionaries(TEXTS, TEXTS, max_size=2),
}
NEEDED = {
    "/v1/chat/completions": (ChatRequest, "messages", "max_tokens"),
    "/v1/completions": (CompletionRequest, "prompt", "max_tokens"),
    "/v1/responses": (ResponseRequest, "input", "max_output_tokens"),
}


@st.composite
def requests(draw: Any) -> tuple[str, dict[str, Any]]:
    """A path, and a body with a few fields of its API, each sensible or, now and then, wild."""
    path = draw(st.sampled_from(sorted(NEEDED)))
    model, needed, limit = NEEDED[path]
    names = draw(st.lists(st.sampled_from(sorted(model.model_fields)), max_size=3, unique=True))
    body = {name: draw(SENSIBLE.get(name, WILD) if draw(st.integers(0, 9)) else WILD) for name in names}
    return path, {limit: 12} | body | {needed: draw(SENSIBLE[needed])}


@given(asked=requests())
@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_requests_that_are_almost_right(client, asked):
    path, body = asked
    reply = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
        assert all(json.loads(event) for event in events if event != "[DONE]") and events
    elif reply.status_code == 200:
        assert reply.json()["usage"]
    else:
        error = reply.json()["error"]
        assert error["message"] and "\n" not in error["message"] and error["type"]
        assert error["param"] in NEEDED[path][0].model_fields, error


def test_almost_right_requests_leave_nothing_behind(app):
    llm = app.state.service.models["nano"].llm
    assert at_rest(llm) and app.state.service.active == 0
