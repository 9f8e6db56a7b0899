"""Samples of the generated problems, shared by the tests that look at them.

In: the name of a task. Out: problems of its levels in both languages; equal calls give equal problems. It
knows no task.
"""

import functools
import random
import re
from collections.abc import Iterator

from deepfast.train.problems import LANGUAGES, TASKS, Problem

FEWER = {"river": 40, "knights": 60, "countdown": 60, "sudoku": 60}  # slower to make


def fresh(name: str, level: int, count: int = 0, seed: int = 0) -> list[Problem]:
    """Problems of one level, every second in Chinese."""
    rng = random.Random(f"{name} {level} {seed}")
    count = count or FEWER.get(name, 80)
    return [TASKS[name].generate(rng, level, LANGUAGES[n % 2]) for n in range(count)]


many = functools.cache(fresh)


def each(name: str) -> Iterator[Problem]:
    """Problems of all levels, the one beyond training too."""
    for level in (*TASKS[name].levels, TASKS[name].beyond):
        yield from many(name, level)


def ints(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]
