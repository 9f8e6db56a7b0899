"""Measures a model as any user would meet it: problems, budgets, modes, tools, refusals.

In: an LLM, held-out problems. Out: `Talk`s and counts. Many conversations run in the engine at once, each
with the sampling defaults of its mode; tools get real results until the model has answered. It knows no
files and no pictures: see card.py.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from deepfast.train.documents import FLAG
from deepfast.train.problems import LANGUAGES, TASKS, Language, Problem, Split, sample, verify
from deepfast.train.problems.tools import execute
from deepfast.types import Completion, ContextError, Message, Mode, SamplingParams, Thinking, ToolCall

AT_ONCE = 512  # conversations handed to the engine together; its configuration says how many run
MAX_ROUNDS = 6  # of tool calls
TRIES = 100  # draws for each problem, where most are known already
MODES: dict[str, Mode] = {"think": "on", "no_think": "off"}


class Pending(Protocol):
    """A stream of an LLM."""

    def result(self) -> Completion: ...


class Model(Protocol):
    """What is measured: an LLM, or a script in a test."""

    def stream(
        self,
        messages: Any,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Any = None,
    ) -> Pending: ...


@dataclass
class Talk:
    """A conversation on its way, and what the model said in each of its turns."""

    messages: list[Message]
    thinking: Thinking
    seed: int = 0
    problem: Problem | None = None
    said: list[Completion] = field(default_factory=list)
    calls: int = 0
    valid_calls: int = 0

    @property
    def content(self) -> str:
        return self.said[-1].content if self.said else ""

    @property
    def thought_tokens(self) -> int:
        return sum(completion.usage.reasoning_tokens for completion in self.said)

    @property
    def right(self) -> bool:
        last = self.said[-1] if self.said else None
        ended = last is not None and last.finish_reason == "stop" and not last.tool_calls
        return ended and self.problem is not None and verify(self.problem, self.content)


class Share(NamedTuple):
    """So many of so many."""

    hits: int
    total: int

    @property
    def rate(self) -> float:
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.total)


def wilson(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), from 0 to 1; all of it where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def of(found: Iterable[bool]) -> Share:
    """Counts what is true."""
    seen = list(found)
    return Share(sum(seen), len(seen))


def held_out(
    task: str,
    count: int,
    seed: int,
    split: Split = "test",
    level: int | None = None,
    only: Callable[[Problem], bool] = lambda _: True,
) -> list[Problem]:
    """Problems that training never saw, no two alike, half in English, half in Chinese; equal calls, equal
    problems. Fewer than `count` where there are hardly more."""
    rng = random.Random(f"{task} {split} {seed} {level}")
    found: dict[str, Problem] = {}
    for _ in range(TRIES * count):
        problem = sample(task, rng, split, level, LANGUAGES[len(found) % 2])
        if only(problem):
            found.setdefault(problem.key, problem)
        if len(found) == count:
            break
    return list(found.values())


def play(llm: Model, talks: Sequence[Talk], max_tokens: int | None = None) -> None:
    """Lets the model answer every conversation, tools included. A prompt that does not fit gets no answer."""
    for first in range(0, len(talks), AT_ONCE):
        going = list(talks[first : first + AT_ONCE])
        for turn in range(MAX_ROUNDS + 1):
            going = [talk for talk in _answered(llm, going, max_tokens, turn) if _run_tools(talk)]


def _answered(llm: Model, talks: Sequence[Talk], max_tokens: int | None, turn: int) -> list[Talk]:
    """Those that got an answer, all asked before the first one is read."""
    asked = []
    for talk in talks:
        params = SamplingParams(seed=1000 * talk.seed + turn, max_tokens=max_tokens)
        tools = list(talk.problem.tools) if talk.problem and talk.problem.tools else None
        try:
            asked.append((talk, llm.stream(talk.messages, params, talk.thinking, tools)))
        except ContextError:
            continue
    for talk, stream in asked:
        talk.said.append(stream.result())
    return [talk for talk, _ in asked]


def _run_tools(talk: Talk) -> bool:
    """Appends the calls of the last turn and their results; False when that turn was the answer."""
    last = talk.said[-1]
    talk.calls += len(last.tool_calls) + len(last.malformed)
    if talk.problem is None or not last.tool_calls:
        return False
    talk.messages = [*talk.messages, Message("assistant", last.content, last.reasoning, last.tool_calls)]
    for call in last.tool_calls:
        talk.valid_calls += is_valid(call, talk.problem.tools)
        try:
            result = execute(talk.problem, call.name, json.loads(call.arguments))
        except ValueError:
            result = "Error: arguments are no JSON object"
        talk.messages.append(Message("tool", result))
    return True


def is_valid(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> bool:
    """A tool of the list, with all it requires, nothing it does not know, and texts only."""
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return False
    if call.name not in known or not isinstance(arguments, dict):
        return False
    schema = known[call.name]
    fits = set(schema.get("required", ())) <= set(arguments) <= set(schema["properties"])
    return fits and all(isinstance(value, str) for value in arguments.values())


def ask(problem: Problem, mode: str, seed: int, budget: int | None = None) -> Talk:
    """A conversation that begins with the problem's question, in a mode of MODES."""
    return Talk([Message("user", problem.question)], Thinking(MODES[mode], budget), seed, problem)


