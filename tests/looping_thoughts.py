"""Thoughts that loop, built by code: what the loop guard must catch.

In: nothing. Out: `loops()`: a sane beginning, then text that goes round, exactly or with counters, synonyms,
insertions and turns. Equal calls give equal texts. Does not know: tokens, the guard.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from sane_thoughts import PROSE, pieces

# A paragraph that a thought gets stuck in. [a|b] is a free choice, # a number that changes.
STUCK = {
    "en": (
        "Wait, [maybe|perhaps|possibly] I should check the calculation again. The sum of the "
        "[first|initial] three terms is 12, and the product is 48, so the ratio must be 2. "
        "[But|However], that does not match the condition in the problem, so I need to go back to "
        "equation # and start over.\n\n",
        "Let me [think|reconsider|look] again. The train leaves at noon and travels for three "
        "hours, which means that it arrives at three o'clock. That is attempt #, and it "
        "[still|again] looks right.\n\n",
        "Hmm, this is [confusing|puzzling|strange]. The problem says that every student has "
        "exactly two friends, but in step # we found a student with [three|more] friends, which is "
        "a contradiction. So the assumption is wrong. Let me read the problem statement once more "
        "and count the friends of each student, starting with the student who sits at the window "
        "and going around the table.\n\n",
        "So the answer is [5|five]. But wait, is it really? Let me verify by substituting back.\n",
    ),
    "zh": (
        "等等，[也许|可能]我应该再检查一遍计算。前三项的和是12，乘积是48，所以公比"
        "一定是2。[但是|不过]这与题目中的条件不符，因此我需要回到第#步重新开始。\n\n",
        "让我再想一想。题目说每个学生正好有两个朋友，但是我们在第#步发现有一个学生有三个"
        "朋友，[这是矛盾的|矛盾]。\n",
    ),
    "es": (
        "Espera, [quizás|tal vez] debería revisar el cálculo otra vez. La suma de los tres "
        "primeros términos es 12 y el producto es 48, así que la razón debe ser 2. [Pero|Sin "
        "embargo], eso no coincide con el enunciado, así que vuelvo al paso # y empiezo de nuevo.\n\n",
    ),
    "de": (
        "Moment, [vielleicht|womöglich] sollte ich die Rechnung noch einmal prüfen. Die Summe der "
        "ersten drei Glieder ist 12 und das Produkt ist 48, also muss der Quotient 2 sein. "
        "[Aber|Doch] das passt nicht zur Bedingung aus der Aufgabe, also gehe ich zurück zu "
        "Gleichung # und beginne von vorn.\n\n",
    ),
    "ru": (
        "Подождите, [может быть|возможно], мне стоит ещё раз проверить вычисление. Сумма первых "
        "трёх членов равна 12, а произведение равно 48, значит, знаменатель равен 2. [Но|Однако] "
        "это не соответствует условию задачи, поэтому я возвращаюсь к шагу # и начинаю сначала.\n\n",
    ),
    "ja": (
        "待って、[もしかすると|たぶん]計算をもう一度確認した方がいいかもしれない。最初"
        "の三項の和は12で、積は48なので、公比は2のはずだ。[しかし|でも]それは問題"
        "の条件と合わないので、式#に戻ってやり直す。\n\n",
    ),
    "code": (
        "        if values[index] [>|>=] limit:\n            total += values[index] * "
        "weights[index]\n            count_# = count_# + 1\n        else:\n            "
        "skipped.append(index)\n",
    ),
}
PHRASES = (
    "no ",
    "Wait, ",
    "哈",
    "1 + ",
    "ha ha! ",
    "and so on and ",
    "So x = 2. ",
    "好的，再来一次。",
    "0, ",
)
PHRASES += ("I am not sure. ", "Is it 4? No. ", "- item\n", "the the ", "( ) ", "| 0 | 1 |\n", "So, yes? ")
INSERTIONS = (" really", " actually", " now", " again", " of course", " clearly", " then", " indeed")


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


@cache
def _sane_texts(seed: int) -> tuple[str, ...]:
    return (*PROSE, *(text for _, text in pieces(random.Random(seed))))


def prose(rng: random.Random, characters: int) -> str:
    """A sane beginning of so many characters, in which no piece comes twice."""
    texts = list(_sane_texts(rng.randrange(8)))
    rng.shuffle(texts)
    return "".join(texts)[:characters]


def loops(copies: int = 90, length: int = 7000) -> Iterator[Loop]:
    """Every kind in every language, after a short, a long and no beginning; and short phrases repeated."""
    rng = random.Random(1)
    paragraphs = [(language, text) for language, texts in STUCK.items() for text in texts]
    cases = itertools.product(paragraphs, KINDS.items(), (0, 1500, 3500))
    for (language, own), (kind, copy), size in cases:
        other = STUCK[language][-1] if own != STUCK[language][-1] else PROSE[3 if language == "zh" else 2]
        text = ""
        for number in range(copies):
            text += copy(own, other, rng, number)
            if len(text) > length:
                break
        yield Loop(kind, language, prose(rng, size) if size else "", text)
    for phrase, size in itertools.product(PHRASES, (0, 1500)):
        yield Loop("phrase", "any", prose(rng, size) if size else "", phrase * (600 + 2000 // len(phrase)))
