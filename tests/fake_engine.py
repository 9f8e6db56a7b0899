"""A pretend model for scheduler tests: the next token is a hash of every token before it, read through the KV
blocks.

In: chunks. Out: tokens that are right only if blocks, positions and preemption are right. Does not know:
arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from deepfast.engine.scheduler import Chunk
from deepfast.engine.sequence import Sequence
from deepfast.text.stream import Stream
from deepfast.thinking.budget import Budget
from deepfast.thinking.phases import ControlIds, PhaseMachine
from deepfast.types import Delta, SamplingParams, Thinking

IDS = ControlIds(think_open=20, think_close=21, tool_open=22, tool_close=23, stops=frozenset({24}))
STOP_IDS, CLOSE_IDS = (5, 6, 7, 21, 8), (21, 8)


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
    """Keeps one token for each (block, offset), as a KV cache keeps its keys, and reads contexts back from
    there."""

    def __init__(self, block_size: int, salt: int) -> None:
        self.block_size, self.salt = block_size, salt
        self.cells: dict[tuple[int, int], int] = {}

    def run(self, chunks: list[Chunk]) -> list[int | None]:
        """Write the new tokens, then hash every context that is complete."""
        for seq, count in chunks:
            for position in range(seq.num_computed, seq.num_computed + count):
                self.cells[self._cell(seq, position)] = seq.tokens[position]
        return [self._next(c.seq, c.seq.num_computed + c.num_tokens) if c.completes else None for c in chunks]

    def _cell(self, seq: Sequence, position: int) -> tuple[int, int]:
        return seq.blocks[position // self.block_size], position % self.block_size

    def _next(self, seq: Sequence, length: int) -> int:
        context = bytes(self.cells[self._cell(seq, p)] for p in range(length))
        draw = hashlib.sha256(context + bytes([self.salt, seq.seed])).digest()
        choice = draw[0] % 26
        banned = set(seq.banned_ids)
        while choice in banned or (choice == 24 and draw[1] % 2):
            choice = (choice + 1) % 26
        return choice


def make_sequence(
    prompt: list[int],
    max_new: int,
    *,
    seed: int = 0,
    budget: int | None = None,
    emit: Callable[[Delta | None], None] = lambda delta: None,
) -> Sequence:
    """A sequence over the letters; with a budget its prompt opens a thought."""
    tokens = [*prompt, IDS.think_open] if budget is not None else list(prompt)
    reserve = max(min(4, max_new // 4), 1)
    return Sequence(
        tokens=tokens,
        params=SamplingParams(),
        thinking=Thinking(),
        max_new=max_new,
        seed=seed,
        machine=PhaseMachine(IDS, tokens),
        stream=Stream(LetterTokenizer(), ()),
        emit=emit,
        budget=None if budget is None else Budget(budget, max_new, reserve, STOP_IDS, CLOSE_IDS),
        close_ids=CLOSE_IDS,
    )
