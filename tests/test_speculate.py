"""Speculation: drafts come from the sequence's own past, pay on text that repeats itself, cost nearly nothing
on text that does not, and `advance` lets no draft change a token.

In: token streams, real texts tokenised. Out: contracts and the expected cost of a run. Does not know: models.
"""

from __future__ import annotations

import random
import time

import pytest
from fake_engine import make_sequence
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfast.engine.scheduler import Chunk
from deepfast.engine.sequence import Sequence
from deepfast.engine.speculate import (
    MAX_CANDIDATES,
    MAX_MATCH,
    MIN_MATCH,
    Row,
    Sampled,
    Speculator,
    advance,
    step_cost,
)
from deepfast.model.hub import BUNDLED
from deepfast.text.tokenizer import Tokenizer

ARITHMETIC = """First add the ones: 7 + 6 = 13, write 3 and carry 1. Then the tens: 4 + 8 + 1 = 13,
write 3 and carry 1. Then the hundreds: 2 + 5 + 1 = 8. So the sum is 833. Let me check that: 833 - 586 =
247, which is right. Now multiply 247 by 86. 247 * 80 = 19760, and 247 * 6 = 1482. The sum is 19760 +
1482 = 21242. Let me check that: 21242 / 86 = 247, which is right. So 247 * 86 = 21242. The question
was: what is 247 * 86, and what is 247 + 586? The answers are 21242 and 833."""
PROSE = """The lighthouse keeper had never learned to swim, though she lived on a rock that waves could
cover. Every autumn her brother rowed out with flour, lamp oil and last month's newspapers, and each
time he asked whether it was not lonely. She would point at the gulls quarrelling under the gallery, or
at ships whose captains dipped a flag while passing, and say nothing. When fog came, no letter could
have told anybody more than her bell did."""
CODE = """def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

def variance(values):
    if not values:
        raise ValueError("no values")
    centre = mean(values)
    return sum((value - centre) ** 2 for value in values) / len(values)
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(BUNDLED)


def gain(prompt: list[int], output: list[int], limit: int = 8) -> float:
    """How many times as fast a model that says `output` gets by drafts, by the cost of its steps."""
    tokens = [*prompt, output[0]]
    speculator, done, cost = Speculator(tokens), 1, 0.0
    while done < len(output):
        draft = speculator.propose(min(limit, len(output) - done - 1))
        right = 0
        while right < len(draft) and draft[right] == output[done + right]:
            right += 1
        tokens += output[done : done + right + 1]
        done, cost = done + right + 1, cost + step_cost(1 + len(draft))
    assert tokens == prompt + output
    return (len(output) - 1) / cost


def test_real_texts_gain_by_their_repetitions_and_lose_next_to_nothing_without(tokenizer: Tokenizer):
    prose, code, sums = (tokenizer.encode(text) for text in (PROSE, CODE, ARITHMETIC))
    changed = tokenizer.encode(CODE.replace("values", "numbers"))
    assert gain([1], prose) > 0.97
    assert gain([1], sums) > 1.03
    assert gain(prose, prose) > 1.7
    assert gain(code, changed) > 1.1
    assert gain([1], sums * 6) > 1.5


def test_noise_has_no_drafts_for_long_and_a_text_that_repeats_itself_again_has_them_back():
    rng = random.Random(1)
    noise = [rng.randrange(12) for _ in range(4000)]  # every pair was there before, and says nothing
    assert gain([0], noise) > 0.99
    assert gain([0], noise + [7, 3, 5, 1] * 200) > 1.05
    assert gain([0], [7, 3, 5, 1] * 200) > 1.9


def test_a_busy_step_has_fewer_drafts_and_a_full_one_none():
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 20
    alone = Speculator(tokens).propose(8)
    shared = Speculator(tokens).propose(8, rows=4, drawn=4)
    full = Speculator(tokens).propose(8, rows=16, drawn=16)
    beside_a_prompt = Speculator(tokens).propose(8, rows=500, drawn=1)
    assert len(beside_a_prompt) == 8 >= len(alone) > len(shared) > len(full) == 0


def longest_match(tokens: list[int]) -> tuple[int, int]:
    """By comparing everything: where the longest match ends (the latest such place), and how long it is."""
    best = (0, 0)
    places = [
        p
        for p in range(len(tokens) - 1, MIN_MATCH - 1, -1)
        if tokens[p - MIN_MATCH : p] == tokens[-MIN_MATCH:]
    ]
    for place in places[:MAX_CANDIDATES]:
        length = MIN_MATCH
        while length < min(place, MAX_MATCH) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length > best[1]:
            best = place, length
    return best


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 10), st.booleans())
@settings(max_examples=300, deadline=None)
def test_drafts_are_what_followed_the_longest_match(tokens: list[int], limit: int, step_by_step: bool):
    seen = tokens[:1] if step_by_step else tokens
    speculator = Speculator(seen)
    place, length = longest_match(tokens)
    for token in tokens[1:] if step_by_step else ():
        speculator.propose(limit, rows=500)
        seen.append(token)
    draft = speculator.propose(limit, rows=500)
    assert len(draft) <= limit
    if length < MIN_MATCH:
        assert draft == ()
    elif not step_by_step:
        follows = list(tokens)
        for i in range(limit):
            follows.append(follows[place + i])
        assert list(draft) == follows[len(tokens) : len(tokens) + len(draft)] and draft
    elif draft:  # it may go on along an earlier match that is as long
        assert any(
            tokens[p - MIN_MATCH : p] == tokens[-MIN_MATCH:] and (tokens + list(draft))[p] == draft[0]
            for p in range(MIN_MATCH, len(tokens))
        )


def test_a_decoded_token_costs_microseconds():
    rng = random.Random(0)
    tokens = [rng.randrange(300) for _ in range(30_000)]
    more = [rng.randrange(300) for _ in range(2000)]
    speculator = Speculator(tokens)
    speculator.propose(8)
    began = time.process_time()
    for token in more:
        tokens.append(token)
        speculator.propose(8)
    assert (time.process_time() - began) / len(more) < 25e-6  # 2 to 4 on a quiet machine


class Script:
    """Draws what the true tokens are at each row, and notes which rows were asked for."""

    def __init__(self, chunks: list[Chunk], true: list[list[int]]) -> None:
        self.true, self.rounds = true, list[list[Row]]()
        self.starts = [len(chunk.seq.tokens) for chunk in chunks]

    def __call__(self, rows: list[Row]) -> list[Sampled]:
        """A token for each row."""
        self.rounds.append(list(rows))
        return [Sampled(self.true[row.chunk][self.starts[row.chunk] + row.offset], None) for row in rows]


def ready(prompt: list[int], max_new: int = 20, **wishes: int) -> Sequence:
    """A sequence whose last token only is pending."""
    seq = make_sequence(prompt, max_new, **wishes)
    seq.num_computed = len(seq.tokens) - 1
    return seq


def test_advance_takes_tokens_as_far_as_the_draft_was_right():
    true = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for draft, gained in (((), 1), ((9,), 1), ((4,), 2), ((4, 5, 9, 7), 3), ((4, 5, 6), 4), ((9, 4, 5), 1)):
        seq = ready(true[:3])
        chunks = [Chunk(seq, 1, draft)]
        advance(chunks, script := Script(chunks, [true]))
        assert seq.tokens == true[: 3 + gained]
        assert seq.num_pending == 1
        assert script.rounds == [[Row(0, i)] for i in range(gained)]


def test_advance_draws_for_all_chunks_of_a_round_at_once_and_for_none_that_is_incomplete():
    part, one, two, idle = make_sequence([1, 2, 3, 4], 5), ready([1, 2]), ready([5, 6]), ready([3, 3], 0)
    chunks = [Chunk(part, 2), Chunk(one, 1, (3, 4)), Chunk(idle, 1), Chunk(two, 1, (7,))]
    advance(chunks, script := Script(chunks, [[], [1, 2, 3, 4, 5], [], [5, 6, 8]]))
    assert script.rounds == [[Row(1, 0), Row(3, 0)], [Row(1, 1)], [Row(1, 2)]]
    assert (part.num_computed, idle.num_pending) == (2, 0)
    assert (one.tokens, two.tokens) == ([1, 2, 3, 4, 5], [5, 6, 8])


def test_advance_stops_at_the_end_of_a_sequence():
    for draft, true, reason in (
        ((4, 5, 6), [1, 2, 3, 4, 24], "stop"),
        ((4, 5, 6), [1, 2, 3, 4, 5], "length"),
    ):
        seq = ready([1, 2, 3], 2)
        chunks = [Chunk(seq, 1, draft)]
        advance(chunks, Script(chunks, [true]))
        assert (seq.tokens, seq.finish_reason) == (true, reason)


def test_forced_text_that_the_draft_foretold_is_computed_already():
    closing = [5, 6, 7, 21, 8]  # the stop sentence, forced behind the second token of the thought
    right = ready([1, 2], 40, budget=2)
    wrong = ready([1, 2], 40, budget=2)
    chunks = [Chunk(right, 1, (3, 4, *closing[:3])), Chunk(wrong, 1, (3, 4, 9, 9))]
    true = [1, 2, 20, 3, 4]
    advance(chunks, Script(chunks, [true, true]))
    assert right.tokens == wrong.tokens == [*true, *closing]
    assert (right.num_pending, wrong.num_pending) == (2, 5)
    whole = ready([1, 2], 40, budget=2)
    chunks = [Chunk(whole, 1, (3, 4, *closing, 11))]
    advance(chunks, script := Script(chunks, [[*true, *closing, 12]]))
    assert whole.tokens == [*true, *closing, 12] and whole.num_pending == 1
    assert script.rounds == [[Row(0, 0)], [Row(0, 1)], [Row(0, 7)]]  # the forced tokens are not drawn


def test_a_token_that_leads_to_nothing_is_our_mistake(monkeypatch: pytest.MonkeyPatch):
    seq = ready([1, 2])
    monkeypatch.setattr(Sequence, "append_sampled", lambda self, *sampled: None)
    with pytest.raises(AssertionError, match="led to nothing"):
        advance([Chunk(seq, 1)], lambda rows: [Sampled(1, None)])
