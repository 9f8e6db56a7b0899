"""Thoughts that loop and thoughts that do not, built by code: the measure of the loop guard.

In: seeds. Out: `loops()`: a sane beginning, then text that goes round; `sane()`: correct reasoning that
repeats phrases, rows and whole pieces of code; `endless()`: rows that are correct but that no guard can tell
from a loop. Equal calls give equal texts. Does not know: tokens, the guard.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deepfast.train.problems import TASKS, sample

# A paragraph that a thought gets stuck in. [a|b] is a free choice, # a number that changes.
STUCK = {
    "en": (
        "Wait, [maybe|perhaps|possibly] I should check the calculation again. The sum of the [first|initial] "
        "three terms is 12, and the product is 48, so the ratio must be 2. [But|However], that does not match "
        "the condition in the problem, so I need to go back to equation # and start over.\n\n",
        "Let me [think|reconsider|look] again. The train leaves at noon and travels for three hours, which "
        "means that it arrives at three o'clock. That is attempt #, and it [still|again] looks right.\n\n",
        "Hmm, this is [confusing|puzzling|strange]. The problem says that every student has exactly two "
        "friends, but in step # we found a student with [three|more] friends, which is a contradiction. So the "
        "assumption is wrong. Let me read the problem statement once more and count the friends of each "
        "student, starting with the student who sits at the window and going around the table.\n\n",
        "So the answer is [5|five]. But wait, is it really? Let me verify by substituting back.\n",
    ),
    "zh": (
        "等等，[也许|可能]我应该再检查一遍计算。前三项的和是12，乘积是48，所以公比一定是2。[但是|不过]这与题目中的条件不符，"
        "因此我需要回到第#步重新开始。\n\n",
        "让我再想一想。题目说每个学生正好有两个朋友，但是我们在第#步发现有一个学生有三个朋友，[这是矛盾的|矛盾]。\n",
    ),
    "es": (
        "Espera, [quizás|tal vez] debería revisar el cálculo otra vez. La suma de los tres primeros términos es "
        "12 y el producto es 48, así que la razón debe ser 2. [Pero|Sin embargo], eso no coincide con el "
        "enunciado, así que vuelvo al paso # y empiezo de nuevo.\n\n",
    ),
    "de": (
        "Moment, [vielleicht|womöglich] sollte ich die Rechnung noch einmal prüfen. Die Summe der ersten drei "
        "Glieder ist 12 und das Produkt ist 48, also muss der Quotient 2 sein. [Aber|Doch] das passt nicht zur "
        "Bedingung aus der Aufgabe, also gehe ich zurück zu Gleichung # und beginne von vorn.\n\n",
    ),
    "ru": (
        "Подождите, [может быть|возможно], мне стоит ещё раз проверить вычисление. Сумма первых трёх членов "
        "равна 12, а произведение равно 48, значит, знаменатель равен 2. [Но|Однако] это не соответствует "
        "условию задачи, поэтому я возвращаюсь к шагу # и начинаю сначала.\n\n",
    ),
    "ja": (
        "待って、[もしかすると|たぶん]計算をもう一度確認した方がいいかもしれない。最初の三項の和は12で、積は48なので、公比は2のはずだ。"
        "[しかし|でも]それは問題の条件と合わないので、式#に戻ってやり直す。\n\n",
    ),
    "code": (
        "        if values[index] [>|>=] limit:\n            total += values[index] * weights[index]\n"
        "            count_# = count_# + 1\n        else:\n            skipped.append(index)\n",
    ),
}
INSERTIONS = (" really", " actually", " now", " again", " of course", " clearly", " then", " indeed")

PROSE = (
    "Okay, let me start by understanding what is being asked. There is a rectangular garden whose length is "
    "twice its width, and a path of constant width runs around it on the outside. We are told the area of the "
    "path and we want the width of the garden.\n\nLet me denote the width of the garden by w, so that the "
    "length is 2w, and the width of the path by p. The outer rectangle then measures w + 2p by 2w + 2p. Its "
    "area minus the area of the garden is the area of the path: (w + 2p)(2w + 2p) - 2w^2 = 6wp + 4p^2. Good, "
    "that is linear in w once p is known.\n\nWait, is the path also around the corners? Yes, a path of constant "
    "width that runs all the way around includes the four corner squares, each with area p^2, and indeed 4p^2 "
    "shows up in the formula. That is a nice sanity check.\n\nNow plug in the numbers. With p = 2 and a path of "
    "136 square metres, 12w + 16 = 136, hence 12w = 120 and w = 10. The garden measures 10 by 20. Let me check: "
    "outer rectangle 14 by 24, which is 336; garden 200; difference 136. It matches.\n\n",
    "The second question is about probability. Two dice are rolled and we want the chance that the larger of "
    "the two numbers is exactly four. It is easier to count the outcomes in which both numbers are at most "
    "four and to take away those in which both are at most three. There are sixteen of the former and nine of "
    "the latter, so seven outcomes out of thirty-six remain. Alternatively, list them: (4,1), (4,2), (4,3), "
    "(4,4), (3,4), (2,4), (1,4). Seven again. So the chance is 7/36.\n\nHmm, but would the wording allow the "
    "other reading, in which \"the larger\" needs the numbers to differ? In that reading (4,4) drops out and we "
    "get 6/36. I think that the usual reading includes ties. I will mention the assumption.\n\n",
    "Next, a proof. Claim: among any five integers there are three whose sum is divisible by three. Look at the "
    "remainders. If all three remainders 0, 1 and 2 occur, pick one number of each kind; their sum is 0 + 1 + 2 "
    "= 3, which is divisible by three. Otherwise at most two remainders occur among the five numbers, so by the "
    "pigeonhole principle one of them occurs at least three times, and three equal remainders sum to a multiple "
    "of three. In both cases we are done. The number five is also best possible, because 0, 0, 1, 1 contains "
    "no such triple: the sums are 1, 1, 2 and 2.\n\n",
    "先看题目的意思：小明每天跑步，第一天跑了三公里，以后每天比前一天多跑半公里，问第十天跑了多少公里，十天一共跑了多少公里。这是一个等差数列，"
    "首项是三，公差是零点五。第十天是三加九乘零点五，等于七点五公里。总和是首项加末项乘以项数再除以二，也就是十点五乘以五，等于五十二点五公里。"
    "再检查一下：平均每天五点二五公里，十天五十二点五公里，没有问题。\n\n",
    "As for the program, the simplest idea is to sort the intervals by their start and to merge neighbours that "
    "touch. Sorting costs n log n; the merge is one pass. The only subtle point is whether [1, 2] and [2, 3] "
    "count as overlapping. The examples in the statement merge them, so the comparison has to be <=, not <. "
    "Another trap: the merged interval ends at the maximum of the two ends, because the second may lie inside "
    "the first. I would rather write that down explicitly than rely on the order.\n\n",
)


class Loop(NamedTuple):
    """A sane beginning and the endless part; `kind` and `language` say how it was made."""

    kind: str
    language: str
    prefix: str
    loop: str


def _round(paragraph: str, rng: random.Random, *, counter: int | None, choose: bool) -> str:
    """One copy of a stuck paragraph."""
    pick = (lambda m: rng.choice(m[1].split("|"))) if choose else (lambda m: m[1].split("|")[0])
    text = re.sub(r"\[([^\]|]*(?:\|[^\]|]*)+)\]", pick, paragraph)
    return text.replace("#", "7" if counter is None else str(counter))


def _exact(own: str, other: str, rng: random.Random, copy: int) -> str:
    return _round(own, rng, counter=None, choose=False)


def _counter(own: str, other: str, rng: random.Random, copy: int) -> str:
    return _round(own, rng, counter=copy + 3, choose=False)


def _synonyms(own: str, other: str, rng: random.Random, copy: int) -> str:
    return _round(own, rng, counter=None, choose=True)


def _both(own: str, other: str, rng: random.Random, copy: int) -> str:
    return _round(own, rng, counter=copy + 3, choose=True)


def _alternating(own: str, other: str, rng: random.Random, copy: int) -> str:
    """Two paragraphs take turns, with small edits."""
    return _round((own, other)[copy % 2], rng, counter=copy // 2, choose=True)


def _insertions(own: str, other: str, rng: random.Random, copy: int) -> str:
    """The same text with a word put in at a random place."""
    words = _exact(own, other, rng, copy).split(" ")
    if rng.random() < 0.7:
        words.insert(rng.randrange(1, len(words) + 1), rng.choice(INSERTIONS).strip())
    return " ".join(words)


def _truncated(own: str, other: str, rng: random.Random, copy: int) -> str:
    """Now and then a copy begins in the middle of its paragraph."""
    text = _exact(own, other, rng, copy)
    return text if rng.random() < 0.7 else text[rng.randrange(len(text) // 2) :]


KINDS: dict[str, Callable[[str, str, random.Random, int], str]] = {
    "exact": _exact,
    "counter": _counter,
    "synonyms": _synonyms,
    "counter and synonyms": _both,
    "alternating": _alternating,
    "insertions": _insertions,
    "truncated": _truncated,
}


def prose(rng: random.Random, characters: int) -> str:
    """A sane beginning of about so many characters."""
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        parts.append(rng.choice([text for _, text in _enumerations(rng, 6)] + list(PROSE)))
        if len(parts) > 1 and parts[-1] in parts[:-1]:
            parts.pop()
            parts.append(next(text for _, text in _enumerations(rng, 4)))
    return "".join(parts)


def loops(copies: int = 90, length: int = 24_000) -> Iterator[Loop]:
    """Every kind in every language, after a short, a long and no beginning; and short phrases repeated."""
    rng = random.Random(1)
    paragraphs = [(language, text) for language, texts in STUCK.items() for text in texts]
    for (language, own), (kind, copy), size in itertools.product(paragraphs, KINDS.items(), (0, 1500, 12_000)):
        other = STUCK[language][-1] if own != STUCK[language][-1] else PROSE[3 if language == "zh" else 2]
        text = ""
        for number in range(copies):
            text += copy(own, other, rng, number)
            if len(text) > length:
                break
        yield Loop(kind, language, prose(rng, size) if size else "", text)
    phrases = ("no ", "Wait, ", "哈", "1 + ", "ha ha! ", "and so on and ", "So x = 2. ", "好的，再来一次。", "0, ")
    phrases += ("I am not sure. ", "Let me check. Is it 4? No. ", "\n", "- item\n", "the the ", "()")
    for phrase, size in itertools.product(phrases, (0, 1500)):
        yield Loop("phrase", "any", prose(rng, size) if size else "", phrase * (3000 // len(phrase) + 600))


def _lines(rows: Iterator[str] | list[str]) -> str:
    return "\n".join(rows) + "\n\n"


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _enumerations(rng: random.Random, cases: int) -> Iterator[tuple[str, str]]:
    """Case by case, each case with its own numbers."""
    start, m = rng.randint(1, 9), rng.choice((7, 8, 9, 11, 13))
    span = range(start, start + cases)
    yield "mod", _lines([f"For n = {n}: n^2 = {n * n}, and {n * n} mod {m} = {n * n % m}." for n in span])
    yield (
        "substitute",
        _lines(
            f"If x = {x}, then f({x}) = {x}^2 - {m} * {x} + {m + 3} = {x * x - m * x + m + 3}, which is "
            f"{'negative, so this case works' if x * x - m * x + m + 3 < 0 else 'not negative, so it fails'}."
            for x in span
        ),
    )
    rows = []
    for n in span:
        factor = next((d for d in range(2, n) if n % d == 0), None)
        found = f"is divisible by {factor}, so it is not prime" if factor else "has no divisor, so it is prime"
        rows.append(f"Check {n + 90}: {n} {found if n > 1 else 'is not prime by definition'}.")
    yield "primes", _lines(rows)
    pairs = itertools.islice(itertools.product(range(1, 9), repeat=2), cases)
    yield "pairs", _lines(
        [f"Case a = {a}, b = {b}: a + b = {a + b}, a * b = {a * b}, so {'yes' if a * b > 9 else 'no'}." for a, b in pairs]
    )


def _arithmetic(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Digit by digit."""
    a, b = rng.randrange(10**11, 10**12), rng.randrange(10**11, 10**12)
    rows, carry = [f"{a} * {b}"], 0
    for y in map(int, reversed(str(b))):
        carry = 0
        for x in map(int, reversed(str(a))):
            rows.append(f"{x}*{y}+{carry}={x * y + carry}")
            carry = (x * y + carry) // 10
        rows.append(f"= {a * y}")
    yield "long multiplication", _lines([*rows, f"= {a * b}"])
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
    yield "powers", _lines([f"2^{n} = {2**n}" for n in range(80)])
    yield "powers mod", _lines([f"3^{n} mod 7 = {pow(3, n, 7)}" for n in range(1, 61)])
    yield "binary", _lines([f"{n} = {n:b}" for n in range(128)])
    yield "digits", f"100! = {__import__('math').factorial(100)}, 10^60 = {10**60}, 1/7 = 0.{'142857' * 12}...\n"
    yield "times table", _lines([" ".join(f"{i * j:3d}" for j in range(1, 13)) for i in range(1, 13)])
    yield "sum of ones", f"{' + '.join(['1'] * 40)} = 40\n"
    yield "strawberry", _lines([f"{i + 1}. {c}{' <- r' if c == 'r' else ''}" for i, c in enumerate("strawberry" * 3)])


