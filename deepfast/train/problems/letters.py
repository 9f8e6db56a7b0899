"""Letters of words: counting one, spelling, spelling backwards, the letter at a place.

In: a random generator, a level. Out: drafts and judges. A trace spells the word letter by letter, with the
running count or the place behind each letter (before it where a letter is looked up by its place). The word
is the atom of the key, so that a word that is held out is held out of every task here. It knows nothing of
other tasks.
"""

import random
import re

from deepfast.train.problems.arithmetic import judge_number
from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask
from deepfast.train.words import draw_word

COUNT: Phrases = {
    "en": (
        "How many {c}'s are in {w}?",
        "How many {c}'s are in the word {w}?",
        'How many {c}\'s are there in "{w}"?',
        "How many times does the letter {c} appear in {w}?",
        'How many times does the letter "{c}" appear in the word "{w}"?',
        "Count the letter {c} in {w}.",
        "Count the {c}'s in the word {w}.",
        "How often does {c} appear in {w}?",
        "How many {c} in {w}?",
        "How many letters {c} does the word '{w}' contain?",
    ),
    "zh": (
        "{w}里有几个字母{c}？",
        "{w}里有几个{c}？",
        "{w}这个单词里有几个{c}？",
        "单词{w}中有多少个字母{c}？",
        "单词 {w} 中字母 {c} 出现了几次？",
        "数一数{w}里有几个{c}",
        "“{w}”中有几个“{c}”？",
        "英文单词{w}里字母{c}有多少个？",
        "请数出单词{w}中{c}的个数。",
    ),
}
SPELL: Phrases = {
    "en": (
        "Spell {w}.",
        "Spell the word {w}.",
        'Spell "{w}" letter by letter.',
        "How do you spell {w}?",
        "How is the word {w} spelled?",
        "Write {w} letter by letter, with dashes.",
        "Spell out {w}.",
        "Please spell '{w}' for me.",
        "List the letters of {w}.",
    ),
    "zh": (
        "拼写{w}。",
        "单词{w}怎么拼？",
        "请逐个字母拼出{w}。",
        "把单词{w}一个字母一个字母地写出来。",
        "{w}怎么拼写？",
        "“{w}”由哪些字母依次组成？",
        "逐字母拼写 {w}",
        "请拼出英文单词{w}。",
    ),
}
BACK: Phrases = {
    "en": (
        "Spell {w} backwards.",
        "Spell the word {w} backwards.",
        'Reverse the word "{w}".',
        "Write {w} backwards.",
        "What is {w} spelled backwards?",
        "Reverse the letters of {w}.",
        "Write the letters of {w} in reverse order.",
        "What do you get when you reverse {w}?",
        "Turn the word '{w}' around.",
    ),
    "zh": (
        "把{w}倒过来写。",
        "倒着拼写{w}。",
        "单词{w}反过来怎么写？",
        "将{w}的字母顺序颠倒。",
        "请倒序写出单词{w}的字母。",
        "“{w}”倒过来是什么？",
        "反转单词 {w}",
        "从后往前拼出{w}。",
    ),
}
PLACE: Phrases = {
    "en": (
        "What is letter number {n} of {w}?",
        "Which letter is at position {n} in {w}?",
        'What is the letter at place {n} in "{w}"?',
        "Letter {n} of the word {w}?",
        "In the word {w}, which letter is number {n}?",
        "Give me letter no. {n} of {w}.",
    ),
    "zh": (
        "{w}的第{n}个字母是什么？",
        "单词{w}的第{n}个字母是哪个？",
        "“{w}”中第{n}个字母是什么？",
        "英文单词{w}从左数第{n}个字母是？",
        "请说出{w}的第{n}个字母。",
        "{w}第{n}个字母",
    ),
}
LENGTHS = {1: (2, 5), 2: (6, 8), 3: (9, 12), 4: (13, 15)}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word_of(rng: random.Random, level: int) -> str:
    """A word whose length fits the level; beyond the longest words, two are joined."""
    low, high = LENGTHS[level]
    for _ in range(12):
        word = draw_word(rng) + (draw_word(rng) if level > 3 else "")
        if low <= len(word) <= high:
            return word
    word = "".join(draw_word(rng) for _ in range(8))
    return word[: rng.randint(low, high)]


def numbered(word: str) -> str:
    """banana -> b1a2n3a4n5a6"""
    return "".join(f"{letter}{place}" for place, letter in enumerate(word, start=1))


def make_count(rng: random.Random, level: int, language: Language) -> Draft:
    word = word_of(rng, level)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(_LETTERS)
    count, steps = 0, []
    for character in word:
        count += character == letter
        steps.append(f"{character}{count}")
    places = " ".join(str(place) for place, c in enumerate(word, start=1) if c == letter)
    trace = [letter, "".join(steps), f"={count}", f"Check: {numbered(word)} {places or '-'} ok"]
    return Draft(ask(rng, COUNT, language, c=letter, w=word), trace, str(count), f"{word}|{letter}")


def make_spelling(rng: random.Random, level: int, language: Language) -> Draft:
    word = word_of(rng, level)
    trace = [numbered(word), f"Check: {len(word)} letters ok"]
    return Draft(ask(rng, SPELL, language, w=word), trace, "-".join(word), word)


def make_backwards(rng: random.Random, level: int, language: Language) -> Draft:
    """Backwards, or in one case of four the letter at one place."""
    word = word_of(rng, level)
    if rng.random() < 0.25:
        place = rng.randint(1, len(word))
        # Each number before its letter: what follows a number is found more easily than what precedes it.
        letters = "".join(f"{number}{letter}" for number, letter in enumerate(word, start=1))
        trace = [letters, f"{place}{word[place - 1]}", f"Check: {numbered(word)} {word[place - 1]}{place} ok"]
        question = ask(rng, PLACE, language, w=word, n=place)
        return Draft(question, trace, word[place - 1], f"{word}|{place}")
    back = "".join(f"{word[place - 1]}{place}" for place in range(len(word), 0, -1))
    trace = [numbered(word), back, f"Check: {len(word)} letters, {word[-1]} to {word[0]} ok"]
    return Draft(ask(rng, BACK, language, w=word), trace, "-".join(word[::-1]), f"{word}|back")


def judge_count(key: str, answer: str) -> bool:
    word, _, letter = key.partition("|")
    return judge_number(word.count(letter), answer)


def _letters(answer: str) -> str:
    """b-a-n-a-n-a, b a n a n a, B, A, N or banana -> banana; empty when it is none of them."""
    answer = answer.strip("\"' ").lower()
    spelled = re.fullmatch(r"[a-z](?:(-|, ?| )[a-z])?(?:\1[a-z])*", answer)
    return re.sub("[^a-z]", "", answer) if spelled or re.fullmatch("[a-z]+", answer) else ""


def judge_spelling(key: str, answer: str) -> bool:
    """Letter by letter: the word itself is no spelling, unless it is one letter."""
    return _letters(answer) == key and (len(key) == 1 or key not in answer.lower())


def judge_backwards(key: str, answer: str) -> bool:
    word, _, wish = key.partition("|")
    return _letters(answer) == (word[::-1] if wish == "back" else word[int(wish) - 1])


TASKS = (
    Task("letters", (1, 2, 3), make_count, judge_count),
    Task("spelling", (1, 2, 3), make_spelling, judge_spelling),
    Task("backwards", (1, 2, 3), make_backwards, judge_backwards),
)
