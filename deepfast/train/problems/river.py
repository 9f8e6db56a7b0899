"""River crossings: items that must not be left alone together, and groups that must not be outnumbered.

In: a random generator, a level. Out: drafts, some of them unsolvable, and a judge that replays the trips.
The trace numbers the items, looks up the numbers of each conflict and searches depth first: ">2 13|2 ok"
takes item 2 over and leaves 1 and 3, "<0" comes back empty, "bad 13" names the pair that is left alone,
"seen" a state that was there before; a dead end goes "back" to an earlier state, told with the trips that
lead to it. It knows no names.
"""

import functools
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from deepfast.train.problems.base import Draft, Language, Problem, Task, atoms_of, is_atom_held_out
from deepfast.train.problems.river_text import GROUPS, IMPOSSIBLE, draw_names, group_question, item_question

Pairs = tuple[tuple[int, int], ...]
Cargo = tuple[int, ...]  # items: their numbers; groups: (how many of the first, of the second)
State = tuple[Cargo, bool]  # what is on the left bank, whether the boat is there


class Puzzle(Protocol):
    """The rules: what may be taken, what is wrong with a bank, how cargo and banks are written in a trace."""

    def start(self) -> Cargo: ...
    def cargoes(self, bank: Cargo, over: bool) -> list[Cargo]: ...
    def moved(self, left: Cargo, cargo: Cargo, over: bool) -> Cargo: ...
    def right(self, left: Cargo) -> Cargo: ...
    def wrong(self, left: Cargo, boat_left: bool) -> str: ...
    def shown(self, cargo: Cargo) -> str: ...


class Items(NamedTuple):
    """A rower and numbered items from 1; `pairs` must not be left without the rower."""

    size: int
    pairs: Pairs
    boat: int

    def start(self) -> Cargo:
        return tuple(range(1, self.size + 1))

    def cargoes(self, bank: Cargo, over: bool) -> list[Cargo]:
        """What the rower may take: over as much as possible first, back as little as possible first."""
        sizes = range(min(self.boat, len(bank)) + 1)
        order = reversed(sizes) if over else sizes
        return [cargo for size in order for cargo in itertools.combinations(bank, size)]

    def moved(self, left: Cargo, cargo: Cargo, over: bool) -> Cargo:
        return tuple(sorted(set(left) - set(cargo) if over else set(left) | set(cargo)))

    def right(self, left: Cargo) -> Cargo:
        return tuple(item for item in self.start() if item not in left)

    def wrong(self, left: Cargo, boat_left: bool) -> str:
        alone = self.right(left) if boat_left else left
        return next((f"{a}{b}" for a, b in self.pairs if a in alone and b in alone), "")

    def shown(self, cargo: Cargo) -> str:
        return "".join(map(str, cargo)) or "0"


class Groups(NamedTuple):
    """Two groups without a rower; on a bank the first, if it is there, must not be outnumbered."""

    first: int
    second: int
    boat: int

    def start(self) -> Cargo:
        return self.first, self.second

    def cargoes(self, bank: Cargo, over: bool) -> list[Cargo]:
        x, y = bank
        found = [
            (a, b) for a in range(min(x, self.boat) + 1) for b in range(min(y, self.boat - a) + 1) if a + b
        ]
        return sorted(found, key=lambda cargo: (-sum(cargo), cargo) if over else (sum(cargo), cargo))

    def moved(self, left: Cargo, cargo: Cargo, over: bool) -> Cargo:
        sign = -1 if over else 1
        return left[0] + sign * cargo[0], left[1] + sign * cargo[1]

    def right(self, left: Cargo) -> Cargo:
        return self.first - left[0], self.second - left[1]

    def wrong(self, left: Cargo, boat_left: bool) -> str:
        for x, y in (left, self.right(left)):
            if 0 < x < y:
                return f"{x}<{y}"
        return ""

    def shown(self, cargo: Cargo) -> str:
        return f"{cargo[0]}{cargo[1]}"


