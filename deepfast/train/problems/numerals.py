"""Written numbers: which of two decimals is larger, numbers in other bases, sorting.

In: a random generator, a level. Out: drafts and judges. Decimals are compared as digits of equal width, bases
by division and by Horner's rule, lists by taking out the smallest again and again. It knows nothing of other
tasks.
"""

import random
import re
from fractions import Fraction

from deepfast.train.problems.arithmetic import judge_number
from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask

LARGER: Phrases = {
    "en": (
        "Which is larger, {a} or {b}?",
        "Which is bigger: {a} or {b}?",
        "{a} or {b}? Which number is greater?",
        "Compare {a} and {b}. Which one is larger?",
        "Is {a} or {b} the larger number?",
        "What is max({a}, {b})?",
        "Which of {a} and {b} is greater?",
        "{a} and {b}, which one is bigger?",
        "Tell me the larger of {a} and {b}.",
    ),
    "zh": (
        "{a}和{b}哪个大？",
        "{a}和{b}哪个更大？",
        "{a}与{b}相比，哪个数大？",
        "比较{a}和{b}，哪个较大？",
        "请问{a}大还是{b}大？",
        "{a}大还是{b}大？",
        "{a}和{b}中较大的数是多少？",
        "求{a}和{b}的最大值。",
        "{a}、{b}，哪一个更大些？",
    ),
}
SMALLER: Phrases = {
    "en": (
        "Which is smaller, {a} or {b}?",
        "{a} or {b}? Which number is smaller?",
        "Compare {a} and {b}. Which one is smaller?",
        "Which of {a} and {b} is less?",
        "What is min({a}, {b})?",
        "{a} and {b}, which one is the smaller?",
        "Tell me the smaller of {a} and {b}.",
        "Is {a} or {b} the smaller number?",
    ),
    "zh": (
        "{a}和{b}哪个小？",
        "{a}和{b}哪个更小？",
        "{a}与{b}相比，哪个数小？",
        "比较{a}和{b}，哪个较小？",
        "{a}小还是{b}小？",
        "{a}和{b}中较小的数是多少？",
        "求{a}和{b}的最小值。",
        "{a}、{b}，哪一个更小些？",
    ),
}
TO_BASE: Phrases = {
    "en": (
        "Write {n} in base {b}.",
        "Convert {n} to base {b}.",
        "What is {n} in base {b}?",
        "Convert the decimal number {n} to base {b}.",
        "Convert {n} from base 10 to base {b}.",
        "How is {n} written in base {b}?",
        "Express {n} in base {b}.",
        "Give the base-{b} form of {n}.",
        "{n} (decimal) in base {b} = ?",
    ),
    "zh": (
        "把{n}转换成{b}进制。",
        "{n}用{b}进制怎么写？",
        "{n}的{b}进制表示是什么？",
        "将十进制数{n}转换为{b}进制。",
        "十进制的{n}等于{b}进制的多少？",
        "请把{n}写成{b}进制数。",
        "求{n}的{b}进制形式。",
        "{n}（十进制）转{b}进制",
    ),
}
FROM_BASE: Phrases = {
    "en": (
        "Convert {n} from base {b} to decimal.",
        "What is {n} in base {b} as a decimal number?",
        "The number {n} is written in base {b}. What is it in base 10?",
        "Convert {n} (base {b}) to base 10.",
        "{n} in base {b} = ? in decimal",
        "Which decimal number is {n} in base {b}?",
        "Express the base-{b} number {n} in base 10.",
        "Read {n} in base {b} and write it in decimal.",
    ),
    "zh": (
        "把{b}进制数{n}转换成十进制。",
        "{b}进制的{n}等于十进制的多少？",
        "{n}是{b}进制数，它的十进制是多少？",
        "将{b}进制数{n}转换为十进制。",
        "{b}进制数{n}换算成十进制是多少？",
        "请把{n}（{b}进制）写成十进制数。",
        "求{b}进制数{n}的十进制值。",
        "{n}（{b}进制）转十进制",
    ),
}
UP: Phrases = {
    "en": (
        "Sort {xs}",
        "Sort {xs}.",
        "Sort these numbers: {xs}",
        "Sort the numbers {xs}.",
        "Sort {xs} in increasing order.",
        "Sort these numbers from smallest to largest: {xs}",
        "Put these numbers in ascending order: {xs}",
        "Order {xs} from small to large.",
        "Arrange {xs} in ascending order.",
    ),
    "zh": (
        "从小到大排序：{xs}",
        "从小到大排序: {xs}",
        "把{xs}从小到大排序",
        "请把{xs}从小到大排列。",
        "请将下列数字从小到大排序：{xs}",
        "给这些数字排序：{xs}",
        "排序：{xs}",
        "按升序排列：{xs}",
    ),
}
DOWN: Phrases = {
    "en": (
        "Sort {xs} in decreasing order.",
        "Sort {xs} from largest to smallest.",
        "Put these numbers in descending order: {xs}",
        "Order {xs} from large to small.",
        "Arrange {xs} in descending order.",
        "Sort these numbers, largest first: {xs}",
        "Sort the numbers {xs}, biggest first.",
        "List {xs} from high to low.",
    ),
    "zh": (
        "从大到小排序：{xs}",
        "把{xs}从大到小排序",
        "请把{xs}从大到小排列。",
        "请将下列数字从大到小排序：{xs}",
        "按降序排列：{xs}",
        "给这些数字排序，大的在前：{xs}",
        "降序排序：{xs}",
        "将{xs}由大到小排列。",
    ),
}
DIGITS = "0123456789ABCDEF"
BASES = {1: (2,), 2: (2, 3, 4, 5, 8), 3: tuple(range(2, 10)) + (16,), 4: tuple(range(2, 10)) + (16,)}
LARGEST = {1: (2, 127), 2: (16, 255), 3: (100, 999), 4: (1000, 4095)}
LENGTHS = {1: (2, 4), 2: (5, 6), 3: (7, 8), 4: (9, 10)}


