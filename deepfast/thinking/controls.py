"""What a request asks of the thought -> what is done for the model at hand. Honours or refuses.

In: a Thinking, the kind of the model, the messages. Out: a Plan for the prompt and the sampling defaults.
Other spellings of the same wish (enable_thinking, reasoning_effort, think, thinking_budget) belong here: each
will become a function that returns a Thinking, before `resolve`.
Does not know: templates, tokens, budgets in force.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..types import ControlError, Message, ModelKind, Thinking

_SWITCH = re.compile(r"(?<![A-Za-z0-9_./:])/(no_)?think(?![A-Za-z0-9_/])")


class Plan(NamedTuple):
    """enable_thinking: for the template. open_thought: append "<think>\\n", unless the prompt opened one.
    thinks: a thought is expected, which chooses the sampling defaults."""

    enable_thinking: bool | None
    open_thought: bool
    thinks: bool


def resolve(thinking: Thinking, kind: ModelKind, messages: Iterable[Message]) -> Plan:
    """The plan for this request. Raises ControlError when the model can not obey."""
    mode = thinking.mode
    if kind == "no_think" and (mode == "on" or thinking.budget):
        asked = "mode 'on'" if mode == "on" else f"budget={thinking.budget}"
        raise ControlError(f"{asked} needs a thought, but this model never thinks. Use mode 'auto' or 'off'.")
    if kind == "think" and mode == "off":
        raise ControlError(
            "mode 'off' is not possible: this model always thinks. Use mode 'auto', or budget=0."
        )
    if mode == "on":
        return Plan(enable_thinking=True, open_thought=True, thinks=True)
    if mode == "off":
        return Plan(enable_thinking=False, open_thought=False, thinks=False)
    thinks = kind == "think" or (kind == "hybrid" and last_switch(messages) is not False)
    return Plan(enable_thinking=None, open_thought=False, thinks=thinks)


def last_switch(messages: Iterable[Message]) -> bool | None:
    """True for /think, False for /no_think, None for neither: the last in system and user messages wins."""
    found = None
    for message in messages:
        if message.role in ("system", "user"):
            for match in _SWITCH.finditer(message.content or ""):
                found = match[1] is None
    return found
