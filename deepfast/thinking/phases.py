"""The phase machine: which part of the output every token belongs to, advanced once per token id.

In: the ids of the control tokens, the prompt's ids, then each new id (sampled or forced). Out: its phase, and
which control tokens may come next. Everybody else reads it: budget, loop guard, grammars, stream, usage;
nobody decides "are we still thinking?" elsewhere. Does not know: text, the tokenizer, budgets, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Phase(Enum):
    """THINK -> ANSWER <-> TOOL -> DONE."""

    THINK = "think"
    ANSWER = "answer"
    TOOL = "tool"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class ControlIds:
    """The ids that move the machine; None where the vocabulary has none. stops: ids that end the turn.

    others: every further control id of the vocabulary. They move nothing and have no text.
    """

    think_open: int | None
    think_close: int | None
    tool_open: int | None
    tool_close: int | None
    stops: frozenset[int]
    others: frozenset[int] = frozenset()
    all: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        """`all` holds every control id."""
        named = (self.think_open, self.think_close, self.tool_open, self.tool_close)
        known = self.stops.union(self.others, (token for token in named if token is not None))
        object.__setattr__(self, "all", known)


class Step(NamedTuple):
    """phase: what the token belongs to. is_control: it has no text of its own."""

    phase: Phase
    is_control: bool


class PhaseMachine:
    """One turn of the model. The first phase is read from the prompt: is a think block open at its end?

    `<think>` opens a thought only as the very first token of a turn whose prompt has not closed one yet. A
    tool call begun inside a thought ends the thought. Control tokens out of place change nothing and have no
    text. reasoning_tokens counts tokens inside the thought, control tokens left out. stops: the ids that end
    the turn; none of them does when `endless`.
    """

    def __init__(self, ids: ControlIds, prompt_ids: Sequence[int], *, endless: bool = False) -> None:
        self.ids = ids
        self.stops = frozenset[int]() if endless else ids.stops
        self.phase = Phase.ANSWER
        self.reasoning_tokens = 0
        self.may_open = True  # may a thought still begin?
        for token in reversed(prompt_ids):
            if token in ids.stops:
                break
            if token == ids.think_open or token == ids.think_close:
                self.phase = Phase.THINK if token == ids.think_open else Phase.ANSWER
                self.may_open = False
                break

    def advance(self, token: int) -> Step:
        """Move over one token of the output."""
        before, may_open = self.phase, self.may_open
        self.may_open = False
        if before is Phase.DONE:
            return Step(before, True)
        if token not in self.ids.all:
            self.reasoning_tokens += before is Phase.THINK
            return Step(before, False)
        if token in self.stops:
            self.phase = Phase.DONE
            return Step(before, True)
        return Step(self._move(before, token, may_open), True)

    def _move(self, before: Phase, token: int, may_open: bool) -> Phase:
        """The phase that a control token belongs to; moves `phase` where the token is in place."""
        ids = self.ids
        if before is Phase.TOOL:
            if token == ids.tool_close:
                self.phase = Phase.ANSWER
            return Phase.TOOL
        if token == ids.tool_open:
            self.phase = Phase.TOOL
            return Phase.TOOL
        if before is Phase.THINK and token == ids.think_close:
            self.phase = Phase.ANSWER
        elif before is Phase.ANSWER and token == ids.think_open and may_open:
            self.phase = Phase.THINK
            return Phase.THINK
        return before

    def misplaced(self) -> frozenset[int]:
        """The control ids that make no sense as the next token."""
        ids = self.ids
        legal = {
            Phase.THINK: (ids.think_close, ids.tool_open),
            Phase.ANSWER: (ids.tool_open, ids.think_open if self.may_open else None),
            Phase.TOOL: (ids.tool_close,),
            Phase.DONE: (),
        }[self.phase]
        return ids.all.difference(self.stops, legal)
