"""Guesses the next tokens of a sequence from its own past, and books what a step has computed.

In: the tokens of a sequence; the chunks of a step and a function that draws tokens from its rows of logits.
Out: drafts to be verified; sequences moved on by every token that the model itself chose. A draft never
changes a token: each is drawn as it would be without one, from logits that saw the same tokens before it.
Does not know: models, blocks, what tokens mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..types import TokenLogprob

if TYPE_CHECKING:
    from .scheduler import Chunk

MIN_MATCH, MAX_MATCH = 2, 16  # tokens at the end that occurred before; more than the most tell no more
MAX_CANDIDATES = 8  # earlier places that are compared
FIRST_CHANCE, LAST_CHANCE = 0.3, 0.95  # that the next token is the same, expected at the least and most
EXPECTATION = 4.0  # as many tries as that expectation is worth
MEMORY = 0.98  # weight of what was seen, after one more try
SECOND_ROW, NEXT_ROW = 0.2, 0.4  # what further rows add to the cost of a step with one row
MIN_GAIN = 1.02  # a row more must make tokens cheaper by so much


class Row(NamedTuple):
    """A row of logits: the chunk, and how many tokens of its draft came before."""

    chunk: int
    offset: int


class Sampled(NamedTuple):
    """A token drawn, with its log-probability where that was asked for."""

    token: int
    logprob: TokenLogprob | None


class Speculator:
    """Looks the last tokens of one sequence up among all before them: what followed there is the draft.

    How often that was right before, after matches of each length, says how far a draft pays. Every guess
    counts, drafted or not: a text that does not repeat itself soon has no drafts, and has them again when it
    does. `tokens` is the sequence's own list; what was appended is read when the next draft is asked for.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._latest: dict[int, int] = {}  # pair of tokens -> position behind its latest occurrence
        self._earlier: list[int] = [0, 0]  # position behind a pair -> behind the one before; 0: none
        self._at = self._source = self._matched = 0  # the last guess: tokens[at:] will be tokens[source:]
        span = MAX_MATCH - MIN_MATCH
        rise = (LAST_CHANCE - FIRST_CHANCE) / span
        chances = [FIRST_CHANCE + rise * (n - MIN_MATCH) for n in range(MAX_MATCH + 1)]
        self._hits = [EXPECTATION * chance for chance in chances]  # by the length of the match
        self._tries = [EXPECTATION] * (MAX_MATCH + 1)

    def propose(self, limit: int, rows: int = 1, drawn: float = 1.0) -> tuple[int, ...]:
        """At most `limit` tokens that may follow, as far as they pay; () where the past says nothing.

        rows: what the step computes without the draft; drawn: the tokens it yields.
        """
        self._learn()
        self._read()
        if self._matched < MIN_MATCH:
            self._look_up()
        length = self._worth(limit, rows, drawn) if self._matched >= MIN_MATCH else 0
        draft: list[int] = []
        for i in range(self._source, self._source + length):
            draft.append(self._tokens[i] if i < self._at else draft[i - self._at])
        return tuple(draft)

    def _learn(self) -> None:
        """Compare the last guess with what came."""
        tokens = self._tokens
        for i in range(self._at, len(tokens)):
            if self._matched < MIN_MATCH:
                break
            n, right = self._matched, tokens[i] == tokens[self._source]
            self._hits[n] = self._hits[n] * MEMORY + right
            self._tries[n] = self._tries[n] * MEMORY + 1
            self._matched = min(n + 1, MAX_MATCH) if right else 0
            self._source += 1
        self._at = len(tokens)

    def _read(self) -> None:
        """Note where the pairs among the new tokens end."""
        tokens, latest, earlier = self._tokens, self._latest, self._earlier
        for end in range(len(earlier), len(tokens) + 1):
            pair = tokens[end - 2] << 32 | tokens[end - 1]
            earlier.append(latest.get(pair, 0))
            latest[pair] = end

    def _look_up(self) -> None:
        """The latest of the earlier places with the longest match."""
        tokens, end = self._tokens, self._at
        place = self._earlier[end] if end >= MIN_MATCH else 0
        for _ in range(MAX_CANDIDATES):
            if not place:
                break
            matched, most = MIN_MATCH, min(place, MAX_MATCH)
            while matched < most and tokens[place - 1 - matched] == tokens[end - 1 - matched]:
                matched += 1
            if matched > self._matched:
                self._source, self._matched = place, matched
            place = self._earlier[place]

    def _worth(self, limit: int, rows: int, drawn: float) -> int:
        """How many tokens to draft: as long as one more makes the tokens of this step cheaper."""
        length, chance, matched, cost = 0, 1.0, self._matched, step_cost(rows)
        while length < limit:
            chance *= self._hits[matched] / self._tries[matched]
            more = step_cost(rows + length + 1)
            if (drawn + chance) * cost < drawn * more * MIN_GAIN:
                break
            length, cost, drawn = length + 1, more, drawn + chance
            matched = min(matched + 1, MAX_MATCH)
        return length


def step_cost(rows: int) -> float:
    """Of a step with so many rows, where one row costs 1 (measured: AVX2, q4, 0.6 billion weights)."""
    return 1.0 + (SECOND_ROW + NEXT_ROW * (rows - 2) if rows > 1 else 0.0)


def advance(chunks: Sequence[Chunk], sample: Callable[[list[Row]], list[Sampled]]) -> None:
    """Book a forward pass over `chunks`, then let sequences take tokens from its logits.

    In rounds: each token is drawn with the state that its sequence has by then. A sequence goes on to its
    next row while what it appended is what its draft foretold; the rest of a draft that was wrong is
    forgotten, and what was computed of it is written over later.
    """
    rows = [Row(i, 0) for i, chunk in enumerate(chunks) if chunk.completes]
    for chunk in chunks:
        chunk.seq.num_computed += chunk.num_tokens
    while rows:
        following: list[Row] = []
        for (i, offset), sampled in zip(rows, sample(rows), strict=True):
            seq, _, draft = chunks[i]
            length = len(seq.tokens)
            seq.append_sampled(*sampled)
            assert len(seq.tokens) > length or seq.finish_reason, "a sampled token led to nothing"
            while offset < len(draft) and seq.num_pending and seq.tokens[seq.num_computed] == draft[offset]:
                seq.num_computed += 1
                offset += 1
            if not seq.num_pending and not seq.finish_reason:
                following.append(Row(i, offset))
        rows = following
