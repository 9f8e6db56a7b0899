"""The tool-call parser: however a call is split it reads the same, and it takes what `json.loads` takes.

In: calls, mutated calls, random JSON. Out: deltas and a ToolCall, or a reason. Does not know: any model.
"""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepfast.text.tool_calls import MAX_DEPTH, ToolCallParser
from deepfast.types import Delta, ToolCall

ESCAPED = '{"name": "f", "arguments": {"a": [true, 0.5E+1, "\\u00e9"]}}'
CALL = '\n{"name": "get_weather", "arguments": {"city": "Z\u00fcrich", "days": [1, -2.5e3, {}], "x": null}}\n'
JSON_CHARS = '{}[]:,"\\ \n\t-+.eE0123456789truefalsn/bu\u00e9\x01NI'

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=3)


@st.composite
def calls(draw):
    """The text of a call, in one of the layouts that JSON allows."""
    pairs = [("name", draw(st.text(min_size=1, max_size=8))), ("arguments", draw(objects))]
    layout = draw(
        st.sampled_from(({}, {"indent": 2}, {"separators": (",", ":")}, {"separators": (" ,\t", "\r\n:")}))
    )
    text = json.dumps(dict(draw(st.permutations(pairs))), ensure_ascii=draw(st.booleans()), **layout)
    return draw(st.sampled_from(("", "\n", " \t"))) + text + draw(st.sampled_from(("", "\n", "\r\n ")))


@st.composite
def mutated(draw):
    """A call with up to three characters changed, dropped or added."""
    text = draw(calls() | st.sampled_from((CALL, ESCAPED)))
    for _ in range(draw(st.integers(0, 3))):
        at, drop = draw(st.integers(0, len(text))), draw(st.integers(0, 1))
        text = text[:at] + draw(st.sampled_from(("", *JSON_CHARS))) + text[at + drop :]
    return text


def read(pieces, closed=True):
    """(head, arguments as streamed, reason as streamed), the call, the parser."""
    parser = ToolCallParser(3, "call_7")
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    last, call = parser.finish(closed)
    deltas += last
    heads = [delta for delta in deltas if delta.name]
    bad = [delta for delta in deltas if delta.malformed]
    assert all(delta.kind == "tool_call" and delta.index == 3 for delta in deltas)
    assert deltas[:1] == heads and len(bad) <= 1 and deltas[len(deltas) - len(bad) :] == bad
    assert all(delta.text for delta in deltas if delta not in (*heads, *bad))
    return (heads, "".join(delta.text for delta in deltas), bad), call, parser


def oracle(text):
    """(name, arguments) as the standard library reads the call, None when it is none."""

    def refuse(constant):
        raise ValueError(constant)

    try:
        pairs = json.loads(text, parse_constant=refuse, object_pairs_hook=lambda pairs: tuple(pairs) or ((),))
        outer = json.loads(text)
    except ValueError:
        return None
    if not isinstance(outer, dict) or sorted(pair[0] for pair in pairs if pair) != ["arguments", "name"]:
        return None
    name, arguments = outer["name"], outer["arguments"]
    if not isinstance(arguments, dict) or not isinstance(name, str) or not name:
        return None
    return None if any("\ud800" <= char <= "\udfff" for char in name) else (name, arguments)


def test_a_call_streams_its_name_then_its_arguments_then_is_whole():
    parser = ToolCallParser(0, "call_0")
    assert parser.push('\n{"name": "get') == []
    assert parser.push('_it"') == [Delta("tool_call", "", 0, "call_0", "get_it")]
    assert parser.push(', "arguments": ') == []
    assert parser.push('{"a": [1, ') == [Delta("tool_call", '{"a": [1, ')]
    assert parser.push("2]} }\n") == [Delta("tool_call", "2]}")]
    assert parser.finish(closed=True) == ([], ToolCall("get_it", '{"a": [1, 2]}', "call_0"))
    assert parser.raw == '\n{"name": "get_it", "arguments": {"a": [1, 2]} }\n' and not parser.reason


def test_arguments_wait_for_a_name_that_comes_later():
    parser = ToolCallParser(1, "c")
    assert parser.push('{"arguments": {"a": 1}, "na') == []
    head, arguments = Delta("tool_call", "", 1, "c", "f"), Delta("tool_call", '{"a": 1}', 1)
    assert parser.push('me": "f"}') == [head, arguments]
    assert parser.finish(closed=True)[1] == ToolCall("f", '{"a": 1}', "c")


@given(mutated(), st.lists(st.integers(0, 120)), st.booleans())
def test_any_split_reads_the_same_as_the_whole(text, cuts, closed):
    marks = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in zip(marks, marks[1:], strict=False)]
    whole, call, parser = read([text], closed)
    split, same_call, same_parser = read(pieces, closed)
    assert (split, same_call) == (whole, call) == read(text, closed)[:2]
    assert same_parser.reason == parser.reason and same_parser.raw == parser.raw == text


