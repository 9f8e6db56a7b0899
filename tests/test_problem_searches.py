"""Countdown, sudoku, paths, knights and river crossings against other algorithms; real backtracking.

In: deepfast.train.problems. Solutions are counted, distances found and crossings replayed by means that share
nothing with the task. It knows no model.
"""

import itertools
import random
import re
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problem_samples import each, ints

from deepfast.train.problems import verify
from deepfast.train.problems.base import Language
from deepfast.train.problems.countdown import MOST_LINES
from deepfast.train.problems.expression import evaluate, shown
from deepfast.train.problems.knights import Claim, worlds
from deepfast.train.problems.river import GROUP_SIZES, Groups, Items, Search, replay, solvable
from deepfast.train.problems.river_text import ITEMS, draw_names
from deepfast.train.problems.sudoku import num_solutions, solutions

# --- countdown ---


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda parts: f"({parts[0]}{parts[1]} {parts[2]})"
        ),
        max_leaves=8,
    )
)
def test_expressions_have_the_value_that_python_gives_them(text: str) -> None:
    try:
        right = eval(re.sub(r"(\d+)", r"Fraction(\1)", text))
    except ZeroDivisionError:
        right = None
    found = evaluate(text)
    assert (found.value if found else None) == right or len(text) > 200
    if found:
        assert list(map(int, found.numbers)) == ints(text)
        assert abs(Fraction(shown(found.value)) - found.value) <= Fraction(1, 10**6)


@pytest.mark.parametrize(
    "text", ["", "1+", "(1", "1)", "1 2", "2**3", "1e9", "a", "--", "1_0", "1//2", "()", "9" * 201]
)
def test_what_is_no_expression(text: str) -> None:
    assert evaluate(text) is None


def test_countdown_answers_use_the_numbers_of_the_question() -> None:
    for problem in each("countdown"):
        key = problem.key.removeprefix("countdown:").partition("|")[0]
        numbers, target = key.split("=")
        assert (
            eval(problem.answer.replace("/", "//"))
            == int(target)
            == Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", problem.answer)))
        )
        assert sorted(ints(problem.answer)) == sorted(ints(numbers))
        assert sorted(ints(problem.question)) == sorted([*ints(numbers), int(target)])
        assert len(problem.trace.split("\n")) <= MOST_LINES[problem.level] + 8
        assert verify(problem, f"\\boxed{{{problem.answer.replace('*', '×')} = {target}}}")
        assert not verify(problem, f"\\boxed{{{problem.answer}+0}}")
        assert not verify(problem, f"\\boxed{{{target}}}")


def test_a_number_may_stay_unused_only_where_the_question_allows_it() -> None:
    puzzles = [p for p in each("countdown") if p.key.startswith("countdown:") and p.level == 1]
    for wish, allowed in (("some", True), ("all", False)):
        for problem in puzzles:
            if not problem.key.endswith(wish):
                continue
            numbers, target = problem.key.split(":")[1].partition("|")[0].split("=")
            pairs = [f"{a}{o}{b}" for a, b in itertools.permutations(ints(numbers), 2) for o in "+-*"]
            short = [pair for pair in pairs if eval(pair) == int(target)]
            assert all(verify(problem, pair) == allowed for pair in short)
            assert not any(verify(problem, pair) for pair in pairs if eval(pair) != int(target))


# --- search ---


def test_sudokus_have_one_solution() -> None:
    assert len(set(solutions())) == 288
    for problem in each("sudoku"):
        puzzle = problem.key.split("|")[1]
        assert len(_filled(puzzle)) == num_solutions(puzzle) == 1
        assert _filled(puzzle) == [problem.answer.replace(" ", "")]
        cells = re.findall(r"[0-9._]", problem.question.replace("4x4", "").replace("2x2", ""))
        assert puzzle in "".join(cells).replace(".", "0").replace("_", "0")


def _filled(grid: str) -> list[str]:
    if "0" not in grid:
        return [grid]
    cell = grid.index("0")
    row, column = divmod(cell, 4)
    taken = {
        grid[n]
        for n in range(16)
        if n // 4 == row or n % 4 == column or (n // 8, n % 4 // 2) == (row // 2, column // 2)
    }
    return [
        done
        for digit in "1234"
        if digit not in taken
        for done in _filled(grid[:cell] + digit + grid[cell + 1 :])
    ]


def _ways(edges: set[frozenset[str]], path: list[str]) -> Iterator[list[str]]:
    """Walks along edges that are longer than the path by a way out and back, or by a detour."""
    for at, node in enumerate(path):
        for other in sorted(set().union(*(edge for edge in edges if node in edge)) - {node}):
            yield [*path[:at], node, other, *path[at:]]
            if at + 1 < len(path) and frozenset((other, path[at + 1])) in edges:
                yield [*path[: at + 1], other, *path[at + 1 :]]


