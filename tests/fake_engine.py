"""A pretend model for scheduler tests: the next token depends on every token before it, read through the KV
blocks.

In: chunks. Out: tokens that are right only if blocks, positions, sharing and preemption are right. Does not
know: arrays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from deepfast.engine.kv_cache import BlockPool
from deepfast.engine.output import Output
from deepfast.engine.sampler import uniform
from deepfast.engine.scheduler import Chunk
from deepfast.engine.sequence import Guide
from deepfast.engine.sequence import Sequence as EngineSequence
from deepfast.engine.speculate import Row, Sampled, Speculator
from deepfast.text.tokenizer import Tokenizer
from deepfast.thinking.budget import Budget, Texts
from deepfast.thinking.loops import LoopGuard
from deepfast.thinking.phases import ControlIds, PhaseMachine
from deepfast.types import Delta, SamplingParams

IDS = ControlIds(think_open=20, think_close=21, tool_open=22, tool_close=23, stops=frozenset({24}))
TEXTS = Texts(stop_ids=(5, 6, 7, 21, 8), close_ids=(21, 8), wait_ids=(9, 10, 11))


class LetterDetokenizer:
    """One letter for each id."""

    def push(self, token_id: int) -> str:
        """The letter."""
        return chr(ord("a") + token_id)

    def flush(self) -> str:
        """Nothing is ever held back."""
        return ""


class LetterTokenizer:
    """Ids 0 to 25 are the letters a to z."""

    def detokenizer(self) -> LetterDetokenizer:
        """A new one."""
        return LetterDetokenizer()

    def decode(self, ids: list[int]) -> str:
        """Letters, joined."""
        return "".join(chr(ord("a") + i) for i in ids)


class HashRunner:
    """Keeps, for each position in a block, a hash of the token there and of all before it: "keys and values".

    Every token is drawn from all of its context, so a block that was mixed up changes what follows.
    habit: how often the next token follows from the last two alone, which makes it repeat itself.
    """

    def __init__(self, pool: BlockPool, salt: int, habit: float = 0.0) -> None:
        self.pool, self.salt, self.habit = pool, salt, habit
        self.hashes = [[0] * pool.block_size for _ in range(pool.num_blocks)]
        self.tokens = [[0] * pool.block_size for _ in range(pool.num_blocks)]
        self._chunks: list[tuple[EngineSequence, int]] = []  # and the context's length before a draft

    def release(self) -> None:
        """Nothing is kept."""

    def touch(self, blocks: Sequence[int]) -> bool:
        """There is memory behind all of them."""
        return False

    def forward(self, chunks: Sequence[Chunk]) -> None:
        """Write the new tokens and the drafts, into blocks that are their sequence's alone."""
        self._chunks = []
        size = self.pool.block_size
        for seq, count, draft in chunks:
            start = seq.num_computed
            before = self.hashes[seq.blocks[(start - 1) // size]][(start - 1) % size] if start else self.salt
            for position, token in enumerate([*seq.tokens[start : start + count], *draft], start):
                block, offset = seq.blocks[position // size], position % size
                assert self.pool._users[block] == 1, "a shared block is written to"
                assert self.pool._keys[block] is None, "an indexed block is written to"
                before = self.hashes[block][offset] = hash((before, token))
                self.tokens[block][offset] = token
            self._chunks.append((seq, start + count))

    def sample(self, rows: Sequence[Row]) -> list[Sampled]:
        """Draw a token for each row from the whole context, with the state that its sequence has now."""
        tokens = []
        for row in rows:
            seq, length = self._chunks[row.chunk]
            assert len(seq.tokens) == length + row.offset, "the row saw other tokens than the sequence has"
            tokens.append(self._next(seq, length + row.offset))
        return [Sampled(token, None) for token in tokens]

    def _next(self, seq: EngineSequence, length: int) -> int:
        hashes: list[int] = []
        tokens: list[int] = []
        for block in seq.blocks[: -(-length // self.pool.block_size)]:
            hashes += self.hashes[block]
            tokens += self.tokens[block]
        draw = hash(tuple(hashes[:length]))
        if uniform(draw, seq.seed) < self.habit:
            draw = hash((self.salt, *tokens[max(length - 2, 0) : length]))
        choice = int(26 * uniform(draw, seq.seed if draw % 4 == 0 else 0))
        bias = seq.bias()
        if bias and uniform(draw, 2) < 0.1 * max(bias.values()):
            choice = max(bias, key=lambda token: bias[token])
        banned = set(seq.banned_ids())
        while choice in banned or (choice == 24 and uniform(draw, 1) < 0.5):
            choice = (choice + 1) % 26
        return choice


def make_sequence(
    prompt: list[int],
    max_new: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    min_tokens: int = 0,
    soft_landing: int = 0,
    loop_guard: bool = False,
    speculation: bool = False,
    leader: EngineSequence | None = None,
    emit: Callable[[Delta | None], None] = lambda delta: None,
) -> EngineSequence:
    """A sequence over the letters; with a budget its prompt opens a thought."""
    tokens = [*prompt, IDS.think_open] if budget is not None else list(prompt)
    guide = None
    if budget is not None:
        held = Budget(
            budget,
            max_new,
            max(min(4, max_new // 4), 1),
            TEXTS,
            min_tokens=min_tokens,
            soft_landing=soft_landing,
        )
        guide = Guide("on", "test", held, LoopGuard() if loop_guard else None)
    return EngineSequence(
        tokens=tokens,
        params=SamplingParams(),
        max_new=max_new,
        seed=seed,
        machine=PhaseMachine(IDS, tokens),
        output=Output(cast(Tokenizer, LetterTokenizer()), (), emit, "call"),
        guide=guide,
        speculator=Speculator(tokens) if speculation else None,
        leader=leader,
    )


def lasting(prompt: list[int], max_new: int, **wishes: Any) -> EngineSequence:
    """A sequence that ends by its length only."""
    seq = make_sequence(prompt, max_new, **wishes)
    seq.machine.stops = frozenset()
    return seq


class Guesser:
    """A speculator that knows what will come, and is wrong now and then."""

    def __init__(self, tokens: list[int], future: list[int], rng: random.Random) -> None:
        self.tokens, self.future, self.rng, self.errors = tokens, future, rng, rng.choice([0.05, 0.5])

    def propose(self, limit: int, rows: int = 1, drawn: float = 1.0) -> tuple[int, ...]:
        """The truth, with errors."""
        place, length = len(self.tokens), self.rng.randint(0, limit)
        truth = self.future[place : place + length]
        return tuple(self.rng.randrange(26) if self.rng.random() < self.errors else t for t in truth)


class Parrot:
    """A speculator that always guesses, and notes how full the step was."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def propose(self, limit: int, rows: int = 1, drawn: float = 1.0) -> tuple[int, ...]:
        """Sevens."""
        self.asked.append((rows, drawn))
        return (7,) * limit


def count_blocks(pool: BlockPool, sequences: Iterable[EngineSequence]) -> None:
    """Every block is free, kept, or owned by exactly as many sequences as its count says."""
    users = [0] * pool.num_blocks
    for seq in sequences:
        assert len(seq.blocks) * pool.block_size >= seq.num_computed
        for block in seq.blocks:
            users[block] += 1
    assert users == pool._users, "a count is wrong"
    places = [*pool._free, *pool._idle, *(block for block, count in enumerate(users) if count)]
    assert len(places) == len(set(places)) == pool.num_blocks, "a block is lost, or in two places"


def check_index(pool: BlockPool) -> None:
    """The index and the blocks agree about what they hold."""
    for key, block in pool._index.items():
        assert pool._keys[block] == key
        assert block in pool._idle or pool._users[block]
    assert all(pool._index[pool._keys[block]] == block for block in pool._idle)  # type: ignore[index]
    assert len(pool._evicted) <= pool.num_blocks
