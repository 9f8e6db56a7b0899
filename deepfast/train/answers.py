"""A teacher's right answers, in both modes: what a student is fine-tuned on before it learns on its own.

In: an LLM that answers (our engine, in batches), problems drawn from a seed. Out: a file of documents, one
line for each problem, to which a later call adds the lines that are missing. Only answers that the verifiers
accept are kept (rejection sampling), and only in the mode that was asked for. It knows no trainer.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepfast.train.documents import FLAG, Exchange
from deepfast.train.problems import TASKS, Problem, sample, verify
from deepfast.train.problems.tools import calls_in, execute
from deepfast.train.rewards import END, read
from deepfast.types import Completion, Message, SamplingParams, ToolCall, UsageError

if TYPE_CHECKING:
    from deepfast.engine.llm import LLM

_FLAGGED = 0.3  # of the questions, those with a flag at their end
_MOST_TURNS = 4  # of an assistant with tools


class Learned(NamedTuple):
    """Token ids of a prompt and its answer; of the first `prompt` nothing is learned."""

    tokens: list[int]
    prompt: int


class Asked(NamedTuple):
    """A problem, asked in one mode. `switch` is the template's enable_thinking."""

    problem: Problem
    thinking: bool
    messages: tuple[Message, ...]
    switch: bool | None

    @property
    def closes_itself(self) -> bool:
        """True when the answer has to write the empty thought, because the prompt does not."""
        return not self.thinking and self.switch is None


def ask(rng: random.Random, tasks: Sequence[str], thinking: bool) -> Asked:
    """A random training problem, asked in a mode by a flag at its end or by the template's switch."""
    problem = sample(rng.choice(tasks), rng)
    return in_mode(problem, rng, thinking)


def in_mode(problem: Problem, rng: random.Random, thinking: bool) -> Asked:
    """The problem's question as messages: a flag now and then, else thinking is the template's default, and
    not thinking its switch."""
    flagged = rng.random() < _FLAGGED
    flag = f" {FLAG[thinking]}" if flagged else ""
    messages = (Message("user", problem.question + flag),)
    return Asked(problem, thinking, messages, None if thinking or flagged else False)


def known_tasks(names: Sequence[str], default: Iterable[str] = TASKS) -> tuple[str, ...]:
    """The default for none named. Raises UsageError for one that there is not."""
    if unknown := [name for name in names if name not in TASKS]:
        raise UsageError(f"there is no task {unknown[0]!r}. There are {', '.join(TASKS)}.")
    return tuple(names) or tuple(default)


def keeps_mode(asked: Asked, text: str) -> bool:
    """True when the text thinks exactly if it was asked to, and thinks once."""
    turn = read(text + END)
    if turn is None:
        return False
    if asked.thinking:
        return bool(turn.thought and turn.thought.strip())
    if asked.closes_itself:
        return turn.thought is not None and not turn.thought.strip()
    return turn.thought is None


@dataclass
class _Attempt:
    """One answer on its way, over the turns that tools take."""

    number: int  # of the problem
    asked: Asked
    messages: list[Message]
    learned: list[Learned] = field(default_factory=list)
    right: bool = False
    exchange: Exchange | None = None  # of an answer that took one turn and a thought

    def take(self, prompt: list[int], done: Completion, text: str) -> bool:
        """Add a turn; True when a tool answered and the model must go on."""
        ended = done.finish_reason in ("stop", "tool_calls")
        said = text.removesuffix(END)
        calls = calls_in(said)
        if not ended or calls is None or not keeps_mode(self.asked, said):
            return False
        self.learned.append(Learned([*prompt, *done.token_ids], len(prompt)))
        if not calls:
            self.right = verify(self.asked.problem, said)
            if self.right and self.asked.thinking and len(self.learned) == 1:
                thought, _, reply = said.removeprefix("<think>\n").partition("\n</think>\n\n")
                self.exchange = Exchange(self.asked.problem.question, thought, reply)
            return False
        if len(self.learned) >= _MOST_TURNS or not self.asked.problem.tools:
            return False
        self.messages += _with_results(self.asked.problem, said, calls)
        return True


def _with_results(problem: Problem, said: str, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Message]:
    thought, closed, rest = said.partition("</think>")
    reasoning = thought.removeprefix("<think>").strip("\n") if closed else ""
    content = (rest if closed else said).partition("<tool_call>")[0].strip("\n")
    made = tuple(ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls)
    results = [Message("tool", execute(problem, name, arguments)) for name, arguments in calls]
    return [Message("assistant", content, reasoning or None, made), *results]


