"""Word problems of one to three steps; four beyond training.

In: a random generator, a level (the number of steps). Out: drafts and a judge. Most are chains: somebody has
some things, gets more, gives some away, doubles them, shares them; others are about shops, journeys, ages,
legs and heads. The trace is one equation a step; the check undoes them from the last. The key holds the
numbers, so that a story told of other people is the same problem. It knows nothing of other tasks.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from deepfast.train.problems.arithmetic import judge_number
from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask

Step = tuple[int, str, int]


class Told(NamedTuple):
    text: str
    steps: list[Step]  # the last one gives the answer
    key: str


NAMES: Mapping[Language, Sequence[str]] = {
    "en": (
        "Anna Ben Clara David Ella Felix Gina Hugo Iris Jonas Lena Max Nora Oscar Paula Tom Mary John Lily"
    ).split(),
    "zh": "小明 小红 小刚 小丽 小华 小强 小芳 小军 小美 小杰 丽丽 东东 王老师 李阿姨 张叔叔".split(),
}
THINGS: Mapping[Language, Sequence[str]] = {
    "en": (
        "apples marbles stickers books coins pencils cookies stamps shells balloons cards beads "
        "buttons candies "
        "oranges flowers stones tickets toys eggs"
    ).split(),
    "zh": (
        "个苹果 颗弹珠 张贴纸 本书 枚硬币 支铅笔 块饼干 张邮票 个贝壳 个气球 张卡片 颗珠子 粒纽扣 颗糖 "
        "个橙子 朵花 块石头 张票 个玩具 个鸡蛋"
    ).split(),
}
STARTS: Phrases = {
    "en": (
        "{a} has {n} {o}.",
        "{a} starts with {n} {o}.",
        "There are {n} {o} in {a}'s box.",
        "{a} owns {n} {o}.",
    ),
    "zh": ("{a}有{n}{o}。", "{a}一开始有{n}{o}。", "{a}的盒子里有{n}{o}。", "{a}原来有{n}{o}。"),
}
EVENTS: Mapping[str, Phrases] = {
    "+": {
        "en": (
            "{a} buys {n} more.",
            "{b} gives {a} {n} {o}.",
            "{a} finds {n} more {o}.",
            "Then {a} gets another {n}.",
            "{a} wins {n} {o}.",
            "{b} brings {n} more {o} for {a}.",
        ),
        "zh": (
            "{a}又买了{n}{o}。",
            "{b}给了{a}{n}{o}。",
            "{a}又找到{n}{o}。",
            "然后{a}又得到{n}{o}。",
            "{a}赢了{n}{o}。",
            "{b}又给{a}带来{n}{o}。",
        ),
    },
    "-": {
        "en": (
            "{a} gives {n} {o} to {b}.",
            "{a} loses {n} of them.",
            "{a} sells {n} {o}.",
            "{b} takes {n} away.",
            "Then {n} {o} are gone.",
            "{a} throws {n} {o} away.",
        ),
        "zh": (
            "{a}给了{b}{n}{o}。",
            "{a}丢了{n}{o}。",
            "{a}卖掉{n}{o}。",
            "{b}拿走了{n}{o}。",
            "然后少了{n}{o}。",
            "{a}扔掉{n}{o}。",
        ),
    },
    "*": {
        "en": (
            "Then {a} has {n} times as many as before.",
            "The number of {a}'s {o} grows to {n} times what it was.",
            "{a} trades and ends up with {n} times as many {o}.",
        ),
        "zh": (
            "然后数量变成原来的{n}倍。",
            "{a}手里的数量增加到原来的{n}倍。",
            "{a}换了一次，数量是之前的{n}倍。",
        ),
    },
    "/": {
        "en": (
            "{a} makes {n} equal piles of them and keeps one pile.",
            "{a} shares them equally among {n} people and keeps one share.",
            "{a} puts all into {n} equal bags and keeps one bag.",
        ),
        "zh": (
            "{a}把它们平均分成{n}堆，只留一堆。",
            "{a}把它们平均分给{n}个人，自己留一份。",
            "{a}把全部平均装进{n}个袋子，只留一袋。",
        ),
    },
}
NOW: Phrases = {
    "en": (
        "How many {o} does {a} have now?",
        "How many {o} does {a} have in the end?",
        "How many {o} are left with {a}?",
        "What number of {o} does {a} have now?",
    ),
    "zh": (
        "{a}现在有多少{o}？",
        "最后{a}有多少{o}？",
        "现在{a}一共有多少{o}？",
        "{a}还有几{o}？",
    ),
}
SHAPES: Mapping[str, Phrases] = {
    "boxes": {
        "en": (
            "There are {p} boxes with {q} {o} each. How many {o} are there?",
            "{a} buys {p} packs of {q} {o}. How many {o} does {a} buy?",
            "{p} shelves hold {q} {o} each. How many {o} in all?",
        ),
        "zh": (
            "有{p}个盒子，每盒{q}{o}，一共有多少{o}？",
            "{a}买了{p}包，每包{q}{o}，一共多少{o}？",
            "{p}个架子上各有{q}{o}，总共多少{o}？",
        ),
    },
    "change": {
        "en": (
            "A notebook costs {p} dollars. {a} buys {q} of them and pays with {r} dollars. How much change?",
            "Tickets cost {p} dollars each. {a} pays for {q} with {r} dollars. How many dollars come back?",
        ),
        "zh": (
            "一本笔记本{p}元，{a}买了{q}本，付了{r}元，应找回多少元？",
            "每张票{p}元，{a}买{q}张，给了{r}元，找回几元？",
        ),
    },
    "more": {
        "en": (
            "{a} has {p} {o}. {b} has {q} more than {a}. How many {o} do they have together?",
            "{b} has {q} {o} more than {a}, who has {p}. How many do both have in all?",
        ),
        "zh": (
            "{a}有{p}{o}，{b}比{a}多{q}{o}，两人一共有多少{o}？",
            "{b}比{a}多{q}{o}，{a}有{p}{o}，他们共有多少{o}？",
        ),
    },
    "trip": {
        "en": (
            "A train goes {p} km an hour for {q} hours and then {r} km more. How many km in all?",
            "{a} drives {q} hours at {p} km per hour, then another {r} km. How many km is that?",
        ),
        "zh": (
            "火车每小时行{p}千米，行了{q}小时后又行{r}千米，一共多少千米？",
            "{a}以每小时{p}千米开了{q}小时，再开{r}千米，共多少千米？",
        ),
    },
    "shop": {
        "en": (
            "A pen costs {p} dollars and a book {r} dollars. {a} buys {q} pens and {s} books. What is "
            "the total?",
            "{a} buys {q} pens at {p} dollars each and {s} books at {r} dollars each. How many dollars "
            "is that?",
        ),
        "zh": (
            "一支笔{p}元，一本书{r}元，{a}买{q}支笔和{s}本书，一共多少元？",
            "{a}买了{q}支{p}元的笔和{s}本{r}元的书，共花多少元？",
        ),
    },
    "ages": {
        "en": (
            "{a} is {p} years old. {b} is {q} times as old. How old will {b} be in {r} years, and how many "
            "years is that more than {a} is now?",
            "{b} is {q} times as old as {a}, who is {p}. In {r} years, by how many years will {b}'s age "
            "exceed {a}'s present age?",
        ),
        "zh": (
            "{a}今年{p}岁，{b}的年龄是{a}的{q}倍。{r}年后{b}的年龄比{a}现在的年龄大多少岁？",
            "{b}的年龄是{a}的{q}倍，{a}现在{p}岁。再过{r}年，{b}的年龄比{a}现在的年龄大几岁？",
        ),
    },
    "legs": {
        "en": (
            "Chickens and rabbits have {p} heads and {q} legs together. How many rabbits are there?",
            "A farm has chickens and rabbits: {p} heads, {q} legs. How many of them are rabbits?",
        ),
        "zh": (
            "鸡兔同笼，共有{p}个头，{q}条腿，兔子有几只？",
            "笼子里有鸡和兔，头{p}个，脚{q}只，问兔有多少只？",
        ),
    },
    "paid": {
        "en": (
            "A pen costs {p} dollars and a book {r} dollars. {a} buys {q} pens and {s} books and pays "
            "with {t} "
            "dollars. How much change does {a} get?",
        ),
        "zh": ("一支笔{p}元，一本书{r}元，{a}买{q}支笔和{s}本书，付了{t}元，应找回多少元？",),
    },
}


def value(step: Step) -> int:
    a, operator, b = step
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]


def _people(rng: random.Random, language: Language) -> dict[str, str]:
    a, b = rng.sample(NAMES[language], 2)
    return {"a": a, "b": b, "o": rng.choice(THINGS[language])}


def _event(rng: random.Random, have: int) -> Step:
    """Something that happens to so many things and leaves between 1 and 200 of them."""
    ways = ["+", "-"]
    if divisors := [n for n in range(2, 10) if have % n == 0 and have > n]:
        ways.append("/")
    if 2 <= have <= 60:
        ways.append("*")
    operator = rng.choice(ways)
    if operator == "*":
        return have, "*", rng.randint(2, min(9, 200 // have))
    if operator == "/":
        return have, "/", rng.choice(divisors)
    if operator == "+" or have < 4:
        return have, "+", rng.randint(2, 60)
    return have, "-", rng.randint(2, have - 1)


def _chain(rng: random.Random, level: int, language: Language) -> Told:
    slots = _people(rng, language)
    have = rng.randint(4, 60)
    key, text, steps = f"chain,{have}", [ask(rng, STARTS, language, n=have, **slots)], list[Step]()
    for _ in range(level):
        step = _event(rng, have)
        steps.append(step)
        have = value(step)
        key += f"{step[1]}{step[2]}"
        text.append(ask(rng, EVENTS[step[1]], language, n=step[2], **slots))
    text.append(ask(rng, NOW, language, **slots))
    return Told((" " if language == "en" else "").join(text), steps, key)


def _boxes(rng: random.Random) -> tuple[list[int], list[Step]]:
    p, q = rng.randint(2, 9), rng.randint(2, 20)
    return [p, q], [(q, "*", p)]


def _change(rng: random.Random) -> tuple[list[int], list[Step]]:
    p, q = rng.randint(2, 15), rng.randint(2, 9)
    r = p * q + rng.randint(1, 60)
    return [p, q, r], [(p, "*", q), (r, "-", p * q)]


def _more(rng: random.Random) -> tuple[list[int], list[Step]]:
    p, q = rng.randint(3, 80), rng.randint(2, 40)
    return [p, q], [(p, "+", q), (p, "+", p + q)]


def _trip(rng: random.Random) -> tuple[list[int], list[Step]]:
    p, q, r = rng.randint(3, 30) * rng.choice((1, 1, 2, 4)), rng.randint(2, 9), rng.randint(2, 90)
    return [p, q, r], [(p, "*", q), (p * q, "+", r)]


def _shop(rng: random.Random) -> tuple[list[int], list[Step]]:
    p, q, r, s = rng.randint(2, 9), rng.randint(2, 9), rng.randint(3, 20), rng.randint(2, 9)
    return [p, q, r, s], [(p, "*", q), (r, "*", s), (p * q, "+", r * s)]


def _ages(rng: random.Random) -> tuple[list[int], list[Step]]:
    p, q, r = rng.randint(3, 20), rng.randint(2, 5), rng.randint(2, 20)
    return [p, q, r], [(p, "*", q), (p * q, "+", r), (p * q + r, "-", p)]


def _legs(rng: random.Random) -> tuple[list[int], list[Step]]:
    heads = rng.randint(5, 50)
    legs = 2 * heads + 2 * rng.randint(1, heads - 1)
    return [heads, legs], [(heads, "*", 2), (legs, "-", 2 * heads), (legs - 2 * heads, "/", 2)]


def _paid(rng: random.Random) -> tuple[list[int], list[Step]]:
    numbers, steps = _shop(rng)
    total = value(steps[-1])
    paid = total + rng.randint(1, 60)
    return [*numbers, paid], [*steps, (paid, "-", total)]


OTHERS: Mapping[int, Mapping[str, Callable[[random.Random], tuple[list[int], list[Step]]]]] = {
    1: {"boxes": _boxes},
    2: {"change": _change, "more": _more, "trip": _trip},
    3: {"shop": _shop, "ages": _ages, "legs": _legs},
    4: {"paid": _paid},
}


def make(rng: random.Random, level: int, language: Language) -> Draft:
    if rng.random() < 0.6:
        told = _chain(rng, level, language)
    else:
        shape = rng.choice(list(OTHERS[level]))
        numbers, steps = OTHERS[level][shape](rng)
        slots: dict[str, object] = {**_people(rng, language), **dict(zip("pqrst", numbers, strict=False))}
        told = Told(
            ask(rng, SHAPES[shape], language, **slots), steps, f"{shape},{','.join(map(str, numbers))}"
        )
    lines = [f"{a}{operator}{b}={value((a, operator, b))}" for a, operator, b in told.steps]
    undo = {"+": "-", "-": "+", "*": "/", "/": "*"}
    back = [f"{value(step)}{undo[step[1]]}{step[2]}={step[0]}" for step in reversed(told.steps)]
    right = value(told.steps[-1])
    return Draft(told.text, [*lines, f"Check: {' '.join(back)} ok"], str(right), f"{told.key}|{right}")


def judge(key: str, answer: str) -> bool:
    return judge_number(int(key.partition("|")[2]), answer.removeprefix("$"))


TASKS = (Task("story", (1, 2, 3), make, judge),)
