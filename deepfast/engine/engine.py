"""The loop: schedule, run, update; and the one thread that turns it.

In: sequences through `submit`, from any thread. Out: their deltas, through each sequence's `emit`, from the
engine's thread. Every sequence that was submitted ends in exactly one finish_reason, and its blocks are free
again. Does not know: messages, templates, weights.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from ..types import ContextError, EngineError
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Sequence


class StepOutput(NamedTuple):
    """What one step did."""

    finished: list[Sequence]
    num_computed: int  # tokens run in this step
    num_running: int


class Engine:
    """`step` may be called by hand (tests); `start` hands it to a thread that sleeps while there is no
    work."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler, self.runner = scheduler, runner
        self._wake = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run `step` in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._loop, name="deepfast-engine", daemon=True)
        self._thread.start()

    def submit(self, seq: Sequence) -> None:
        """Queue a sequence. Raises ContextError when it could not fit even if it were alone."""
        need, have = seq.num_prompt + seq.max_new, self.scheduler.pool.num_positions
        if need > have:
            raise ContextError(
                f"the prompt has {seq.num_prompt} tokens and may grow by {seq.max_new}, {need} in all, "
                f"but the KV cache holds {have}. Ask for at most {max(have - seq.num_prompt, 0)} tokens "
                "or enlarge the cache."
            )
        with self._wake:
            if self._closing:
                raise EngineError("the engine is closed. Make a new LLM.")
            self._inbox.append(seq)
            self._wake.notify()

    def cancel(self, seq: Sequence) -> None:
        """End a sequence as "abort" before the next step; nothing happens if it has finished."""
        with self._wake:
            self._cancelled.append(seq)
            self._wake.notify()

    def close(self) -> None:
        """Abort what is running and stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def step(self) -> StepOutput:
        """One pass: take in requests, run a batch, hand out tokens."""
        self._take_in()
        chunks = self.scheduler.schedule()
        if not chunks:
            return StepOutput([], 0, len(self.scheduler.running))
        finished = self.scheduler.update(chunks, self.runner.run(chunks))
        return StepOutput(finished, sum(c.num_tokens for c in chunks), len(self.scheduler.running))

    def _take_in(self) -> None:
        with self._wake:
            added, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for seq in added:
            self.scheduler.add(seq)
        for seq in cancelled:
            self.scheduler.end(seq, "abort")

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._cancelled or self._closing or self.scheduler.has_work):
                    self._wake.wait()
                if self._closing:
                    break
            try:
                self.step()
            except Exception as error:  # the step failed as a whole: nobody in it may hang
                self._end_all(error)
        self._take_in()
        self._end_all(None)

    def _end_all(self, error: Exception | None) -> None:
        for seq in (*self.scheduler.running, *self.scheduler.waiting):
            self.scheduler.end(seq, "error" if error else "abort", error)