def _tables(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Rows of small alphabets."""
    for n in (3, 4, 5, 6):
        head = "| " + " | ".join("ABCDEF"[:n]) + " | result |\n" + "|---" * (n + 1) + "|\n"
        rows = itertools.product("TF", repeat=n)
        yield f"truth table {n}", head + _lines([f"| {' | '.join(r)} | {'T' if r.count('T') > 1 else 'F'} |" for r in rows])
    for n in (4, 8, 10):
        zero = ",\n".join(["    [" + ", ".join(["0"] * n) + "]"] * n)
        yield f"zeros {n}x{n}", f"dp = [\n{zero},\n]\n\n"
        one = [", ".join("1" if i == j else "0" for j in range(n)) for i in range(n)]
        yield f"identity {n}x{n}", "[\n" + _lines([f"  [{row}]," for row in one])
    names = ("Alice", "Bob", "Carol", "Dave", "Eve", "Frank", "Grace", "Heidi")
    rows = [f"| {rng.choice(names)} | {rng.randint(18, 70)} | {rng.choice(('yes', 'no'))} | {rng.randint(1, 99)}.50 |" for _ in range(40)]
    yield "markdown table", "| name | age | member | price |\n|---|---|---|---|\n" + _lines(rows)
    rows = [f'  {{"id": {i}, "name": "{rng.choice(names)}", "active": true, "score": {rng.randint(0, 99)}}},' for i in range(30)]
    yield "json rows", "[\n" + _lines(rows)
    yield "permutations 4", _lines([" ".join(p) for p in itertools.permutations("1234")])
    yield "permutations 5", _lines(["".join(p) for p in itertools.permutations("ABCDE")])
    yield "subsets", _lines(["{" + ", ".join(s) + "}" for k in range(6) for s in itertools.combinations("abcde", k)])
    yield "countdown", ", ".join(str(n) for n in range(100, -1, -1)) + ".\n"
    yield "count to 200", ", ".join(map(str, range(1, 201))) + ".\n"
    yield "bullets", _lines([f"- The {w} is {rng.choice(('red', 'blue', 'green'))}." for w in ("car", "house", "door", "box", "ball", "hat", "cup", "pen") * 4])


def _traces(rng: random.Random) -> Iterator[tuple[str, str]]:
    """A program run by hand: the state is written again at every step."""
    xs, rows = rng.sample(range(1, 100), 9), []
    for end, i in ((e, i) for e in range(8, 0, -1) for i in range(e)):
        if xs[i] > xs[i + 1]:
            rows.append(f"Compare {xs[i]} and {xs[i + 1]}: swap. Now the list is ")
            xs[i], xs[i + 1] = xs[i + 1], xs[i]
            rows[-1] += f"{xs}."
        else:
            rows.append(f"Compare {xs[i]} and {xs[i + 1]}: keep.")
    yield "bubble sort", _lines(rows)
    pegs, rows = {"A": [5, 4, 3, 2, 1], "B": [], "C": []}, []

    def move(n: int, a: str, b: str, c: str) -> None:
        if n:
            move(n - 1, a, c, b)
            pegs[b].append(pegs[a].pop())
            rows.append(f"Move disk {n} from {a} to {b}. A: {pegs['A']}, B: {pegs['B']}, C: {pegs['C']}")
            move(n - 1, c, b, a)

    move(5, "A", "C", "B")
    yield "hanoi", _lines(rows)
    s, t = "kitten sits", "sitting kit"
    row, rows = list(range(len(t) + 1)), []
    for i, c in enumerate(s):
        new = [i + 1]
        for j, d in enumerate(t):
            new.append(min(row[j + 1] + 1, new[j] + 1, row[j] + (c != d)))
        row = new
        rows.append(f"Row {i + 1} ('{c}'): {row}")
    yield "edit distance", _lines(rows)
    grid = {(1, 2), (2, 3), (3, 1), (3, 2), (3, 3)}
    text = ""
    for step in range(6):
        text += f"Generation {step}:\n" + _lines(["".join("#" if (y, x) in grid else "." for x in range(8)) for y in range(8)])
        near = [(y + dy, x + dx) for y, x in grid for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
        grid = {c for c in set(near) if near.count(c) == 3 or (near.count(c) == 2 and c in grid)}
    yield "game of life", text
    graph = {n: sorted({(n * 3 + 1) % 16, (n * 5 + 2) % 16, (n + 7) % 16}) for n in range(16)}
    seen, queue, rows = {0}, [0], []
    while queue:
        node = queue.pop(0)
        fresh = [n for n in graph[node] if n not in seen]
        seen.update(fresh)
        queue += fresh
        rows.append(f"Pop {node}. Its neighbours are {graph[node]}. New ones: {fresh}. The queue is now {queue}.")
    yield "bfs", _lines(rows)


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


def _writing(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Code written again after a change, lists of tests, a song with its refrain, a problem quoted again."""
    again = CODE.replace("<=", "<")
    yield "code twice", f"```python\n{CODE}```\nThe comparison matters, so:\n```python\n{again}```\n{PROSE[4]}```python\n{CODE}```\n"
    yield "asserts", _lines([f"assert merge([[{i}, {i + 2}], [{i + 2}, {i + 5}]]) == [[{i}, {i + 5}]]" for i in range(30)])
    yield "refrain", "".join(f"{verse[:280]}\n\n{SONG}" for verse in PROSE)
    quoted = '"How many positive integers below 1000 are divisible by 7 but not by 5, and have an odd digit sum?" '
    yield "quoted", "".join(f"The problem again: {quoted}{text}" for text in PROSE)
    yield "prose", "".join(PROSE)
    checks = [f"Let me double-check: {a} * {b} = {a * b}. Yes, {a} times {b} is {a * b}.\n" for a, b in [(rng.randint(12, 99), rng.randint(12, 99)) for _ in range(15)]]
    yield "double checks", "".join(checks)
    html = "".join(f'<li class="nav-item"><a class="nav-link" href="/page/{w}">{w.title()}</a></li>\n' for w in ("home", "about", "blog", "shop", "team", "jobs", "help", "terms", "press", "login"))
    yield "html", f"<ul>\n{html}</ul>\n"


def traces(per_task: int = 20, joined: int = 25) -> Iterator[tuple[str, str]]:
    """Thoughts of the bundled model's tasks, alone, and many of one task in a row."""
    rng = random.Random(3)
    for task in TASKS:
        for number in range(per_task):
            yield f"{task} {number}", sample(task, rng, held_out=True).trace
        yield f"{task} in a row", _lines([sample(task, rng, held_out=True).trace for _ in range(joined)])


def sane(rounds: int = 3) -> Iterator[tuple[str, str]]:
    """Correct long thoughts: every piece alone, then pieces joined to thoughts of thousands of tokens."""
    yield from traces()
    for seed in range(rounds):
        rng = random.Random(seed)
        pieces = list(_enumerations(rng, 40))
        for part in (_arithmetic, _tables, _traces, _writing):
            pieces += part(rng)
        yield from ((f"{name} #{seed}", text) for name, text in pieces)
        rng.shuffle(pieces)
        for number in range(0, len(pieces), 10):
            yield f"joined #{seed}.{number}", "".join(text for _, text in pieces[number : number + 10])


def endless() -> Iterator[tuple[str, str]]:
    """Correct, and yet nothing in the tokens tells it from a loop."""
    yield "print 1 to 1000, one per line", _lines([str(n) for n in range(1, 1001)])
    yield "print 1 to 1000, commas", ", ".join(map(str, range(1, 1001)))
    yield "500 numbered rows", _lines([f"Row {n}: the value of the counter is {n} and the state is ok." for n in range(500)])
    yield "500 random rows", _lines([f"| {n} | {random.Random(n).randint(0, 999)} | yes |" for n in range(500)])
    yield "99 bottles", "".join(f"{n} bottles of beer on the wall, {n} bottles of beer. Take one down and pass it around, {n - 1} bottles of beer on the wall.\n" for n in range(99, 0, -1))
    yield "sudoku grid 20 times", _lines(["5 3 . | . 7 . | . . .\n" * 9 + f"Put {n % 9 + 1} there." for n in range(20)])
    yield "zeros 20x20", _lines(["[" + ", ".join(["0"] * 20) + "],"] * 20)
