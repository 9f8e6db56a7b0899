"""Sums, differences, products and divisions with remainder, by the number of digits.

In: a random generator, a level. Out: drafts with digit-by-digit traces and a check that casts out nines;
judges of answers. It knows nothing of other tasks.
"""

import random
import re

from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask
from deepfast.train.problems.columns import add_lines, nines, product_lines, subtract_lines

SUM: Phrases = {
    "en": (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "{a}+{b}=?",
        "{a} + {b} = ?",
        "{a} + {b}",
        "Compute {a} + {b}.",
        "Calculate {a}+{b}",
        "Please calculate {a} + {b}.",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Find the total of {a} and {b}.",
        "How much is {a} plus {b}?",
        "Add up these two numbers: {a} and {b}",
        "Work out {a} + {b} step by step.",
    ),
    "zh": (
        "{a} + {b}等于多少？",
        "{a}+{b}等于多少？",
        "{a}加{b}等于多少？",
        "{a}加上{b}是多少？",
        "计算{a}+{b}",
        "计算 {a} + {b}",
        "请计算{a}加{b}。",
        "{a}和{b}的和是多少？",
        "{a} + {b} 的结果是什么？",
        "求{a}与{b}之和。",
        "算一下{a}+{b}",
        "帮我算算{a}加{b}是几？",
    ),
}
DIFFERENCE: Phrases = {
    "en": (
        "What is {a} - {b}?",
        "What is {a} minus {b}?",
        "{a}-{b}=?",
        "{a} - {b} = ?",
        "{a} - {b}",
        "Compute {a} - {b}.",
        "Calculate {a}-{b}",
        "Please calculate {a} - {b}.",
        "Subtract {b} from {a}.",
        "Take {b} away from {a}.",
        "How much is {a} minus {b}?",
        "What do I get when I subtract {b} from {a}?",
        "Work out {a} - {b} step by step.",
    ),
    "zh": (
        "{a} - {b}等于多少？",
        "{a}-{b}等于多少？",
        "{a}减{b}等于多少？",
        "{a}减去{b}是多少？",
        "计算{a}-{b}",
        "计算 {a} - {b}",
        "请计算{a}减{b}。",
        "{a} - {b} 的结果是什么？",
        "从{a}中减去{b}得多少？",
        "算一下{a}-{b}",
        "帮我算算{a}减{b}是几？",
    ),
}
PRODUCT: Phrases = {
    "en": (
        "What is {a} * {b}?",
        "What is {a} times {b}?",
        "{a}*{b}=?",
        "{a} * {b} = ?",
        "{a} x {b}",
        "{a} × {b} = ?",
        "Compute {a} * {b}.",
        "Calculate {a} × {b}.",
        "Please calculate {a} * {b}.",
        "Multiply {a} by {b}.",
        "Multiply {a} and {b}.",
        "What is the product of {a} and {b}?",
        "How much is {a} times {b}?",
        "Work out {a} * {b} step by step.",
    ),
    "zh": (
        "{a} × {b}等于多少？",
        "{a}*{b}等于多少？",
        "{a}乘以{b}等于多少？",
        "{a}乘{b}是多少？",
        "计算{a}×{b}",
        "计算 {a} * {b}",
        "请计算{a}乘以{b}。",
        "{a}和{b}的积是多少？",
        "{a}×{b}=?",
        "求{a}与{b}的乘积。",
        "算一下{a}×{b}",
        "帮我算算{a}乘{b}是几？",
    ),
}
DIVISION: Phrases = {
    "en": (
        "What is {a} divided by {b}, with remainder?",
        "Divide {a} by {b} and give quotient and remainder.",
        "{a} / {b} with remainder = ?",
        "{a} ÷ {b}, quotient and remainder?",
        "Compute {a} / {b} with remainder.",
        "Calculate {a} ÷ {b} with remainder.",
        "How often does {b} go into {a}, and what is left over?",
        "How many times does {b} fit into {a}, and what remains?",
        "Do the division {a} : {b} with remainder.",
        "Work out {a} / {b} by long division, with remainder.",
    ),
    "zh": (
        "{a}除以{b}，商和余数各是多少？",
        "{a} ÷ {b}等于多少余多少？",
        "{a}÷{b}=？余？",
        "计算{a}÷{b}，写出商和余数。",
        "请计算{a}除以{b}的商和余数。",
        "用竖式计算{a}÷{b}，要带余数。",
        "{a}里面有几个{b}，还剩多少？",
        "求{a}除以{b}的商与余数。",
        "带余除法：{a} ÷ {b}",
        "算一下{a}除以{b}，商几余几？",
    ),
}
PRODUCT_SHAPES = {1: ((1, 1),), 2: ((2, 1),), 3: ((2, 2),), 4: ((3, 1), (3, 2)), 5: ((3, 3),)}
PRODUCT_SHAPES[6] = ((4, 2), (4, 3))
DIVISION_SHAPES = {1: ((2, 1),), 2: ((3, 1),), 3: ((3, 2),), 4: ((4, 1), (4, 2)), 5: ((5, 1), (5, 2))}


