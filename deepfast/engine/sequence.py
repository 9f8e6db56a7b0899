"""One request inside the engine: its tokens, how far they are computed, and what has come out of them.

In: a rendered prompt and resolved parameters, then one sampled token at a time. Out: deltas through `emit`,
and a Completion at the end. Its invariant: the engine's only job is to make `num_computed` catch up with
len(tokens). Does not know: other sequences, blocks' contents, models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..text.stream import Stream
from ..thinking.budget import Budget
from ..thinking.phases import Phase, PhaseMachine
from ..types import (
    Completion,
    Delta,
    DeltaKind,
    FinishReason,
    SamplingParams,
    Thinking,
    ThinkingReport,
    ThinkingStop,
    Timing,
    ToolCall,
    Usage,
)

Emit = Callable[[Delta | None], None]  # None: the sequence has finished, nothing follows
KINDS: dict[Phase, DeltaKind] = {Phase.THINK: "reasoning", Phase.ANSWER: "content", Phase.TOOL: "tool_call"}


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's tokens and state. Fields without a default are fixed when it is made."""

    tokens: list[int]  # the prompt, then everything sampled or forced
    params: SamplingParams  # resolved: no None among the sampling fields
    thinking: Thinking
    max_new: int  # new tokens at most, forced ones included
    seed: int
    machine: PhaseMachine
    stream: Stream
    emit: Emit
    budget: Budget | None = None  # None: raw generation, the thought is nobody's business
    close_ids: tuple[int, ...] = ()  # ends a thought in the fewest tokens
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)  # per new token: sampled (train on it) or forced
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cancelled: bool = False
    thinking_stop: ThinkingStop = "none"
    must_answer: bool = False  # the thought was closed by force: the answer may not be empty
    tool_ids: list[int] = field(default_factory=list)  # of the call that is open
    tool_calls: list[ToolCall] = field(default_factory=list)
    num_prompt: int = 0
    created: float = field(default_factory=time.monotonic)
    first_token: float = 0.0
    thought_began: float = 0.0
    thought_ended: float = 0.0
    finished: float = 0.0

    def __post_init__(self) -> None:
        """The prompt may already open a thought; a budget of 0 closes it before the first token is drawn."""
        self.num_prompt = len(self.tokens)
        if self.machine.phase is Phase.THINK:
            self.thought_began = self.created
            self._watch_budget()

    @property
    def num_pending(self) -> int:
        """Tokens that have no keys and values yet."""
        return len(self.tokens) - self.num_computed

    @property
    def num_new(self) -> int:
        """Tokens after the prompt, sampled and forced."""
        return len(self.sampled)

    @property
    def banned_ids(self) -> Iterable[int]:
        """Ids that the next sample must not be: an answer that was forced to begin may not be empty."""
        return self.machine.ids.delimiters if self.must_answer else ()

    def append_sampled(self, token: int) -> None:
        """Take the sampler's token; follow it with forced text, or finish, where the phases ask for it."""
        now = time.monotonic()
        self.first_token = self.first_token or now
        ends = token in self.machine.ids.stops and not self.params.ignore_eos
        if ends and self.budget is not None and self.machine.phase is Phase.THINK:
            # The model ended its turn inside the thought. Close the thought instead: an answer is due.
            if self.num_new + len(self.close_ids) < self.max_new:
                self.thinking_stop = "natural"
                self._close_thought(self.close_ids)
                return
        self._extend([token], sampled=True)
        if ends:
            self.finish("tool_calls" if self.tool_calls else "stop")
        elif self.stream.stopped:
            self.finish("stop")
        elif self.num_new >= self.max_new:
            self.finish("length")
        elif self.machine.phase is Phase.THINK:
            self._watch_budget()

    def _watch_budget(self) -> None:
        """Here the loop guard and live steering will also ask to close or extend the thought."""
        if self.budget is None:
            return
        if forced := self.budget.observe(self.machine.reasoning_tokens, self.num_new):
            self.thinking_stop = "budget"
            self._close_thought(forced)

    def _close_thought(self, forced: Iterable[int]) -> None:
        self._extend(forced, sampled=False)
        self.must_answer = True

    def _extend(self, tokens: Iterable[int], *, sampled: bool) -> None:
        for token in tokens:
            self.tokens.append(token)
            self.sampled.append(sampled)
            self._route(token)

    def _route(self, token: int) -> None:
        """Advance the phase machine by one token and send on what became text."""
        before = self.machine.phase
        step = self.machine.advance(token)
        after, now = self.machine.phase, time.monotonic()
        if after is Phase.THINK and before is not Phase.THINK:
            self.thought_began = now
        if before is Phase.THINK and after is not Phase.THINK:
            self.thought_ended = now
            if self.thinking_stop == "none":
                self.thinking_stop = "natural"
        deltas = self.stream.push(token, None if step.is_control else KINDS.get(step.phase))
        if step.phase is Phase.TOOL and not step.is_control:
            self.tool_ids.append(token)
        if before is Phase.TOOL and after is not Phase.TOOL:
            deltas += self._close_tool_call()
        for delta in deltas:
            self.emit(delta)
        if self.must_answer and self.stream.text("content").strip():
            self.must_answer = False

    def _close_tool_call(self) -> list[Delta]:
        """A call that is good JSON becomes a ToolCall; anything else is passed on as content, never
        dropped."""
        text = self.stream.decode(self.tool_ids)
        self.tool_ids = []
        try:
            call = json.loads(text)
            name, arguments = call["name"], call["arguments"]
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            return self.stream.push_text(f"<tool_call>{text}</tool_call>", "content")
        call_id = f"call_{len(self.tool_calls)}"
        self.tool_calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False), call_id))
        return []

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End the sequence once; later calls change nothing."""
        if self.finish_reason is not None:
            return
        self.finish_reason, self.error, self.finished = reason, error, time.monotonic()
        if self.machine.phase is Phase.THINK:
            self.thought_ended = self.finished
        deltas = self.stream.finish()
        if self.tool_ids:  # the call was still open
            text = self.stream.decode(self.tool_ids)
            deltas += self.stream.push_text(f"<tool_call>{text}", "content")
        for delta in deltas:
            self.emit(delta)
        self.emit(None)

    def completion(self) -> Completion:
        """What came out, after `finish`."""
        assert self.finish_reason is not None
        new = self.tokens[self.num_prompt :]
        thought = max(self.thought_ended - self.thought_began, 0.0) if self.thought_began else 0.0
        return Completion(
            reasoning=self.stream.text("reasoning"),
            content=self.stream.text("content"),
            tool_calls=tuple(self.tool_calls),
            token_ids=tuple(new),
            sampled=tuple(self.sampled),
            finish_reason=self.finish_reason,
            usage=Usage(self.num_prompt, 0, len(new), self.machine.reasoning_tokens),
            thinking=ThinkingReport(self.thinking.mode, self.thinking.budget, self.thinking_stop, thought),
            timing=Timing(max(self.first_token - self.created, 0.0), self.finished - self.created),
        )
