"""Whatever comes in as messages is either understood or refused by name, never a crash."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import BUNDLED_TEMPLATE, qwen

from deepfast.text.messages import as_messages
from deepfast.text.template import ChatTemplate
from deepfast.types import Message, ToolCall, UsageError

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def one(**fields):
    """The Message of one dict, followed by a question."""
    return as_messages([fields, USER])[0]


def test_a_text_messages_and_dicts_are_the_same():
    """Three ways to ask."""
    asked = [Message("user", "Hi")]
    assert as_messages("Hi") == as_messages(asked) == as_messages((USER,)) == asked


def test_messages_pass_through_unchanged():
    """With thoughts and calls."""
    turns = [
        Message("system", "Be brief."),
        Message("user", "1+1?"),
        Message("assistant", None, "Easy.", (ToolCall("add", '{"a": 1}', "call_1"),)),
        Message("tool", "2"),
    ]
    assert as_messages(turns) == turns


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_a_thought_under_any_name(name):
    """The field's name differs from server to server."""
    assert one(role="assistant", content="2", **{name: "1+1"}) == Message("assistant", "2", "1+1")


def test_a_thought_under_two_names_must_be_the_same():
    """Servers send both; a difference is refused."""
    same = one(role="assistant", content="2", reasoning="1+1", reasoning_content="1+1", thinking=None)
    assert same.reasoning == "1+1"
    with pytest.raises(UsageError, match="message 0: reasoning_content and reasoning differ"):
        one(role="assistant", content="2", reasoning="1+1", reasoning_content="1 + 1")


def test_calls_in_openai_s_shape_and_flat():
    """Arguments as text stay as they are; as an object they become JSON."""
    expected = Message("assistant", None, None, (ToolCall("add", '{"a": 1}', "call_1"),))
    assert one(role="assistant", content=None, tool_calls=[CALL]) == expected
    as_object = CALL | {"index": 0, "function": {"name": "add", "arguments": {"a": 1}}}
    assert one(role="assistant", tool_calls=[as_object]) == expected
    flat = {"id": "call_1", "name": "add", "arguments": {"a": 1}}
    assert one(role="assistant", tool_calls=[flat]) == expected
    umlaut = one(role="assistant", tool_calls=[{"name": "f", "arguments": {"ä": "ö"}}])
    assert umlaut.tool_calls == (ToolCall("f", '{"ä": "ö"}'),)