def test_paths_are_as_short_as_any() -> None:
    longer: list[list[str]] = []
    for problem in each("path"):
        edges = {frozenset(edge.split("-")) for edge in re.findall(r"[A-Z]-[A-Z]", problem.question)}
        ends = problem.key.split("|")[1]
        nodes = sorted(set().union(*edges, ends))
        near = {
            (a, b): 0 if a == b else 1 if frozenset((a, b)) in edges else 99 for a in nodes for b in nodes
        }
        for middle, a, b in itertools.product(nodes, nodes, nodes):
            near[a, b] = min(near[a, b], near[a, middle] + near[middle, b])
        path = problem.answer.split("-")
        if near[ends[0], ends[1]] == 99:
            assert problem.answer in ("no path", "没有路")
            continue
        assert (path[0], path[-1], len(path) - 1) == (ends[0], ends[1], near[ends[0], ends[1]])
        assert all(frozenset(step) in edges for step in itertools.pairwise(path))
        assert verify(problem, f"\\boxed{{{' -> '.join(path)}}}")
        for wrong in (
            path[::-1],
            path[:-1],
            [*path, path[-1]],
            [path[0], path[-1]] if len(path) > 2 else path[:1],
        ):
            assert not verify(problem, f"\\boxed{{{'-'.join(wrong)}}}")
        assert not verify(problem, "\\boxed{no path}")
        ways = list(_ways(edges, path))
        assert not any(verify(problem, "-".join(way)) for way in ways)
        longer += ways
    assert len(longer) > 10


def test_knights_have_one_solution_by_the_formulas_of_the_trace() -> None:
    for problem in each("knights"):
        lines = problem.trace.split("\n")
        names = {letter: name for name, letter in re.findall(r"(\S+)=([A-D])", lines[0])}
        looked_up, formulas = zip(*(line[3:].split("; ") for line in lines[1 : 1 + len(names)]), strict=True)
        for people, formula in zip(looked_up, formulas, strict=True):
            assert all(names[named[-1]] == named[:-2] for named in people.split())
            assert re.findall("[A-D]", formula) == [named[-1] for named in people.split()]
        python = [
            re.sub(r"([A-D])=([01A-D])", r"(\1==\2)", f.replace("#", "!=")).replace("if ", "<= ")
            for f in formulas
        ]
        python = [re.sub(r"^(.*) <= (.*)$", r"not \1 or \2", text) for text in python]
        fitting = [
            roles
            for roles in itertools.product((0, 1), repeat=len(names))
            if all(
                bool(eval(text, {}, dict(zip(names, roles, strict=True)))) == bool(role)
                for text, role in zip(python, roles, strict=True)
            )
        ]
        told = re.findall(r"(\w+): ([\w-]+)", problem.answer)
        roles = tuple(int(role in ("knight", "truth-teller", "骑士", "老实人")) for _, role in told)
        assert fitting == [roles] and [name for name, _ in told] == list(names.values())
        assert all(name in problem.question for name in names.values())
        turned = ", ".join(
            f"{name} is a {'knave' if role else 'knight'}"
            for name, role in zip(names.values(), roles, strict=True)
        )
        right = ", ".join(
            f"{name} is a {'knight' if role else 'knave'}"
            for name, role in zip(names.values(), roles, strict=True)
        )
        assert verify(problem, right) and not verify(problem, turned)
        assert not verify(problem, right.rpartition(",")[0])


def test_a_liar_paradox_has_no_world() -> None:
    assert worlds([Claim("is", 0, 0, 0, 0)]) == []


# --- river ---

ROW = ((1, 2), (2, 3))


def every_item_puzzle(most: int) -> Iterator[Items]:
    for size in range(1, most + 1):
        pairs = list(itertools.combinations(range(1, size + 1), 2))
        for count in range(len(pairs) + 1):
            for chosen in itertools.combinations(pairs, count):
                yield from (Items(size, chosen, boat) for boat in range(1, size + 1))


def test_the_search_finds_a_plan_exactly_when_there_is_one() -> None:
    puzzles: list[Items | Groups] = list(every_item_puzzle(4))
    puzzles += [Groups(*sizes) for sizes in itertools.product((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4))]
    for puzzle in puzzles:
        search = Search(puzzle, 10_000)
        assert search.solved == solvable(puzzle), puzzle
        assert replay(puzzle, search.trips) == search.solved


@pytest.mark.parametrize(
    ("puzzle", "possible"),
    [
        (Items(3, ROW, 1), True),  # wolf, goat, cabbage
        (Items(3, ((1, 2), (2, 3), (1, 3)), 1), False),
        (Items(4, ((1, 2), (2, 3), (3, 4)), 1), False),
        (Items(4, ((1, 2), (2, 3), (3, 4)), 2), True),
        (Items(4, (), 1), True),
        (Groups(3, 3, 2), True),  # missionaries and cannibals
        (Groups(4, 4, 2), False),
        (Groups(4, 4, 3), True),
        (Groups(5, 5, 3), True),
        (Groups(6, 6, 3), False),
    ],
)
def test_known_crossings(puzzle: Items | Groups, possible: bool) -> None:
    assert solvable(puzzle) == possible