def number(rng: random.Random, digits: int) -> int:
    """A number of so many digits; zero counts as one digit."""
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _operands(rng: random.Random, level: int) -> tuple[int, int]:
    """One has as many digits as the level, the other as many or, half of the time, fewer."""
    a = number(rng, level)
    b = number(rng, level if rng.random() < 0.5 else rng.randint(1, level))
    return (a, b) if rng.random() < 0.5 else (b, a)


def _pair(a: int, b: int) -> str:
    return f"{min(a, b)},{max(a, b)}"


def make_sum(rng: random.Random, level: int, language: Language) -> Draft:
    a, b = _operands(rng, level)
    trace = [*add_lines(a, b), nines((a, b), "+", a + b)]
    return Draft(ask(rng, SUM, language, a=a, b=b), trace, str(a + b), _pair(a, b))


def make_difference(rng: random.Random, level: int, language: Language) -> Draft:
    a, b = _operands(rng, level)
    if a < b and rng.random() < 0.6:
        a, b = b, a
    if a >= b:
        trace = [f"{a}>={b}", *subtract_lines(a, b), nines((a - b, b), "+", a)]
    else:
        trace = [f"{a}<{b}: -", *subtract_lines(b, a), f"-{b - a}", nines((b - a, a), "+", b)]
    question = ask(rng, DIFFERENCE, language, a=a, b=b)
    return Draft(question, trace, str(a - b), f"{_pair(a, b)}|{a}-{b}")


def make_product(rng: random.Random, level: int, language: Language) -> Draft:
    long, short = rng.choice(PRODUCT_SHAPES[level])
    a, b = number(rng, long), number(rng, short)
    if rng.random() < 0.3:
        a, b = b, a
    x, y = (a, b) if len(str(a)) >= len(str(b)) else (b, a)
    turned = [] if (x, y) == (a, b) else [f"{a}*{b}"]
    trace = [*turned, *product_lines(x, y), nines((x, y), "*", a * b)]
    return Draft(ask(rng, PRODUCT, language, a=a, b=b), trace, str(a * b), _pair(a, b))


def division_lines(a: int, b: int) -> list[str]:
    """Long division, digit by digit from the highest; a line says what remains, the quotient, the rest."""
    lines = [f"{a}/{b}"]
    if b > 9:
        lines.append(" ".join(str(b * times) for times in range(1, 10)))
    rest, quotient, digits = 0, "", str(a)
    for place, digit in enumerate(digits):
        have = 10 * rest + int(digit)
        times, rest = divmod(have, b)
        quotient += str(times)
        left = f" {rest},{digits[place + 1 :]}" if place + 1 < len(digits) else ""
        lines.append(f"{have}-{b}*{times}={have}-{b * times}={rest} q{quotient}{left}")
    return [*lines, f"={a // b} r {a % b}"]


def make_division(rng: random.Random, level: int, language: Language) -> Draft:
    long, short = rng.choice(DIVISION_SHAPES[level])
    b = rng.randint(2, 9) if short == 1 else number(rng, short)
    a = number(rng, long)
    if rng.random() < 0.15:
        a = max(a - a % b, 10 ** (long - 1) + -(10 ** (long - 1)) % b)
    trace = [*division_lines(a, b), nines((a // b, b), "*", a, a % b)]
    question = ask(rng, DIVISION, language, a=a, b=b)
    return Draft(question, trace, f"{a // b} r {a % b}", f"{a},{b}")


def judge_number(right: int, answer: str) -> bool:
    """The number as it is written, commas between thousands allowed."""
    if re.fullmatch(r"-?[0-9]{1,3}(,[0-9]{3})+", answer):
        answer = answer.replace(",", "")
    return answer == str(right)


def _numbers(key: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", key)]


def judge_sum(key: str, answer: str) -> bool:
    return judge_number(sum(_numbers(key)), answer)


def judge_difference(key: str, answer: str) -> bool:
    a, b = _numbers(key.partition("|")[2])
    return judge_number(a - b, answer)


def judge_product(key: str, answer: str) -> bool:
    a, b = _numbers(key)
    return judge_number(a * b, answer)


def judge_division(key: str, answer: str) -> bool:
    """ "17 r 3", "quotient 17, remainder 3", "商17余3"; the remainder must be said, unless it is zero."""
    a, b = _numbers(key)
    parts = re.fullmatch(
        r"(?:(?:the )?quotient(?: is)?|商[是为]?)?[:=]? *([0-9]+)"
        r"(?:[,;]? *(?:and )?(?:r|rem|(?:with )?(?:the )?remainder(?: is)?|余数?[是为]?)[:=]? *([0-9]+))?",
        answer,
        re.IGNORECASE,
    )
    return parts is not None and (parts[1], parts[2] or "0") == (str(a // b), str(a % b))


TASKS = (
    Task("sum", (1, 2, 3, 4, 5, 6), make_sum, judge_sum),
    Task("difference", (1, 2, 3, 4, 5, 6), make_difference, judge_difference),
    Task("product", (1, 2, 3, 4, 5), make_product, judge_product),
    Task("division", (1, 2, 3, 4), make_division, judge_division),
)