def accuracy(
    llm: Model,
    tasks: Sequence[str],
    count: int,
    seed: int,
    splits: Sequence[Split] = ("test",),
    modes: Sequence[str] = tuple(MODES),
    max_tokens: int | None = None,
) -> dict[tuple[str, str, str], list[Talk]]:
    """(task, split, mode) -> conversations about `count` held-out problems, the same for both modes."""
    found: dict[tuple[str, str, str], list[Talk]] = {}
    for split in splits:
        for task in tasks:
            problems = held_out(task, count, seed, split)
            for mode in modes:
                found[task, split, mode] = [ask(problem, mode, n) for n, problem in enumerate(problems)]
    play(llm, [talk for talks in found.values() for talk in talks], max_tokens)
    return found


class Point(NamedTuple):
    """What a thinking budget gives: accuracy as the mean over tasks, with the tokens that were used."""

    budget: int
    right: Share
    tokens: float


def budgets_up_to(longest: int, first: int = 16) -> list[int]:
    """16, 32, 64, ... up to the first that no thought was longer than."""
    budgets = [first]
    while budgets[-1] < longest:
        budgets.append(2 * budgets[-1])
    return budgets


def budget_curve(
    llm: Model,
    tasks: Sequence[str],
    count: int,
    seed: int,
    budgets: Sequence[int],
    max_tokens: int | None = None,
) -> list[Point]:
    """The same problems at every budget, equally many of each task; tasks with tools think several times and
    are left out."""
    problems = [p for task in tasks if task != "tools" for p in held_out(task, count, seed)]
    rows = {b: [ask(problem, "think", n, b) for n, problem in enumerate(problems)] for b in budgets}
    play(llm, [talk for talks in rows.values() for talk in talks], max_tokens)
    return [
        Point(budget, of(t.right for t in talks), sum(t.thought_tokens for t in talks) / max(1, len(talks)))
        for budget, talks in rows.items()
    ]


ON, OFF = FLAG[True], FLAG[False]


class Case(NamedTuple):
    """A way to ask for a mode: what is added to the user's text, the system's, and to an earlier turn."""

    name: str
    wanted: bool  # a thought
    user: str = ""
    system: str = ""
    earlier: str = ""
    mode: Mode = "auto"