# --- decimals ---


def _decimal(rng: random.Random, whole: int, places: int) -> str:
    return f"{whole}.{rng.randint(0, 10**places - 1):0{places}}" if places else str(whole)


def make_decimals(rng: random.Random, level: int, language: Language) -> Draft:
    """Two decimals, mostly with the same whole part; one has as many places as the level."""
    whole = rng.choice((rng.randint(0, 9), rng.randint(0, 9), rng.randint(10, 99)))
    other = whole if rng.random() < 0.8 else rng.randint(0, 99)
    a, b = _decimal(rng, whole, level), _decimal(rng, other, rng.randint(int(level > 1), level))
    if rng.random() < 0.25 and other == whole and "." in b:
        b = a[: len(b)]  # equal as far as it goes: 3.14 and 3.1
    if a == b:
        return make_decimals(rng, level, language)
    if rng.random() < 0.5:
        a, b = b, a
    larger = rng.random() < 0.6
    trace, answer = _compare(a, b, larger)
    if answer == "=":
        answer = "equal" if language == "en" else "一样大"
    question = ask(rng, LARGER if larger else SMALLER, language, a=a, b=b)
    return Draft(question, trace, answer, f"{min(a, b)},{max(a, b)}|{'larger' if larger else 'smaller'}")


def _compare(a: str, b: str, larger: bool) -> tuple[list[str], str]:
    """Whole parts, then the places one by one, filled up with zeros: "9.11 9.90", "9=9", "1<9"."""
    (i, _, x), (j, _, y) = a.partition("."), b.partition(".")
    width, whole = max(len(x), len(y)), max(len(i), len(j))
    left, right = f"{i:0>{whole}}.{x:0<{width}}", f"{j:0>{whole}}.{y:0<{width}}"
    steps, sign = [], "="
    for p, q in zip(left.replace(".", ""), right.replace(".", ""), strict=True):
        sign = "<" if p < q else ">" if p > q else "="
        steps.append(f"{p}{sign}{q}")
        if sign != "=":
            break
    answer = "=" if sign == "=" else a if (sign == ">") == larger else b
    lines = [f"{left} {right}", " ".join(steps), f"{a}{sign}{b}"]
    if sign != "=":
        lines.append(f"{'larger' if larger else 'smaller'} {answer}")
    return [*lines, f"Check: place {len(steps)} {steps[-1]} ok"], answer