def test_content_parts_are_joined_and_developer_is_system():
    """tool_call_id and name are accepted."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": None}]
    assert one(role="developer", content=parts) == Message("system", "a\nb")
    assert one(role="user", content=[]) == Message("user", "")
    assert one(role="tool", content="2", tool_call_id="call_1", name="add") == Message("tool", "2")


def test_an_answer_may_be_echoed_with_its_empty_fields():
    """As the official client dumps it."""
    dumped = {"role": "assistant", "content": "2", "refusal": None, "annotations": [], "audio": None}
    assert one(**dumped, function_call=None, tool_calls=None) == Message("assistant", "2")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "there are no messages"),
        ("", "the prompt is empty"),
        ([USER | {"content": " \n"}], "the prompt is empty"),
        ([{"role": "user"}], "the prompt is empty"),
        ([USER | {"content": []}], "the prompt is empty"),
        (None, "messages is null. Give a text, or a list"),
        (b"Hi", "messages is bytes"),
        (USER, "messages is dict"),
        ([USER, "Hi"], "message 1 is str. Give an object"),
        ([USER, {"content": "Hi"}], "message 1: role null is unknown"),
        ([{"role": "robot", "content": "Hi"}], "message 0: role 'robot' is unknown. Use one of 'system'"),
        ([{"role": ["user"], "content": "Hi"}], "role list"),
        ([{"role": "user", "contents": "Hi"}], "message 0 has the unknown field 'contents'. Use content"),
        ([{"role": "user", 3: "Hi"}], "unknown field int"),
        ([USER | {"content": 5}], "message 0: content is int. Give text"),
        ([USER | {"content": {"text": "Hi"}}], "message 0: content is dict"),
        ([USER | {"content": ["Hi"]}], "message 0: content part 0 is str"),
        (
            [USER | {"content": [{"type": "image_url", "image_url": "x"}]}],
            "content part 0 has the type 'image_url'",
        ),
        ([USER | {"content": [{"text": "x"}]}], "content part 0 has the type null"),
        ([USER | {"content": [{"type": "text"}]}], "content part 0: text is missing"),
        ([USER | {"content": [{"type": "text", "text": "x", "y": 1}]}], "unknown field 'y'"),
        ([USER | {"content": "a\ud800"}], "content holds half of a surrogate pair"),
        ([USER | {"reasoning": "x"}], "reasoning belongs to role 'assistant', not 'user'"),
        ([USER | {"tool_calls": [CALL]}], "tool_calls belongs to role 'assistant'"),
        ([{"role": "assistant", "thinking": 5}], "message 0: thinking is int"),
        ([{"role": "tool", "content": "x", "tool_call_id": 5}], "tool_call_id is int"),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls is str. Give a list"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "tool call 0 is str"),
        ([{"role": "assistant", "tool_calls": [{"type": "custom"}]}], "tool call 0 has the type 'custom'"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], "tool call 0: function is str"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "tool call 0: name is missing"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "", "arguments": ""}]}],
            "tool call 0: name is empty",
        ),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], "tool call 0: arguments is missing"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}], "arguments is list"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": float("nan")}}]}],
            "arguments are no JSON",
        ),
        ([{"role": "assistant", "tool_calls": [CALL, CALL | {"id": 5}]}], "tool call 1: id is int"),
        ([{"role": "assistant", "tool_calls": [CALL | {"x": 5}]}], "tool call 0 has the unknown field 'x'"),
        ([Message("user", 5)], "message 0: content is int"),
        ([Message("assistant", "x", tool_calls=(5,))], "tool call 0 is int"),
        ([Message("assistant", "x", tool_calls=5)], "tool_calls is int"),
    ],
)
def test_what_makes_no_sense_is_refused_by_message_and_field(messages, words):
    """One line that says where."""
    with pytest.raises(UsageError, match=words) as caught:
        as_messages(messages)
    assert len(str(caught.value).splitlines()) == 1


def test_a_deep_object_is_no_crash():
    """json can not write it."""
    deep: dict = {}
    for _ in range(100_000):
        deep = {"a": deep}
    call = {"name": "f", "arguments": deep}
    with pytest.raises(UsageError, match="arguments are no JSON"):
        as_messages([{"role": "assistant", "tool_calls": [call]}, USER])


FIELDS = [
    "role",
    "content",
    "reasoning",
    "reasoning_content",
    "thinking",
    "tool_calls",
    "tool_call_id",
    "name",
]
INSIDE = ["type", "text", "id", "function", "arguments", "index"]
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "tool", "text", "function", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS + INSIDE), inner, max_size=4)
    ),
    max_leaves=12,
)
nearly = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
        optional={name: anything for name in FIELDS[1:]},
    ),
    max_size=3,
)


@given(anything | nearly)
def test_any_json_is_a_list_of_messages_or_a_usage_error(messages):
    """Never another exception; what is accepted can be written, and is accepted again, unchanged."""
    try:
        turns = as_messages(messages)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert turns
    for turn in turns:
        texts = [turn.content, turn.reasoning, *(call.arguments for call in turn.tool_calls)]
        json.dumps(texts).encode()
        assert all(text is None or text.encode().decode() == text for text in texts)
    assert as_messages(turns) == turns


@settings(max_examples=40)
@given(nearly)
def test_what_is_accepted_can_be_rendered(messages):
    """No shape that passes here breaks a template."""
    template = ChatTemplate.from_dir(BUNDLED_TEMPLATE.parent, qwen())
    try:
        turns = as_messages(messages)
    except UsageError:
        return
    assert template.encode(turns)
