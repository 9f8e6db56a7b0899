"""Decides which tokens run next.

There is no prefill phase and no decode phase: a new prompt, a piece of it, a preempted request, forced text
and the last sampled token are all just pending tokens. In: sequences. Out: chunks of at most
`max_batch_tokens` tokens in all, with their blocks reserved. Does not know: models, text, threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ..types import FinishReason
from .kv_cache import BlockPool
from .sequence import Sequence


class Chunk(NamedTuple):
    """Run tokens[num_computed : num_computed + num_tokens] of `seq`."""

    seq: Sequence
    num_tokens: int

    @property
    def completes(self) -> bool:
        """After this chunk nothing is pending, so the logits of its last row choose the next token."""
        return self.num_tokens == self.seq.num_pending


class Scheduler:
    """First come, first served; when blocks run out the newest request steps back and is computed again
    later."""

    def __init__(self, pool: BlockPool, max_batch_tokens: int, max_running: int) -> None:
        self.pool, self.max_batch_tokens, self.max_running = pool, max_batch_tokens, max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preempted = 0

    @property
    def has_work(self) -> bool:
        """Is any sequence unfinished?"""
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence that can fit when it is alone (engine.py refuses the others at the door)."""
        self.waiting.append(seq)

    def schedule(self) -> list[Chunk]:
        """Choose chunks and reserve their blocks."""
        preempted_before = self.num_preempted
        chunks: list[Chunk] = []
        room = self.max_batch_tokens
        for seq in tuple(self.running):  # 1. requests already running, oldest first
            if seq.blocks and room:  # no blocks: preempted below
                count = min(seq.num_pending, room)
                if self._reserve_by_preemption(seq, seq.num_computed + count):
                    chunks.append(Chunk(seq, count))
                    room -= count
        while self.waiting and room and len(self.running) < self.max_running:  # 2. admit
            seq = self.waiting[0]
            count = min(seq.num_pending, room)
            if self.num_preempted > preempted_before or not self.pool.reserve(seq, count):
                break
            self.running.append(self.waiting.popleft())
            chunks.append(Chunk(seq, count))
            room -= count
        return chunks

    def _reserve_by_preemption(self, seq: Sequence, num_tokens: int) -> bool:
        """Reserve, taking blocks from the newest requests if need be; False when `seq` itself had to step
        back."""
        while not self.pool.reserve(seq, num_tokens):
            victim = self.running.pop()
            self.pool.release(victim)
            self.waiting.appendleft(victim)
            self.num_preempted += 1
            if victim is seq:
                return False
        return True

    def update(self, chunks: Iterable[Chunk], next_tokens: Iterable[int | None]) -> list[Sequence]:
        """Book what was computed, append the sampled tokens, and take finished sequences out."""
        finished = []
        for chunk, token in zip(chunks, next_tokens, strict=True):
            seq = chunk.seq
            seq.num_computed += chunk.num_tokens
            if token is not None:
                seq.append_sampled(token)
            if seq.finish_reason:
                self._remove(seq)
                finished.append(seq)
        return finished

    def end(self, seq: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        """Finish a sequence from outside (cancelled, or the engine failed) and free its blocks."""
        if seq in self.running or seq in self.waiting:
            self._remove(seq)
        seq.finish(reason, error)

    def _remove(self, seq: Sequence) -> None:
        (self.running if seq in self.running else self.waiting).remove(seq)
        self.pool.release(seq)
