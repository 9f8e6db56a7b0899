"""Problems with exact verifiers: a registry of tasks, and random problems of one side of a split.

In: a random generator, the name of a task. Out: `Problem`s with a question in English or Chinese, a thought
that solves it step by step, the answer, and a key. Standard library only. It knows no tokenizer, no chat
template and no model. `python -m deepfast.train.problems` shows examples and measures lengths and speed.
"""

import random

from deepfast.train.problems import (
    arithmetic,
    countdown,
    dates,
    graphs,
    knights,
    letters,
    numerals,
    river,
    stories,
    sudoku,
    tools,
)
from deepfast.train.problems.base import LANGUAGES, Language, Problem, Split, Task, boxed, is_held_out, said
from deepfast.types import UsageError

__all__ = [
    "HARD",
    "LANGUAGES",
    "TASKS",
    "Language",
    "Problem",
    "Split",
    "Task",
    "boxed",
    "is_held_out",
    "said",
    "sample",
    "verify",
]

_FAMILIES = (
    arithmetic.TASKS,
    numerals.TASKS,
    letters.TASKS,
    countdown.TASKS,
    dates.TASKS,
    sudoku.TASKS,
    graphs.TASKS,
    knights.TASKS,
    river.TASKS,
    stories.TASKS,
    tools.TASKS,
)
TASKS: dict[str, Task] = {task.name: task for family in _FAMILIES for task in family}
HARD = (
    "countdown", "sudoku", "path", "knights", "river", "product", "division", "bases", "weekday", "dates",
)  # fmt: skip
"""Tasks that need search or long arithmetic: no short answer follows from a look at the question, one has to
carry digits, try and take back, or keep a state over many steps. So this is where a thought must help."""


def sample(
    name: str,
    rng: random.Random,
    split: Split = "train",
    level: int | None = None,
    language: Language | None = None,
) -> Problem:
    """A random problem of one side: "train", "test" (held out), or "ood" (one size larger than any of them).

    Without a level every level of the side is equally likely; without a language English is a little more
    likely than Chinese. Raises UsageError for a task, split, level or language that there is not.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}. There are {', '.join(TASKS)}.")
    task = TASKS[name]
    if split not in ("train", "test", "ood"):
        raise UsageError(f'there is no split {split!r}. There are "train", "test" and "ood".')
    levels = (task.beyond,) if split == "ood" else task.levels
    if level is not None and level not in levels:
        shown = ", ".join(map(str, levels))
        raise UsageError(f"{name} has no level {level} in {split!r}. It has {shown}.")
    if language not in (None, *LANGUAGES):
        raise UsageError(f'there is no language {language!r}. There are "en" and "zh".')
    size = rng.choice(levels) if level is None else level
    tongue = language or ("en" if rng.random() < 0.55 else "zh")
    while True:
        problem = task.generate(rng, size, tongue)
        if split == "ood" or is_held_out(problem.key) == (split == "test"):
            return problem


def verify(problem: Problem, text: str) -> bool:
    """True when the text, with or without its thought, ends in a right answer. Never raises."""
    return TASKS[problem.task].verify(problem, text)
