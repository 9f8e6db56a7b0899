"""Verifiable rewards: what was said -> a number, by rules alone.

In: columns of equal length, as TRL's GRPOTrainer hands them to its `reward_funcs`: completions (text), and by
name what rollout.py adds: problem, turns (the assistant's, with control tokens), results (of tools), think
(was a thought asked for? None: as the model likes), length (tokens that the model drew), reply (what must be
said word for word). Out: a reward for each completion, None where a rule does not apply. Standard library
only; it knows no model.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deepfast.train.problems import Problem, verify
from deepfast.train.problems.tools import calls_in
from deepfast.types import UsageError

END = "<|im_end|>"
Rewards = list[float | None]
Reward = Callable[..., Rewards]

_SHAPE = re.compile(r"(?:<think>\n(?P<thought>.*?)\n?</think>\n\n)?(?P<reply>.+)", re.DOTALL)
_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?think>")
_FACTS = 3  # of a tool conversation that count alike


class Turn(NamedTuple):
    """An answer in its parts. thought None: there is none, an empty one is empty."""

    thought: str | None
    reply: str


def read(text: str) -> Turn | None:
    """One turn of the assistant; None where its thought is not opened once, closed once, and followed by a
    reply, or where the turn did not end."""
    if not text.endswith(END):
        return None
    found = _SHAPE.fullmatch(text.removesuffix(END))
    if found is None or not found["reply"].strip():
        return None
    if any(_CONTROL.search(part) for part in (found["thought"] or "", found["reply"])):
        return None
    return Turn(found["thought"], found["reply"])


def is_correct(problem: Problem, text: str) -> bool:
    """Did the turn end, with the right answer?"""
    return text.endswith(END) and verify(problem, text.removesuffix(END))


def correct(
    completions: Sequence[str],
    problem: Sequence[Problem | None],
    turns: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> Rewards:
    """1 for a right answer in the last turn, else 0. None where there is no problem."""
    said = _last(completions, turns)
    return [None if p is None else float(is_correct(p, text)) for p, text in zip(problem, said, strict=True)]


def well_formed(
    completions: Sequence[str],
    problem: Sequence[Problem | None],
    turns: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> Rewards:
    """1 where every turn has at most one thought, closed, and a reply; with one box at most, around the last
    answer to a problem."""
    rewards: Rewards = []
    for each, p in zip(_all(completions, turns), problem, strict=True):
        parts = [read(text) for text in each]
        last = parts[-1] if parts else None
        boxes = last.reply.count("\\boxed{") if last else 0
        rewards.append(float(bool(parts) and None not in parts and boxes <= (p is not None)))
    return rewards


def mode_followed(
    completions: Sequence[str],
    think: Sequence[bool | None],
    turns: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> Rewards:
    """1 where every turn thought, or none did, as the switch or the last flag asked. None where nothing was
    asked."""
    rewards: Rewards = []
    for each, wanted in zip(_all(completions, turns), think, strict=True):
        thought = [
            bool(part.thought and part.thought.strip()) if (part := read(text)) else None for text in each
        ]
        rewards.append(
            None if wanted is None else float(bool(thought) and all(is_ is wanted for is_ in thought))
        )
    return rewards


def tool_use(
    completions: Sequence[str],
    problem: Sequence[Problem | None],
    turns: Sequence[Sequence[str]] | None = None,
    results: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> Rewards:
    """For problems with tools: a third each for calls that can be read, calls that a tool could run, and an
    answer that is right, or says what the last result said. None for others."""
    outcomes = results or [()] * len(completions)
    return [
        None if p is None or not p.tools else _tool_facts(p, list(each), list(got)) / _FACTS
        for each, p, got in zip(_all(completions, turns), problem, outcomes, strict=True)
    ]


def _tool_facts(problem: Problem, turns: list[str], results: list[str]) -> int:
    """How many of the three hold; each needs the one before."""
    found = [calls_in(text) for text in turns]
    calls = [call for each in found for call in each or ()]
    offered = {tool["function"]["name"] for tool in problem.tools}
    if not calls or None in found:
        return 0
    ran = [result for result in results if not result.startswith("Error")]
    if any(name not in offered for name, _ in calls) or len(ran) < len(calls):
        return 1
    reply = turns[-1] if not found[-1] and turns[-1].endswith(END) else ""
    return 3 if reply and (is_correct(problem, reply) or _repeats(reply, results[-1])) else 2


def _repeats(reply: str, result: str) -> bool:
    """Is a value of the result said in the reply, whole?"""
    whole = (rf"(?<![\w.,-]){re.escape(value)}(?!\w|[.,][0-9])" for value in _values(result))
    return any(re.search(value, reply, re.ASCII) for value in whole)


def _values(result: str) -> list[str]:
    """What of a result may be said again: the values of a JSON object, or the whole."""
    try:
        parsed = json.loads(result)
    except ValueError:
        parsed = None
    return [str(value) for value in parsed.values()] if isinstance(parsed, dict) else [result]


def said_as_asked(
    completions: Sequence[str],
    reply: Sequence[str | None],
    turns: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> Rewards:
    """1 where the reply is the wanted one, word for word: what is said to questions outside the field. None
    elsewhere."""
    rewards: Rewards = []
    for text, wanted in zip(_last(completions, turns), reply, strict=True):
        part = read(text)
        rewards.append(None if wanted is None else float(part is not None and part.reply.strip() == wanted))
    return rewards


def soft_overlong(most: int, soft: int) -> Reward:
    """The length penalty of DAPO (arXiv 2503.14476, eq. 13): 0 up to most - soft tokens, then down to -1 at
    `most`.

    Raises UsageError unless 0 < soft <= most.
    """
    if not 0 < soft <= most:
        raise UsageError(f"soft={soft} is not between 1 and most={most}. Give a part of the length.")

    def overlong(completions: Sequence[str], length: Sequence[int], **_: Any) -> Rewards:
        return [min(0.0, max(-1.0, (most - soft - tokens) / soft)) for tokens in length]

    return overlong


def shorter(
    prompts: Sequence[Any],
    completions: Sequence[str],
    problem: Sequence[Problem | None],
    length: Sequence[int],
    turns: Sequence[Sequence[str]] | None = None,
    **_: Any,
) -> Rewards:
    """Among the right answers to one prompt, from 0.5 for the shortest to -0.5 for the longest; 0 for wrong
    ones.

    As the length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3), but being wrong costs nothing more.
    """
    right = [bool(value) for value in correct(completions, problem, turns)]
    lengths: dict[str, list[int]] = {}
    for prompt, good, tokens in zip(prompts, right, length, strict=True):
        if good:
            lengths.setdefault(repr(prompt), []).append(tokens)
    rewards: Rewards = []
    for prompt, good, tokens in zip(prompts, right, length, strict=True):
        group = lengths.get(repr(prompt), [0])
        spread = max(group) - min(group)
        rewards.append(0.5 - (tokens - min(group)) / spread if good and spread else 0.0)
    return rewards


def _all(completions: Sequence[str], turns: Sequence[Sequence[str]] | None) -> Sequence[Sequence[str]]:
    """Every turn; without rollouts of ours a completion is the one turn, which ended."""
    return (
        turns if turns is not None else [[text if text.endswith(END) else text + END] for text in completions]
    )


def _last(completions: Sequence[str], turns: Sequence[Sequence[str]] | None) -> list[str]:
    return [each[-1] if each else "" for each in _all(completions, turns)]
