"""Decides which tokens run next.

There is no prefill phase and no decode phase: a new prompt, a piece of it, a preempted request, forced text,
the last sampled token and a draft behind it are all just tokens to compute. In: sequences. Out: chunks of at
most `max_batch_tokens` tokens in all, with their blocks reserved. Does not know: models, text, threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ..config import MAX_DRAFT
from ..types import FinishReason
from .kv_cache import BlockPool
from .sequence import Sequence

IDLE_TOKENS = 64  # of a background sequence per step: work that arrives waits for no more than these


class Chunk(NamedTuple):
    """Run tokens[num_computed : num_computed + num_tokens] of `seq`, then `draft`, a guess at the next."""

    seq: Sequence
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def completes(self) -> bool:
        """After this chunk nothing is pending: the logits of its last 1 + len(draft) rows choose tokens."""
        return self.num_tokens == self.seq.num_pending and self.seq.max_new > 0


class Scheduler:
    """First come, first served; when blocks run out the newest request steps back and is computed again
    later.

    Background sequences run while there is nothing else to do, for the sake of the prefix cache alone.
    """

    def __init__(self, pool: BlockPool, max_batch_tokens: int, max_running: int) -> None:
        self.pool, self.max_batch_tokens, self.max_running = pool, max_batch_tokens, max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.background: deque[Sequence] = deque()
        self.num_preempted = 0
        self._admitted: set[Sequence] = set()  # of the unfinished: those that ran before

    @property
    def has_work(self) -> bool:
        """Is any sequence unfinished, background included?"""
        return bool(self.waiting or self.running or self.background)

    def unfinished(self) -> tuple[Sequence, ...]:
        """Every sequence in here."""
        return (*self.running, *self.waiting, *self.background)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence that can fit when it is alone (engine.py refuses the others at the door)."""
        self.waiting.append(seq)

    def add_background(self, seq: Sequence) -> None:
        """Queue a sequence with max_new 0; it ends at once where nothing could be kept of it."""
        assert seq.max_new == 0
        if self.pool.prefix_cache and len(seq.tokens) <= self.pool.num_positions:
            self.background.append(seq)
        else:
            seq.finish("stop")

    def schedule(self) -> list[Chunk]:
        """Choose chunks and reserve their blocks."""
        for seq in [seq for seq in self.unfinished() if seq.finish_reason]:  # ended between two steps
            self._remove(seq)
        if not (self.running or self.waiting):
            return self._idle_chunk()
        for seq in self.background:
            self.pool.release(seq)
        preempted_before = self.num_preempted
        chunks: list[Chunk] = []
        room = self.max_batch_tokens
        for seq in tuple(self.running):  # 1. requests already running, oldest first
            if seq.blocks and room:  # no blocks: preempted below
                count = min(seq.num_pending, room)
                if self._reserve_by_preemption(seq, seq.num_computed + count):
                    chunks.append(Chunk(seq, count))
                    room -= count
        if self.num_preempted == preempted_before:  # 2. those that wait
            room = self._admit(chunks, room)
        self._add_drafts(chunks, room)  # 3. guesses, with the room that is left
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

    def _admit(self, chunks: list[Chunk], room: int) -> int:
        """Take in sequences from the front of the queue; returns the room that is left."""
        held: list[Sequence] = []
        for seq in tuple(self.waiting):
            if not room or len(self.running) >= self.max_running:
                break
            if self._is_held(seq.leader, held):
                held.append(seq)
                continue
            miss = self.pool.match(seq)
            cached, count = seq.num_computed, min(seq.num_pending, room)
            if not self.pool.reserve(seq, cached + count):
                self.pool.release(seq)
                break
            if seq not in self._admitted:
                self._admitted.add(seq)
                seq.cached_tokens, seq.cache_miss = cached, miss
            self.waiting.remove(seq)
            self.running.append(seq)
            chunks.append(Chunk(seq, count))
            room -= count
        return room

    def _is_held(self, leader: Sequence | None, held: list[Sequence]) -> bool:
        """Is it better to wait until the leader's prompt is computed? Only for a leader that will be before
        anything that waits for it: one that runs, or is itself held further ahead."""
        if leader is None or leader.num_computed >= leader.num_prompt or not self.pool.prefix_cache:
            return False
        return leader in self.running or leader in held

    def _add_drafts(self, chunks: list[Chunk], room: int) -> None:
        """Let sequences with one pending token guess further, where that takes no block from anybody."""
        rows = self.max_batch_tokens - room
        drawn = sum(chunk.completes for chunk in chunks)
        for i, (seq, count, _) in enumerate(chunks):
            limit = min(MAX_DRAFT, room, seq.max_new - seq.num_new - 1)
            if seq.speculator is None or count != 1 or seq.num_pending != 1 or limit < 1:
                continue
            draft = seq.speculator.propose(limit, rows, drawn)
            if draft and self.pool.reserve(seq, seq.num_computed + 1 + len(draft)):
                chunks[i] = Chunk(seq, count, draft)
                room -= len(draft)
                rows += len(draft)

    def _idle_chunk(self) -> list[Chunk]:
        if not self.background:
            return []
        seq = self.background[0]
        if not seq.blocks:
            self.pool.match(seq)
        count = min(seq.num_pending, IDLE_TOKENS, self.max_batch_tokens)
        reserved = self.pool.reserve(seq, seq.num_computed + count)
        assert reserved, "a background sequence is alone in the pool"
        return [Chunk(seq, count)]

    def update(self, chunks: Iterable[Chunk]) -> list[Sequence]:
        """Index what was computed, and take finished sequences out."""
        finished = []
        for seq, _, _ in chunks:
            self.pool.commit(seq)
            if seq.max_new == 0 and seq.num_pending == 0:
                seq.finish("stop")
            if seq.finish_reason:
                self._remove(seq)
                finished.append(seq)
        return finished

    def end(self, seq: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        """Finish a sequence from outside (cancelled, or the engine failed) and free its blocks."""
        if seq in self.unfinished():
            self._remove(seq)
        seq.finish(reason, error)

    def _remove(self, seq: Sequence) -> None:
        for group in (self.running, self.waiting, self.background):
            if seq in group:
                group.remove(seq)
        self._admitted.discard(seq)
        self.pool.release(seq)
