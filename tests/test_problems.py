"""What holds for every task: its traces end in answers that its verifier accepts, and the splits are clean.

In: deepfast.train.problems. It knows no model, and of the tasks only their names.
"""

import json
import random
import re
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_samples import fresh, many

from deepfast import UsageError
from deepfast.train.problems import (
    LANGUAGES,
    TASKS,
    Language,
    Problem,
    boxed,
    is_held_out,
    said,
    sample,
    verify,
)
from deepfast.train.problems.__main__ import main
from deepfast.train.problems.tools import calls_in, execute

TEMPLATE = Path(__file__).resolve().parents[1] / "deepfast/bundled/chat_template.jinja"
SIZES = [(name, level) for name, task in TASKS.items() for level in (*task.levels, task.beyond)]
LONGEST_TRACE = 1300  # characters


@pytest.mark.parametrize(("name", "level"), SIZES)
def test_the_answer_of_every_trace_is_verified(name: str, level: int) -> None:
    for problem in many(name, level):
        assert verify(problem, problem.reply), problem
        assert verify(problem, f"<think>\n{problem.trace}\n</think>\n\n{problem.reply}")
        assert verify(problem, f"So the answer is ${boxed(problem.answer)}$.")
        assert verify(problem, problem.answer)


@pytest.mark.parametrize(("name", "level"), SIZES)
def test_a_trace_is_short_and_ends_in_its_check(name: str, level: int) -> None:
    for problem in many(name, level):
        thoughts = [turn["reasoning_content"] for turn in problem.turns if "reasoning_content" in turn]
        for thought in (problem.trace, "\n".join(thoughts)):
            assert len(thought) <= LONGEST_TRACE
            assert all(line == line.strip() and line for line in thought.split("\n") if thought)
        last = (thoughts[-1] if thoughts else problem.trace).split("\n")[-1]
        assert re.fullmatch(r"Check: .*\bok", last)
        assert not re.search(r"<\||</|<[a-z]", problem.trace)


@pytest.mark.parametrize(("name", "level"), SIZES)
def test_questions_are_filled_in_and_in_the_language_asked_for(name: str, level: int) -> None:
    for number, problem in enumerate(many(name, level)):
        assert not re.search(r"[{}]|  |\bNone\b", problem.question), problem.question
        assert problem.question == problem.question.strip()
        chinese = bool(re.search(r"[\u4e00-\u9fff]", problem.question))
        assert problem.language == LANGUAGES[number % 2]
        symbols_only = re.fullmatch(r"[0-9 x×÷*+=?？-]+", problem.question)
        assert chinese == (problem.language == "zh") or symbols_only, problem.question


@pytest.mark.parametrize("name", TASKS)
def test_equal_seeds_give_equal_problems_and_other_seeds_others(name: str) -> None:
    level = TASKS[name].levels[-1]
    assert fresh(name, level, 20) == fresh(name, level, 20)
    assert fresh(name, level, 20) != fresh(name, level, 20, seed=1)


@pytest.mark.parametrize("name", TASKS)
def test_there_are_many_phrasings_in_both_languages(name: str) -> None:
    for language in LANGUAGES:
        rng = random.Random(2)
        asked = {sample(name, rng, language=language).question for _ in range(150)}
        shapes = {re.sub(r"[0-9A-Za-z]+" if language == "zh" else r"\d+|[A-Z]", "", text) for text in asked}
        assert len(shapes) >= 8


# --- splits ---


def atoms(problem: Problem) -> set[str]:
    return set(problem.key.partition(":")[2].partition("|")[0].split(" "))


@pytest.mark.parametrize("name", TASKS)
def test_training_test_and_larger_problems_share_no_key(name: str) -> None:
    rng = random.Random(5)
    learned = [sample(name, rng) for _ in range(250)]
    tested = [sample(name, rng, "test") for _ in range(40)]
    larger = [sample(name, rng, "ood") for _ in range(80)]
    assert not {p.key for p in learned} & {p.key for p in tested}
    assert not {p.key for p in learned} & {p.key for p in larger}
    assert not {p.key for p in tested} & {p.key for p in larger}
    assert {p.level for p in learned} == set(TASKS[name].levels)
    assert {p.level for p in larger} == {TASKS[name].beyond}
    known = set().union(*map(atoms, learned))
    assert all(atoms(problem) - known for problem in tested), "nothing new in a test problem"


@pytest.mark.parametrize("name", TASKS)
def test_every_level_has_held_out_problems(name: str) -> None:
    for level in TASKS[name].levels:
        rng = random.Random(3)
        kept = [sample(name, rng, "test", level, "en") for _ in range(12)]
        assert len({problem.key for problem in kept}) >= 3
        assert all(is_held_out(problem.key) for problem in kept)


def test_a_key_is_held_out_when_one_of_its_atoms_is() -> None:
    kept = next(word for word in map(str, range(1000)) if is_held_out(f"task:{word}"))
    learned = next(word for word in map(str, range(1000)) if not is_held_out(f"task:{word}"))
    assert is_held_out(f"task:{learned} {kept}") and is_held_out(f"other:{kept} {learned}|rest")
    assert not is_held_out(f"task:{learned}|{kept}")


