"""Countdown: reach a target with given numbers, each used once.

In: a random generator, a level. Out: drafts and a judge that evaluates the expression. The trace searches
backwards from the target, depth first: "25+_ 7 5 3=6" says that 25 plus something made of 7, 5 and 3 would do
if that were 6. Two numbers left are tried at once: sum, difference, product, quotient. A state whose moves
are all bad is left with "back" and the state to go on from. It knows nothing of other tasks.
"""

import random
from collections.abc import Iterator

from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask
from deepfast.train.problems.expression import evaluate

ALL: Phrases = {
    "en": (
        "Use the numbers {xs}, each exactly once, to make {t}.",
        "Make {t} from {xs} using + - * /. Use each number exactly once.",
        "Using {xs} exactly once each and + - * /, reach {t}.",
        "Countdown: numbers {xs}, target {t}. Use every number once.",
        "Combine {xs} with + - * / and brackets to get {t}, each number once.",
        "Write an expression equal to {t} that uses each of {xs} exactly once.",
        "With the numbers {xs}, find an expression that equals {t}. All numbers must be used once.",
        "How can you get {t} from {xs}, using all of them once?",
        "Numbers: {xs}. Target: {t}. Each number exactly once.",
    ),
    "zh": (
        "用{xs}这些数，每个数恰好用一次，算出{t}。",
        "用加减乘除把{xs}凑成{t}，每个数用一次。",
        "数字{xs}，目标{t}，每个数必须恰好用一次。",
        "请用{xs}各一次，通过四则运算得到{t}。",
        "如何用{xs}算出{t}？每个数都要用且只用一次。",
        "写一个等于{t}的算式，{xs}各用一次。",
        "倒计时游戏：数字 {xs}，目标 {t}，全部数字各用一次。",
        "把{xs}用+ - * /和括号组合成{t}，每个数恰好一次。",
    ),
}
SOME: Phrases = {
    "en": (
        "Make {t} from {xs} using + - * /. Use each number at most once.",
        "Countdown: numbers {xs}, target {t}. Each number may be used at most once.",
        "Reach {t} with the numbers {xs}; no number twice, + - * / allowed.",
        "Find an expression for {t} from {xs}, each used at most once.",
    ),
    "zh": (
        "用{xs}凑出{t}，每个数最多用一次，可用加减乘除。",
        "数字{xs}，目标{t}，每个数至多用一次。",
        "用{xs}中的数通过四则运算得到{t}，每个数不能重复使用。",
        "写一个等于{t}的算式，{xs}每个最多用一次。",
    ),
}
SIZES = {1: 3, 2: 4, 3: 4, 4: 5}
LARGE = (25, 50, 75, 100)
MOST_LINES = {1: 30, 2: 36, 3: 36, 4: 44}
_LARGEST = 1000

Numbers = tuple[int, ...]
Move = tuple[str, int, int]  # (form, number, what the rest must make)


def moves(numbers: Numbers, target: int) -> Iterator[Move]:
    """Every way to split one number off, products first, as far as the rest has a whole positive target."""
    distinct = dict.fromkeys(numbers)
    for n in distinct:
        if target % n == 0:
            yield f"{n}*_", n, target // n
    for n in distinct:
        if target > n:
            yield f"{n}+_", n, target - n
        elif n > target:
            yield f"{n}-_", n, n - target
    for n in distinct:
        if target + n <= _LARGEST:
            yield f"_-{n}", n, target + n
    for n in distinct:
        if 1 < n and target * n <= _LARGEST:
            yield f"_/{n}", n, target * n


def without(numbers: Numbers, number: int) -> Numbers:
    at = numbers.index(number)
    return numbers[:at] + numbers[at + 1 :]


def pair(a: int, b: int, target: int) -> tuple[str, str]:
    """What two numbers (a >= b) make, up to the target: ("12 2 ok 7-5", "7-5"), or ("12 2 35 bad", "")."""
    tried = []
    for operator, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b)):
        if operator == "*" and b > 9 and target < 100 or operator == "/" and (b == 1 or a % b):
            continue
        tried.append(str(value))
        if value == target:
            return f"{' '.join(tried)} ok {a}{operator}{b}", f"{a}{operator}{b}"
    return f"{' '.join(tried)} bad", ""


