"""The thinking budget and the guaranteed answer: when a thought must end or go on, and the ids for that.

In: counts of tokens after every step of a thought, wishes of whoever watches it. Out: the ids to force
(appended, never sampled), or none; a bias that leads the thought to its end. The answer always keeps its
reserve: the thought is closed in time, with the stop sentence where that fits, else with the bare delimiter.
Does not know: the phase machine (it is only asked while the phase is THINK), text, the tokenizer.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config import ANSWER_RESERVE, MAX_WAITS
from ..types import ContextError, ControlError, UsageError

LANDING_SLOPE = 2.0  # nats per token: thoughts then closed by themselves within some 11 tokens (vllm#52677)


class Texts(NamedTuple):
    """Ids to force. stop: the stop sentence with </think>. close: </think> alone. wait: what goes on."""

    stop_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    wait_ids: tuple[int, ...]


class Budget:
    """Watches one thought and closes it, once.

    budget: most tokens inside the thought (None: no limit), exceeded by the stop sentence only. max_new:
    tokens the request may generate, forced ones included. reserve: tokens kept for the answer (None:
    ANSWER_RESERVE, at most a quarter of max_new). min_tokens: fewer than that, and `wait` makes the thought
    go on. soft_landing: tokens before its limit over which `close_bias` grows. waits: how often it went on.
    Raises ContextError when max_new can not hold the closing of a thought, the reserve and min_tokens.
    """

    def __init__(
        self,
        budget: int | None,
        max_new: int,
        reserve: int | None,
        texts: Texts,
        *,
        min_tokens: int = 0,
        soft_landing: int = 0,
    ) -> None:
        self.budget, self.max_new, self.texts = budget, max_new, texts
        self.min_tokens, self.soft_landing = min_tokens, soft_landing
        self.reserve = _reserve(max_new, reserve, texts)
        if not Budget.fits(max_new, reserve, texts):
            around = len(texts.close_ids) + 1
            raise ContextError(
                f"{max_new} new tokens can not hold a thought ({around} to open and close it) and "
                f"{self.reserve} for the answer. Allow {self.reserve + around}, or do not think."
            )
        # A sentence that would eat half of a small allowance is not worth its tokens.
        worth = 2 * (len(texts.stop_ids) + self.reserve) <= max_new
        self._deadline = max_new - self.reserve - len(texts.stop_ids if worth else texts.close_ids)
        if min_tokens > self._deadline - 1:
            raise ContextError(
                f"min_tokens={min_tokens} does not fit: of {max_new} new tokens at most {self._deadline - 1} "
                "can be a thought. Lower it, or allow more tokens."
            )
        self.fired = False
        self.waits = 0
        self._max_waits = MAX_WAITS
        self._outside = 1  # new tokens that are not counted in the thought: the one that opened it

    @staticmethod
    def fits(max_new: int, reserve: int | None, texts: Texts) -> bool:
        """Can a thought be opened at all, and still be closed and answered?"""
        return _reserve(max_new, reserve, texts) <= _most_answer(max_new, texts)

    def observe(self, thought_tokens: int, generated: int) -> tuple[int, ...]:
        """The ids to force now, or (). thought_tokens: inside the thought; generated: all new tokens so far.

        Ask before the first token and after every one, while the phase is THINK.
        """
        self._outside = generated - thought_tokens
        return () if self.room(thought_tokens, generated) else self.end(generated)

    def end(self, generated: int) -> tuple[int, ...]:
        """The ids that end the thought now, whoever wishes it; () when it was ended before."""
        fits = generated + len(self.texts.stop_ids) + self.reserve <= self.max_new
        return self._fire(self.texts.stop_ids if fits else self.texts.close_ids)

    def close(self, generated: int) -> tuple[int, ...]:
        """The ids that end, without a sentence, a thought that the model itself has left."""
        assert generated + len(self.texts.close_ids) < self.max_new, "`observe` was not asked"
        return self._fire(self.texts.close_ids)

    def _fire(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        ids = () if self.fired else ids
        self.fired = True
        return ids

    def wait(self, thought_tokens: int, generated: int) -> tuple[int, ...]:
        """The model wants to end its thought: () lets it, anything else is to be forced instead."""
        short = thought_tokens < self.min_tokens and self.waits < self._max_waits
        if not short or self.room(thought_tokens, generated) <= len(self.texts.wait_ids):
            return ()
        self.waits += 1
        return self.texts.wait_ids

    def close_bias(self, thought_tokens: int, generated: int) -> float:
        """Soft landing: nats to add to the logit of </think> for the next token. 0 below min_tokens."""
        if self.fired or thought_tokens < self.min_tokens:
            return 0.0
        return LANDING_SLOPE * max(self.soft_landing - self.room(thought_tokens, generated), 0)

    def room(self, thought_tokens: int, generated: int) -> int:
        """Tokens that may still be put into the thought before it must be closed."""
        if self.fired:
            return 0
        left = self._deadline - generated
        return max(left if self.budget is None else min(left, self.budget - thought_tokens), 0)

    def change(self, budget: int | None) -> None:
        """A new budget for the running thought; one that is used up already ends it at the next `observe`.

        Lowers min_tokens to it. Raises UsageError when it is negative.
        """
        if budget is not None and (not isinstance(budget, int) or budget < 0):
            raise UsageError(f"budget={budget!r} is no limit. Give 0 or more tokens, or none for no limit.")
        self.budget = budget
        if budget is not None:
            self.min_tokens = min(self.min_tokens, budget)

    def extend(self, thought_tokens: int, tokens: int) -> None:
        """The running thought shall go on for `tokens` more: raises min_tokens, and the budget if smaller.

        As many waits as before the first are allowed again. Raises UsageError when `tokens` is not positive,
        ControlError when the thought has ended or when so many would eat the answer's reserve.
        """
        if not isinstance(tokens, int) or tokens < 1:
            raise UsageError(f"extending a thought by {tokens} tokens makes no sense. Give 1 or more.")
        if self.fired:
            raise ControlError("the thought has been ended already and can not be extended.")
        left = max(self._deadline - self._outside - thought_tokens, 0)
        if tokens > left:
            raise ControlError(
                f"the thought can not go on for {tokens} tokens: {left} are left of {self.max_new} "
                f"when {self.reserve} stay for the answer. Ask for fewer."
            )
        self.min_tokens = thought_tokens + tokens
        if self.budget is not None:
            self.budget = max(self.budget, self.min_tokens)
        self._max_waits = self.waits + MAX_WAITS


def _most_answer(max_new: int, texts: Texts) -> int:
    """Most tokens that the answer may have after a thought of none; 1: the token that opens it."""
    return max_new - len(texts.close_ids) - 1


def _reserve(max_new: int, reserve: int | None, texts: Texts) -> int:
    return max(
        1, min(ANSWER_RESERVE, max_new // 4, _most_answer(max_new, texts)) if reserve is None else reserve
    )
