"""The thinking budget and the guaranteed answer: when a thought must end, and the ids that end it.

In: counts of tokens after every step of a thought. Out: the ids to force (appended, never sampled), or none.
The answer always keeps its reserve: the thought is closed in time, with the stop sentence where that fits and
with the bare delimiter where it does not.
Does not know: the phase machine (it is only asked while the phase is THINK), text, the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import ANSWER_RESERVE
from ..types import ContextError

CLOSE = "\n</think>\n\n"
STOP_SENTENCE = (
    "\n\nConsidering the limited time by the user, "
    "I have to give the solution based on the thinking directly now.\n</think>\n\n"
)


class Budget:
    """Closes one thought, once.

    budget: most tokens inside the thought (None: no limit). max_new: tokens the request may generate, forced
    ones included. reserve: tokens kept for the answer (None: ANSWER_RESERVE, at most a quarter of max_new).
    Raises ContextError when max_new can not hold the closing of a thought and the reserve.
    """

    def __init__(
        self,
        budget: int | None,
        max_new: int,
        reserve: int | None,
        stop_ids: Sequence[int],
        close_ids: Sequence[int],
    ) -> None:
        self.budget = budget
        self.max_new = max_new
        self.stop_ids, self.close_ids = tuple(stop_ids), tuple(close_ids)
        self.fired = False
        room = max_new - len(close_ids) - 1  # 1: the token that opens the thought
        self.reserve = max(1, min(ANSWER_RESERVE, max_new // 4, room) if reserve is None else reserve)
        if self.reserve > room:
            around = len(close_ids) + 1
            raise ContextError(
                f"{max_new} new tokens can not hold a thought ({around} to open and close it) and "
                f"{self.reserve} for the answer. Allow {self.reserve + around}, or do not think."
            )
        # A sentence that would eat half of a small allowance is not worth its tokens.
        worth = 2 * (len(stop_ids) + self.reserve) <= max_new
        self._deadline = max_new - self.reserve - len(stop_ids if worth else close_ids)

    def observe(self, thought_tokens: int, generated: int) -> tuple[int, ...]:
        """The ids to force now, or (). thought_tokens: inside the thought; generated: all new tokens so far.

        Ask before the first token and after every one, while the phase is THINK.
        """
        over = self.budget is not None and thought_tokens >= self.budget
        if self.fired or not (over or generated >= self._deadline):
            return ()
        self.fired = True
        fits = generated + len(self.stop_ids) + self.reserve <= self.max_new
        return self.stop_ids if fits else self.close_ids
