"""Answers of the generated problems against second opinions: the question read again, other algorithms, eval.

In: deepfast.train.problems. Each task's answers are found from the text of the question by means that share
nothing with the task, and equations in traces are evaluated. It knows no model, and no task that searches.
"""

import calendar
import itertools
import re
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from problem_samples import each, ints

from deepfast.train.problems import Problem, verify

MONTHS = {name: number for number, name in enumerate(calendar.month_name)}


# --- arithmetic ---


@pytest.mark.parametrize("name", ["sum", "difference", "product", "division"])
def test_arithmetic(name: str) -> None:
    for problem in each(name):
        a, b = ints(problem.question)
        if re.match(r"(Subtract|Take|What do I get when I subtract) ", problem.question) or re.match(
            r"(How often does|How many times does) ", problem.question
        ):
            a, b = b, a
        right = {"sum": a + b, "difference": a - b, "product": a * b}.get(
            name, f"{a // max(b, 1)} r {a % max(b, 1)}"
        )
        assert problem.answer == str(right), problem


def test_a_product_is_copied_before_its_factors_are_turned() -> None:
    turned = 0
    for problem in each("product"):
        a, b = ints(problem.question)
        first, second, *_ = problem.trace.split("\n")
        assert first == f"{a}*{b}"
        if len(str(a)) < len(str(b)):
            turned += second == f"{b}*{a}"
    assert turned > 10


@pytest.mark.parametrize("name", ["sum", "difference", "product", "division", "story", "weekday", "dates"])
def test_every_equation_of_a_trace_is_true(name: str) -> None:
    found = 0
    for problem in each(name):
        for chain in re.findall(
            r"(?<![\d.:/])\d+(?:[-+*/]+-?\d+)+(?:=\d+(?:[-+*/]\d+)*)+(?![\dr])", problem.trace
        ):
            sides = chain.split("=")
            for left, right in itertools.pairwise(sides):
                value = Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", re.sub(r"\b0+(?=\d)", "", left))))
                alone = int(re.match(r"\d+", right)[0])
                assert value in (alone, Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", right)))), (
                    problem.trace
                )
                found += 1
    assert found > 200


@pytest.mark.parametrize("name", ["sum", "difference", "product"])
def test_what_is_left_and_what_was_found_make_the_result(name: str) -> None:
    """The invariant of a column: "8+6+0=14 47+25+1 4" under 478+256 has 10 * (47+25+1) + 4 = 478+256."""
    found = 0
    for problem in each(name):
        whole = 0
        for line in problem.trace.split("\n"):
            if re.fullmatch(r"\d+[-+*]\d+", line):
                whole = eval(line)
            elif step := re.fullmatch(r"(\d)([-+*])\d[-+]\d=\d+|(\d\d)-\d-\d=\d", line):
                found += bool(step)
            elif step := re.fullmatch(r"\S+ (\S+) (\d+)", line):
                assert eval(step[1]) * 10 ** len(step[2]) + int(step[2]) == whole, problem.trace
            elif line.startswith("="):
                assert int(line[1:]) == whole
    assert found > 100


@pytest.mark.parametrize("name", ["sum", "difference", "product", "division"])
def test_nines_are_cast_out_digit_by_digit(name: str) -> None:
    for problem in each(name):
        check = problem.trace.split("\n")[-1]
        pairs = re.findall(r"(?<![=\d])(\d+):(\d+)", check)
        assert len(pairs) == (4 if name == "division" else 3)
        for number, running in pairs:
            sums = itertools.accumulate(map(int, number))
            assert running == "".join(str(total % 9) for total in sums)
        middle = re.search(r" \S+=\d+:(\d) ", check)
        assert middle and middle[1] == pairs[-1][1][-1]


def test_decimals_are_compared_as_numbers() -> None:
    for problem in each("decimals"):
        a, b = map(Decimal, re.findall(r"\d+\.?\d*(?<!\.)", problem.question))
        smaller = re.search(r"small|less|min|小(?!还)|最小", problem.question.replace("大还是", ""))
        if a == b:
            assert problem.answer in ("equal", "一样大")
        else:
            assert Decimal(problem.answer) == (min if smaller else max)(a, b), problem.question


def test_nine_point_eleven_is_less_than_nine_point_nine() -> None:
    problem = Problem("decimals", 2, "en", "9.11 or 9.9?", "", "9.9", "decimals:9.11,9.9|larger")
    assert verify(problem, "\\boxed{9.9}") and not verify(problem, "\\boxed{9.11}")


def test_bases() -> None:
    for problem in each("bases"):
        number, way = problem.key.removeprefix("bases:").split("|")
        value, base = ints(number)
        written = problem.answer if way == "to" else re.findall(r"[0-9A-F]+", problem.question)
        if way == "to":
            assert int(problem.answer, base) == value and str(value) in problem.question
        else:
            assert problem.answer == str(value) and value in [
                int(w, base) for w in written if _reads(w, base)
            ]


def _reads(written: str, base: int) -> bool:
    return all(int(digit, 16) < base for digit in written)


