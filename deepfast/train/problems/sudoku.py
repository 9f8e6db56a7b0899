"""Sudokus of 4x4 with one solution.

In: a random generator, a level. Out: drafts and a judge. The trace goes through the empty cells in turn:
"b3 124>3" says that 1, 2 and 4 stand in the row, column or block of b3, so that 3 is left; after a digit is
set the whole grid is written again. Round after round this solves every puzzle that is drawn: with one
solution a 4x4 sudoku hardly ever needs a guess. It knows nothing of other tasks.
"""

import functools
import itertools
import random
import re

from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask

PHRASES: Phrases = {
    "en": (
        "Solve this 4x4 sudoku:\n{grid}",
        "Solve the 4x4 sudoku (0 is an empty cell):\n{grid}",
        "Fill in the 4x4 sudoku. Each row, column and 2x2 block has 1 to 4.\n{grid}",
        "Complete this mini sudoku:\n{grid}",
        "Here is a 4x4 sudoku. What is the solution?\n{grid}",
        "{grid}\nSolve this 4x4 sudoku.",
        "Find the missing digits of this 4x4 sudoku:\n{grid}",
        "Put 1 to 4 into the empty cells so that every row, column and block has each once:\n{grid}",
    ),
    "zh": (
        "解这个4x4数独：\n{grid}",
        "求解4x4数独（0表示空格）：\n{grid}",
        "填完这个四宫数独，每行、每列、每个2x2宫都是1到4。\n{grid}",
        "完成下面的迷你数独：\n{grid}",
        "这是一个4x4数独，答案是什么？\n{grid}",
        "{grid}\n请解出这个四阶数独。",
        "找出这个4x4数独缺少的数字：\n{grid}",
        "在空格里填1到4，使每行每列每宫都不重复：\n{grid}",
    ),
}
BLANKS = {1: (4, 6), 2: (7, 8), 3: (9, 10), 4: (11, 12)}
CELLS = tuple(f"{row}{column}" for row in "abcd" for column in "1234")
PEERS = tuple(
    tuple(
        other
        for other in range(16)
        if other != cell
        and (
            other // 4 == cell // 4
            or other % 4 == cell % 4
            or (other // 8, other % 4 // 2) == (cell // 8, cell % 4 // 2)
        )
    )
    for cell in range(16)
)


@functools.cache
def solutions() -> tuple[str, ...]:
    """All 288 full grids, each as sixteen digits."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    found = [""]
    for _ in range(4):
        found = [
            grid + row
            for grid in found
            for row in rows
            if all(
                digit not in (grid + row)[: len(grid) + column][column % 4 :: 4]
                for column, digit in enumerate(row)
            )
        ]
    return tuple(grid for grid in found if _blocks_are_right(grid))


def _blocks_are_right(grid: str) -> bool:
    return all(len({grid[at], grid[at + 1], grid[at + 4], grid[at + 5]}) == 4 for at in (0, 2, 8, 10))


@functools.cache
def _holding() -> tuple[dict[str, int], ...]:
    """For each cell and digit, a bit mask of the solutions that have the digit there."""
    return tuple(
        {digit: sum(1 << n for n, grid in enumerate(solutions()) if grid[cell] == digit) for digit in "1234"}
        for cell in range(16)
    )


def num_solutions(puzzle: str) -> int:
    """How many full grids agree with the digits of a puzzle (0: an empty cell)."""
    fitting = (1 << len(solutions())) - 1
    for cell, digit in enumerate(puzzle):
        if digit != "0":
            fitting &= _holding()[cell][digit]
    return fitting.bit_count()


def draw_puzzle(rng: random.Random, blanks: int) -> str:
    while True:
        puzzle, left = list(rng.choice(solutions())), blanks
        for cell in rng.sample(range(16), 16):
            digit, puzzle[cell] = puzzle[cell], "0"
            if num_solutions("".join(puzzle)) == 1:
                left -= 1
            else:
                puzzle[cell] = digit
            if left == 0:
                return "".join(puzzle)


def shown(grid: list[str] | str) -> str:
    text = "".join(grid)
    return "|".join(text[row : row + 4] for row in (0, 4, 8, 12))


def solve(puzzle: str) -> tuple[list[str], str]:
    """The lines of the trace and the solution; "" when cells with a single digit left do not lead there."""
    grid, lines = list(puzzle), [shown(puzzle)]
    progress = True
    while progress:
        progress = False
        for cell in range(16):
            if grid[cell] != "0":
                continue
            used = "".join(sorted({grid[peer] for peer in PEERS[cell]} - {"0"}))
            free = "".join(digit for digit in "1234" if digit not in used)
            line = f"{CELLS[cell]} {used or '-'}>{free}"
            if len(free) == 1:
                grid[cell], progress = free, True
                line += f" {shown(grid)}"
            lines.append(line)
    return lines, "" if "0" in grid else "".join(grid)


def _relabelled(puzzle: str) -> str:
    """The same puzzle with its digits renamed in the order in which they appear."""
    names: dict[str, str] = {"0": "0"}
    for digit in puzzle:
        names.setdefault(digit, str(len(names)))
    return "".join(names[digit] for digit in puzzle)


def make(rng: random.Random, level: int, language: Language) -> Draft:
    lines, grid = list[str](), ""
    while not grid:
        puzzle = draw_puzzle(rng, rng.randint(*BLANKS[level]))
        lines, grid = solve(puzzle)
    columns = " ".join(grid[column::4] for column in range(4))
    blocks = " ".join(grid[at : at + 2] + grid[at + 4 : at + 6] for at in (0, 2, 8, 10))
    lines.append(f"Check: {columns} {blocks} ok")
    blank, gap = rng.choice(("0", "0", ".", "_")), rng.choice((" ", " ", ""))
    rows = (gap.join(puzzle[row : row + 4]).replace("0", blank) for row in (0, 4, 8, 12))
    phrases = PHRASES
    if blank != "0":
        phrases = {language: [text for text in PHRASES[language] if "0" not in text]}
    question = ask(rng, phrases, language, grid="\n".join(rows))
    answer = " ".join(grid[row : row + 4] for row in (0, 4, 8, 12))
    return Draft(question, lines, answer, f"{_relabelled(puzzle)}|{puzzle}")


def judge(key: str, answer: str) -> bool:
    """The sixteen digits row by row; spaces, bars, commas and new lines between them are free."""
    puzzle = key.partition("|")[2]
    grid = re.sub(r"[\s|,/;]+", "", answer)
    if grid not in solutions():
        return False
    return all(given in ("0", digit) for given, digit in zip(puzzle, grid, strict=True))


TASKS = (Task("sudoku", (1, 2, 3), make, judge),)
