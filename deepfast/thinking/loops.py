"""The loop guard: does this thought go round in circles?

In: the tokens of one thought, one by one. Out: nothing, until one answer: "period 12" (its end is an exact
repetition) or "recurrence" (most of it has been written several times before, with small changes).
A function of the tokens alone: time, batches and speculation do not matter.

No guard can tell wanted repetition from a loop. Rows with a new number in each and fewer than some 24 tokens
between the numbers pass, be they wanted ("1 to 1000") or a loop ("Attempt 17: no."). What is stopped, even if
wanted: four equal copies, 512 tokens of a pattern with few different tokens (20 x 20 zeros), and some 50 rows
that are longer and differ in a number alone.
Does not know: text, the tokenizer, phases, what is done about a loop.
"""

from __future__ import annotations

from collections import deque

# Chosen on tests/looping_thoughts.py, tests/sane_thoughts.py and 3.5 million tokens of solutions and
# source code; benchmarks/loop_guard.py prints the margins.
MAX_PERIOD = 128  # longer periods are left to the recurrence
CHECK_EVERY = 16  # tokens between two looks for a period
COPIES = 4  # a factor 333 makes three equal partial products in a row: 366 tokens that are right
MIN_SPAN = 256  # tokens of a short period: ten weeks of weekdays are 140, six assertions alike 83
PLAIN_SPAN = 512  # the same with few different tokens: 10 x 10 zeros are 310, 100 ones with a plus 298
PLAIN = 8  # fewer different tokens than this are "few": zeros, truth tables, drawn grids

GRAM = 16  # tokens; shorter ones recur in sums of digits, longer ones miss loops that change every 24 tokens
WINDOW = 4096  # tokens back in which a gram counts as seen
REPEAT, NOVEL = 2, 1  # a loop is more than one third repetition; enumerations are less
ALARM = 512  # 256 repeated tokens in one go; sane thoughts reach a tenth, boilerplate code 0.8


class LoopGuard:
    """Watches one thought. Costs 1 to 2 microseconds per token; remembers WINDOW tokens."""

    def __init__(self) -> None:
        self.level = 0  # a CUSUM: rises with repetition, sinks with news, never below 0; ALARM fires
        self._fired = False
        self._tokens: list[int] = []  # at least the last PLAIN_SPAN, where there are so many
        self._num_tokens = 0
        self._grams: deque[int] = deque()  # hashes of the last WINDOW grams, oldest first
        self._seen: dict[int, int] = {}  # hash of a gram -> its count in the window

    def observe(self, token: int) -> str | None:
        """After every token of the thought: why it is a loop (once), or None."""
        if self._fired:
            return None
        tokens = self._tokens
        tokens.append(token)
        self._num_tokens += 1
        if len(tokens) >= 2 * PLAIN_SPAN:
            del tokens[:-PLAIN_SPAN]
        if len(tokens) < GRAM:
            return None
        again = self._recur(tuple(tokens[-GRAM:]))
        reason = "recurrence" if self.level >= ALARM else None
        if again and self._num_tokens % CHECK_EVERY == 0 and (period := self._period()):
            reason = f"period {period}"
        self._fired = reason is not None
        return reason

    def _recur(self, gram: tuple[int, ...]) -> bool:
        """Is the gram that was just completed at least its fourth copy? Moves the level."""
        key = hash(gram)  # of integers: equal in every process
        count = self._seen.get(key, 0)
        self._seen[key] = count + 1
        self._grams.append(key)
        if len(self._grams) > WINDOW:
            self._forget(self._grams.popleft())
        again = count >= COPIES - 1
        if again and len(set(gram)) >= PLAIN:
            self.level += REPEAT
        elif self.level:
            self.level -= NOVEL
        return again

    def _forget(self, key: int) -> None:
        if self._seen[key] == 1:
            del self._seen[key]
        else:
            self._seen[key] -= 1

    def _period(self) -> int:
        """The smallest period of the last tokens that has gone on for long enough, or 0."""
        tokens = self._tokens
        last = tokens[-1]
        for period in range(1, min(MAX_PERIOD, len(tokens) - GRAM) + 1):
            # The short look first: a row of zeros has many periods that end at once.
            if tokens[-1 - period] == last and self._repeats(period, period + GRAM):
                if self._repeats(period, max(COPIES * period, MIN_SPAN)):
                    if len(set(tokens[-period:])) >= PLAIN or self._repeats(period, PLAIN_SPAN):
                        return period
        return 0

    def _repeats(self, period: int, span: int) -> bool:
        """Do the last `span` tokens have this period? False where there are fewer."""
        return self._tokens[period - span :] == self._tokens[-span:-period]