def test_groups_start_within_the_rules_and_differ_between_levels() -> None:
    sizes = [size for level in GROUP_SIZES.values() for size in level]
    assert len(set(sizes)) == len(sizes)
    for puzzle in itertools.starmap(Groups, sizes):
        assert not puzzle.wrong(puzzle.start(), True)
        assert puzzle.boat <= puzzle.first + puzzle.second


def test_trips_are_replayed() -> None:
    puzzle = Items(3, ROW, 1)
    good = [(2,), (), (1,), (2,), (3,), (), (2,)]
    assert replay(puzzle, good)
    assert not replay(puzzle, good[:-1]) and not replay(puzzle, [*good, ()])
    assert not replay(puzzle, [(1,), *good[1:]]), "the goat eats the cabbage"
    assert not replay(puzzle, [(2,), (), (2,)]), "the goat is on the other bank"
    assert not replay(puzzle, [(1, 2, 3)]), "the boat is too small"
    assert not replay(puzzle, [(1,), (), (2,), (), (3,)]), "over, but eaten"
    assert not replay(puzzle, [])
    assert replay(Items(3, ROW, 3), [(1, 2, 3)])


def test_river_answers_are_judged_by_names() -> None:
    seen = {"impossible": 0, "plan": 0}
    for problem in each("river"):
        kind, names, *_ = problem.key.removeprefix("river:").split("|")
        refused = [
            "impossible",
            "yes",
            "; ".join(problem.answer.split("; ")[::-1][1:]),
            f"{problem.answer}; -",
        ]
        if problem.answer in ("impossible", "不可能"):
            seen["impossible"] += 1
            assert "impossible" in problem.question or "不可能" in problem.question
            refused = ["yes", "-", names.split(",")[0], "1+1", "possible"]
        else:
            seen["plan"] += 1
            assert verify(problem, problem.answer.replace("; ", ";"))
        if kind.startswith("items"):
            assert all(name in problem.question for name in names.split(","))
        assert not any(verify(problem, f"\\boxed{{{text}}}") for text in refused), problem
    assert min(seen.values()) > 20


def test_conflicts_are_looked_up_in_the_order_of_the_question() -> None:
    seen = 0
    for problem in each("river"):
        if problem.key.startswith("river:groups"):
            continue
        names, pairs, _ = problem.key.split("|")[1:]
        numbers = {name: str(n) for n, name in enumerate(names.split(","), start=1)}
        first, *lines = problem.trace.split("\n")
        assert first == " ".join(f"{n} {name}={n}" for name, n in numbers.items())
        if not pairs:
            assert lines[0].startswith("no 0; ")
            continue
        told = [re.findall(r"(\w+)=(\d)", rule) for rule in lines[0].removeprefix("not ").split(", ")]
        assert all(numbers[name] == n for rule in told for name, n in rule)
        found = ["".join(sorted(n for _, n in rule)) for rule in told]
        assert re.findall(r" (\d\d)\b", lines[0]) == found and sorted(found) == pairs.split(",")
        assert lines[1].startswith(f"no {pairs.replace(',', ' ')}; boat ")
        between = r"\b.*\b" if problem.question.isascii() else ".*"
        order = between.join(name for rule in told for name, _ in rule)
        assert re.search(order, problem.question), problem.question
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("language", ["en", "zh"])
def test_items_have_names_that_were_never_listed(language: Language) -> None:
    """So that copying a name is learned, not the names; what stands between two names is none of them."""
    rng, listed, invented = random.Random(5), set(ITEMS[language]), 0
    for _ in range(400):
        names = draw_names(rng, 4, language)
        assert len(set(names)) == 4 and not any(set("和跟、，+;") & set(name) for name in names)
        new = [name for name in names if name not in listed]
        assert all(name.isalpha() and name.isascii() == (language == "en") for name in new)
        invented += bool(new)
    assert 40 < invented < 200


def test_back_lines_tell_the_trips_so_far() -> None:
    """Real backtracking: replaying the trips of a "back" line gives the state that it tells."""
    found = 0
    for puzzle in (*every_item_puzzle(4), Groups(3, 3, 2), Groups(4, 4, 3)):
        search = Search(puzzle, 10_000)
        for line in search.lines:
            if not line.startswith("back ") or ":" not in line:
                continue
            trips, state = line.removeprefix("back ").split(": ")
            left, over = puzzle.start(), True
            for trip in trips.split(" "):
                cargo = tuple(map(int, trip)) if isinstance(puzzle, Groups) or trip != "0" else ()
                left, over = puzzle.moved(left, cargo, over), not over
            assert search.state(left) == state
            found += 1
    assert found > 10