class Search:
    """Depth first with a memory of states; `lines` is the trace, `trips` the plan if there is one."""

    def __init__(self, puzzle: Puzzle, most_lines: int) -> None:
        self.puzzle, self.most_lines = puzzle, most_lines
        self.lines = [self.state(puzzle.start())]
        self.trips: list[Cargo] = []
        self.seen = {(puzzle.start(), True)}
        self.solved = self.visit(puzzle.start(), True)

    @property
    def gave_up(self) -> bool:
        return len(self.lines) > self.most_lines

    def state(self, left: Cargo) -> str:
        return f"{self.puzzle.shown(left)}|{self.puzzle.shown(self.puzzle.right(left))}"

    def visit(self, left: Cargo, boat_left: bool) -> bool:
        puzzle = self.puzzle
        bank = left if boat_left else puzzle.right(left)
        for cargo in puzzle.cargoes(bank, boat_left):
            if self.trips and cargo == self.trips[-1]:
                continue  # undoes the trip before
            after = puzzle.moved(left, cargo, boat_left)
            line = f"{'>' if boat_left else '<'}{puzzle.shown(cargo)} {self.state(after)}"
            if wrong := puzzle.wrong(after, not boat_left):
                self.lines.append(f"{line} bad {wrong}")
            elif (after, not boat_left) in self.seen:
                self.lines.append(f"{line} seen")
            else:
                self.lines.append(f"{line} ok")
                self.seen.add((after, not boat_left))
                self.trips.append(cargo)
                if not any(after) or self.visit(after, not boat_left):
                    return True
                self.trips.pop()
                trips = " ".join(map(puzzle.shown, self.trips))
                self.lines.append(f"back {trips + ': ' if trips else ''}{self.state(left)}")
            if self.gave_up:
                return False
        return False


@functools.lru_cache(maxsize=4096)
def solvable(puzzle: Items | Groups) -> bool:
    border: list[State] = [(puzzle.start(), True)]
    seen = set(border)
    while border:
        left, boat_left = border.pop()
        for cargo in puzzle.cargoes(left if boat_left else puzzle.right(left), boat_left):
            state = puzzle.moved(left, cargo, boat_left), not boat_left
            if state in seen or puzzle.wrong(*state):
                continue
            if not any(state[0]):
                return True
            seen.add(state)
            border.append(state)
    return False


def replay(puzzle: Items | Groups, trips: Sequence[Cargo]) -> bool:
    """True when the trips are allowed one by one and end with everything on the right bank."""
    left, boat_left = puzzle.start(), True
    for cargo in trips:
        if cargo not in puzzle.cargoes(left if boat_left else puzzle.right(left), boat_left):
            return False
        left, boat_left = puzzle.moved(left, cargo, boat_left), not boat_left
        if puzzle.wrong(left, boat_left):
            return False
    return not any(left) and not boat_left


# --- drawing ---

SIZES = {1: (2, 3), 2: (4, 4), 3: (5, 5), 4: (6, 6)}
GROUP_SIZES = {  # (first, second, boat)
    1: ((1, 1, 2), (2, 1, 2), (2, 2, 2), (2, 2, 3), (3, 1, 3)),
    2: ((3, 1, 2), (3, 2, 2), (3, 2, 3), (2, 2, 4), (4, 1, 2)),
    3: ((3, 3, 2), (3, 3, 3), (4, 2, 2), (4, 3, 2), (4, 3, 3), (3, 3, 4)),
    4: ((4, 4, 2), (4, 4, 3), (5, 4, 3), (5, 5, 3), (4, 4, 4), (5, 3, 2)),
}
MOST_LINES = {1: 40, 2: 48, 3: 64, 4: 80}


def _draw_items(rng: random.Random, level: int) -> Items:
    """Random conflicts; a boat that is mostly small, sometimes large enough for all."""
    count = rng.randint(*SIZES[level])
    every = list(itertools.combinations(range(1, count + 1), 2))
    kind = rng.random()
    if kind < 0.25:  # a row: each with the next
        pairs = [(at, at + 1) for at in range(1, count)]
    elif kind < 0.4:  # one with all others
        middle = rng.randint(1, count)
        pairs = [(min(middle, n), max(middle, n)) for n in range(1, count + 1) if n != middle]
    else:
        pairs = rng.sample(every, min(len(every), rng.randint(0 if rng.random() < 0.3 else 1, count)))
    names = list(range(1, count + 1))
    rng.shuffle(names)
    moved = sorted((min(names[a - 1], names[b - 1]), max(names[a - 1], names[b - 1])) for a, b in pairs)
    boat = count if rng.random() < 0.05 else rng.choice((1, 1, 1, 2, 2, 3) if count > 3 else (1, 1, 1, 2))
    return Items(count, tuple(moved), min(boat, count))


@functools.lru_cache(maxsize=8192)
def _canonical(puzzle: Items) -> str:
    """One spelling for the conflicts that differ only in the numbering."""
    spelled = (
        ",".join(
            sorted(
                f"{min(order[a - 1], order[b - 1])}{max(order[a - 1], order[b - 1])}" for a, b in puzzle.pairs
            )
        )
        for order in itertools.permutations(range(1, puzzle.size + 1))
    )
    return f"{puzzle.size}.{min(spelled)}.{puzzle.boat}"


def _puzzles(rng: random.Random, level: int) -> Iterator[Items | Groups]:
    while True:
        if rng.random() < 0.8:
            yield _draw_items(rng, level)
        else:
            yield Groups(*rng.choice(GROUP_SIZES[level]))


