"""Knights, who always tell the truth, and knaves, who always lie.

In: a random generator, a level (how many people). Out: drafts with exactly one solution and a judge. The
trace gives the people letters, finds the letters of every statement and writes it as a formula over A, B, C
(1 knight, 0 knave), then assumes one person after the other, evaluates what can be evaluated, and goes back
at the first contradiction. It knows nothing of other tasks.
"""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask

PHRASES: Phrases = {
    "en": (
        "On an island every inhabitant is either a {knight}, who always tells the truth, or a {knave}, who "
        "always lies. You meet {names}. {said} Who is what?",
        "{Knight}s always tell the truth, {knave}s always lie. There are {names}. {said} Who is a {knight} "
        "and who is a {knave}?",
        "Each of {names} is a {knight} (always truthful) or a {knave} (always lying). {said} Find out who "
        "is which.",
        "{said} Each of {names} is a {knight} who only says true things or a {knave} who only says false "
        "things. What are they?",
        "Puzzle: {knight}s speak the truth, {knave}s lie. {said} What are {names}?",
        "You meet {names}; {knight}s never lie and {knave}s always do. {said} Tell me what each of them is.",
        "{names} are {knight}s or {knave}s. {Knight}s tell the truth and {knave}s lie. {said} Which is "
        "which?",
        "A logic puzzle about {knight}s (truthful) and {knave}s (lying): {said} Determine the roles of "
        "{names}.",
    ),
    "zh": (
        "岛上的每个人要么是{knight}（总说真话），要么是{knave}（总说假话）。你遇到了{names}。{said}他们各是什么人？",
        "{knight}总说真话，{knave}总说假话。有{names}。{said}谁是{knight}，谁是{knave}？",
        "{names}每人是说真话的{knight}或说假话的{knave}。{said}请判断他们的身份。",
        "{said}已知{names}每人是{knight}（只说真话）或{knave}（只说假话），他们各是什么？",
        "逻辑题：{knight}说真话，{knave}说谎。{said}{names}分别是什么？",
        "{knight}从不说谎，{knave}句句说谎。{said}请说出{names}各自的身份。",
        "{names}都是{knight}或{knave}，{knight}讲真话，{knave}讲假话。{said}谁是谁？",
        "关于{knight}（讲真话）和{knave}（讲假话）的谜题：{said}确定{names}的身份。",
    ),
}
ROLES: Mapping[Language, Sequence[tuple[str, str]]] = {  # (who lies, who tells the truth)
    "en": (("knave", "knight"), ("knave", "knight"), ("liar", "truth-teller")),
    "zh": (("无赖", "骑士"), ("无赖", "骑士"), ("骗子", "老实人")),
}
NAMES: Mapping[Language, Sequence[str]] = {
    "en": (
        "Alice Bob Carol Dan Emma Frank Grace Henry Ivy Jack Kate Leo Mia Noah Olga Paul Quinn Rosa Sam Tina "
        "Uma Victor Wendy Yara Zoe"
    ).split(),
    "zh": (
        "小明 小红 小刚 小丽 小华 小强 小芳 小军 小梅 小龙 阿宝 阿丽 阿强 甲 乙 丙 丁 张三 李四 王五 赵六"
    ).split(),
}
SAYS: Phrases = {
    "en": ('{a} says: "{s}." ', "{a} says that {s}. ", '"{s}", says {a}. ', "{a} claims: {s}. "),
    "zh": ("{a}说：“{s}。”", "{a}说{s}。", "{a}声称：{s}。"),
}
CLAIMS: Mapping[str, Phrases] = {
    "is": {"en": ("{b} is a {r}",), "zh": ("{b}是{r}",)},
    "and": {
        "en": ("{b} is a {r} and {c} is a {s}", "{b} is a {r}, and {c} is a {s}"),
        "zh": ("{b}是{r}，而且{c}是{s}", "{b}是{r}并且{c}是{s}"),
    },
    "or": {
        "en": ("{b} is a {r} or {c} is a {s}", "{b} is a {r}, or {c} is a {s}, or both"),
        "zh": ("{b}是{r}或者{c}是{s}", "{b}是{r}和{c}是{s}至少有一个成立"),
    },
    "if": {
        "en": ("if {b} is a {r} then {c} is a {s}", "if {b} is a {r}, {c} is a {s}"),
        "zh": ("如果{b}是{r}，那么{c}是{s}", "假如{b}是{r}，{c}就是{s}"),
    },
    "same": {
        "en": ("{b} and {c} are of the same kind", "{b} and {c} are the same"),
        "zh": ("{b}和{c}是同一类人", "{b}和{c}身份相同"),
    },
    "differ": {
        "en": ("{b} and {c} are of different kinds", "exactly one of {b} and {c} is a {knight}"),
        "zh": ("{b}和{c}不是同一类人", "{b}和{c}中恰好有一个是{knight}"),
    },
}
SIZES = {1: 2, 2: 3, 3: 3, 4: 4}


