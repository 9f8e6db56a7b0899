"""What the OpenAI APIs refuse, and how they fail, seen through OpenAI's own client."""

from __future__ import annotations

import time
from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params
from openai_chats import QUESTION, TOOLS, as_joined, ask, refused
from serving import at_rest, untold
from starlette.testclient import TestClient

from deepfast.server.app import create_app
from deepfast.server.response_schema import ResponseRequest
from deepfast.server.schema import ChatRequest, CompletionRequest
from deepfast.server.service import Service
from deepfast.server.wishes import chat_messages
from deepfast.types import EngineError


@pytest.mark.parametrize(
    ("body", "api"),
    [(ChatRequest, chat_params), (CompletionRequest, completion_params), (ResponseRequest, response_params)],
)
def test_every_field_that_the_client_knows_is_honoured_or_refused_by_name(body, api):
    fields = {
        name
        for kind in ("CompletionCreateParams", "ResponseCreateParams")
        for way in ("Streaming", "NonStreaming")
        if hasattr(api, kind + way)
        for name in get_type_hints(getattr(api, kind + way))
    }
    assert len(fields) > 15 and not body.model_fields.keys() & body.REFUSED.keys()
    assert fields <= body.model_fields.keys() | body.REFUSED.keys()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"store": True}, "store"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"verbosity": "low"}, "verbosity"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"temperature": 500}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 30}, "logprobs"),
        ({"n": 0}, "n"),
        ({"n": 81}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 129}, "stop"),
        ({"extra_body": {"stop_token_ids": [5] * 129}}, "stop_token_ids"),
        ({"extra_body": {"guided_choice": [str(i) for i in range(1001)]}}, "guided_choice"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"four": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "div"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"extra_body": {"chat_template_kwargs": {"shout": True}}}, "chat_template_kwargs"),
        ({"extra_body": {"custom_params": {"shout": True}}}, "custom_params"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"extra_body": {"thinking_budget": -1}}, "thinking_budget"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, fields, param):
    error = refused(client, **fields)
    assert error.status_code == 400 and error.type == "invalid_request_error"
    assert error.param == param, error.message


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "wizard", "content": "hi"},
        {"role": "user", "content": ""},
    ],
)
def test_messages_that_cannot_be_read(client, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="nano", messages=[message])
    assert caught.value.param == "messages"


def test_thousands_of_results_find_their_calls_at_once():
    ids = [f"c{i}" for i in range(20_000)]
    calls = {"role": "assistant", "tool_calls": [{"id": id} for id in ids]}
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in ids]
    began = time.thread_time()
    made = chat_messages([calls, *reversed(results)])
    assert made == [calls, *results] and time.thread_time() - began < 2


def test_a_model_that_is_not_there(client):
    with pytest.raises(openai.NotFoundError, match="gpt-4") as caught:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert caught.value.param == "model"


def test_a_number_that_is_none_in_json(served):
    body = '{"messages": [], "tools": [{"x": 1e400}]}'
    reply = httpx.post(
        f"{served.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400 and "1e400" in reply.json()["error"]["message"]


def test_what_is_not_known_of_remote_models():
    class Remote:
        """A model that can only chat; nothing here gets so far as to ask it."""

    with TestClient(create_app(Service({"far": Remote()}), log=untold())) as client:
        chat = {"messages": QUESTION, "logprobs": True}
        for path, body, param in (
            ("chat/completions", chat, "logprobs"),
            ("completions", {"prompt": "x"}, "model"),
        ):
            reply = client.post(f"/v1/{path}", json=body)
            assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_labels_and_nulls_change_nothing(client):
    labels: dict[str, Any] = {
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
    }
    nulls = dict.fromkeys(("temperature", "stop", "tools", "response_format", "logit_bias", "n", "audio"))
    plain = as_joined(ask(client, seed=1))
    assert as_joined(ask(client, seed=1, **labels, extra_body=nulls)) == plain


def test_an_error_in_mid_stream_is_an_event(client, served, monkeypatch):
    backend = served.llm.engine.runner.backend
    real, steps = backend.sample, 0

    def failing(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 5:
            raise EngineError("logits of sequence 0 hold NaN. The weights are damaged.")
        return real(*args)

    monkeypatch.setattr(backend, "sample", failing)
    said = []
    with pytest.raises(openai.APIError, match="NaN") as caught:
        for chunk in ask(client, stream=True):
            said.append(chunk)
    assert said and caught.value.type == "api_error"
    with pytest.raises(openai.InternalServerError, match="NaN"):
        ask(client)


LONG: dict[str, Any] = {"ignore_eos": True, "seed": 1}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": QUESTION, "n": 8, "max_tokens": 1900, "think": False}),
        ("completions", {"prompt": "1", "n": 8, "max_tokens": 2000}),
        ("responses", {"input": "hi", "max_output_tokens": 1900, "think": False}),
    ],
)
def test_a_client_that_leaves_frees_its_request(served, path, body, stream):
    before = served.service.active
    with httpx.Client(timeout=httpx.Timeout(5, read=0.2)) as client:
        try:
            with client.stream(
                "POST", f"{served.url}/v1/{path}", json=body | LONG | {"stream": stream}
            ) as reply:
                for _ in reply.iter_lines():
                    break
        except httpx.ReadTimeout:
            assert not stream
    began = time.monotonic()
    assert at_rest(served.llm, 5.0) and before == 0
    while served.service.active and time.monotonic() < began + 5.0:
        time.sleep(0.002)
    assert served.service.active == 0
