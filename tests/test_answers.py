"""The answers of a teacher: only right ones in the mode that was asked, and a killed run goes on.

In: scripted models that answer well or badly. No PyTorch.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepfast.text.template import ChatTemplate
from deepfast.text.tokenizer import Tokenizer
from deepfast.train.answers import Asked, Teacher, ask, in_mode, keeps_mode, known_tasks, read_answers
from deepfast.train.problems import sample
from deepfast.types import UsageError

BUNDLED = Path(__file__).resolve().parents[1] / "deepfast/bundled"
TOKENIZER = Tokenizer.from_dir(BUNDLED)
EMPTY = "<think>\n\n</think>\n\n"


class Model:
    """Answers every prompt by a function of its text."""

    def __init__(self, answer: Callable[[str], str], finish: str = "stop") -> None:
        self.tokenizer, self.answer, self.finish = TOKENIZER, answer, finish
        self.template = ChatTemplate.from_dir(BUNDLED, TOKENIZER)
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[list[int]], params: Any) -> list[Any]:
        texts = [TOKENIZER.decode(prompt) for prompt in prompts]
        self.prompts += texts
        said = [TOKENIZER.encode(self.answer(text) + "<|im_end|>", control=True) for text in texts]
        return [SimpleNamespace(token_ids=tuple(ids), finish_reason=self.finish) for ids in said]


def teacher(model: Model, tasks: Sequence[str] = ("sum",), tries: int = 1) -> Teacher:
    return Teacher(model, tasks, 7, tries=tries, max_tokens=64, temperature=1.0)  # type: ignore[arg-type]


def thought_for(prompt: str) -> str:
    if prompt.endswith(EMPTY):
        return ""
    return EMPTY if " /no_think<|im_end|>" in prompt else "<think>\nI add.\n</think>\n\n"


def right(prompt: str) -> str:
    first, second = map(int, re.findall(r"[0-9]+", prompt)[:2])
    return f"{thought_for(prompt)}\\boxed{{{first + second}}}"


def write(model: Model, path: Path, problems: int, batch: int = 4) -> list[tuple[int, int]]:
    return list(teacher(model).write(path, problems, batch))


def test_right_answers_in_both_modes_are_kept(tmp_path: Path) -> None:
    assert write(Model(right), tmp_path / "a.jsonl", 6) == [(4, 8), (6, 12)]
    texts = [
        (TOKENIZER.decode(item.tokens[: item.prompt]), TOKENIZER.decode(item.tokens[item.prompt :]))
        for item in read_answers(tmp_path / "a.jsonl", 6)
    ]
    assert len(texts) == 12
    for thinking, plain in zip(texts[::2], texts[1::2], strict=True):
        assert thinking[0].endswith("<|im_start|>assistant\n") and "I add." in thinking[1]
        assert "I add." not in plain[1] and (plain[0] + plain[1]).count(EMPTY) == 1
        assert all(said.endswith("}<|im_end|>") for _, said in (thinking, plain))


@pytest.mark.parametrize(
    "answer",
    [
        lambda prompt: f"{thought_for(prompt)}\\boxed{{-1}}",  # wrong
        lambda prompt: right(prompt).replace("I add.", ""),  # no thought where one was asked for
        lambda prompt: "<think>\nI add.",  # never ends
        lambda prompt: right(prompt) + "<tool_call>\n",  # a call that stays open
    ],
)
def test_other_answers_are_not(answer: Callable[[str], str], tmp_path: Path) -> None:
    write(Model(answer), tmp_path / "a.jsonl", 4)
    for item in read_answers(tmp_path / "a.jsonl", 4):  # those without a thought that are right all the same
        assert answer("1 + 1" + EMPTY) == right("1 + 1" + EMPTY)
        assert EMPTY in TOKENIZER.decode(item.tokens)
    write(Model(right, finish="length"), tmp_path / "b.jsonl", 4)
    assert read_answers(tmp_path / "b.jsonl", 4) == []


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    write(Model(right), whole, 6)
    write(Model(right), killed, 4)
    with killed.open("a") as file:
        file.write('{"key": "sum:1')
    with pytest.raises(UsageError, match="answers to 4 of 6 problems.*--only answers"):
        read_answers(killed, 6)
    model = Model(right)
    assert write(model, killed, 6) == [(6, 12)] and len(model.prompts) == 4
    assert killed.read_bytes() == whole.read_bytes()
    assert write(model, killed, 6) == []


def test_the_first_right_one_of_several_tries_is_kept(tmp_path: Path) -> None:
    model = Model(right)
    tries = iter(range(1000))
    model.answer = lambda prompt: right(prompt) if next(tries) % 3 else "\\boxed{-1}"
    list(teacher(model, tries=3).write(tmp_path / "a.jsonl", 5))
    assert len(read_answers(tmp_path / "a.jsonl", 5)) == 10
    assert len(model.prompts) == 5 * 2 * 3


def test_tools_answer_and_every_turn_is_learned(tmp_path: Path) -> None:
    """The model plays the solver's conversation of each problem; results of tools come from the problem."""
    problems = [sample("tools", random.Random(f"7:{number}")) for number in range(8)]
    turns = {p.question: [turn for turn in p.turns if turn["role"] == "assistant"] for p in problems}

    def answer(prompt: str) -> str:
        (mine,) = (said for question, said in turns.items() if question in prompt)
        turn = mine[prompt.count("\n<tool_response>\n")]
        calls = [call["function"] for call in turn.get("tool_calls", ())]
        said = "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
        return thought_for(prompt) + turn["content"] + said

    list(teacher(Model(answer), ["tools"]).write(tmp_path / "a.jsonl", 8, 8))
    learned = [TOKENIZER.decode(item.tokens) for item in read_answers(tmp_path / "a.jsonl", 8)]
    assert len(learned) == 2 * sum(map(len, turns.values()))
    results = [turn["content"] for p in problems for turn in p.turns if turn["role"] == "tool"]
    assert results and all(
        any(f"<tool_response>\n{result}\n</tool_response>" in text for text in learned) for result in results
    )


def test_modes() -> None:
    problem = sample("sum", random.Random(0))
    think, closed, flagged = (
        Asked(problem, *rest) for rest in ((True, (), None), (False, (), False), (False, (), None))
    )
    assert keeps_mode(think, "<think>\nI add.\n</think>\n\n3") and not keeps_mode(think, EMPTY + "3")
    assert not keeps_mode(think, "3") and not keeps_mode(
        think, "<think>\na\n</think>\n\n<think>\nb\n</think>\n\n3"
    )
    assert keeps_mode(closed, "3") and not keeps_mode(closed, EMPTY + "3")
    assert keeps_mode(flagged, EMPTY + "3") and not keeps_mode(flagged, "3")
    assert not keeps_mode(flagged, "<think>\nI add.\n</think>\n\n3")
    rng = random.Random(1)
    for _ in range(40):
        thinking = rng.random() < 0.5
        asked = in_mode(problem, rng, thinking)
        text = asked.messages[0].content or ""
        assert (" /think" in text, " /no_think" in text) in ((thinking, not thinking), (False, False))
        assert (asked.switch is False) == (not thinking and "/no_think" not in text)
    assert ask(random.Random(2), ["sorting"], True).problem.task == "sorting"
    with pytest.raises(UsageError, match="no task 'golf'"):
        known_tasks(["sum", "golf"])