class Claim(NamedTuple):
    """kind(b is r, c is s): people by number, r and s 1 for a knight; "is" uses b and r only."""

    kind: str
    b: int
    r: int
    c: int
    s: int

    def people(self) -> tuple[int, ...]:
        return (self.b,) if self.kind == "is" else (self.b, self.c)

    def holds(self, roles: Sequence[int]) -> bool:
        first = roles[self.b] == self.r
        if self.kind == "is":
            return first
        second = roles[self.c] == self.s
        if self.kind == "and":
            return first and second
        if self.kind == "or":
            return first or second
        if self.kind == "if":
            return not first or second
        return (roles[self.b] == roles[self.c]) == (self.kind == "same")

    def code(self, order: Sequence[int]) -> str:
        """The claim with people renumbered; equal for "x and y" and "y and x"."""
        first, second = (order[self.b], self.r), (order[self.c], self.s)
        if self.kind == "is":
            return f"is.{first[0]}{first[1]}00"
        if self.kind != "if":
            first, second = min(first, second), max(first, second)
        return f"{self.kind}.{first[0]}{first[1]}{second[0]}{second[1]}"

    def formula(self) -> str:
        b, c = "ABCD"[self.b], "ABCD"[self.c]
        if self.kind == "is":
            return f"{b}={self.r}"
        if self.kind in ("same", "differ"):
            return f"{b}{'=' if self.kind == 'same' else '#'}{c}"
        return f"{b}={self.r} {self.kind} {c}={self.s}"


def draw_claim(rng: random.Random, speaker: int, count: int, level: int) -> Claim:
    """A claim about others or, where two are named, perhaps about the speaker."""
    others = [person for person in range(count) if person != speaker]
    kinds = ("is", "and", "same", "differ") if level == 2 else ("is", "and", "or", "if", "same", "differ")
    kind, r, s = rng.choice(kinds), rng.randint(0, 1), rng.randint(0, 1)
    if kind == "is":
        return Claim(kind, rng.choice(others), r, 0, 0)
    b, c = rng.sample(range(count) if count == 2 or rng.random() < 0.4 else others, 2)
    if kind in ("same", "differ"):
        return Claim(kind, min(b, c), 0, max(b, c), 0)
    return Claim(kind, b, r, c, s)


def worlds(claims: Sequence[Claim]) -> list[tuple[int, ...]]:
    """All roles under which knights say true things and knaves false ones."""
    return [
        roles
        for roles in itertools.product((1, 0), repeat=len(claims))
        if all(claim.holds(roles) == bool(role) for claim, role in zip(claims, roles, strict=True))
    ]


