"""The generated problems: equal seeds, a clean split, right answers, traces that end in their answer.

In: deepfast.train. It knows no model and no tokenizer.
"""

import random
import re

import pytest

from deepfast.train.basics import TASKS, Language, Problem, check, is_held_out, sample
from deepfast.train.words import COMMON

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def problems(task: str, count: int, held_out: bool = False) -> list[Problem]:
    rng = random.Random(7)
    return [sample(task, rng, held_out) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_equal_seeds_give_equal_problems(task: str) -> None:
    assert problems(task, 20) == problems(task, 20)


@pytest.mark.parametrize("task", TASKS)
def test_training_and_held_out_problems_are_disjoint(task: str) -> None:
    learned = {problem.key for problem in problems(task, 600)}
    tested = {problem.key for problem in problems(task, 150, held_out=True)}
    assert not learned & tested
    assert all(is_held_out(key) for key in tested)


@pytest.mark.parametrize("task", TASKS)
def test_the_held_out_share_is_between_five_and_ten_percent(task: str) -> None:
    rng = random.Random(3)
    keys = {TASKS[task](rng).key for _ in range(4000)}
    share = sum(map(is_held_out, keys)) / len(keys)
    assert 0.03 < share < 0.1


@pytest.mark.parametrize("task", ["product", "sum", "difference"])
def test_arithmetic_answers_are_right(task: str) -> None:
    for problem in problems(task, 300):
        a, b = map(int, re.findall(r"\d+", problem.question))
        if problem.question.startswith("Subtract"):
            a, b = b, a
        right = {"product": a * b, "sum": a + b, "difference": a - b}[task]
        assert problem.answer == str(right)
        assert problem.trace.splitlines()[-1] == f"={right}"


@pytest.mark.parametrize("task", ["product", "sum", "difference"])
def test_every_line_of_an_arithmetic_trace_is_true(task: str) -> None:
    for problem in problems(task, 100):
        for line in problem.trace.splitlines():
            step = re.fullmatch(r"(\d+)([+*-]\d+)([+-]\d+)?=(\d+)(?:b([01]))?", line)
            if step is None:
                continue
            first, second, third, right, borrow = step.groups(default="0")
            operator, operand = second[0], int(second[1:])
            value = int(first) * operand if operator == "*" else int(first) + int(second)
            assert value + int(third) == int(right) - 10 * int(borrow)


def test_letters_are_counted() -> None:
    for problem in problems("letters", 200):
        letter, steps, _ = problem.trace.split("\n")
        word = re.sub(r"\d", "", steps)
        assert word in problem.question
        assert problem.answer == str(word.count(letter))


def test_sorting_traces_lose_one_number_a_line() -> None:
    for problem in problems("sorting", 200):
        first, *lines = problem.trace.split("\n")
        rest = sorted(map(int, first.split()))
        for line in lines:
            smallest, remaining = line.split(":")
            assert int(smallest) == rest.pop(0)
            assert sorted(map(int, remaining.split())) == rest
        assert problem.answer == ", ".join(map(str, sorted(map(int, first.split()))))


def test_commuted_operands_share_a_key() -> None:
    keys: dict[tuple[int, ...], str] = {}
    for problem in problems("product", 3000):
        operands = tuple(sorted(map(int, re.findall(r"\d+", problem.question))))
        assert keys.setdefault(operands, problem.key) == problem.key


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", TASKS)
def test_the_language_asked_for_is_used(task: str, language: Language) -> None:
    rng = random.Random(1)
    for _ in range(50):
        question = sample(task, rng, False, language).question
        assert bool(re.search(r"[\u4e00-\u9fff]", question)) == (language == "zh")


def test_check_wants_exactly_the_answer() -> None:
    problem = Problem("sorting", "", "", "3, 5, 9", "sorting:3,5,9")
    assert check(problem, "3, 5, 9")
    assert check(problem, "3 5 9.")
    assert not check(problem, "3, 9, 5")
    assert not check(problem, "3, 5")
    assert not check(problem, "")
    assert not check(Problem("difference", "", "", "-7", "k"), "7")


def test_common_words_are_plain_and_listed_once() -> None:
    assert len(set(COMMON)) == len(COMMON)
    assert all(re.fullmatch("[a-z]{2,13}", word) for word in COMMON)