def test_sorting() -> None:
    for problem in each("sorting"):
        numbers = ints(problem.question)
        down = re.search(
            r"decreasing|descending|largest|biggest|large to|high to|降|从大|由大|大的在前", problem.question
        )
        if "smallest to largest" in problem.question:
            down = None
        assert ints(problem.answer) == sorted(numbers, reverse=bool(down)), problem.question


# --- letters ---


def test_letters_are_those_of_the_word_in_the_question() -> None:
    for problem in each("letters"):
        word, letter = problem.key.removeprefix("letters:").split("|")
        assert re.search(rf"\b{word}\b", problem.question, re.A) and problem.answer == str(word.count(letter))
        steps = re.findall(r"([a-z])(\d+)", problem.trace.split("\n")[1])
        assert "".join(letter for letter, _ in steps) == word


def test_spelling_and_backwards() -> None:
    for problem in each("spelling"):
        word = problem.key.removeprefix("spelling:")
        assert problem.answer.replace("-", "") == word and word in problem.question
        assert verify(problem, f"\\boxed{{{', '.join(word.upper())}}}")
        assert len(word) == 1 or not verify(problem, f"\\boxed{{{word}}}")
    for problem in each("backwards"):
        word, wish = problem.key.removeprefix("backwards:").split("|")
        letters = problem.answer.replace("-", "")
        assert letters == (word[::-1] if wish == "back" else word[int(wish) - 1])
        if wish != "back":
            listed = dict(re.findall(r"(\d+)([a-z])", problem.trace.split("\n")[0]))
            assert listed[wish] == letters and problem.trace.split("\n")[1] == wish + letters
        assert verify(problem, f"\\boxed{{{letters}}}")


# --- dates ---


def dates_in(text: str) -> list[date]:
    found = []
    pattern = r"(\d{4})-(\d\d)-(\d\d)|(\d{4})年(\d+)月(\d+)日"
    pattern += r"|([A-Z][a-z]+) (\d+), (\d{4})|(\d+) ([A-Z][a-z]+) (\d{4})"
    for match in re.finditer(pattern, text):
        iso, chinese, american, british = (
            match.groups()[:3],
            match.groups()[3:6],
            match.groups()[6:9],
            match.groups()[9:],
        )
        if iso[0] or chinese[0]:
            found.append(date(*map(int, iso if iso[0] else chinese)))
        elif american[0]:
            found.append(date(int(american[2]), MONTHS[american[0]], int(american[1])))
        else:
            found.append(date(int(british[2]), MONTHS[british[1]], int(british[0])))
    return found


def test_weekdays() -> None:
    names = [*calendar.day_name]
    chinese = ["星期" + day for day in "一二三四五六日"]
    for problem in each("weekday"):
        days = names if problem.language == "en" else chinese
        if given_days := dates_in(problem.question):
            right = given_days[0].weekday()
        else:
            start = next(number for number, day in enumerate(days) if day in problem.question)
            right = (start + ints(problem.question)[0]) % 7
        assert problem.answer == days[right], problem
        assert verify(problem, days[right].lower()) and not verify(problem, days[right - 1])


def test_dates() -> None:
    for problem in each("dates"):
        first, *others = dates_in(problem.question)
        if others:
            assert problem.answer == str(abs(others[0] - first).days)
            _, count, *months, _ = problem.trace.split("\n")
            left = range(int(count.rpartition("=")[2]), -1, -1)
            assert [int(line.split()[0]) for line in months] == [*left], problem
        else:
            days = [n for n in ints(problem.question) if str(n) == problem.key.split(",")[1].split("|")[0]]
            assert (date.fromisoformat(problem.answer) - first).days in days
            assert verify(problem, f"\\boxed{{{date.fromisoformat(problem.answer):%B %-d, %Y}}}")


def test_months_have_their_lengths() -> None:
    told = {
        month for problem in each("dates") for month in re.findall(r"(\d{4})-(\d+) (\d+):", problem.trace)
    }
    assert any(int(year) % 4 == 0 for year, month, _ in told if month == "02")
    for year, month, length in told:
        assert int(length) == calendar.monthrange(int(year), int(month))[1]


# --- tools ---


def test_tool_answers_follow_from_the_question_and_the_clock() -> None:
    for problem in each("tools"):
        plan, now, answer = problem.key.removeprefix("tools:").split("|")
        moment = datetime.fromisoformat(now)
        if plan.startswith("until"):
            end = re.search(r"(\d\d):(\d\d)", problem.question)
            assert int(answer) == int(end[1]) * 60 + int(end[2]) - moment.hour * 60 - moment.minute > 0
        elif plan.startswith("since"):
            rate = ints(problem.question.replace("00:00", ""))[0]
            assert int(answer) == rate * (moment.hour * 60 + moment.minute)
        elif re.match(r"(time|date|weekday),", plan):
            assert answer in (f"{moment:%H:%M}", f"{moment:%Y-%m-%d}", f"{moment:%A}") or answer.startswith(
                "星期"
            )
        elif re.match(r"[0-9(]", plan):
            assert sorted(ints(plan)) == sorted(ints(problem.question))
            assert Fraction(answer.split(", ")[-1]) == Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", plan)))