class Search:
    """Depth first; `lines` is the trace, `found` the forms from the outermost to the pair, when solved."""

    def __init__(self, numbers: Numbers, target: int, most_lines: int) -> None:
        self.lines, self.most_lines, self.found = [f"{_list(numbers)}={target}"], most_lines, list[str]()
        self.solved = self.visit(numbers, target)

    def visit(self, numbers: Numbers, target: int) -> bool:
        for form, number, rest_target in moves(numbers, target):
            if len(self.lines) > self.most_lines:
                return False
            rest = without(numbers, number)
            line = f"{form} {_list(rest)}={rest_target}"
            self.found.append(form)
            if len(rest) == 2:
                verdict, made = pair(*rest, rest_target)
                self.lines.append(f"{line}: {verdict}")
                if made:
                    self.found.append(made)
                    return True
            else:
                self.lines.append(line)
                if self.visit(rest, rest_target):
                    return True
                self.lines.append(f"back {_list(numbers)}={target}")
            self.found.pop()
        return False


def _list(numbers: Numbers) -> str:
    return " ".join(map(str, numbers))


def _assembled(found: list[str]) -> tuple[str, list[str]]:
    """The whole expression, and its values from the inside out: "7-5=2", "25+2=27"."""
    inner = found[-1]
    value = evaluate(inner)
    assert value is not None
    steps, made = [f"{inner}={value.value}"], value.value
    for form in reversed(found[:-1]):
        inner = form.replace("_", f"({inner})")
        step = form.replace("_", str(made))
        value = evaluate(step)
        assert value is not None
        made = value.value
        steps.append(f"{step}={made}")
    return inner, steps


def _target(rng: random.Random, numbers: list[int]) -> int:
    """The value of a random expression over all the numbers, whole and positive at every step; 0: none."""
    value = numbers[0]
    for number in numbers[1:]:
        operator = rng.choice("++--**/")
        if operator == "/" and value % number == 0 and number > 1:
            value //= number
        elif operator == "*" and value * number <= _LARGEST:
            value *= number
        elif operator == "-":
            value = abs(value - number)
        else:
            value += number
        if value == 0:
            return 0
    return value


def make(rng: random.Random, level: int, language: Language) -> Draft:
    """Only problems that the search solves within `MOST_LINES` are drawn."""
    low, high = (100, 600) if level == 3 else (5, 100)
    while True:
        numbers = [rng.randint(1, 20 if level == 1 else 25) for _ in range(SIZES[level])]
        if level == 3:
            numbers[0] = rng.choice(LARGE)
        rng.shuffle(numbers)
        target = _target(rng, numbers)
        if not low <= target <= high or target in numbers:
            continue
        search = Search(tuple(sorted(numbers, reverse=True)), target, MOST_LINES[level])
        if search.solved:
            break
    expression, steps = _assembled(search.found)
    rng.shuffle(numbers)
    every = rng.random() < 0.75
    comma = rng.choice((", ", ", ", " ", "，" if language == "zh" else ","))
    question = ask(rng, ALL if every else SOME, language, xs=comma.join(map(str, numbers)), t=target)
    key = f"{','.join(map(str, sorted(numbers)))}={target}|{'all' if every else 'some'}"
    lines = [*search.lines, f"={expression}", f"Check: {' '.join(steps)} ok"]
    return Draft(question, lines, expression, key)


def judge(key: str, answer: str) -> bool:
    """An expression of the numbers, perhaps followed by "= target", that has the target's value exactly."""
    puzzle, _, wish = key.partition("|")
    numbers, _, target = puzzle.partition("=")
    expression, _, value = answer.partition("=")
    made = evaluate(expression)
    if made is None or made.value != int(target) or (value and value.strip() != target):
        return False
    left = numbers.split(",")
    for number in made.numbers:
        if number not in left:
            return False
        left.remove(number)
    return wish == "some" or not left


TASKS = (Task("countdown", (1, 2, 3), make, judge),)