CASES = (
    Case("user says /think", True, user=ON),
    Case("user says /no_think", False, user=OFF),
    Case("system says /think", True, system=ON),
    Case("system says /no_think", False, system=OFF),
    Case("enable_thinking=True", True, mode="on"),
    Case("enable_thinking=False", False, mode="off"),
    Case("/no_think, in a later turn /think", True, user=ON, earlier=OFF),
    Case("/think, in a later turn /no_think", False, user=OFF, earlier=ON),
)


def mode_talk(case: Case, problem: Problem, before: Problem, seed: int) -> Talk:
    """A conversation in which the case asks for its mode; `before` is the earlier turn."""
    messages = [Message("system", case.system)] if case.system else []
    if case.earlier:
        messages += [
            Message("user", f"{before.question} {case.earlier}"),
            Message("assistant", before.reply, before.trace if case.earlier == ON else None),
        ]
    messages.append(Message("user", f"{problem.question} {case.user}".strip()))
    return Talk(messages, Thinking(case.mode), seed, problem)


def followed(case: Case, talk: Talk) -> bool:
    """A thought where one was asked for, none where not, and an answer behind it without stray tags."""
    if not talk.said:
        return False
    last = talk.said[-1]
    clean = bool(last.content.strip()) and "think>" not in last.content
    return clean and bool(last.reasoning.strip()) == case.wanted


def modes(
    llm: Model, count: int, seed: int, tasks: Sequence[str] = tuple(TASKS), max_tokens: int | None = None
) -> dict[str, Share]:
    """How many of `count` conversations are answered in the mode asked for, for each case. Tasks with tools
    are left out, unless there is no other."""
    names = [name for name in tasks if name != "tools"] or list(tasks)
    made: dict[Case, list[Talk]] = {}
    for number, case in enumerate(CASES):
        rng = random.Random(f"modes {seed} {number}")
        made[case] = []
        for index in range(count):
            language: Language = "zh" if index % 2 else "en"
            one, two = (sample(rng.choice(names), rng, "test", None, language) for _ in range(2))
            made[case].append(mode_talk(case, one, two, index))
    play(llm, [talk for talks in made.values() for talk in talks], max_tokens)
    return {case.name: of(followed(case, talk) for talk in talks) for case, talks in made.items()}


# None of them is a question of talk.py, which training asks.
OUTSIDE = (
    "Who was the first president of the United States?", "Write a poem about the mountains.",
    "What is the capital of Australia?", "Explain how a heart works.", "Translate 'good night' into French.",
    "Which film should I watch tonight?", "Write a Python function that reads a file.",
    "Should I sell my shares?", "谁写了《红楼梦》？", "给我写一首关于秋天的诗。", "澳大利亚的首都是哪里？",
    "请解释光合作用。", "明天北京天气怎么样？", "帮我写一封求职信。", "推荐一本小说。", "怎样治疗感冒？",
)  # fmt: skip
_SORRY = (
    "demonstration",
    "i can only",
    "i cannot",
    "i can't",
    "sorry",
    "演示",
    "我只能",
    "我只会",
    "抱歉",
    "我不能",
    "我不会",
)


def refuses(text: str) -> bool:
    """It says what it is, or that it cannot, and puts no answer into a box."""
    return "\\boxed" not in text and any(word in text.lower() for word in _SORRY)


def refusals(llm: Model, seed: int, max_tokens: int | None = None) -> Share:
    """How many questions outside its field are refused, each asked in both modes."""
    talks = [
        Talk([Message("user", question)], Thinking(mode), seed + number)
        for number, question in enumerate(OUTSIDE)
        for mode in MODES.values()
    ]
    play(llm, talks, max_tokens)
    return of(refuses(talk.content) for talk in talks)


def loops(talks: Iterable[Talk]) -> Share:
    """Thoughts that repeated themselves until they were stopped, or that met the end of the tokens."""
    thoughts = [completion for talk in talks for completion in talk.said if completion.reasoning]
    return of(
        c.thinking.stop == "loop" or (c.thinking.stop == "none" and c.finish_reason == "length")
        for c in thoughts
    )