def solve(claims: Sequence[Claim], names: Sequence[str]) -> list[str]:
    """Depth first over the people, a knight before a knave; a line evaluates what became decidable."""
    # The letter behind its name: small models look up what follows, not what goes before.
    lettered = [f"{name}={letter}" for letter, name in zip("ABCD", names, strict=False)]
    lines = ["who " + " ".join(lettered)]
    for speaker, claim in enumerate(claims):
        named = " ".join(lettered[person] for person in claim.people())
        lines.append(f"{'ABCD'[speaker]}: {named}; {claim.formula()}")

    def visit(roles: tuple[int, ...]) -> bool:
        if len(roles) == len(claims):
            return True
        for role in (1, 0):
            now = (*roles, role)
            checked, verdict = "", "ok"
            for speaker, claim in enumerate(claims[: len(now)]):
                last = max(speaker, *claim.people())
                if last != len(now) - 1:
                    continue
                truth = int(claim.holds(now))
                checked += f" {'ABCD'[speaker]}{now[speaker]} says {truth}"
                if truth != now[speaker]:
                    verdict = "bad"
                    break
            lines.append(f"{_state(now, len(claims))}{checked} {verdict}")
            if verdict == "ok":
                if visit(now):
                    return True
                lines.append(f"back {_state(roles, len(claims))}")
        return False

    visit(())
    return lines


def _state(roles: Sequence[int], count: int) -> str:
    return "".join(map(str, roles)) + "?" * (count - len(roles))


def make(rng: random.Random, level: int, language: Language) -> Draft:
    count = SIZES[level]
    while True:
        claims = [draw_claim(rng, speaker, count, level) for speaker in range(count)]
        if len(found := worlds(claims)) == 1:
            break
    (roles,) = found
    names = rng.sample(NAMES[language], count)
    words = rng.choice(ROLES[language])
    lines = solve(claims, names)
    truths = " ".join(f"{'ABCD'[n]}{role} {int(claims[n].holds(roles))}" for n, role in enumerate(roles))
    lines.append(f"Check: {truths} ok")
    answer = ", ".join(f"{name}: {words[role]}" for name, role in zip(names, roles, strict=True))
    question = _question(rng, language, claims, names, words)
    told = ",".join(claim.code(range(count)) for claim in claims)
    return Draft(question, lines, answer, f"{_canonical(claims)}|{told}|{','.join(names)}")


def _canonical(claims: Sequence[Claim]) -> str:
    """One spelling for the puzzles that differ only in who stands where."""
    codes = []
    for order in itertools.permutations(range(len(claims))):
        moved = sorted((order[speaker], claim.code(order)) for speaker, claim in enumerate(claims))
        codes.append(",".join(code for _, code in moved))
    return f"island.{min(codes)}"


def _question(
    rng: random.Random, language: Language, claims: Sequence[Claim], names: list[str], words: tuple[str, str]
) -> str:
    told = ""
    for speaker, claim in enumerate(claims):
        b, c = names[claim.b], names[claim.c]
        text = ask(
            rng, CLAIMS[claim.kind], language, b=b, c=c, r=words[claim.r], s=words[claim.s], knight=words[1]
        )
        said = ask(rng, SAYS, language, a=names[speaker], s=text)
        told += said[0].upper() + said[1:] if not said.startswith('"') else '"' + said[1].upper() + said[2:]
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    everyone = comma.join(names[:-1]) + last + names[-1]
    return ask(
        rng,
        PHRASES,
        language,
        names=everyone,
        said=told.strip(),
        knight=words[1],
        knave=words[0],
        Knight=words[1].capitalize(),
    )


_KNIGHTS = ("knight", "truth-teller", "骑士", "老实人")
_KNAVES = ("knave", "liar", "无赖", "骗子")


def judge(key: str, answer: str) -> bool:
    """ "Alice: knight, Bob: knave": everybody exactly once, in any order; "is a" and 是 do for the colon."""
    _, formulas, names = key.split("|")
    claims = []
    for formula in formulas.split(","):
        kind, _, digits = formula.partition(".")
        claims.append(Claim(kind, *map(int, digits)))
    (roles,) = worlds(claims)
    people = names.split(",")
    told: dict[str, int] = {}
    for part in re.split(r" *(?:[,;、]|\n|\band\b)(?: *and\b)? *", answer):
        found = re.fullmatch(r"(\w+)(?: is an? | is |: ?|=|是)([\w-]+)", part.strip())
        if found is None or found[1] not in people or found[1] in told:
            return False
        role = found[2].lower()
        if role not in _KNIGHTS + _KNAVES:
            return False
        told[found[1]] = int(role in _KNIGHTS)
    return [told.get(name) for name in people] == list(roles)


TASKS = (Task("knights", (1, 2, 3), make, judge),)