# --- wrong answers ---


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("countdown", "path", "river")])
def test_the_answer_of_another_problem_is_refused(name: str) -> None:
    """Where an answer has one value: whatever differs from it in more than spelling is wrong."""
    task = TASKS[name]
    for level in task.levels:
        problems = many(name, level, 60)
        for problem, other in zip(problems, problems[1:] + problems[:1], strict=True):
            same = verify(problem, other.answer)
            right = {problem.answer.lower(), problem.answer.removesuffix(" r 0")}
            if problem.language == other.language:
                assert same == (other.answer.lower() in right), (problem, other)


@pytest.mark.parametrize(("name", "level"), SIZES)
def test_mutated_answers_are_refused(name: str, level: int) -> None:
    """A character dropped, doubled or exchanged. What remains right must be right by another spelling."""
    rng = random.Random(7)
    kept = 0
    problems = many(name, level, 60, seed=3)
    for problem in problems:
        at = rng.randrange(len(problem.answer))
        instead = rng.choice(["", problem.answer[at] * 2, rng.choice("0123456789abcx+-*;, ")])
        mutated = problem.answer[:at] + instead + problem.answer[at + 1 :]
        plain = re.sub(r"[^0-9a-z\u4e00-\u9fff*/+;-]", "", mutated.lower())
        if plain != re.sub(r"[^0-9a-z\u4e00-\u9fff*/+;-]", "", problem.answer.lower()):
            kept += verify(problem, mutated)
    assert kept <= len(problems) // (
        8 if name in ("countdown", "path", "river", "spelling", "backwards") else 60
    )


@pytest.mark.parametrize("name", TASKS)
def test_nothing_shouted_or_unfinished_is_an_answer(name: str) -> None:
    for problem in many(name, TASKS[name].levels[0], 12):
        for text in (
            "",
            "\\boxed{}",
            f"<think>\n{problem.reply}",
            f"{boxed(problem.answer)} or \\boxed{{7777777}}",
        ):
            assert not verify(problem, text)
        assert not verify(problem, f"\\boxed{{{problem.answer}")
        assert not verify(problem, f"{boxed(problem.answer)[:-1]}, {problem.answer}, 1}}")
        assert not verify(problem, f"The answer is {problem.answer}")


HARD_TEXT = st.one_of(
    st.text(),
    st.text(alphabet="0123456789+-*/(){}\\boxed,;:= .|rR余_abwolfgt", max_size=60),
    st.from_regex(r"[0-9]{1,6}([-+*/;,:. r|]+[0-9a-z]{1,5}){0,8}"),
    st.sampled_from(
        ["(" * 5000, "9" * 5000, "\\boxed{" * 3000, "1/0", "-" * 300, "{" * 4000, "²", "٣", "0x1"]
    ),
)


@given(text=HARD_TEXT)
def test_no_text_makes_a_verifier_raise(text: str) -> None:
    for name, task in TASKS.items():
        problem = many(name, task.levels[-1])[len(text) % 2]
        for answer in (f"\\boxed{{{text}}}", problem.answer + text):
            assert verify(problem, answer) in (True, False)


@pytest.mark.parametrize(
    "key, right, wrong",
    [
        (
            "division:9628,54",
            "178 r 16|178余16|商178余16|商是178,余数是16|商:178; 余数:16|quotient 178, remainder 16"
            "|The quotient is 178 and the remainder is 16|178 remainder 16",
            "178|178 r 15|178 16|178商余16|余16|quotient 16, remainder 178",
        ),
        ("division:12,4", "3|3 r 0|商3", "3 r 1|4"),
        (
            "knights:x|and.1120,same.0020,and.0010|A,B,C",
            "A: knave, B: knave, C: knight|A is a knave, B is a knave, and C is a knight"
            "|A: liar and B: liar and C: truth-teller|C是骑士、A是无赖、B是无赖",
            "A: knave, B: knave, C: knave|A: knave, and B: knave|A: knave, A: knave, B: knave, C: knight|and",
        ),
        ("river:a|wolf,goat,cabbage|12,23|1", "Goat; -; wolf; GOAT; cabbage; -; goat", "goat; wolf|Dog"),
        ("tools:x|2026-11-23T10:00|25223374137", "25223374137|25,223,374,137", "25,223,374,13|25,22,3374137"),
        ("tools:x|2026-11-23T10:00|3, 14", "3, 14|3,14|3 , 14", "314|14, 3"),
    ],
)
def test_whoever_says_it_in_other_words_is_right_too(key: str, right: str, wrong: str) -> None:
    task, _, rest = key.partition(":")
    for answer in right.split("|"):
        assert TASKS[task].judge(rest, said(answer) or ""), answer
    for answer in wrong.split("|"):
        assert not TASKS[task].judge(rest, said(answer) or ""), answer