def judge_decimals(key: str, answer: str) -> bool:
    """The number, in any spelling without needless zeros before it; "equal" when they are equal."""
    pair, _, wish = key.partition("|")
    a, b = pair.split(",")
    if Fraction(a) == Fraction(b):
        return answer.lower() in ("equal", "they are equal", "一样大", "相等", "一样", f"{a}={b}", f"{b}={a}")
    if not re.fullmatch(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?", answer):
        return False
    return Fraction(answer) == (max if wish == "larger" else min)(Fraction(a), Fraction(b))


# --- bases ---


def in_base(number: int, base: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, base)
        digits = DIGITS[digit] + digits
    return digits


def _horner(digits: str, base: int) -> list[str]:
    """The value after each digit, its tens and hundreds one by one: "14*7+5: 70+28=98+5=103"."""
    value, steps = 0, []
    for digit in digits:
        place, parts = DIGITS.index(digit), list[str]()
        total = 0
        for power, part in zip(range(len(str(value)) - 1, -1, -1), str(value), strict=True):
            total += int(part) * 10**power * base
            parts.append(f"{int(part) * 10**power * base}" + (f"={total}" if parts else ""))
        name = f"{digit}={place} " if place > 9 else ""
        steps.append(f"{name}{value}*{base}+{place}: {'+'.join(parts)}+{place}={total + place}")
        value = total + place
    return steps


def _divide(number: int, base: int) -> str:
    """One division, digit by digit: "999/7: 9=1r2 29=4r1 19=2r5 =142r5"."""
    rest, steps = 0, []
    for digit in str(number):
        have = 10 * rest + int(digit)
        times, rest = divmod(have, base)
        steps.append(f"{have}={times}r{rest}")
    return f"{number}/{base}: {' '.join(steps)} ={number // base}r{rest}"


def _divided(number: int, base: int) -> list[str]:
    """Division after division: what is left and the digits found so far."""
    lines, found = [], ""
    while number or not found:
        found = DIGITS[number % base] + found
        lines.append(f"{_divide(number, base)} {found}")
        number //= base
    return lines


def make_bases(rng: random.Random, level: int, language: Language) -> Draft:
    """A number into another base, or out of it."""
    number, base = rng.randint(*LARGEST[level]), rng.choice(BASES[level])
    written = in_base(number, base)
    values = "".join(f" {step.rpartition('=')[2]}" for step in _horner(written, base))
    if rng.random() < 0.5:
        trace = [f"{number}>{base}", *_divided(number, base), f"Check: {written}:{values} ok"]
        return Draft(ask(rng, TO_BASE, language, n=number, b=base), trace, written, f"{number}.{base}|to")
    check = f"Check: {_divide(number, base)} {written[-1]} ok"
    trace = [f"{written}<{base}", *_horner(written, base), check]
    return Draft(
        ask(rng, FROM_BASE, language, n=written, b=base), trace, str(number), f"{number}.{base}|from"
    )


def judge_bases(key: str, answer: str) -> bool:
    pair, _, direction = key.partition("|")
    number, _, base = pair.partition(".")
    if direction == "from":
        return judge_number(int(number), answer)
    return answer.upper() == in_base(int(number), int(base))


# --- sorting ---


def make_sorting(rng: random.Random, level: int, language: Language) -> Draft:
    largest = rng.choice((9, 99, 99, 99, 999)) if level > 1 else rng.choice((9, 99))
    numbers = [rng.randint(0, largest) for _ in range(rng.randint(*LENGTHS[level]))]
    down = rng.random() < 0.3
    rest, pick = numbers.copy(), max if down else min
    lines = [f"{'max' if down else 'min'} of {' '.join(map(str, numbers))}"]
    while rest:
        rest.remove(taken := pick(rest))
        lines.append(f"{taken}: {' '.join(map(str, rest))}".rstrip())
    ordered = sorted(numbers, reverse=down)
    lines.append(f"Check: {len(numbers)} in {len(ordered)} out {' '.join(map(str, ordered))} ok")
    comma = "，" if rng.random() < 0.1 else ", " if rng.random() < 0.8 else " "
    question = ask(rng, DOWN if down else UP, language, xs=comma.join(map(str, numbers)))
    key = f"{','.join(map(str, sorted(numbers)))}|{'down' if down else 'up'}"
    return Draft(question, lines, ", ".join(map(str, ordered)), key)


def judge_sorting(key: str, answer: str) -> bool:
    """The numbers in order, parted by commas or spaces, brackets allowed."""
    numbers, _, way = key.partition("|")
    wanted = numbers.split(",")
    listed = re.fullmatch(r"[\[(]? *([0-9]+(?: *[, ] *[0-9]+)*) *[\])]?", answer)
    if listed is None:
        return False
    return re.findall(r"[0-9]+", listed[1]) == (wanted[::-1] if way == "down" else wanted)


TASKS = (
    Task("decimals", (1, 2, 3), make_decimals, judge_decimals),
    Task("bases", (1, 2, 3), make_bases, judge_bases),
    Task("sorting", (1, 2, 3), make_sorting, judge_sorting),
)
