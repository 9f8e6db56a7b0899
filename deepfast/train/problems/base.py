"""What every family of problems shares: a problem, a task, the split, and what a text answers.

In: keys and texts. Out: `Problem`, `Task`, `is_held_out`, `said`. A key names a problem whatever its
phrasing: "task:atoms|rest". Atoms (parted by spaces) are what must not be known from training: a pair of
operands, a word, the name of an item. A problem is held out when one of its atoms is. It knows no task.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deepfast.types import UsageError

Language = Literal["en", "zh"]
Split = Literal["train", "test", "ood"]
Phrases = Mapping[Language, Sequence[str]]
HELD_OUT_ONE_IN = 16
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_LONGEST_ANSWER = 2000
_LIKE = str.maketrans("，：；（）。！＋－＝　−–—×·÷＊／", ",:;().!+-= ---**/*/")


@dataclass(frozen=True)
class Problem:
    """A question, the thought that solves it, and what is said after the thought.

    The answer is said bare; a box around it is understood (`said`). Where tools are needed, `tools` are their
    JSON descriptions and `turns` the whole conversation as messages of a chat template, from the question
    to the reply; `trace` is then the thought of the first turn of the assistant.
    """

    task: str
    level: int
    language: Language
    question: str
    trace: str
    answer: str
    key: str
    tools: tuple[dict[str, Any], ...] = ()
    turns: tuple[dict[str, Any], ...] = ()

    @property
    def reply(self) -> str:
        """What is said after the thought."""
        return self.answer


@dataclass(frozen=True)
class Draft:
    """What a family makes of its random numbers; the task adds name, level and language."""

    question: str
    trace: Sequence[str]  # lines
    answer: str
    key: str  # without the name of the task
    tools: tuple[dict[str, Any], ...] = ()
    turns: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Task:
    """One kind of problem: how it is made at each level, and when an answer to it is right.

    `levels` are those of training and test; `beyond` is one size larger, for tests out of distribution.
    """

    name: str
    levels: tuple[int, ...]
    make: Callable[[random.Random, int, Language], Draft]
    judge: Callable[[str, str], bool]  # (key without the name of the task, answer) -> right?

    @property
    def beyond(self) -> int:
        return self.levels[-1] + 1

    def generate(self, rng: random.Random, level: int, language: Language) -> Problem:
        """A random problem of either side of the split. UsageError for a level that the task has not."""
        if level not in self.levels and level != self.beyond:
            raise UsageError(f"{self.name} has no level {level}. It has {self.levels[0]} to {self.beyond}.")
        draft = self.make(rng, level, language)
        trace, key = "\n".join(draft.trace), f"{self.name}:{draft.key}"
        return Problem(
            self.name, level, language, draft.question, trace, draft.answer, key, draft.tools, draft.turns
        )

    def verify(self, problem: Problem, text: str) -> bool:
        """True when the text, with or without its thought, ends in a right answer. Never raises."""
        answer = said(text)
        return answer is not None and self.judge(problem.key.partition(":")[2], answer)


def is_held_out(key: str) -> bool:
    """True for problems that training never sees: those with an atom that is held out."""
    return any(is_atom_held_out(atom) for atom in atoms_of(key))


def atoms_of(key: str) -> list[str]:
    """What in a key must not be known from training."""
    return key.partition(":")[2].partition("|")[0].split(" ")


def is_atom_held_out(atom: str) -> bool:
    """True for one in sixteen, by SHA-256."""
    return hashlib.sha256(atom.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def said(text: str) -> str | None:
    """The answer in a text: what its boxes hold, all the same; without a box, the whole text.

    None when the thought never ended, boxes disagree, or the answer is absurdly long. Punctuation of
    full width becomes that of ASCII, `\\text{x}` becomes x, and a full stop at the end is dropped.
    """
    if "</think>" in text:
        text = text[text.rindex("</think>") + len("</think>") :]
    elif "<think>" in text:
        return None
    answers = {_plain(answer) for answer in _boxes(text)} or {_plain(text)}
    if len(answers) > 1:
        return None
    (answer,) = answers
    return answer if 0 < len(answer) <= _LONGEST_ANSWER else None


def _plain(answer: str) -> str:
    if len(answer) > 2 * _LONGEST_ANSWER:
        return ""
    answer = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", answer)
    answer = answer.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    answer = answer.translate(_LIKE).strip()
    return answer[:-1].rstrip() if answer.endswith(".") else answer


def _boxes(text: str) -> list[str]:
    """What stands between the braces of every \\boxed{}, inner braces matched; an open one holds nothing."""
    found = []
    start = text.find("\\boxed{")
    while start >= 0:
        begin = start + len("\\boxed{")
        depth = 1
        for brace in re.compile(r"[{}]").finditer(text, begin):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                found.append(text[begin : brace.start()])
                break
        else:
            return [*found, ""]
        start = text.find("\\boxed{", brace.end())
    return found


def ask(rng: random.Random, phrases: Phrases, language: Language, /, **slots: object) -> str:
    """One of the phrasings, with its slots filled."""
    return rng.choice(phrases[language]).format(**slots)
