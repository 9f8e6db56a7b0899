"""Contracts of /v1/responses and its store, seen through OpenAI's own client."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import listening, untold

from deepfast import LLM, AsyncLLM
from deepfast.server.app import create_app
from deepfast.server.response_events import Writer
from deepfast.server.response_items import as_items, as_messages
from deepfast.server.service import Service
from deepfast.server.store import Store, Stored
from deepfast.types import Completion, Delta, ThinkingReport, Timing, Usage, UsageError

ARGUMENTS = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "name": "mul", "parameters": ARGUMENTS, "strict": True}]
QUESTION = "What is 47 * 86?"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "state" / "responses.sqlite3", kept=50)
    yield store
    store.close()


@pytest.fixture(scope="module")
def app(store):
    with LLM() as llm:
        yield create_app(Service({"nano": AsyncLLM(llm)}), log=untold(), store=store)


@pytest.fixture(scope="module")
def client(app):
    with listening(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def create(client, **fields: Any):
    """One response, not streamed."""
    return client.responses.create(**{"model": "nano", "input": QUESTION, "temperature": 0} | fields)


@contextmanager
def stored_in(app: Any, store: Store | None):
    """The server with another store."""
    before, app.state.store = app.state.store, store
    try:
        yield
    finally:
        app.state.store = before


# --- answers ---


def test_a_thought_and_an_answer_as_items(client):
    done = create(client)
    thought, answer = done.output
    assert done.status == "completed" and done.output_text == "4042" and done.id.startswith("resp-")
    assert thought.type == "reasoning" and thought.content[0].text.endswith("=4042") and thought.summary == []
    assert answer.type == "message" and answer.status == "completed" and answer.content[0].annotations == []
    used = done.usage
    assert used.total_tokens == used.input_tokens + used.output_tokens
    assert 0 < used.output_tokens_details.reasoning_tokens < used.output_tokens
    assert done.thinking["mode"] == "on"


FIELDS = st.fixed_dictionaries(
    {
        "max_output_tokens": st.sampled_from([5, 60, 130]),
        "extra_body": st.fixed_dictionaries({"seed": st.integers(0, 3)}),
    },
    optional={
        "temperature": st.sampled_from([0, 1.5]),
        "reasoning": st.sampled_from([{"effort": "none"}, {"effort": "low", "summary": "auto"}]),
        "tools": st.just(TOOLS),
        "text": st.just({"format": {"type": "json_schema", "name": "a", "schema": ARGUMENTS}}),
        "include": st.just(["message.output_text.logprobs", "reasoning.encrypted_content"]),
    },
)


@given(fields=FIELDS, must_call=st.booleans())
@settings(max_examples=6, deadline=None)
def test_events_add_up_to_the_response(client, fields, must_call):
    if must_call and "tools" in fields:
        fields = fields | {"tool_choice": "required"}
    events = list(create(client, **fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == f"response.{last.response.status}"
    assert {event.response.id for event in (events[0], last)} == {last.response.id}
    items = last.response.output
    for index, item in enumerate(items):
        mine = [event for event in events if getattr(event, "output_index", None) == index]
        assert mine[0].type == "response.output_item.added" and mine[-1].type == "response.output_item.done"
        assert mine[-1].item == item and mine[0].item.id == item.id
        text = item.arguments if item.type == "function_call" else item.content[0].text
        assert "".join(event.delta for event in mine if event.type.endswith(".delta")) == text
    whole = create(client, **fields)
    assert [said(item) for item in whole.output] == [said(item) for item in items]
    assert (
        whole.status == last.response.status
        and whole.usage.output_tokens == last.response.usage.output_tokens
    )


def said(item: Any) -> tuple[Any, ...]:
    """An item without its ids."""
    if item.type == "function_call":
        return item.type, item.name, item.arguments, item.status
    return item.type, item.content[0].text, item.status


def test_the_clients_own_stream_helper_reads_the_events(client):
    with client.responses.stream(model="nano", input=QUESTION, temperature=0) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "4042"
    assert "response.reasoning_text.delta" in kinds and "response.output_text.done" in kinds


def test_an_answer_that_is_cut_is_incomplete(client):
    done = create(
        client, max_output_tokens=6, reasoning={"effort": "none"}, tools=TOOLS, tool_choice="required"
    )
    assert done.status == "incomplete" and done.incomplete_details.reason == "max_output_tokens"
    assert done.output[-1].status == "incomplete"


def test_structured_output_is_parsed_by_the_client(client):
    from pydantic import BaseModel, Field

    class Product(BaseModel):
        answer: int = Field(ge=0, le=9999)

    done = client.responses.parse(model="nano", input=QUESTION, text_format=Product, temperature=0)
    assert isinstance(done.output_parsed, Product)


def test_logprobs_when_they_are_included(client):
    done = create(client, include=["message.output_text.logprobs"], top_logprobs=2)
    listed = done.output[-1].content[0].logprobs
    assert "".join(token.token for token in listed).strip() == "4042" and len(listed[0].top_logprobs) == 2


# --- conversations ---


def test_a_conversation_goes_on_from_what_was_kept(client):
    first = create(client, instructions="Answer in one word.")
    second = create(client, input="And 3 + 4?", previous_response_id=first.id)
    answer = first.output[-1].content[0].text
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    whole = create(client, input=[*turns, {"role": "user", "content": "And 3 + 4?"}])
    assert second.usage.input_tokens == whole.usage.input_tokens  # instructions are not carried over
    assert second.previous_response_id == first.id and second.output_text == whole.output_text
    assert client.responses.retrieve(first.id).output_text == "4042"


def test_thoughts_survive_inside_a_tool_loop(client):
    first = create(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    call = first.output[-1]
    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4042"}
    kept = create(client, input=[result], previous_response_id=first.id, tools=TOOLS, max_output_tokens=8)
    sent = [{"role": "user", "content": QUESTION}, *(item.model_dump() for item in first.output), result]
    resent = create(client, input=sent, tools=TOOLS, max_output_tokens=8)
    assert kept.usage.input_tokens == resent.usage.input_tokens
    bare = create(client, input=[sent[0], *sent[2:]], tools=TOOLS, max_output_tokens=8)
    assert kept.usage.input_tokens > bare.usage.input_tokens


def test_a_thought_comes_back_from_its_encoded_field(client):
    first = create(
        client, tools=TOOLS, tool_choice="required", include=["reasoning.encrypted_content"], store=False
    )
    thought, call = (item.model_dump() for item in first.output[:2])
    only_encoded = thought | {"content": None}
    result = {
        "type": "function_call_output",
        "call_id": call["call_id"],
        "output": [{"type": "input_text", "text": "1"}],
    }
    counts = {
        create(
            client,
            input=[{"role": "user", "content": QUESTION}, item, call, result],
            tools=TOOLS,
            max_output_tokens=8,
        ).usage.input_tokens
        for item in (thought, only_encoded)
    }
    assert len(counts) == 1


def test_input_items_in_pages(client):
    turns = [{"role": "user", "content": f"{number} + 1?"} for number in range(3)]
    done = create(client, input=turns, max_output_tokens=5)
    latest = client.responses.input_items.list(done.id, limit=2)
    assert [item.content[0].text for item in latest.data] == ["2 + 1?", "1 + 1?"] and latest.has_more
    everything = [
        item.content[0].text for item in client.responses.input_items.list(done.id, limit=2, order="asc")
    ]
    assert everything == ["0 + 1?", "1 + 1?", "2 + 1?"]


def test_what_is_deleted_or_never_stored_is_not_found(client):
    gone, never = create(client, max_output_tokens=5), create(client, max_output_tokens=5, store=False)
    client.responses.delete(gone.id)
    for id in (gone.id, never.id, "resp-nowhere"):
        for act in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                act(id)
        with pytest.raises(openai.NotFoundError):
            create(client, previous_response_id=id)


@pytest.mark.parametrize("fields", [{"store": True}, {"previous_response_id": "resp-1"}])
def test_a_server_without_a_store(app, client, fields):
    with stored_in(app, None):
        assert create(client, max_output_tokens=5).store is False
        with pytest.raises(openai.BadRequestError, match="keeps no answers") as caught:
            create(client, **fields)
        assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"reasoning": {"effort": "low", "summary": "detailed"}}, "reasoning"),
        ({"reasoning": {"effort": "huge"}}, "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"text": {"verbosity": "low"}}, "text"),
        ({"metadata": {"a": "b" * 600}}, "metadata"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}, {"role": "user"}]},
            "input",
        ),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert caught.value.param == param, caught.value.message


# --- the pieces ---


def test_white_space_between_calls_is_no_item():
    writer = Writer(None)
    deltas = [
        Delta("reasoning", "hm"),
        Delta("tool_call", "", 0, "c0", "f"),
        Delta("tool_call", "{}", 0),
        Delta("content", "\n"),
        Delta("tool_call", "", 1, "c1", "g"),
        Delta("tool_call", "{", 1),
        Delta("tool_call", "", 1, malformed="it is cut off"),
        Delta("content", '<tool_call>{"name": "g", "arguments": {'),
    ]
    for delta in deltas:
        writer.push(delta)
    done = Completion("hm", "", (), (), (), "length", Usage(), ThinkingReport(), Timing())
    writer.finish(done)
    assert [(item["type"], item["status"]) for item in writer.items] == [
        ("reasoning", "completed"),
        ("function_call", "completed"),
        ("function_call", "incomplete"),
    ]


def test_items_that_follow_each_other_are_one_turn():
    items = as_items(
        [
            {"role": "user", "content": "q"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
            {"role": "assistant", "content": "a"},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "2", "output": "r"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t2"}]},
            {"role": "assistant", "content": "b"},
        ]
    )
    messages = as_messages(items, "be brief")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["reasoning"] == "t" and [call["id"] for call in messages[2]["tool_calls"]] == [
        "1",
        "2",
    ]
    assert messages[4] == {"role": "assistant", "content": "b", "reasoning": "t2"}


def stored(id: str) -> Stored:
    return Stored({"id": id, "text": "é" * 10}, [{"id": "i"}], [{"id": "i"}, {"id": "o"}])


def test_the_store_is_private_bounded_and_lasts(tmp_path):
    path = tmp_path / "deep" / "responses.sqlite3"
    store = Store(path, kept=3)

    async def fill() -> list[bool]:
        for number in range(5):
            await store.put(stored(f"r{number}"))
        return [await store.get(f"r{number}") is not None for number in range(5)]

    assert asyncio.run(fill()) == [False, False, True, True, True]
    files = [path, *path.parent.glob("*-wal"), *path.parent.glob("*-shm")]
    assert all(stat.S_IMODE(os.stat(file).st_mode) == 0o600 for file in files) and len(files) == 3
    store.close()
    again = Store(path, kept=3)
    assert asyncio.run(again.get("r4")) == stored("r4")
    assert asyncio.run(again.delete("r4")) and not asyncio.run(again.delete("r4"))
    assert b"r4" not in b"".join(file.read_bytes() for file in path.parent.iterdir())
    again.close()


def test_a_file_that_is_no_store_is_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite3"
    text.write_text("my notes, which are no database at all")
    with sqlite3.connect(other) as file:
        file.execute("CREATE TABLE mine (a)")
    file.close()
    before = text.read_bytes(), other.read_bytes()
    for path in (text, other, tmp_path):
        with pytest.raises(UsageError, match="Choose another"):
            Store(path)
    assert (text.read_bytes(), other.read_bytes()) == before


def test_an_answer_that_is_cut_by_the_server_has_failed_and_is_not_kept(app, client):
    for _ in range(20):  # until it is cut before it has ended by itself
        with create(client, stream=True, extra_body={"ignore_eos": True, "think": False}) as stream:
            id = next(stream).response.id
            for running in app.state.service.all_running:
                running.cancel()
            last = list(stream)[-1]
        if last.type == "response.failed":
            break
    assert last.type == "response.failed" and "shutting down" in last.response.error.message
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)


def test_a_store_that_fails_is_an_error_not_silence(tmp_path, app, client):
    broken = Store(tmp_path / "responses.sqlite3")
    broken._thread.submit(broken._file.execute, "DROP TABLE answers").result()
    with stored_in(app, broken):
        with pytest.raises(openai.InternalServerError, match="failed"):
            create(client, max_output_tokens=5)
        last = list(create(client, max_output_tokens=5, stream=True))[-1]
    assert last.type == "response.failed" and "failed" in last.response.error.message
    broken.close()