class Teacher:
    """Asks a model problems and keeps what is right. Equal seeds ask equal problems, in however many runs."""

    def __init__(
        self,
        llm: "LLM",
        tasks: Sequence[str],
        seed: int,
        *,
        tries: int,
        max_tokens: int,
        temperature: float,
        modes: Sequence[bool] = (True, False),  # with a thought, without
    ) -> None:
        self.llm, self.seed, self.tries, self.modes = llm, seed, tries, modes
        self.tasks = known_tasks(tasks)  # asked in turn, so that each gets its share
        self.params = SamplingParams(
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            presence_penalty=0.0,
            max_tokens=max_tokens,
        )

    def write(self, path: Path, problems: int, batch: int = 32) -> Iterator[tuple[int, int]]:
        """Append a line for every problem that has none yet; yields (problems asked, documents kept) as it
        goes. A line that a killed run left half written is dropped."""
        lines = whole_lines(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        kept = sum(len(json.loads(line)["documents"]) for line in lines)
        with path.open("a", encoding="utf-8") as file:
            for start in range(len(lines), problems, batch):
                numbers = range(start, min(start + batch, problems))
                for row in self._rows(numbers):
                    kept += len(row["documents"])
                    file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
                file.flush()
                yield numbers.stop, kept

    def _rows(self, numbers: range) -> list[dict[str, Any]]:
        asked = {number: self._asked(number) for number in numbers}
        right: dict[tuple[int, bool], _Attempt] = {}
        for attempt in range(self.tries):
            attempts = [
                _Attempt(number, each, list(each.messages))
                for number, both in asked.items()
                for each in both
                if (number, each.thinking) not in right
            ]
            self._run(attempts, f"{self.seed} {numbers.start} {attempt}")
            right |= {(a.number, a.asked.thinking): a for a in attempts if a.right}
        rows = []
        for number, both in asked.items():
            kept = [right[number, mode] for mode in (True, False) if (number, mode) in right]
            learned = [item for attempt in kept for item in attempt.learned]
            exchanges = [a.exchange for a in kept if a.asked.thinking and a.exchange]
            rows.append({"key": both[0].problem.key, "documents": learned, "exchanges": exchanges})
        return rows

    def _asked(self, number: int) -> list[Asked]:
        """The problem of this number, asked in each mode."""
        rng = random.Random(f"{self.seed}:{number}")
        problem = sample(self.tasks[number % len(self.tasks)], rng)
        return [in_mode(problem, rng, thinking) for thinking in self.modes]

    def _run(self, attempts: list[_Attempt], key: str) -> None:
        """All attempts at once, those with tools over several rounds; equal keys draw equal answers."""
        rng = random.Random(key)
        while attempts:
            template, decode = self.llm.template, self.llm.tokenizer.decode
            prompts = [
                template.encode(
                    a.messages, tools=a.asked.problem.tools or None, enable_thinking=a.asked.switch
                )
                for a in attempts
            ]
            done = self.llm.generate(prompts, replace(self.params, seed=rng.randrange(2**31)))
            attempts = [
                attempt
                for attempt, prompt, completion in zip(attempts, prompts, done, strict=True)
                if attempt.take(prompt, completion, decode(completion.token_ids))
            ]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file of answers that were written to their end; none for a file that is not there."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("\n")[:-1]


def read_answers(path: Path, problems: int) -> list[Learned]:
    """The documents of the first `problems` lines. Raises UsageError where there are fewer."""
    return [Learned(*item) for row in _rows(path, problems) for item in row["documents"]]


def read_exchanges(path: Path, problems: int) -> list[Exchange]:
    """The right thoughts among the same answers, with their questions and replies. Raises the same."""
    return [Exchange(*exchange) for row in _rows(path, problems) for exchange in row["exchanges"]]


def _rows(path: Path, problems: int) -> list[dict[str, Any]]:
    lines = whole_lines(path)
    if len(lines) < problems:
        raise UsageError(
            f"{path} holds the answers to {len(lines)} of {problems} problems. "
            "Let the model answer first, in one process: --only answers."
        )
    return [json.loads(line) for line in lines[:problems]]
