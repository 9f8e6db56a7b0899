"""Rewards by rules: what earns them, what does not, and what a model might try instead.

In: problems with their own answers, and answers bent in one way each. Needs no PyTorch.
"""

from __future__ import annotations

import random

import pytest

from deepfast.train import rewards
from deepfast.train.problems import TASKS, boxed, sample
from deepfast.train.rewards import (
    correct,
    mode_followed,
    said_as_asked,
    shorter,
    soft_overlong,
    tool_use,
    well_formed,
)
from deepfast.types import UsageError

END = "<|im_end|>"
PROBLEM = sample("sum", random.Random(1))
TOOLS = next(p for i in range(99) if len((p := sample("tools", random.Random(i), level=1)).turns) == 4)
RIGHT = f"<think>\nx\n</think>\n\n{PROBLEM.reply}{END}"
QUIET = f"<think>\n\n</think>\n\n{PROBLEM.reply}{END}"
BARE = f"{PROBLEM.reply}{END}"


def one(reward, text, **columns):
    """The reward of a single turn about PROBLEM."""
    given = {"problem": PROBLEM, "turns": [text], **columns}
    return reward([text], **{key: [value] for key, value in given.items()})[0]


@pytest.mark.parametrize("name", TASKS)
def test_the_taught_answer_earns_everything(name):
    problem = sample(name, random.Random(5))
    text = f"<think>\n{problem.trace}\n</think>\n\n{problem.reply}{END}"
    assert one(correct, text, problem=problem) == 1
    assert one(well_formed, text, problem=problem) == 1
    assert one(mode_followed, text, problem=problem, think=True) == 1


def test_a_wrong_or_unfinished_answer_is_not_correct():
    assert one(correct, RIGHT) == 1
    assert one(correct, RIGHT.replace("</think>\n\n", "</think>\n\n9")) == 0
    assert one(correct, RIGHT.removesuffix(END)) == 0
    assert one(correct, RIGHT.replace("</think>", "")) == 0
    assert one(correct, RIGHT, problem=None) is None
    assert correct(["a"], [PROBLEM], [[]]) == [0]


def test_without_turns_a_completion_is_one_that_ended():
    assert correct([RIGHT, RIGHT.removesuffix(END)], [PROBLEM] * 2) == [1, 1]


@pytest.mark.parametrize(
    "bent",
    [
        RIGHT.removesuffix(END),
        RIGHT.replace("<think>\n", "<think>\n<think>\n"),
        RIGHT.replace("</think>", "</think></think>"),
        RIGHT.replace("</think>\n\n", "</think>"),
        RIGHT.replace("<think>\n", ""),
        RIGHT.replace(PROBLEM.reply, 2 * boxed(PROBLEM.answer)),
        RIGHT.replace(PROBLEM.reply, "\n"),
        RIGHT.replace(PROBLEM.reply, "<|im_start|>" + PROBLEM.reply),
        PROBLEM.reply + RIGHT,
    ],
)
def test_a_bent_form_is_not_well_formed(bent):
    assert bent != RIGHT and one(well_formed, bent) == 0


@pytest.mark.parametrize("text", [RIGHT, QUIET, BARE, boxed(PROBLEM.answer) + END])
def test_good_forms_are(text):
    assert one(well_formed, text) == 1


def test_the_mode_is_whether_something_was_thought():
    assert [one(mode_followed, text, think=True) for text in (RIGHT, QUIET, BARE)] == [1, 0, 0]
    assert [one(mode_followed, text, think=False) for text in (RIGHT, QUIET, BARE)] == [0, 1, 1]
    assert one(mode_followed, RIGHT, think=None) is None
    assert one(mode_followed, "<think>\nfor ever", think=False) == 0
    assert mode_followed([""], [True], [[RIGHT, BARE]]) == [0], "every turn"
    assert mode_followed([""], [True], [[]]) == [0]


def tooled(*turns, results):
    return tool_use([""], [TOOLS], [list(turns)], [results])[0]


def test_tool_use_counts_calls_that_run_and_an_answer_that_rests_on_them():
    call = TOOLS.turns[1]["tool_calls"][0]["function"]
    name, result = call["name"], TOOLS.turns[2]["content"]
    said = f'<think>\nx\n</think>\n\n<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>{END}'
    assert tooled(said, TOOLS.reply + END, results=[result]) == 1
    assert tooled(said, f"It is {rewards._values(result)[0]}.{END}", results=[result]) == 1
    assert tooled(said, "\\boxed{no}" + END, results=[result]) == pytest.approx(2 / 3)
    assert tooled(said, "It is 22." + END, results=["22"]) == 1
    for other in ("122", "22.5", "-22", "2", "22,000"):
        assert tooled(said, f"It is {other}.{END}", results=["22"]) == pytest.approx(2 / 3), other
    assert tooled(said, "It is 21." + END, results=["21", "22"]) == pytest.approx(2 / 3), "not the last"
    assert tooled(said, TOOLS.reply, results=[result]) == pytest.approx(2 / 3), "it never ended"
    assert tooled(said, TOOLS.reply + END, results=["Error: no"]) == pytest.approx(1 / 3)
    assert tooled(said.replace(name, "weather!"), TOOLS.reply + END, results=["22"]) == pytest.approx(1 / 3)
    assert tooled(said.replace("}", ""), TOOLS.reply + END, results=[]) == 0
    assert tooled(TOOLS.reply + END, results=[]) == 0, "right, but without the tool"
    assert one(tool_use, RIGHT) is None


def test_what_must_be_said_word_for_word():
    assert one(said_as_asked, f"<think>\nx\n</think>\n\nHello.{END}", reply="Hello.") == 1
    assert one(said_as_asked, f"Hello, hello.{END}", reply="Hello.") == 0
    assert one(said_as_asked, f"Hello.{END}", reply=None) is None


def test_too_long_costs_little_by_little():
    overlong = soft_overlong(100, 20)
    assert overlong([""] * 5, length=[10, 80, 90, 100, 500]) == [0, 0, -0.5, -1, -1]
    with pytest.raises(UsageError, match="soft=200"):
        soft_overlong(100, 200)


def test_shorter_is_better_only_among_right_answers_to_one_prompt():
    wrong = f"\\boxed{{no}}{END}"
    found = shorter(
        prompts=["a", "a", "a", "a", "b"],
        completions=[""] * 5,
        problem=[PROBLEM] * 5,
        length=[10, 20, 30, 1, 99],
        turns=[[RIGHT], [RIGHT], [RIGHT], [wrong], [RIGHT]],
    )
    assert found == [0.5, 0, -0.5, 0, 0]
