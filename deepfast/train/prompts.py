"""What reinforcement learning asks: kinds of prompts, made from numbers, and the choice of those worth
learning from.

In: task shares, a stage's name, pass counts of the policy. Out: `Prompt`s, a few words each, that become
episodes; a JSON-lines file of what was tried. A prompt's seed is text that names the stage, so none of the
streams of problems of supervised stages meets them. It knows no model and no trainer.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deepfast.train.documents import FLAG
from deepfast.train.problems import Problem, sample
from deepfast.train.rollout import Episode
from deepfast.train.talk import small_talk
from deepfast.types import Message, Mode, UsageError

KINDS = ("think", "flag", "no_think", "off", "budget", "turns", "outside")
BUDGETS = (32, 64, 128, 256)  # tokens
THINK_FLAG, NO_THINK_FLAG = f" {FLAG[True]}", f" {FLAG[False]}"


class Prompt(NamedTuple):
    """kind: one of KINDS. task: of problems; "" for questions outside the field. seed: makes the rest."""

    kind: str
    task: str
    seed: str


class Tried(NamedTuple):
    """A prompt and how many of its rollouts were right."""

    prompt: Prompt
    right: int
    of: int

    @property
    def learnable(self) -> bool:
        """Solved at times, not always: only there do the answers of a group differ."""
        return 0 < self.right < self.of


def prompts(stage: str, tasks: Mapping[str, float], kinds: Mapping[str, float], count: int) -> list[Prompt]:
    """Prompt i of a stage is the same in every run. Raises UsageError for a kind that there is not."""
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(f"there is no kind of prompt {min(unknown)!r}. There are {', '.join(KINDS)}.")
    made = []
    for index in range(count):
        rng = random.Random(f"{stage} {index}")
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        task = rng.choices(list(tasks), list(tasks.values()))[0]
        made.append(Prompt(kind, "" if kind == "outside" else task, f"{stage} {index}"))
    return made


def episode(prompt: Prompt, parameters: int) -> Episode:
    """The prompt as it is asked. parameters: of the model, which names its size to questions outside its
    field."""
    rng = random.Random(f"{prompt.seed} {prompt.kind}")
    if prompt.kind == "outside":
        talk = small_talk(rng, "train", parameters)
        think = rng.choice((True, False))
        flag = rng.choice((THINK_FLAG, "")) if think else NO_THINK_FLAG
        return Episode((Message("user", talk.question + flag),), think=think, reply=talk.reply)
    problem = sample(prompt.task, rng)
    messages, think, mode = _conversation(prompt.kind, problem, rng)
    budget = rng.choice(BUDGETS) if prompt.kind == "budget" else None
    return Episode(messages, mode, budget, problem, think)


def _conversation(kind: str, problem: Problem, rng: random.Random) -> tuple[tuple[Message, ...], bool, Mode]:
    """Messages, whether a thought is asked for, and the hard switch."""
    question = problem.question
    if kind == "turns":
        return _with_history(question, rng)
    flag = {"flag": THINK_FLAG, "no_think": NO_THINK_FLAG}.get(kind, "")
    think = kind not in ("no_think", "off")
    return (Message("user", question + flag),), think, "off" if kind == "off" else "auto"


def _with_history(question: str, rng: random.Random) -> tuple[tuple[Message, ...], bool, Mode]:
    """After an earlier turn with a flag of its own; the last flag is followed."""
    earlier = sample("sum", rng)
    before = rng.choice((THINK_FLAG, NO_THINK_FLAG, ""))
    now = rng.choice((THINK_FLAG, NO_THINK_FLAG))
    messages = (
        Message("user", earlier.question + before),
        Message("assistant", earlier.reply),
        Message("user", question + now),
    )
    return messages, now == THINK_FLAG, "auto"


def read_tried(path: Path) -> list[Tried]:
    """What an earlier run has tried; a line without its end does not count."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [Tried(Prompt(row["kind"], row["task"], row["seed"]), row["right"], row["of"]) for row in rows]


def write_tried(path: Path, tried: Sequence[Tried]) -> None:
    """The whole file anew, so that a kill leaves the old one or the new one."""
    lines = [json.dumps({**each.prompt._asdict(), "right": each.right, "of": each.of}) for each in tried]
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    part.replace(path)


def choose(
    candidates: Sequence[Prompt],
    wanted: int,
    step: int,
    attempt: Callable[[Sequence[Prompt]], list[Tried]],
    path: Path,
    report: Callable[[str], Any] | None = print,
) -> list[Prompt]:
    """The first `wanted` learnable candidates, tried `step` at a time; goes on from the file at `path`.

    report: None in every process but the first, which alone writes the file.
    Raises UsageError when fewer than a tenth of the wanted, or less than two, can be learned from.
    """
    tried = read_tried(path)
    kept = [each.prompt for each in tried if each.learnable]
    while len(kept) < wanted and len(tried) < len(candidates):
        tried += attempt(candidates[len(tried) : len(tried) + step])
        kept = [each.prompt for each in tried if each.learnable]
        if report is not None:
            write_tried(path, tried)
            report(f"{len(tried)} prompts tried, {len(kept)} of {wanted} learnable")
    if len(kept) < max(2, wanted // 10):
        right = sum(each.right for each in tried) / max(1, sum(each.of for each in tried))
        raise UsageError(
            f"of {len(tried)} prompts only {len(kept)} are solved at times ({right:.0%} of all answers are "
            "right). Choose harder or easier tasks, or train the stage before for longer."
        )
    return kept[:wanted]
