"""The loop: schedule, run, draw, update; and the one thread that turns it.

In: sequences through `submit`, from any thread; functions to call between two steps; jobs for idle time. Out:
the sequences' deltas, from the engine's thread. Every sequence that was submitted ends in exactly one
finish_reason, and its blocks are free again. Does not know: messages, templates, weights.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from ..types import ContextError, DeepfastError, EngineError
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Sequence
from .speculate import advance

MAX_IDLE_JOBS = 32  # beyond that the oldest is forgotten
BLOCKS_AHEAD = 64  # of the KV cache, that have memory behind them before they are used


class StepOutput(NamedTuple):
    """What one step did."""

    finished: list[Sequence]
    num_computed: int  # tokens run in this step, drafts included


class EngineStats(NamedTuple):
    """Counts of one moment. Blocks in use belong to a sequence; cached ones to none, but hold something."""

    running: int
    waiting: int
    blocks: int
    blocks_used: int
    blocks_cached: int
    preempted: int  # since the start


class Engine:
    """`step` may be called by hand (tests); `start` hands it to a thread that sleeps while there is no
    work."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler, self.runner = scheduler, runner
        self._wake = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._idle_jobs: deque[Callable[[], Sequence | None]] = deque(maxlen=MAX_IDLE_JOBS)
        self._closing = False
        self._stepping = False
        self._may_touch = True  # may there be blocks without memory among the next?
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run `step` in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._loop, name="deepfast-engine", daemon=True)
        self._thread.start()

    def submit(self, *sequences: Sequence) -> None:
        """Queue sequences, all or none. Raises ContextError for one that could not fit even if it were
        alone."""
        for seq in sequences:
            need, have = seq.num_prompt + seq.max_new, self.scheduler.pool.num_positions
            if need > have:
                room = have - seq.num_prompt
                less = f"Ask for at most {room} tokens" if room > 0 else "Shorten the prompt"
                raise ContextError(
                    f"the prompt has {seq.num_prompt} tokens and may grow by {seq.max_new}, {need} in all, "
                    f"but the KV cache holds {have}. {less}, or enlarge the cache."
                )
        with self._wake:
            self._check_open()
            self._inbox.extend(sequences)
            self._wake.notify()

    def cancel(self, seq: Sequence) -> None:
        """End a sequence as "abort" before the next step; nothing happens if it has finished."""
        with self._wake:
            self._cancelled.append(seq)
            self._wake.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function between two steps, where sequences hold still; its result or error is the
        future's."""
        future: Future[Any] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def when_idle(self, job: Callable[[], Sequence | None]) -> None:
        """Later, when nothing else is to be done, compute the background sequence that `job` makes."""
        with self._wake:
            self._idle_jobs.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Abort what is running and stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("the engine is closed. Make a new LLM.")

    def step(self) -> StepOutput:
        """One pass: take in requests, run a batch, hand out tokens."""
        self._take_in()
        if not self.scheduler.has_work:
            self._take_idle_job()
        chunks = self.scheduler.schedule()
        if not chunks:
            return StepOutput([], 0)
        try:
            self.runner.forward(chunks)
            advance(chunks, self.runner.sample)
        finally:
            self.runner.release()
        finished = self.scheduler.update(chunks)
        computed = sum(chunk.num_tokens + len(chunk.draft) for chunk in chunks)
        return StepOutput(finished, computed)

    def _take_in(self) -> None:
        with self._wake:
            added, self._inbox = self._inbox, deque()
            calls, self._calls = self._calls, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for seq in added:
            self.scheduler.add(seq)
        for function, future in calls:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
        for seq in cancelled:
            self.scheduler.end(seq, "abort")

    def _take_idle_job(self) -> None:
        with self._wake:
            job = self._idle_jobs.popleft() if self._idle_jobs else None
        if job is None:
            return
        try:
            seq = job()
        except DeepfastError:  # a conversation that cannot go on has nothing to prepare
            return
        if seq is not None and seq.num_prompt <= self.scheduler.pool.num_positions:
            self.scheduler.add_background(seq)

    @property
    def stats(self) -> EngineStats:
        """What is going on now; safe to read from any thread."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._inbox),
            blocks=pool.num_blocks,
            blocks_used=pool.num_blocks - pool.num_free,
            blocks_cached=pool.num_cached,
            preempted=scheduler.num_preempted,
        )

    @property
    def is_alive(self) -> bool:
        """Does its thread run?"""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    @property
    def is_busy(self) -> bool:
        """Is anything running, waiting or to be prepared?"""
        with self._wake:
            return self._stepping or self._has_news or self.scheduler.has_work

    @property
    def _has_news(self) -> bool:
        return bool(self._inbox or self._cancelled or self._calls or self._idle_jobs or self._closing)

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._stepping = False
                while not (self._has_news or self.scheduler.has_work or self._may_touch):
                    self._wake.wait()
                if self._closing:
                    break
                self._stepping = self._has_news or self.scheduler.has_work
            try:
                if self._stepping:
                    self.step()
                self._may_touch = self._stepping or self._touch()
            except Exception as error:  # the step failed as a whole: nobody in it may hang
                self._end_all(error)
        self._take_in()
        self._end_all(None)

    def _touch(self) -> bool:
        """In idle time, some milliseconds at once: memory for the blocks that come next, which a step would
        have to wait for (0.5 ms a token in some virtual machines). False when they have it."""
        return self.runner.touch(self.scheduler.pool.next_free(BLOCKS_AHEAD))

    def _end_all(self, error: Exception | None) -> None:
        for seq in self.scheduler.unfinished():
            try:
                self.scheduler.end(seq, "error" if error else "abort", error)
            except Exception:  # it cannot even say what it had: its caller must not wait for ever
                seq.finish_reason, seq.error = (
                    "error",
                    error or EngineError("the request could not be ended."),
                )
                seq.output.emit(None)
