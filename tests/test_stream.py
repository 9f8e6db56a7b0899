"""The stream: joined deltas are the answer, however it was split; stop strings; nothing is taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import tiny

from deepfast.text.stream import Stream, first_stop, held_length

STOPS = st.lists(st.text("ab\n你", min_size=1, max_size=4), max_size=3).map(tuple)
SEGMENTS = st.lists(
    st.tuples(st.sampled_from(["reasoning", "content", "tool_call"]), st.text("ab\n你🙂", max_size=12)),
    max_size=5,
)


def run(segments, stop, ids_of):
    """Push segments, a delimiter between them; ids_of chooses the split of a text into tokens."""
    stream, deltas = Stream(tiny(), stop), []
    for kind, text in segments:
        for token in ids_of(text):
            deltas += stream.push(token, kind)
        deltas += stream.push(tiny().control_id("</think>"), None)
    return stream, deltas + stream.finish()


def in_bytes(text):
    """One token per byte: the finest split."""
    return list(text.encode())


@given(SEGMENTS, STOPS)
def test_the_split_into_tokens_does_not_matter(segments, stop):
    """Merged tokens or single bytes: the same texts, the same end."""
    coarse, _ = run(segments, stop, tiny().encode)
    fine, _ = run(segments, stop, in_bytes)
    assert coarse.stopped == fine.stopped
    for kind in ("reasoning", "content", "tool_call"):
        assert coarse.text(kind) == fine.text(kind)


@given(SEGMENTS, STOPS)
def test_joined_deltas_are_the_text(segments, stop):
    """Streamed == joined, kind by kind; outer newlines are gone; no delta is empty."""
    stream, deltas = run(segments, stop, in_bytes)
    for kind in ("reasoning", "content", "tool_call"):
        assert "".join(d.text for d in deltas if d.kind == kind) == stream.text(kind)
    assert all(delta.text for delta in deltas)
    assert stream.text("reasoning") == stream.text("reasoning").strip("\n")
    assert not stream.text("content").startswith("\n")
    assert not stream.stopped or stop


@given(st.text("ab\n", max_size=20), STOPS)
def test_a_stop_string_never_shows(text, stop):
    """The content is cut before the stop string that was complete first."""
    stream, _ = run([("content", text)], stop, in_bytes)
    clean = text.lstrip("\n")
    ends = [end for end in range(len(clean) + 1) if any(clean[:end].endswith(string) for string in stop)]
    if not ends:
        assert stream.text("content") == clean and not stream.stopped
        return
    matched = max((string for string in stop if clean[: ends[0]].endswith(string)), key=len)
    assert stream.stopped
    assert stream.text("content") == clean[: ends[0] - len(matched)]
    assert not any(string in stream.text("content") for string in stop)


def test_a_thought_and_an_answer():
    """The shape of every answer: newlines around both are dropped, those inside stay."""
    stream, deltas = run([("reasoning", "\nfirst\n\nsecond\n"), ("content", "\n\nyes\n")], (), in_bytes)
    assert stream.text("reasoning") == "first\n\nsecond"
    assert stream.text("content") == "yes\n"
    assert [d.kind for d in deltas] == ["reasoning"] * len("firstsecond") + ["content"] * 4


def test_stop_strings_do_not_act_in_thoughts_and_calls():
    """A stop word may well occur inside a thought."""
    stream, _ = run([("reasoning", "END"), ("tool_call", "END"), ("content", "x")], ("END",), in_bytes)
    assert (stream.text("reasoning"), stream.text("tool_call"), stream.text("content")) == ("END", "END", "x")
    assert not stream.stopped


def test_after_a_stop_string_nothing_follows():
    """Later tokens of any kind are silent."""
    stream, _ = run([("content", "a END b"), ("tool_call", "{}"), ("reasoning", "c")], ("END",), in_bytes)
    assert stream.stopped
    assert (stream.text("content"), stream.text("tool_call"), stream.text("reasoning")) == ("a ", "", "")
    assert stream.push_text("more", "content") == []


def test_what_may_begin_a_stop_string_waits():
    """Held back while open, given out when it turns out to be text, or at the end."""
    stream = Stream(tiny(), ("END",))
    shown = ["".join(d.text for d in stream.push(byte, "content")) for byte in b"E ENx EN"]
    assert shown == ["", "E ", "", "", "ENx", " ", "", ""]
    assert "".join(d.text for d in stream.finish()) == "EN"


def test_half_a_character_waits_and_a_change_of_kind_ends_it():
    """你 is three bytes; a kind that ends in the middle of it shows one replacement character."""
    stream, (first, second, third) = Stream(tiny()), "你".encode()
    assert stream.push(first, "content") == stream.push(second, "content") == []
    assert [d.text for d in stream.push(third, "content")] == ["你"]
    stream.push(first, "reasoning")
    assert [(d.kind, d.text) for d in stream.push(ord("x"), "content")] == [
        ("reasoning", "\ufffd"),
        ("content", "x"),
    ]


def test_text_that_did_not_come_as_tokens():
    """push_text obeys the same rules and holds nothing back."""
    stream = Stream(tiny(), ("END",))
    assert [d.text for d in stream.push_text("\nfree EN", "content")] == ["free ", "EN"]
    assert [d.text for d in stream.push_text("D END", "content")] == ["D "]
    assert stream.stopped and stream.finish() == []
    assert stream.has_text("content") and not stream.has_text("reasoning")


@pytest.mark.parametrize(
    ("text", "stop", "where", "held"),
    [
        ("abc", (), None, 0),
        ("abX", ("abc", "b"), 1, 0),
        ("ab", ("abab",), None, 2),
        ("aab", ("ab", "aab"), 0, 1),
        ("xa", ("ab", "a\n"), None, 1),
    ],
)
def test_the_two_questions(text, stop, where, held):
    """first_stop and held_length on cases that are easy to get wrong."""
    assert first_stop(text, stop) == where
    if where is None:
        assert held_length(text, stop) == held
