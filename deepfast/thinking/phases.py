"""The phase machine: which part of the output every token belongs to, advanced once per token id.

In: the ids of the control tokens, the prompt's ids, then each new id (sampled or forced). Out: its phase.
Everybody else reads it: budget, stream, usage counts; nobody decides "are we still thinking?" elsewhere.
Does not know: text, the tokenizer, budgets, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """The ids that move the machine; None where the vocabulary has none. stops: ids that end the turn."""

    think_open: int | None
    think_close: int | None
    tool_open: int | None
    tool_close: int | None
    stops: frozenset[int]

    @property
    def delimiters(self) -> frozenset[int]:
        """All of them: ids that can not be the text of an answer."""
        named = (self.think_open, self.think_close, self.tool_open, self.tool_close)
        return self.stops.union(token for token in named if token is not None)


class Step(NamedTuple):
    """phase: what the token belongs to. is_control: a delimiter or a stop, without text of its own."""

    phase: Phase
    is_control: bool


class PhaseMachine:
    """One turn of the model. The first phase is read from the prompt: is a think block open at its end?

    `<think>` opens a thought only as the very first token of a turn whose prompt has not closed one yet;
    anywhere else it is content. reasoning_tokens counts tokens inside the thought, delimiters left out.
    """

    def __init__(self, ids: ControlIds, prompt_ids: Sequence[int]) -> None:
        self.ids = ids
        self.phase = Phase.ANSWER
        self.reasoning_tokens = 0
        self.thought_closed = False
        self._may_open = True
        for token in reversed(prompt_ids):
            if token in ids.stops:
                break
            if token == ids.think_open or token == ids.think_close:
                self.phase = Phase.THINK if token == ids.think_open else Phase.ANSWER
                self.thought_closed = token == ids.think_close
                self._may_open = False
                break

    def advance(self, token: int) -> Step:
        """Move over one token of the output."""
        before = self.phase
        if before is Phase.DONE or token in self.ids.stops:
            self.phase = Phase.DONE
            return Step(before, True)
        if before is Phase.THINK:
            return self._think(token)
        if before is Phase.TOOL:
            return self._tool(token)
        return self._answer(token)

    def _think(self, token: int) -> Step:
        # The place of two later guards: a loop guard watches the tokens here and has the thought closed;
        # tool_open inside a thought closes it first, so that the call is real. Until then it is reasoning.
        if token == self.ids.think_close:
            self.phase = Phase.ANSWER
            self.thought_closed = True
            return Step(Phase.THINK, True)
        self.reasoning_tokens += 1
        return Step(Phase.THINK, False)

    def _answer(self, token: int) -> Step:
        may_open, self._may_open = self._may_open, False
        if token == self.ids.think_open and may_open:
            self.phase = Phase.THINK
            return Step(Phase.THINK, True)
        if token == self.ids.tool_open:
            self.phase = Phase.TOOL
            return Step(Phase.TOOL, True)
        return Step(Phase.ANSWER, False)

    def _tool(self, token: int) -> Step:
        if token == self.ids.tool_close:
            self.phase = Phase.ANSWER
            return Step(Phase.TOOL, True)
        return Step(Phase.TOOL, False)