def test_what_a_text_says() -> None:
    assert said("a \\boxed{12} b \\boxed{12}") == "12"
    assert said("\\boxed{1} \\boxed{2}") is None
    assert said("\\boxed{\\text{Friday}}") == "Friday"
    assert said("\\boxed{{1}2}") == "{1}2"
    assert said("<think>\n\\boxed{3}\n</think>\n\n\\boxed{4}") == "4"
    assert said("<think>\nnever done \\boxed{4}") is None
    assert said("７；8。") == "７;8"
    assert said("x" * 5000) is None


# --- wishes that cannot be met ---


def test_errors_name_the_way_out() -> None:
    rng = random.Random(0)
    with pytest.raises(UsageError, match=r"no task 'sums'.* sum, "):
        sample("sums", rng)
    with pytest.raises(UsageError, match="no level 9 in 'train'. It has 1, 2, 3"):
        sample("river", rng, level=9)
    with pytest.raises(UsageError, match="no level 4 in 'test'"):
        sample("river", rng, "test", level=4)
    with pytest.raises(UsageError, match="no split 'dev'"):
        sample("river", rng, "dev")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no language 'fr'"):
        sample("river", rng, language="fr")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="river has no level 0. It has 1 to 4"):
        TASKS["river"].generate(rng, 0, "en")


# --- tools ---


def tool_problems(count: int = 60) -> list[Problem]:
    return [problem for level in (1, 2, 3, 4) for problem in many("tools", level, count)]


def test_a_conversation_with_tools_replays() -> None:
    for problem in tool_problems():
        first, *turns = problem.turns
        assert first == {"role": "user", "content": problem.question}
        assert turns[0]["reasoning_content"] == problem.trace
        for turn, after in zip(turns, turns[1:], strict=False):
            for call in turn.get("tool_calls", ()):
                function = call["function"]
                assert execute(problem, function["name"], function["arguments"]) == after["content"]
                assert not after["content"].startswith("Error")
        assert turns[-1]["content"] == problem.reply


def test_a_template_writes_the_calls_that_are_read_back() -> None:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    for problem in tool_problems(10):
        text = template.render(messages=problem.turns, tools=problem.tools)
        assert all(json.dumps(tool, ensure_ascii=False) in text for tool in problem.tools)
        written = text.partition("<|im_start|>user")[2]
        calls = [turn["tool_calls"][0]["function"] for turn in problem.turns if "tool_calls" in turn]
        blocks = [block for block in written.split("<|im_end|>") if "<tool_call>" in block]
        assert [calls_in(block) for block in blocks] == [[(c["name"], c["arguments"])] for c in calls]
        assert problem.reply in written


@given(st.text(alphabet='<>tool_call/{}":, \n[]name', max_size=120))
def test_reading_calls_never_raises(text: str) -> None:
    calls_in(text)
    calls_in(f"<tool_call>\n{text}\n</tool_call>")


ANY_JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5)


@given(
    st.sampled_from(["calculator", "clock", "weather", "nothing", ""]),
    ANY_JSON | st.dictionaries(st.sampled_from(["expression", "zone", "city"]), ANY_JSON),
)
def test_a_wrong_call_gets_an_error_as_its_result(name: str, arguments: object) -> None:
    problem = TASKS["tools"].generate(random.Random(4), 2, "en")
    assert isinstance(execute(problem, name, arguments), str)


def test_results_of_tools() -> None:
    problem = next(p for p in tool_problems() if len(p.tools) == 2 and "T23:" in p.key.split("|")[1])
    assert execute(problem, "calculator", {"expression": "10/4"}) == "2.5"
    assert execute(problem, "calculator", {"expression": "1/3"}) == "0.333333"
    assert execute(problem, "calculator", {"expression": "1/0"}).startswith("Error")
    assert execute(problem, "calculator", {}).startswith("Error")
    assert execute(problem, "search", {}).startswith("Error: there is no tool")
    other = next(p for p in tool_problems() if "weather" in str(p.tools))
    assert execute(other, "weather", {"city": "Oslo"}) == "Error: the tool is out of order"
    assert execute(other, "weather", {"town": "Oslo"}) == "Error: weather takes city"
    today, later = (json.loads(execute(problem, "clock", wish)) for wish in ({}, {"zone": "+8"}))
    assert today["date"] < later["date"] and later["time"][:2] == "07"
    assert execute(problem, "clock", {"zone": "+99"}).startswith("Error")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_command_shows_and_measures(language: Language, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tools", "river", "--show", "1", "--language", language])
    assert "</think>" in capsys.readouterr().out
    main(["sum", "--count", "5"])
    assert capsys.readouterr().out.count("| sum |") == 7


@pytest.mark.parametrize(
    "wish, says",
    [
        (["golf"], "no task golf"),
        (["--count", "0"], "--count 0 is below 1"),
        (["--show", "-3"], "--show -3 is below 0"),
        (["river", "--show", "1", "--level", "9"], "river has no level 9"),
        (["sum", "--level", "2"], "--level chooses what --show N prints"),
        (["sum", "--show", "1", "--count", "2"], "--count 2 is for the table"),
    ],
)
def test_the_command_refuses_in_one_line(
    wish: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(wish)
    assert stopped.value.code == 2 and says in capsys.readouterr().err