def make(rng: random.Random, level: int, language: Language) -> Draft:
    """One puzzle in five is impossible; half of the others are asked as "is it possible"."""
    impossible = rng.random() < 0.2
    for puzzle in _puzzles(rng, level):
        if solvable(puzzle) == impossible:
            continue
        search = Search(puzzle, MOST_LINES[level])
        if not search.gave_up or search.solved:
            break
    whether = impossible or rng.random() < 0.5
    trips = [puzzle.shown(cargo) for cargo in search.trips]
    if impossible:
        ending = "Check: all tried, impossible ok"
    else:
        ending = f"Check: {' '.join(trips)} {len(trips)} trips ok"
    if isinstance(puzzle, Items):
        return _item_draft(rng, puzzle, search, ending, whether, language)
    return _group_draft(rng, puzzle, search, ending, whether, language)


def _item_draft(
    rng: random.Random, puzzle: Items, search: Search, ending: str, whether: bool, language: Language
) -> Draft:
    names = draw_names(rng, puzzle.size, language)
    told = [pair if rng.random() < 0.5 else pair[::-1] for pair in puzzle.pairs]
    rng.shuffle(told)
    question = item_question(rng, language, names, told, puzzle.boat, whether)
    numbered = {n: f"{name}={n}" for n, name in enumerate(names, start=1)}
    rules = [f"{numbered[a]} {numbered[b]} {min(a, b)}{max(a, b)}" for a, b in told]
    # A number before its name and after it: small models look up what follows, not what goes before.
    lines = [
        " ".join(f"{n} {item}" for n, item in numbered.items()),
        *([f"not {', '.join(rules)}"] if rules else []),
        f"no {' '.join(f'{a}{b}' for a, b in puzzle.pairs) or '0'}; boat {puzzle.boat}",
        *search.lines,
        ending,
    ]
    trips = ["+".join(names[item - 1] for item in cargo) or "-" for cargo in search.trips]
    pairs = ",".join(f"{a}{b}" for a, b in puzzle.pairs)
    key = f"items.{_canonical(puzzle)} {' '.join(sorted(names))}|{','.join(names)}|{pairs}|{puzzle.boat}"
    return Draft(question, lines, "; ".join(trips) or IMPOSSIBLE[language], key)


def _group_draft(
    rng: random.Random, puzzle: Groups, search: Search, ending: str, whether: bool, language: Language
) -> Draft:
    x, y = rng.choice(GROUPS[language])
    question = group_question(rng, language, (puzzle.first, puzzle.second), (x, y), puzzle.boat, whether)
    lines = [f"{puzzle.first} {x}>={puzzle.second} {y}; boat {puzzle.boat}", *search.lines, ending]
    trips = [f"{a}+{b}" for a, b in search.trips]
    sizes = f"{puzzle.first}.{puzzle.second}.{puzzle.boat}"
    return Draft(question, lines, "; ".join(trips) or IMPOSSIBLE[language], f"groups.{sizes},{x},{y}|{sizes}")


def is_new(problem: Problem) -> bool:
    """Items whose conflicts, however numbered, are held out, and the name of one of them too."""
    conflicts, *names = map(is_atom_held_out, atoms_of(problem.key))
    return conflicts and any(names)


# --- judging ---

_MOST_TRIPS = 100
_NOTHING = ("-", "nothing", "none", "alone", "empty", "空", "无")


def judge(key: str, answer: str) -> bool:
    """Trips parted by semicolons that, replayed, bring everything over; or "impossible" where it is."""
    kind, _, rest = key.partition("|")
    names: list[str] = []
    puzzle: Items | Groups
    if kind.startswith("groups"):
        puzzle = Groups(*map(int, rest.split(".")))
    else:
        listed, pairs, boat = rest.split("|")
        names = listed.split(",")
        puzzle = Items(len(names), tuple((int(p[0]), int(p[1])) for p in pairs.split(",") if p), int(boat))
    if answer.lower().rstrip("!") in IMPOSSIBLE.values():
        return not solvable(puzzle)
    trips = [_cargo(trip.strip(), names) for trip in answer.removesuffix(";").split(";")]
    if len(trips) > _MOST_TRIPS:
        return False
    whole = [cargo for cargo in trips if cargo is not None]
    return len(whole) == len(trips) and replay(puzzle, whole)


def _cargo(trip: str, names: Sequence[str]) -> Cargo | None:
    """What one trip carries; None when it cannot be read. Without names: "2+1" of two groups."""
    if not names:
        counts = re.fullmatch(r"([0-9]) *\+ *([0-9])", trip)
        return (int(counts[1]), int(counts[2])) if counts else None
    if trip.lower() in _NOTHING:
        return ()
    names = [name.lower() for name in names]
    items = [name.strip() for name in trip.lower().split("+")]
    if len(set(items)) < len(items) or not set(items) <= set(names):
        return None
    return tuple(sorted(names.index(item) + 1 for item in items))


TASKS = (Task("river", (1, 2, 3), make, judge),)