@given(mutated())
@example('{"name": "f", "arguments": {"a": NaN}}')
@example('{"name": "f", "arguments": {"a": 01}}')
@example('{"name": "\\\n", "arguments": {}}')
@example('{"name": "f", "arguments": {"a": 1.}}')
@example('{"name": "\\ud800", "arguments": {}}')
@example('{"name": "f", "arguments": {"a": "\\ud800"}}')
@example('{"n\\u0061me": "f", "arguments": {}}')
@example('{"name": "f", "arguments": {"a": 1, "a": 2}}')
@example('\ufeff{"name": "f", "arguments": {}}')
@example('\u00a0{"name": "f", "arguments": {}}')
def test_it_takes_exactly_what_json_loads_takes(text):
    (heads, streamed, bad), call, parser = read([text])
    expected = oracle(text)
    if expected is None:
        assert call is None and parser.reason and "\n" not in parser.reason
        assert [delta.malformed for delta in bad] == ([parser.reason] if heads else [])
        return
    assert (call.name, json.loads(call.arguments)) == expected
    assert streamed == call.arguments and streamed in text and not bad and not parser.reason
    assert (streamed[0], streamed[-1]) == ("{", "}")
    assert heads == [Delta("tool_call", "", 3, "call_7", call.name)] and call.id == "call_7"


@given(calls())
def test_every_layout_of_json_is_a_call(text):
    assert read([text])[1] is not None and oracle(text) is not None


@given(calls(), st.integers(0, 200), st.booleans())
def test_a_call_that_is_cut_off_is_malformed_unless_its_json_is_whole(text, end, closed):
    call = read([text[:end]], closed)[1]
    assert (call is not None) == (end >= len(text.rstrip()))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is cut off before its JSON is whole"),
        ('{"name": "f"', "is cut off before its JSON is whole"),
        ("get_weather()", "'g' where the call's object should open at character 1"),
        ("[1]", "'[' where the call's object should open"),
        ("{}", "'name' is missing"),
        ('{"name": "f"}', "'arguments' is missing"),
        ('{"arguments": {}}', "'name' is missing"),
        ('{"name": "f", "arguments": {}}}', "'}' follows the call at character 31"),
        ('{"name": "f", "arguments": {}, "id": 1}', "'id' is no key of a call"),
        ('{"name": "f", "name": "g"', "'name' comes twice"),
        ('{"name": 3', "'name' is not text"),
        ('{"name": ""', "the name is empty"),
        ('{"name": "f", "arguments": "{}"', "'arguments' is not an object"),
        ('{"name": "f", "arguments": [', "'arguments' is not an object"),
        ('{"name": "f", "arguments": {"a": NaN', "'N' where a value should be"),
        ('{"name": "f", "arguments": {"a": -x', "'x' breaks a number"),
        ('{"name": "f", "arguments": {"a": trie', "'i' breaks a word"),
        ('{"name": "f", "arguments": {"a": "\\x', "'x' follows a backslash"),
        ('{"name": "f", "arguments": {"a": "\\u00g', "'g' breaks a hex escape"),
        ('{"name": "f", "arguments": {"a": "\n', "'\\n' stands in a string without an escape"),
        ('{"name": "f", "arguments": {"a": 1,}', "'}' where a key should be"),
        ('{"name": "f", "arguments": {"a" 1', "'1' where colon should be"),
        ('{"name": "f", "arguments": {"a": [1 2', "'2' where"),
        ('{"name": "f", "arguments": {"a": [1}', "'}' where"),
    ],
)
def test_a_reason_says_what_is_wrong_and_where(text, reason):
    (heads, _, bad), call, parser = read([text], closed=False)
    assert call is None and reason in parser.reason and "\n" not in parser.reason
    assert len(bad) == len(heads) and parser.raw == text


def test_after_a_fault_there_is_silence_but_the_text_is_kept():
    parser = ToolCallParser(0, "c")
    deltas = parser.push('{"name": "f", "arguments": {"a": ?')
    assert [delta.text for delta in deltas] == ["", '{"a": ', ""] and deltas[-1].malformed == parser.reason
    assert parser.push("1}}") == [] and parser.finish(closed=True) == ([], None)
    assert parser.raw == '{"name": "f", "arguments": {"a": ?1}}'


def test_nesting_is_bounded_and_never_recursive():
    def nested(depth):
        return '{"name": "f", "arguments": {"a": ' + "[" * depth + "]" * depth + "}}"

    allowed = MAX_DEPTH - 2  # the call's object and the arguments are two
    assert read([nested(allowed)])[1] is not None
    for depth in (allowed + 1, 10_000):
        _, call, parser = read([nested(depth)])
        assert call is None and f"more than {MAX_DEPTH} brackets" in parser.reason
