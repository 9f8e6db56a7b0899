"""The loop guard: every loop of the corpus is caught, no sane thought is, and the tokens alone decide.

In: the texts of looping_thoughts.py and sane_thoughts.py in the genuine Qwen tokenizer and the bundled one;
token lists made by hypothesis. Out: contracts. Does not know: the engine; times (benchmarks/loop_guard.py).
"""

from __future__ import annotations

import copy
import random
from functools import cache
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looping_thoughts import PHRASES, STUCK, loops
from sane_thoughts import endless, sane
from text_fixtures import qwen

import deepfast
from deepfast.text.tokenizer import Tokenizer
from deepfast.thinking.loops import (
    ALARM,
    CHECK_EVERY,
    COPIES,
    MAX_PERIOD,
    MIN_SPAN,
    PLAIN,
    PLAIN_SPAN,
    WINDOW,
    LoopGuard,
)

QWEN_MEDIAN, QWEN_WORST = 640, 1700  # tokens from a loop's first token to the alarm


@cache
def bundled() -> Tokenizer:
    """The tokenizer of the bundled model: few tokens, nearly letters."""
    return Tokenizer.from_dir(Path(deepfast.__file__).parent / "bundled")


def first_alarm(tokens: list[int]) -> tuple[int, str] | None:
    """How many tokens it took, and the reason; then the guard must keep silent."""
    guard = LoopGuard()
    for count, token in enumerate(tokens, 1):
        if reason := guard.observe(token):
            assert all(guard.observe(later) is None for later in tokens[count : count + 64])
            return count, reason
    return None


def test_every_loop_is_caught_and_how_soon():
    delays, kinds = [], set()
    for case in loops():
        before, loop = qwen().encode(case.prefix), qwen().encode(case.loop)
        alarm = first_alarm(before + loop)
        assert alarm, f"{case.kind} in {case.language} after {len(before)} tokens: missed"
        assert alarm[0] > len(before), f"{case.kind} in {case.language}: alarm in the sane beginning"
        delays.append(alarm[0] - len(before))
        kinds.add(alarm[1].split()[0])
    assert len(delays) >= 200 and kinds == {"period", "recurrence"}
    assert median(delays) <= QWEN_MEDIAN and max(delays) <= QWEN_WORST, (median(delays), max(delays))


def test_loops_are_caught_in_nearly_letters_too():
    """One language of every kind: here the same text has two to four times as many tokens."""
    for case in loops():
        if not case.prefix and case.language in ("en", "zh", "any"):
            assert first_alarm(bundled().encode(case.loop)), f"{case.kind} in {case.language}: missed"


@pytest.mark.parametrize(("tokenizer", "limit"), [(qwen, ALARM // 2), (bundled, ALARM)])
def test_no_sane_thought_comes_near_an_alarm(tokenizer, limit):
    tokens = 0
    for name, text in sane(rounds=2):
        guard, ids = LoopGuard(), tokenizer().encode(text)
        tokens += len(ids)
        for token in ids:
            assert guard.observe(token) is None, name
            assert guard.level < limit, name
    assert tokens > 140_000


def test_what_no_guard_can_tell_apart():
    """The docstring of loops.py promises this; a change of it is a change of the contract."""
    stopped = {name for name, text in endless() if first_alarm(qwen().encode(text))}
    assert stopped == {"zeros 20x20", "20 weeks", "300 long rows"}


def test_a_counter_in_every_sentence_hides_short_loops_only():
    short = "".join(f"Attempt {n}: still wrong, try again. " for n in range(400))
    assert first_alarm(qwen().encode(short)) is None
    long = "".join(STUCK["en"][0].replace("#", str(n)) for n in range(100))
    assert first_alarm(qwen().encode(long)) is not None


@given(period=st.integers(1, MAX_PERIOD), before=st.integers(0, 700), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_an_exact_period_is_named_in_time(period, before, seed):
    rng = random.Random(seed)
    unit = rng.sample(range(1000), period)  # all different: the period is no smaller one
    tokens = [rng.randrange(1000, 9000) for _ in range(before)] + unit * (
        PLAIN_SPAN // period + COPIES + CHECK_EVERY
    )
    span = max(COPIES * period, MIN_SPAN) if period >= PLAIN else PLAIN_SPAN
    alarm = first_alarm(tokens)
    assert alarm and alarm[1] == f"period {period}"
    assert before + span <= alarm[0] < before + span + CHECK_EVERY


@given(period=st.integers(PLAIN, MAX_PERIOD), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_three_copies_are_not_a_loop(period, seed):
    rng = random.Random(seed)
    unit = rng.sample(range(1000), period)
    after = [rng.randrange(1000, 9000) for _ in range(200)]
    assert first_alarm(unit * (COPIES - 1) + after) is None


@given(tokens=st.lists(st.integers(0, 200_000), max_size=300))
@settings(max_examples=40)
def test_alarms_on_no_short_thought(tokens):
    assert first_alarm(tokens[: MIN_SPAN - 1]) is None


@given(seed=st.integers(0, 999), alphabet=st.integers(2, 40))
@settings(max_examples=25)
def test_no_alarm_on_noise(seed, alphabet):
    rng = random.Random(seed)
    assert first_alarm([rng.randrange(alphabet) for _ in range(3000)]) is None


def test_the_tokens_alone_decide():
    """The same tokens give the same alarm at the same place, whatever their ids are; a copy goes on alike."""
    tokens = [token for phrase in PHRASES[4:8] for token in qwen().encode(phrase)] * 60
    guard, other = LoopGuard(), LoopGuard()
    for count, token in enumerate(tokens):
        assert guard.observe(token) == other.observe(token)
        if count == 100:
            other = copy.deepcopy(guard)
    names = {token: 3 * number for number, token in enumerate(sorted(set(tokens), reverse=True))}
    assert first_alarm([names[token] for token in tokens]) == first_alarm(tokens)


def test_memory_is_bounded_and_forgets():
    """What was said more than a window ago is news again."""
    rng = random.Random(5)
    unit, guard = rng.sample(range(1000), 300), LoopGuard()
    for _ in range(20):
        for token in [*unit, *(rng.randrange(1000, 100_000) for _ in range(WINDOW))]:
            assert guard.observe(token) is None
    assert len(guard._seen) <= WINDOW and len(guard._grams) <= WINDOW and len(guard._tokens) <= 2 * PLAIN_SPAN
    assert sum(guard._seen.values()) == len(guard._grams)
