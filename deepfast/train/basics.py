"""The five tasks of the smallest recipe: arithmetic, counting letters, sorting; in English and Chinese.

In: a `random.Random`. Out: `Problem`s with a question, a step-by-step trace, the answer and a key that is
the same for every phrasing of one problem, so that `is_held_out(key)` splits training from test. `check`
judges an answer. A trace works from the lowest digit, restates its state at every step and has one format
per task. It knows no tokenizer, no chat format and no model.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from typing import Literal, Protocol

from deepfast.train.words import draw_word

Language = Literal["en", "zh"]
HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class Problem:
    task: str
    question: str
    trace: str
    answer: str
    key: str


class Maker(Protocol):
    def __call__(self, rng: random.Random, language: Language | None = None) -> Problem: ...


PHRASINGS: dict[str, dict[Language, tuple[str, ...]]] = {
    "product": {
        "en": (
            "What is {a} * {b}?",
            "What is {a} times {b}?",
            "{a}*{b}=?",
            "{a} * {b} = ?",
            "{a} x {b}",
            "{a} × {b} = ?",
            "Compute {a} * {b}.",
            "Calculate {a} × {b}.",
            "Multiply {a} by {b}.",
            "What is the product of {a} and {b}?",
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
        ),
    },
    "sum": {
        "en": (
            "What is {a} + {b}?",
            "What is {a} plus {b}?",
            "{a}+{b}=?",
            "{a} + {b} = ?",
            "{a} + {b}",
            "Compute {a} + {b}.",
            "Calculate {a} + {b}.",
            "Add {a} and {b}.",
            "What is the sum of {a} and {b}?",
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
        ),
    },
    "difference": {
        "en": (
            "What is {a} - {b}?",
            "What is {a} minus {b}?",
            "{a}-{b}=?",
            "{a} - {b} = ?",
            "{a} - {b}",
            "Compute {a} - {b}.",
            "Calculate {a} - {b}.",
            "Subtract {b} from {a}.",
            "What is the difference of {a} and {b}?",
        ),
        "zh": (
            "{a} - {b}等于多少？",
            "{a}-{b}等于多少？",
            "{a}减{b}等于多少？",
            "{a}减去{b}是多少？",
            "计算{a}-{b}",
            "计算 {a} - {b}",
            "请计算{a}减{b}。",
            "{a}和{b}的差是多少？",
        ),
    },
    "letters": {
        "en": (
            "How many {c}'s are in {w}?",
            "How many {c}'s are in the word {w}?",
            'How many {c}\'s are there in "{w}"?',
            "How many times does the letter {c} appear in {w}?",
            'How many times does the letter "{c}" appear in the word "{w}"?',
            "Count the letter {c} in {w}.",
            "Count the {c}'s in the word {w}.",
            "How often does {c} appear in {w}?",
        ),
        "zh": (
            "{w}里有几个字母{c}？",
            "{w}里有几个{c}？",
            "{w}这个单词里有几个{c}？",
            "单词{w}中有多少个字母{c}？",
            "单词 {w} 中字母 {c} 出现了几次？",
            "数一数{w}里有几个{c}",
            "“{w}”中有几个“{c}”？",
        ),
    },
    "sorting": {
        "en": (
            "Sort {xs}",
            "Sort {xs}.",
            "Sort these numbers: {xs}",
            "Sort the numbers {xs}.",
            "Sort {xs} in increasing order.",
            "Sort these numbers from smallest to largest: {xs}",
            "Put these numbers in ascending order: {xs}",
            "Order {xs} from small to large.",
        ),
        "zh": (
            "从小到大排序：{xs}",
            "从小到大排序: {xs}",
            "把{xs}从小到大排序",
            "请把{xs}从小到大排列。",
            "请将下列数字从小到大排序：{xs}",
            "给这些数字排序：{xs}",
            "排序：{xs}",
        ),
    },
}


def _ask(task: str, rng: random.Random, language: Language | None, **slots: object) -> str:
    language = language or ("en" if rng.random() < 0.55 else "zh")
    return rng.choice(PHRASINGS[task][language]).format(**slots)


def _digits(number: int, width: int) -> list[int]:
    """The digits of a number from the lowest, filled with zeros: 47, 3 -> [7, 4, 0]."""
    return [number // 10**place % 10 for place in range(width)]


def _add_lines(a: int, b: int) -> list[str]:
    width, carry = max(len(str(a)), len(str(b))), 0
    lines = [f"{a}+{b}"]
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        lines.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return [*lines, f"={a + b}"]


def _subtract_lines(a: int, b: int) -> list[str]:
    """Digit by digit with a borrow; one left over at the end means a < b, and the operands change places."""
    width, borrow = max(len(str(a)), len(str(b))), 0
    lines = [f"{a}-{b}"]
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        digit = x - y - borrow
        lines.append(f"{x}-{y}-{borrow}={digit % 10}b{int(digit < 0)}")
        borrow = int(digit < 0)
    if borrow:
        return [*lines, "<0", *_subtract_lines(b, a), f"=-{b - a}"]
    return [*lines, f"={a - b}"]


def _times_digit_lines(a: int, digit: int) -> list[str]:
    carry = 0
    lines = [f"{a}*{digit}"]
    for x in _digits(a, len(str(a))):
        lines.append(f"{x}*{digit}+{carry}={x * digit + carry}")
        carry = (x * digit + carry) // 10
    return [*lines, f"={a * digit}"]


def _product(rng: random.Random, language: Language | None = None) -> Problem:
    kind = rng.random()
    low_a, high_a = (0, 9) if kind < 0.12 else (10, 99)
    low_b, high_b = (0, 9) if 0.06 < kind < 0.18 else (10, 99)
    a, b = rng.randint(low_a, high_a), rng.randint(low_b, high_b)
    lines = [f"{a}*{b}"]
    if b < 10:
        lines = _times_digit_lines(a, b)
    else:
        lines += _times_digit_lines(a, b % 10) + _times_digit_lines(a, b // 10)
        lines += _add_lines(a * (b // 10) * 10, a * (b % 10))
    question = _ask("product", rng, language, a=a, b=b)
    return Problem("product", question, "\n".join(lines), str(a * b), f"product:{min(a, b)},{max(a, b)}")


def _operand(rng: random.Random) -> int:
    """A number of one to four digits, longer ones more often."""
    return rng.randint(0, 10 ** rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 4, 4)) - 1)


def _sum(rng: random.Random, language: Language | None = None) -> Problem:
    a, b = _operand(rng), _operand(rng)
    question = _ask("sum", rng, language, a=a, b=b)
    return Problem("sum", question, "\n".join(_add_lines(a, b)), str(a + b), f"sum:{min(a, b)},{max(a, b)}")


def _difference(rng: random.Random, language: Language | None = None) -> Problem:
    a, b = _operand(rng), _operand(rng)
    if a < b and rng.random() < 0.7:
        a, b = b, a
    question = _ask("difference", rng, language, a=a, b=b)
    key = f"difference:{min(a, b)},{max(a, b)}"
    return Problem("difference", question, "\n".join(_subtract_lines(a, b)), str(a - b), key)


def _letters(rng: random.Random, language: Language | None = None) -> Problem:
    word = draw_word(rng)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    count, steps = 0, []
    for character in word:
        count += character == letter
        steps.append(f"{character}{count}")
    trace = f"{letter}\n{''.join(steps)}\n={count}"
    question = _ask("letters", rng, language, c=letter, w=word)
    return Problem("letters", question, trace, str(count), f"letters:{word}")


def _sorting(rng: random.Random, language: Language | None = None) -> Problem:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(2, 8))]
    rest = numbers.copy()
    lines = [" ".join(map(str, numbers))]
    while rest:
        rest.remove(smallest := min(rest))
        lines.append(f"{smallest}:{' '.join(map(str, rest))}")
    comma = "，" if rng.random() < 0.1 else ", " if rng.random() < 0.8 else " "
    question = _ask("sorting", rng, language, xs=comma.join(map(str, numbers)))
    ordered = sorted(numbers)
    key = f"sorting:{','.join(map(str, ordered))}"
    return Problem("sorting", question, "\n".join(lines), ", ".join(map(str, ordered)), key)


TASKS: dict[str, Maker] = {
    "product": _product,
    "sum": _sum,
    "difference": _difference,
    "letters": _letters,
    "sorting": _sorting,
}


def is_held_out(key: str) -> bool:
    """True for the one problem in sixteen that training never sees."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % HELD_OUT_ONE_IN == 0


def sample(task: str, rng: random.Random, held_out: bool, language: Language | None = None) -> Problem:
    """A random problem of one side of the split."""
    while True:
        problem = TASKS[task](rng, language)
        if is_held_out(problem.key) == held_out:
            return problem


def check(problem: Problem, content: str) -> bool:
    """True when the numbers in the content are exactly the numbers of the answer, in order."""
    return re.findall(r"-?\d+", content) == re.findall(r"-?\d+", problem.answer)
