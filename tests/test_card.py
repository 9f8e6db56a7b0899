"""The model card: intervals, what counts as following a mode, tool calls, budgets, and the text in README.md.

In: a scripted model that knows the answers, and results made by hand. Out: nothing. It draws nothing.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from deepfast.train import card as cards
from deepfast.train import measure
from deepfast.train.card import Place, Settings
from deepfast.train.card_text import END, START, card, percent, write_between
from deepfast.train.measure import CASES, Share, Talk, wilson
from deepfast.train.problems import Problem, is_held_out, river, sample
from deepfast.train.talk import small_talk
from deepfast.types import (
    Completion,
    Message,
    ModelError,
    ThinkingReport,
    Timing,
    ToolCall,
    Usage,
    UsageError,
)


def completion(
    content: str, reasoning: str = "", calls: tuple[ToolCall, ...] = (), **more: Any
) -> Completion:
    usage = Usage(5, 0, 9, len(reasoning.split()))
    finish = more.pop("finish_reason", "tool_calls" if calls else "stop")
    report = ThinkingReport(stop=more.pop("stop", "natural" if reasoning else "none"))
    return Completion(reasoning, content, calls, (), (), finish, usage, report, Timing(), **more)


class Script:
    """An LLM that looks the answer up: right after a thought of eight words, else wrong."""

    def __init__(self, *problems: Problem) -> None:
        self.by_question = {p.question: p for p in problems}
        self.asked = 0

    def stream(self, messages: Any, params: Any = None, thinking: Any = None, tools: Any = None) -> Any:
        self.asked += 1
        said = self.answer(messages, thinking)
        return type("Stream", (), {"result": lambda self: said})()

    def answer(self, messages: list[Message], thinking: Any) -> Completion:
        question = next(m.content for m in messages if m.role == "user")
        problem = self.by_question[question]
        if problem.turns:
            turn = problem.turns[len([m for m in messages if m.role != "user"]) + 1]
            calls = tuple(
                ToolCall(c["function"]["name"], json.dumps(c["function"]["arguments"]))
                for c in turn.get("tool_calls", ())
            )
            return completion(turn["content"], turn["reasoning_content"], calls)
        enough = thinking.mode != "off" and (thinking.budget is None or thinking.budget >= 8)
        words = 8 if thinking.budget is None else min(8, thinking.budget)
        thought = " ".join(["so"] * words) if thinking.mode != "off" else ""
        return completion(problem.reply if enough else "\\boxed{?}", thought)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (98, 100, 0.9300, 0.9945)],
)
def test_wilson_intervals_are_those_of_the_books(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert percent((0, 0)) == "-"
    assert percent((98, 100)) == "98.0 % (93.0 to 99.4)"


def test_held_out_problems_are_held_out_and_the_same_again() -> None:
    problems = measure.held_out("sum", 10, 3)
    assert problems == measure.held_out("sum", 10, 3) != measure.held_out("sum", 10, 4)
    assert all(is_held_out(problem.key) for problem in problems)
    assert [problem.language for problem in problems] == ["en", "zh"] * 5


def test_no_two_problems_are_alike_and_there_may_be_fewer() -> None:
    problems = measure.held_out("bases", 60, 0)
    assert len({problem.key for problem in problems}) == len(problems) == 60
    few = measure.held_out("bases", 30, 0, level=1)
    assert 0 < len({problem.key for problem in few}) == len(few) < 30


def test_new_crossings_have_unseen_conflicts_and_names() -> None:
    problems = measure.held_out("river", 6, 0, only=river.is_new)
    assert len(problems) == 6
    for problem in problems:
        conflicts, *names = problem.key.partition("|")[0].split(" ")
        assert conflicts.startswith("river:items.") and is_held_out(conflicts)
        assert any(is_held_out(f"river:{name}") for name in names)


def test_tools_are_played_to_the_end_with_real_results() -> None:
    problems = measure.held_out("tools", 12, 0)
    talks = [measure.ask(problem, "think", n) for n, problem in enumerate(problems)]
    measure.play(Script(*problems), talks)
    assert all(talk.right for talk in talks)
    wanted = [sum(len(turn.get("tool_calls", ())) for turn in problem.turns) for problem in problems]
    assert [talk.valid_calls for talk in talks] == [talk.calls for talk in talks] == wanted
    for problem, talk in zip(problems, talks, strict=True):
        results = [turn["content"] for turn in problem.turns if turn["role"] == "tool"]
        assert [m.content for m in talk.messages if m.role == "tool"] == results


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("clock", "{}", True),
        ("clock", '{"zone": "+8"}', True),
        ("clock", '{"zone": 8}', False),
        ("clock", '{"city": "+8"}', False),
        ("calculator", "{}", False),
        ("calculator", "[]", False),
        ("calculator", '{"expression": "1', False),
        ("compass", "{}", False),
    ],
)
def test_a_call_is_valid_when_it_fits_its_schema(name: str, arguments: str, valid: bool) -> None:
    from deepfast.train.problems.tools import CALCULATOR, CLOCK

    assert measure.is_valid(ToolCall(name, arguments), [CALCULATOR, CLOCK]) is valid


def test_budgets_double_until_no_thought_is_longer() -> None:
    assert measure.budgets_up_to(0) == [16]
    assert measure.budgets_up_to(64) == [16, 32, 64]
    assert measure.budgets_up_to(65) == [16, 32, 64, 128]


def test_the_budget_curve_asks_the_same_problems_at_every_budget() -> None:
    problems = measure.held_out("sum", 4, 0)
    points = measure.budget_curve(Script(*problems), ["sum", "tools"], 4, 0, [4, 8, 16])
    assert points == [(4, Share(0, 4), 4.0), (8, Share(4, 4), 8.0), (16, Share(4, 4), 8.0)]


def test_cases_ask_for_both_modes_everywhere() -> None:
    one, two = measure.held_out("sum", 2, 0)
    assert sum(case.wanted for case in CASES) * 2 == len(CASES)
    talk = measure.mode_talk(CASES[-1], one, two, 0)
    assert [message.role for message in talk.messages] == ["user", "assistant", "user"]
    assert [m.content.split()[-1] for m in talk.messages if m.role == "user" and m.content] == [
        "/think",
        "/no_think",
    ]
    assert talk.messages[1].reasoning == two.trace


@pytest.mark.parametrize(
    ("content", "reasoning", "thought", "silence"),
    [
        ("7", "so", True, False),
        ("7", "", False, True),
        ("", "so", False, False),
        ("</think>7", "", False, False),
    ],
)
def test_a_mode_is_followed_by_a_clean_answer(
    content: str, reasoning: str, thought: bool, silence: bool
) -> None:
    talk = Talk([], measure.Thinking(), said=[completion(content, reasoning)])
    assert measure.followed(CASES[0], talk) is thought
    assert measure.followed(CASES[1], talk) is silence
    assert not measure.followed(CASES[1], Talk([], measure.Thinking()))


def test_loops_are_repeated_and_endless_thoughts() -> None:
    said = [
        completion("7", "so"),
        completion("", "so so", stop="loop"),
        completion("", "so so", stop="none", finish_reason="length"),
        completion("7"),
    ]
    assert measure.loops([Talk([], measure.Thinking(), said=said)]) == (2, 3)


def test_a_refusal_says_what_it_cannot_do() -> None:
    assert measure.refuses("I am a small demonstration model; I can only add numbers.")
    assert measure.refuses("抱歉，我只会做算术。")
    assert not measure.refuses("I can say: \\boxed{Paris}")
    for answer in ("Paris", "I can tell you: Paris.", "我会推荐《活着》。", "我能。秋天来了"):
        assert not measure.refuses(answer)


COST = {"tokens": 2500000, "seconds": 600.0, "steps": 1200, "machine": "a laptop"}
POINTS = [{"budget": 16, "right": (1, 4), "tokens": 3.0}, {"budget": 32, "right": (4, 4), "tokens": 8.0}]


def results() -> dict[str, Any]:
    """As card.py measures them, of a scripted model that is wrong about knights beyond training."""
    found = {}
    for task in ("sum", "knights"):
        for split in ("test", "ood"):
            problems = measure.held_out(task, 2, 0, split)
            for mode in ("think", "no_think"):
                found[task, split, mode] = [measure.ask(p, mode, n) for n, p in enumerate(problems)]
                measure.play(Script(*problems), found[task, split, mode])
    for talk in found["knights", "ood", "think"]:
        talk.said = [completion("``` <!-- measured: end -->", "so " * 500)]
    return {
        "key": {"settings": {"count": 2}},
        "accuracy": {
            "rows": cards.rows_of(found), "promises": {"sums": (2, 2)}, "loops": (0, 8), "longest": 20,
            "tools": {"valid calls": (0, 0)}, "failures": cards.failures(found),
        },
        "budget": {"no_think": (1, 4), "points": POINTS},
        "modes": {case.name: (9, 10) for case in CASES}, "refusals": (1, 2), "same_tokens": (12, 12),
        "stages": [
            {"stage": "pretrain", "cost": {}, **{m: {"all": (1, 2), "hard": (0, 2)} for m in measure.MODES}},
            {"stage": "fusion", "cost": COST,
             **{m: {"all": (2, 2), "hard": (2, 2)} for m in measure.MODES}},
        ],
    }  # fmt: skip


def test_the_card_says_everything_that_was_measured() -> None:
    text = card(results())
    assert "| sum | 100.0 % (34.2 to 100.0) | 0.0 % (0.0 to 65.8) |" in text
    assert "on them thinking is worth +100.0 points" in text
    assert (
        "| 32 | 100.0 % (51.0 to 100.0) | 8 |" in text and "1 of 1 doublings raise the accuracy; none" in text
    )
    assert "| **mode followed** | 90.0 % (81.5 to 94.8) | 72 of 80 |" in text
    assert "float32: 12 of 12 prompts" in text
    assert "| 2.50 M | 1,200 | 10 min |" in text and "Trained on: a laptop." in text
    assert "knights, one size larger:\n\n````text\nquestion: " in text
    assert json.loads(json.dumps(results())) and card(json.loads(json.dumps(results()))) == text


def test_the_card_goes_between_the_comments_and_again(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# a\n\n{START}\nstale\n{END}\n\nlast\n", encoding="utf-8")
    for _ in range(2):
        write_between(readme, card(results()) + " \\1")
        text = readme.read_text(encoding="utf-8")
        assert text.startswith(f"# a\n\n{START}\n### Accuracy") and text.endswith(f"{END}\n\nlast\n")
        assert text.count(END) == 1 and "stale" not in text and " \\1\n" in text
    for name in ("new.md", "bare.md"):
        if name == "bare.md":
            (tmp_path / name).write_text("# bare\n")
        write_between(tmp_path / name, "x")
        assert (tmp_path / name).read_text().endswith(f"\n\n{START}\nx\n{END}\n")
    (tmp_path / "half.md").write_text(f"{START}\n")
    with pytest.raises(ModelError, match="must both be there"):
        write_between(tmp_path / "half.md", "x")


def test_a_second_start_measures_only_what_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    calls: list[str] = []
    opened = type("Nothing", (), {"__enter__": lambda self: self, "__exit__": lambda self, *_: None})
    monkeypatch.setattr(cards, "open_model", lambda *_: opened())
    monkeypatch.setattr(cards, "_accuracy", lambda *_: calls.append("accuracy") or {"longest": 9})
    monkeypatch.setattr(cards, "_budget", lambda *_: calls.append("budget") or [])
    monkeypatch.setattr(measure, "modes", lambda *_: calls.append("modes") or {})
    monkeypatch.setattr(measure, "refusals", lambda *_: calls.append("refusals") or (0, 1))
    monkeypatch.setattr(cards, "same_tokens", lambda _: None)
    place = Place(tmp_path / "card.json", lambda _: None)
    cards.measure_card(tmp_path, None, Settings(1), place)
    assert calls == ["accuracy", "budget", "modes", "refusals"]
    kept = json.loads((tmp_path / "card.json").read_text())
    del kept["modes"]
    (tmp_path / "card.json").write_text(json.dumps(kept))
    cards.measure_card(tmp_path, None, Settings(1), place)
    assert calls[4:] == ["modes"]
    (tmp_path / "model.safetensors").write_bytes(b"others.")
    cards.measure_card(tmp_path, None, Settings(1), place)
    assert calls[5:] == ["accuracy", "budget", "modes", "refusals"]


def test_wishes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="count=0 is below 1"):
        Settings(0)
    with pytest.raises(UsageError, match="is no directory"):
        cards.measure_card(tmp_path, tmp_path / "none", Settings(), Place(None, print))
    with pytest.raises(ModelError, match="holds no config.json"):
        cards.measure_card(tmp_path, None, Settings(), Place(None, print))


def test_the_bundled_model_can_be_measured() -> None:
    from deepfast import LLM

    with LLM(config=cards.ENGINE) as llm:
        found = measure.accuracy(llm, ["sum"], 2, 0, max_tokens=64)
        shares = measure.modes(llm, 1, 0, max_tokens=24)
    assert {key[2] for key in found} == {"think", "no_think"}
    assert all(talk.said for talks in found.values() for talk in talks)
    assert set(shares) == {case.name for case in CASES}


def test_half_the_problems_of_the_promise_are_chinese() -> None:
    problem = sample("product", random.Random(0), "test", 5, "zh")
    assert problem.level == 5 and problem.language == "zh"


def test_no_question_outside_the_field_is_trained_on() -> None:
    rng = random.Random(0)
    trained = {small_talk(rng, "train", 1_000_000).question for _ in range(30_000)}
    assert "Write a poem about music." in trained and not trained & set(measure.OUTSIDE)
