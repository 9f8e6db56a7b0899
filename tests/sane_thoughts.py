"""Thoughts that do not loop, built by code: what the loop guard must let pass.

In: seeds. Out: `sane()`: correct reasoning that repeats phrases, rows and whole pieces of code; `endless()`:
rows that may be wanted and that nothing in the tokens tells from a loop. Equal calls give equal texts.
Does not know: tokens, the guard.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator

from deepfast.train.problems import TASKS, sample

PROSE = (
    "Okay, let me start by understanding what is being asked. There is a rectangular garden whose "
    "length is twice its width, and a path of constant width runs around it on the outside. We are "
    "told the area of the path and we want the width of the garden.\n\nLet me denote the width of "
    "the garden by w, so that the length is 2w, and the width of the path by p. The outer "
    "rectangle then measures w + 2p by 2w + 2p. Its area minus the area of the garden is the area "
    "of the path: (w + 2p)(2w + 2p) - 2w^2 = 6wp + 4p^2. Good, that is linear in w once p is known.\n\n"
    "Wait, is the path also around the corners? Yes, a path of constant width that runs all the "
    "way around includes the four corner squares, each with area p^2, and indeed 4p^2 shows up in "
    "the formula. That is a nice sanity check.\n\nNow plug in the numbers. With p = 2 and a path "
    "of 136 square metres, 12w + 16 = 136, hence 12w = 120 and w = 10. The garden measures 10 by "
    "20. Let me check: outer rectangle 14 by 24, which is 336; garden 200; difference 136. It "
    "matches.\n\n",
    "The second question is about probability. Two dice are rolled and we want the chance that the "
    "larger of the two numbers is exactly four. It is easier to count the outcomes in which both "
    "numbers are at most four and to take away those in which both are at most three. There are "
    "sixteen of the former and nine of the latter, so seven outcomes out of thirty-six remain. "
    "Alternatively, list them: (4,1), (4,2), (4,3), (4,4), (3,4), (2,4), (1,4). Seven again. So "
    'the chance is 7/36.\n\nHmm, but would the wording allow the other reading, in which "the '
    'larger" needs the numbers to differ? In that reading (4,4) drops out and we get 6/36. I '
    "think that the usual reading includes ties. I will mention the assumption.\n\n",
    "Next, a proof. Claim: among any five integers there are three whose sum is divisible by "
    "three. Look at the remainders. If all three remainders 0, 1 and 2 occur, pick one number of "
    "each kind; their sum is 0 + 1 + 2 = 3, which is divisible by three. Otherwise at most two "
    "remainders occur among the five numbers, so by the pigeonhole principle one of them occurs at "
    "least three times, and three equal remainders sum to a multiple of three. In both cases we "
    "are done. The number five is also best possible, because 0, 0, 1, 1 contains no such triple: "
    "the sums are 1, 1, 2 and 2.\n\n",
    "先看题目的意思：小明每天跑步，第一天跑了三公里，以后每天比前一天多跑半公里，问第"
    "十天跑了多少公里，十天一共跑了多少公里。这是一个等差数列，首项是三，公差是零点五"
    "。第十天是三加九乘零点五，等于七点五公里。总和是首项加末项乘以项数再除以二，也就"
    "是十点五乘以五，等于五十二点五公里。再检查一下：平均每天五点二五公里，十天五十二"
    "点五公里，没有问题。\n\n",
    "As for the program, the simplest idea is to sort the intervals by their start and to merge "
    "neighbours that touch. Sorting costs n log n; the merge is one pass. The only subtle point is "
    "whether [1, 2] and [2, 3] count as overlapping. The examples in the statement merge them, so "
    "the comparison has to be <=, not <. Another trap: the merged interval ends at the maximum of "
    "the two ends, because the second may lie inside the first. I would rather write that down "
    "explicitly than rely on the order.\n\n",
)
CODE = '''def merge(intervals):
    """Join the intervals that touch."""
    intervals.sort(key=lambda pair: pair[0])
    merged = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged
'''
SONG = (
    "Oh the river runs down to the sea, my dear,\nthe river runs down to the sea,\n"
    "and nothing that goes there comes back, my dear,\nbut the rain that is falling on me.\n\n"
)
NAMES = ("Alice", "Bob", "Carol", "Dave", "Eve", "Frank", "Grace", "Heidi")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PAGES = ("home", "about", "blog", "shop", "team", "jobs", "help", "terms", "press", "login")
THINGS = ("car", "house", "door", "box", "ball", "hat", "cup", "pen")

Named = Iterator[tuple[str, str]]  # name, text


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows) + "\n\n"


def _enumerations(rng: random.Random, cases: int = 40) -> Named:
    """Case by case, each case with its own numbers."""
    start, m = rng.randint(1, 9), rng.choice((7, 8, 9, 11, 13))
    span = range(start, start + cases)
    yield "mod", _lines(f"For n = {n}: n^2 = {n * n}, and {n * n} mod {m} = {n * n % m}." for n in span)
    rows = []
    for x in span:
        y = x * x - m * x + m + 3
        sign = "negative, so this case works" if y < 0 else "not negative, so it fails"
        rows.append(f"If x = {x}, then f({x}) = {x}^2 - {m} * {x} + {m + 3} = {y}, which is {sign}.")
    yield "substitute", _lines(rows)
    rows = []
    for n in range(start + 90, start + 90 + cases):
        factor = next((d for d in range(2, n) if n % d == 0), None)
        found = (
            f"is divisible by {factor}, so it is not prime" if factor else "has no divisor, so it is prime"
        )
        rows.append(f"Check {n}: {n} {found}.")
    yield "primes", _lines(rows)
    rows = []
    for a, b in itertools.islice(itertools.product(range(1, 9), repeat=2), cases):
        rows.append(
            f"Case a = {a}, b = {b}: a + b = {a + b}, a * b = {a * b}, {'yes' if a * b > 9 else 'no'}."
        )
    yield "pairs", _lines(rows)


def _multiply(a: int, b: int) -> str:
    """By hand: a partial product for every digit of b, digit by digit."""
    rows = [f"{a} * {b}"]
    for y in map(int, reversed(str(b))):
        carry = 0
        for x in map(int, reversed(str(a))):
            rows.append(f"{x}*{y}+{carry}={x * y + carry}")
            carry = (x * y + carry) // 10
        rows.append(f"= {a * y}")
    return _lines([*rows, f"= {a * b}"])


def _arithmetic(rng: random.Random) -> Named:
    """Digit by digit."""
    low, high = 10**11, 10**12
    yield "long multiplication", _multiply(rng.randrange(low, high), rng.randrange(low, high))
    yield "a factor 333", _multiply(rng.randrange(low, high), rng.randrange(100, 999) * 10_000 + 8333)
    rows, rest = [], 1
    for position in range(60):
        rest *= 10
        rows.append(f"Digit {position + 1}: {rest} / 97 = {rest // 97}, remainder {rest % 97}.")
        rest %= 97
    yield "long division", _lines(rows)
    n, rows = 27, []
    while n != 1:
        after = n // 2 if n % 2 == 0 else 3 * n + 1
        rows.append(f"{n} is {'even' if n % 2 == 0 else 'odd'}, so the next number is {after}.")
        n = after
    yield "collatz", _lines(rows)
    yield "powers", _lines(f"2^{n} = {2**n}" for n in range(80))
    yield "powers mod", _lines(f"3^{n} mod 7 = {pow(3, n, 7)}" for n in range(1, 61))
    yield "binary", _lines(f"{n} = {n:b}" for n in range(128))
    yield "digits", f"100! = {math.factorial(100)}, 10^60 = {10**60}, 1/7 = 0.{'142857' * 12}...\n"
    yield "times table", _lines(" ".join(f"{i * j:3d}" for j in range(1, 13)) for i in range(1, 13))
    yield "sum of ones", f"{' + '.join(['1'] * 40)} = 40\n"
    marked = enumerate("strawberry" * 3, 1)
    yield "strawberry", _lines(f"{i}. {c}{' <- r' if c == 'r' else ''}" for i, c in marked)


def _matrix_product(rng: random.Random) -> str:
    """Cell by cell."""
    a, b = ([[rng.randint(0, 5) for _ in range(4)] for _ in range(4)] for _ in range(2))
    rows = []
    for i, j in itertools.product(range(4), repeat=2):
        terms = " + ".join(f"{a[i][k]} * {b[k][j]}" for k in range(4))
        rows.append(f"c_{i}{j} = {terms} = {sum(a[i][k] * b[k][j] for k in range(4))}")
    return _lines(rows)


def _tables(rng: random.Random) -> Named:
    """Rows of small alphabets."""
    for n in (3, 4, 5, 6):
        rows = ["| " + " | ".join("ABCDEF"[:n]) + " | result |", "|---" * (n + 1) + "|"]
        for cells in itertools.product("TF", repeat=n):
            rows.append(f"| {' | '.join(cells)} | {'T' if cells.count('T') > 1 else 'F'} |")
        yield f"truth table {n}", _lines(rows)
    for n in (4, 8, 10):
        zeros = ["    [" + ", ".join(["0"] * n) + "],"] * n
        yield f"zeros {n}x{n}", _lines(["dp = [", *zeros, "]"])
        ones = (", ".join("1" if i == j else "0" for j in range(n)) for i in range(n))
        yield f"identity {n}x{n}", _lines(f"  [{row}]," for row in ones)
    rows = ["| name | age | member | price |", "|---|---|---|---|"]
    for _ in range(40):
        member = rng.choice(("yes", "no"))
        rows.append(f"| {rng.choice(NAMES)} | {rng.randint(18, 70)} | {member} | {rng.randint(1, 99)}.50 |")
    yield "markdown table", _lines(rows)
    rows = []
    for n in range(30):
        name, score = rng.choice(NAMES), rng.randint(0, 99)
        rows.append(f'  {{"id": {n}, "name": "{name}", "active": true, "score": {score}}},')
    yield "json rows", _lines(rows)
    yield "matrix product", _matrix_product(rng)


def _lists(rng: random.Random) -> Named:
    """All of something."""
    yield "permutations 4", _lines(" ".join(p) for p in itertools.permutations("1234"))
    yield "permutations 5", _lines("".join(p) for p in itertools.permutations("ABCDE"))
    subsets = itertools.chain.from_iterable(itertools.combinations("abcde", k) for k in range(6))
    yield "subsets", _lines("{" + ", ".join(s) + "}" for s in subsets)
    dice = itertools.product(range(1, 7), repeat=3)
    yield "dice", ", ".join(f"({a}, {b}, {c})" for a, b, c in dice) + ".\n"
    yield "coins", " ".join("".join(c) for c in itertools.product("HT", repeat=7)) + "\n"
    yield "weekdays", _lines(f"Day {n} is a {DAYS[n % 7]}." for n in range(1, 101))
    yield "four weeks", ", ".join(DAYS * 4) + ".\n"
    yield "ascii", _lines(f"'{c}' is {ord(c)}, in hexadecimal {ord(c):x}." for c in "Hello, Deepfast world!")
    coins = [(q, p, 40 - 10 * q - 5 * p) for q in range(5) for p in range((40 - 10 * q) // 5 + 1)]
    yield "change", _lines(f"{q} x 10 + {p} x 5 + {r} x 1" for q, p, r in coins)
    yield "countdown", ", ".join(str(n) for n in range(100, -1, -1)) + ".\n"
    yield "count to 200", ", ".join(map(str, range(1, 201))) + ".\n"
    yield "bullets", _lines(f"- The {w} is {rng.choice(('red', 'blue', 'green'))}." for w in THINGS * 4)


def _bubble_sort(rng: random.Random) -> str:
    xs, rows = rng.sample(range(1, 100), 9), []
    for i in itertools.chain.from_iterable(range(end) for end in range(8, 0, -1)):
        pair = f"Compare {xs[i]} and {xs[i + 1]}"
        if xs[i] > xs[i + 1]:
            xs[i], xs[i + 1] = xs[i + 1], xs[i]
            rows.append(f"{pair}: swap. Now the list is {xs}.")
        else:
            rows.append(f"{pair}: keep.")
    return _lines(rows)


def _hanoi(disks: int) -> str:
    pegs = {"A": list(range(disks, 0, -1)), "B": [], "C": []}

    def move(n: int, a: str, b: str, c: str) -> Iterator[str]:
        if n:
            yield from move(n - 1, a, c, b)
            pegs[b].append(pegs[a].pop())
            yield f"Move disk {n} from {a} to {b}. A: {pegs['A']}, B: {pegs['B']}, C: {pegs['C']}"
            yield from move(n - 1, c, b, a)

    return _lines(move(disks, "A", "C", "B"))


def _edit_distance(s: str, t: str) -> str:
    row, rows = list(range(len(t) + 1)), []
    for i, c in enumerate(s):
        new = [i + 1]
        for j, d in enumerate(t):
            new.append(min(row[j + 1] + 1, new[j] + 1, row[j] + (c != d)))
        row = new
        rows.append(f"Row {i + 1} ('{c}'): {row}")
    return _lines(rows)


def _life(steps: int) -> str:
    """A glider on a board that is drawn again at every step."""
    alive, rows = {(1, 2), (2, 3), (3, 1), (3, 2), (3, 3)}, []
    for step in range(steps):
        rows.append(f"Generation {step}:")
        rows += ["".join("#" if (y, x) in alive else "." for x in range(8)) for y in range(8)]
        near = [(y + dy, x + dx) for y, x in alive for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
        alive = {c for c in set(near) if near.count(c) == 3 or (near.count(c) == 2 and c in alive)}
    return _lines(rows)


def _search(nodes: int) -> str:
    graph = {n: sorted({(n * 3 + 1) % nodes, (n * 5 + 2) % nodes, (n + 7) % nodes}) for n in range(nodes)}
    seen, queue, rows = {0}, [0], []
    while queue:
        node = queue.pop(0)
        fresh = [n for n in graph[node] if n not in seen]
        seen.update(fresh)
        queue += fresh
        rows.append(f"Pop {node}. Its neighbours are {graph[node]}. New ones: {fresh}. The queue is {queue}.")
    return _lines(rows)


def _traces(rng: random.Random) -> Named:
    """A program run by hand: the state is written again at every step."""
    yield "bubble sort", _bubble_sort(rng)
    yield "hanoi", _hanoi(5)
    yield "edit distance", _edit_distance("kitten sits", "sitting kit")
    yield "game of life", _life(6)
    yield "breadth first", _search(16)


def _writing(rng: random.Random) -> Named:
    """Code written again after a change, lists of tests, a song with its refrain, a problem quoted again."""
    blocks = [f"```python\n{code}```\n" for code in (CODE, CODE.replace("<=", "<"), CODE)]
    yield "code three times", f"{blocks[0]}The comparison matters, so:\n{blocks[1]}{PROSE[4]}{blocks[2]}"
    calls = (f"merge([[{i}, {i + 2}], [{i + 2}, {i + 5}]]) == [[{i}, {i + 5}]]" for i in range(30))
    yield "asserts", _lines(f"assert {call}" for call in calls)
    yield "refrain", "".join(f"{verse[:280]}\n\n{SONG}" for verse in PROSE)
    quoted = '"How many positive integers below 1000 are divisible by 7, not by 5, with an odd digit sum?"'
    yield "quoted", "".join(f"The problem again: {quoted} {text}" for text in PROSE)
    yield "prose", "".join(PROSE)
    pairs = [(rng.randint(12, 99), rng.randint(12, 99)) for _ in range(15)]
    yield (
        "double checks",
        _lines(f"Let me double-check: {a} * {b} = {a * b}. Yes, {a * b}." for a, b in pairs),
    )
    links = (f'<a class="nav-link" href="/page/{page}">{page.title()}</a>' for page in PAGES)
    yield "html", _lines(f'<li class="nav-item">{link}</li>' for link in links)


def traces(per_task: int = 6, joined: int = 25) -> Named:
    """Thoughts of the generated problems, alone, and many of one task in a row."""
    rng = random.Random(3)
    for task in TASKS:
        for number in range(per_task):
            yield f"{task} {number}", sample(task, rng, "test").trace
        yield f"{task} in a row", _lines(sample(task, rng, "test").trace for _ in range(joined))


def pieces(rng: random.Random) -> list[tuple[str, str]]:
    """One of everything that is right."""
    makers = (_enumerations, _arithmetic, _tables, _lists, _traces, _writing)
    return list(itertools.chain.from_iterable(make(rng) for make in makers))


def sane(rounds: int = 3) -> Named:
    """Correct long thoughts: every piece alone, then pieces joined to thoughts of thousands of tokens."""
    yield from traces()
    for seed in range(rounds):
        rng = random.Random(seed)
        parts = pieces(rng)
        yield from ((f"{name} #{seed}", text) for name, text in parts)
        rng.shuffle(parts)
        for number in range(0, len(parts), 10):
            yield f"joined #{seed}.{number}", "".join(text for _, text in parts[number : number + 10])


def endless() -> Named:
    """Perhaps wanted, perhaps a loop: nothing in the tokens tells."""
    yield "1 to 1000, one per line", _lines(map(str, range(1, 1001)))
    yield "1 to 1000, commas", ", ".join(map(str, range(1, 1001)))
    yield "500 numbered rows", _lines(f"Row {n}: the counter is {n} and the state is ok." for n in range(500))
    yield "500 random rows", _lines(f"| {n} | {random.Random(n).randint(0, 999)} | yes |" for n in range(500))
    wall = "of beer on the wall"
    verse = "{0} bottles {2}, {0} bottles of beer. Take one down and pass it around, {1} bottles {2}."
    yield "99 bottles", _lines(verse.format(n, n - 1, wall) for n in range(99, 0, -1))
    grid = "5 3 . | . 7 . | . . .\n" * 9
    yield "a grid 20 times", _lines(f"{grid}Put {n % 9 + 1} there." for n in range(20))
    long_row = (
        "The reading at hour {0} was within the limits that the manual of the instrument gives, so that "
    )
    long_row += "nothing at all had to be done about it before the next one."
    yield "300 long rows", _lines(map(long_row.format, range(300)))
    yield "zeros 20x20", _lines(["[" + ", ".join(["0"] * 20) + "],"] * 20)
    for weeks in (10, 20):
        yield f"{weeks} weeks", ", ".join(DAYS * weeks) + ".\n"
