"""Choosing among answers: what a text ends in, the vote, the best by score.

In: texts and Completions as a model may write them. Out: the answer that a reader would name, whatever its
dress. Does not know: engines, questions.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfast.thinking.select import ballot, best_of, final_answer, majority, mean_logprob
from deepfast.types import (
    Completion,
    DeltaKind,
    FinishReason,
    ThinkingReport,
    Timing,
    TokenLogprob,
    ToolCall,
    Usage,
    UsageError,
)

ENDINGS = {  # text -> what it ends in
    # a box, as the model cards of Qwen3 have mathematics answered
    r"It is \boxed{4042}.": "4042",
    r"First \boxed{3}, no: \boxed{4}. That took 2 steps.": "4",
    r"\boxed{\frac{1}{2}}": "1/2",
    r"\boxed{-\dfrac12}": "-1/2",
    r"\boxed{\text{Monday}}": "monday",
    r"\boxed{x = 5}": "5",
    r"\boxed{x = 5, y = 6}": "x = 5, y = 6",
    r"\boxed{5\text{ cm}}": "5",
    r"\boxed{90^\circ}": "90",
    r"\boxed{1{,}234}": "1234",
    r"\boxed{10\,000}": "10000",
    r"\boxed{5x}": "5x",
    r"\boxed{2\pi}": r"2\pi",
    r"\boxed{\{1,2\}}": r"\{1, 2\}",
    r"\boxed{a_{1}^{2}}": "a_{1}^{2}",
    r"\fbox{7}": "7",
    r"\boxed{\boxed{8}}": "8",
    r"\boxed{3} and then \boxed{4": "3",
    r"\boxed{} is what I began with, 6 is what I got": "6",
    r'{"steps": "so \\boxed{9}"}': "9",
    # a JSON field, as they have multiple choice answered
    'My choice is\n"answer": "C"': "C",
    '{"answer": "C"}': "C",
    'Here: {"answer": "B", "why": "A is wrong"}': "B",
    '```json\n{"answer": 0.50}\n```': "0.5",
    '{"answer": null, "n": 3}': '{"answer": null, "n": 3}',
    '{"answer": "B", "others": [{"answer": "D"}]}': "B",
    '{"b": [1, 2.0], "a": true}': '{"a": true, "b": [1, 2]}',
    "true": "true",
    '"Paris"': "paris",
    "[" * 100_000: "[" * 100_000,
    # words
    "The answer is 4042.": "4042",
    "**Answer:** $4042$": "4042",
    "Final answer: 3.5 metres. I am sure, 100 %.": "3.5",
    "The answer is 47 * 86 = 4042.": "4042",
    "So the answer is therefore:\n\n\\[\n42\n\\]\n": "42",
    "The answer was 7. No, the answer is 8 (not 7).": "8",
    "Answer: C) 12 metres": "C",
    "Answer: (c)": "C",
    "The correct answer is B because 3 < 4.": "B",
    "The answer is Dr. Smith. He has 2 cats.": "dr. smith",
    "答案是：4042。": "4042",
    "答案：C": "C",
    "所以答案为 12 个。一共 3 步。": "12",
    # numbers
    "47 * 86 = 4042.": "4042",
    "that makes 1,234": "1234",
    "that makes 1,234.50 €": "1234.5",
    "-0.0": "0",
    "it is .50": "0.5",
    "we get 1/2": "1/2",
    "10-5": "5",
    "from 10 to -5": "-5",
    "等于4042": "4042",
    "H2O in 3 words": "3",
    "1, 7, 12, 30": "1, 7, 12, 30",
    "Sorted: 1, 7, 12 and 30.": "1, 7, 12, 30",
    "In 2024, 42 people came": "42",
    "12e3": "12000",
    # the last line
    "Let me see.\n\n**Paris.**\n": "paris",
    "Yes": "yes",
    "\n\n(b)": "B",
    "x2": "x2",
}


@pytest.mark.parametrize("text", ENDINGS, ids=lambda text: text[:40])
def test_what_a_text_ends_in(text: str) -> None:
    assert final_answer(text) == ENDINGS[text]


@pytest.mark.parametrize("text", ["", " \n\t", "**", "...", "$$"])
def test_a_text_that_says_nothing_has_no_answer(text: str) -> None:
    assert final_answer(text) is None


numbers = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.decimals(-(10**6), 10**6, places=3, allow_nan=False).map(lambda d: format(d, "f")),
    st.fractions(-1000, 1000, max_denominator=99).map(str),
)
dresses = st.sampled_from(
    [
        "Thinking of 17.\n\\boxed{%s}",
        "$$\\boxed{ %s }$$",
        '{"why": "17 apples", "answer": "%s"}',
        "I take 17.\n**Answer:** %s",
        "The final answer is $%s$.",
        "17 因此答案是%s。",
        "17 * 3 is not it\n%s",
        "17 apples: it comes to %s.",
    ]
)


@given(numbers, dresses)
def test_a_number_is_the_same_in_every_dress(number: str, dress: str) -> None:
    answer = final_answer(dress % number)
    assert answer is not None and Fraction(answer) == Fraction(number)
    assert answer == final_answer(number)


@given(st.integers(1000, 10**12), st.integers(0, 3))
def test_separators_and_zeros_change_nothing(number: int, zeros: int) -> None:
    assert final_answer(f"it is {number:,}.{'0' * zeros}") == str(number)


@given(
    st.sampled_from("ABCDEFGHIJ"), st.sampled_from(["\\boxed{%s}", '"answer": "%s"', "Answer: %s.", "(%s)"])
)
def test_a_choice_is_the_same_in_every_dress(letter: str, dress: str) -> None:
    assert final_answer(dress % letter) == final_answer(dress % letter.lower()) == letter


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=8))
def test_a_list_at_the_end_is_one_answer(values: list[int]) -> None:
    text = ", ".join(map(str, values))
    assert final_answer(f"In order: {text}.") == final_answer(f"\\boxed{{{text}}}") == text


pieces = st.sampled_from(
    [
        "\\boxed{",
        "}",
        "{",
        '"answer":',
        "answer is",
        "答案：",
        " 1,2",
        "3/0",
        "\\frac{1}{",
        "```",
        "\n",
        "$",
        '"',
    ]
)


@given(st.one_of(st.text(), st.lists(pieces).map("".join)))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or answer.strip()


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "answer: ", '"answer": ', "1, ", "{", "\\text{", "5 and ", "\n"]
)
def test_a_long_looping_answer_takes_no_time_to_speak_of(piece: str) -> None:
    final_answer(piece * 20_000)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_the_layout_of_json_changes_nothing(value: object) -> None:
    whole = {"value": value, "a": 1}
    assert final_answer(json.dumps(whole)) == final_answer(json.dumps(whole, indent=2, sort_keys=True))


def said(content: str, *logprobs: float, reason: FinishReason = "stop", forced: int = 0) -> Completion:
    """An answer of one sampled token per log-probability, after `forced` forced ones."""
    content_kind: DeltaKind = "content"
    kinds = (*[content_kind] * (forced + len(logprobs)), None)
    found = (*[None] * forced, *[TokenLogprob(1, value) for value in logprobs], TokenLogprob(2, -50.0))
    return Completion(
        reasoning="",
        content=content,
        tool_calls=(),
        token_ids=(1,) * len(kinds),
        sampled=(True,) * len(kinds),
        finish_reason=reason,
        usage=Usage(),
        thinking=ThinkingReport(),
        timing=Timing(),
        kinds=kinds,
        logprobs=found if logprobs else (),
    )


def test_the_majority_wins_whatever_the_dress() -> None:
    first, other, second = said("It is 4042."), said("4041"), said("\\boxed{4,042}")
    vote = majority([other, first, second])
    assert (vote.answer, vote.winner, vote.count, vote.total) == ("4042", first, 2, 3)
    assert vote.groups == {"4042": (first, second), "4041": (other,)}
    assert list(vote.groups) == ["4042", "4041"]


def test_blank_aborted_and_failed_answers_do_not_vote() -> None:
    voters = [said("3", reason="abort"), said("3", reason="error"), said(" \n"), said("4", reason="length")]
    vote = majority(voters)
    assert (vote.answer, vote.winner, vote.count, vote.total) == ("4", voters[3], 1, 1)
    nobody = majority(voters[:3])
    assert nobody == (None, voters[0], 0, 0, {})


def test_a_tie_goes_to_the_surer_group_and_without_logprobs_to_the_earlier() -> None:
    doubtful, sure = [said("3", -1.0), said("3", -3.0)], [said("4", -0.1), said("4", -3.5)]
    assert majority([*doubtful, *sure]).answer == "4"
    assert list(majority([*doubtful, *sure]).groups) == ["4", "3"]
    assert majority([*doubtful, sure[0], said("4")]).answer == "3"
    assert majority([said("3"), said("4")]).answer == "3"
    assert majority([said("3", -9.0), said("3", -9.0), said("4", -0.1)]).answer == "3"


@given(st.lists(st.sampled_from("ABC"), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_winner_has_the_most_votes_in_any_order(letters: list[str], rng: random.Random) -> None:
    voters = [said(f"Answer: {letter}") for letter in letters]
    vote = majority(voters)
    assert vote.count == max(map(letters.count, letters)) == letters.count(vote.answer or "")
    assert vote.winner is voters[letters.index(vote.answer or "")]
    assert vote.total == len(letters) == sum(map(len, vote.groups.values()))
    rng.shuffle(voters)
    assert majority(voters).count == vote.count


def test_tool_calls_vote_by_name_and_arguments() -> None:
    def calls(name: str, arguments: str, content: str = "") -> Completion:
        return replace(said(content), tool_calls=(ToolCall(name, arguments, f"call_{id(content)}"),))

    a, b = calls("add", '{"a": 1, "b": 2}'), calls("add", '{"b":2,\n"a":1}', "Let me add 1 and 2.")
    assert ballot(a) == ballot(b) == 'add {"a": 1, "b": 2}'
    assert ballot(calls("add", "{broken ")) == "add {broken"
    assert majority([said("3"), a, b]).winner is a


def test_the_best_has_the_highest_mean_log_probability_of_its_answer() -> None:
    short, long = said("3", -0.5), said("4", -0.1, -0.1, -0.1, -0.1, -0.1, -0.1)
    assert mean_logprob(said("3", -0.5, -0.3, forced=2)) == pytest.approx(-0.4)
    assert best_of([short, long]) is long
    assert best_of([short, long], score=lambda done: -len(done.token_ids)) is short
    assert best_of([short, replace(long, finish_reason="abort")]) is short
    assert best_of([said("3", -0.5), short]) == short


def test_best_of_says_what_it_lacks() -> None:
    with pytest.raises(UsageError, match=r"needs log-probabilities.*logprobs=0"):
        best_of([said("3", -0.5), said("4")])
    for choose in (best_of, majority):
        with pytest.raises(UsageError, match="no completions"):
            choose([])
