"""One request inside the engine: its tokens, how far they are computed, and what has come out of them.

In: a rendered prompt and resolved parameters, then one sampled token at a time. Out: an Output that fills,
and a Completion at the end. Its invariant: the engine's only job is to make `num_computed` catch up with
len(tokens). `append_sampled` is the one transition per token: phases, budget, loop guard, grammars, forced
text and the end are decided here, so plain steps and verified drafts obey the same rules.
Does not know: other sequences, blocks' contents, models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..text.grammar import Compiled, Mask, Matcher
from ..thinking.budget import Budget
from ..thinking.loops import LoopGuard
from ..thinking.phases import Phase, PhaseMachine
from ..types import (
    CacheMiss,
    Completion,
    ControlError,
    FinishReason,
    Mode,
    SamplingParams,
    ThinkingReport,
    ThinkingStop,
    Timing,
    TokenLogprob,
    Usage,
    UsageError,
)
from .output import Output
from .speculate import Speculator

LAST_CHANCE = 2  # new tokens left at which an answer that is still blank may not stay blank


@dataclass(eq=False, slots=True)
class Guide:
    """What a chat request wants of its phases. (Ids in, ids out has none: it samples what the model says.)

    budget None: no thought can be held, so none may begin. answer, tool_call: the grammars of content and of
    a call. blank_ids: tokens of white space only.
    """

    mode: Mode  # in force
    source: str  # of the mode
    budget: Budget | None
    loops: LoopGuard | None = None
    answer: Matcher | None = None
    tool_call: Compiled | None = None
    allow_calls: bool = True
    must_call: bool = False
    after_thought: tuple[int, ...] = ()  # what stands between </think> and the answer
    blank_ids: Callable[[], tuple[int, ...]] = tuple


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's tokens and state. Fields without a default are fixed when it is made.

    A background sequence has max_new 0: it is computed for the sake of the prefix cache and never sampled.
    """

    tokens: list[int]  # the prompt, then everything sampled or forced
    params: SamplingParams  # resolved: no None among the sampling fields
    max_new: int  # new tokens at most, forced ones included
    seed: int
    machine: PhaseMachine
    output: Output
    guide: Guide | None = None
    speculator: Speculator | None = None
    leader: Sequence | None = None  # its prompt is computed first: ours shares most of it
    after: Callable[[Sequence], None] | None = None  # called once, when it has finished
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    cache_miss: CacheMiss = "none"
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    thinking_stop: ThinkingStop = "none"
    loop: str | None = None  # why the loop guard wants the thought closed
    call: Matcher | None = None  # of the tool call that is open
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
        self._react()

    @property
    def num_pending(self) -> int:
        """Tokens that have no keys and values yet."""
        return len(self.tokens) - self.num_computed

    @property
    def num_new(self) -> int:
        """Tokens after the prompt, sampled and forced."""
        return len(self.tokens) - self.num_prompt

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        cached = min(self.cached_tokens, self.num_prompt)  # forced text may have been found there too
        return Usage(self.num_prompt, cached, self.num_new, self.machine.reasoning_tokens)

    # --- what the next sample may be ---

    def banned_ids(self) -> Iterable[int]:
        """Ids that the next sample must not be: control tokens out of place, and what would leave the answer
        of a chat empty."""
        guide, ids = self.guide, self.machine.ids
        if guide is None:
            return ()
        banned = set(self.machine.misplaced())
        if not guide.allow_calls and ids.tool_open is not None:
            banned.add(ids.tool_open)
        if guide.budget is None and ids.think_open is not None:
            banned.add(ids.think_open)
        if self.machine.phase is Phase.ANSWER and guide.answer is None and self.output.is_blank:
            banned |= self.machine.stops
            if self.max_new - self.num_new <= LAST_CHANCE:
                banned.update(guide.blank_ids())
        return banned

    def mask(self) -> Mask | None:
        """Which ids the grammar in force allows; None: there is none."""
        guide, ids = self.guide, self.machine.ids
        if guide is None:
            return None
        if self.machine.phase is Phase.TOOL:
            return self._mask_of(self.call) if self.call is not None else None
        if self.machine.phase is not Phase.ANSWER or guide.answer is None:
            return None
        others = set() if self.output.has_content else {ids.think_open, ids.tool_open}
        if self.output.tool_calls and not self.output.has_content:  # calls alone are an answer too
            others |= self.machine.stops
        return self._mask_of(guide.answer, [token for token in others if token is not None])

    def _mask_of(self, matcher: Matcher, extra: Iterable[int] = ()) -> Mask | None:
        """A grammar that grows beyond what can be followed ends its own request, nobody else's."""
        try:
            return matcher.mask(extra)
        except UsageError as error:
            self.finish("error", error)
            return None

    def bias(self) -> dict[int, float]:
        """The request's logit_bias and, near its limit, what leads the thought to its end."""
        bias = dict(self.params.logit_bias)
        close, guide = self.machine.ids.think_close, self.guide
        if self.machine.phase is Phase.THINK and guide and guide.budget and close is not None:
            pull = guide.budget.close_bias(self.machine.reasoning_tokens, self.num_new)
            if pull:
                bias[close] = bias.get(close, 0.0) + pull
        return bias

    # --- the transition ---

    def append_sampled(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Take the sampler's token; follow it with forced text, or finish, where the phases ask for it."""
        if self.finish_reason:
            return
        self.first_token = self.first_token or time.monotonic()
        if self.guide is not None and self.machine.phase is Phase.THINK and self._redirect(token):
            return
        stops = self._is_stop(token)
        self._route(token, sampled=True, logprob=logprob, silent=stops)
        if self.machine.phase is Phase.DONE:
            self.finish("tool_calls" if self.output.tool_calls else "stop")
        elif self.output.stopped or stops:
            self.finish("stop")
        elif self.output.tool_calls and not self.params.parallel_tool_calls:
            self.finish("tool_calls")
        else:
            self._lead_in(token)
            self._react()

    def _is_stop(self, token: int) -> bool:
        """Does a stop token id end the output here? In a chat only an answer, and not the empty line that
        leads up to it."""
        if token not in self.params.stop_token_ids or self.guide is None:
            return token in self.params.stop_token_ids
        begun = not self.output.is_blank or token not in self.guide.blank_ids()
        return self.machine.phase is Phase.ANSWER and begun

    def _lead_in(self, token: int) -> None:
        """A grammar begins with the answer itself, so the empty line that models write before it is ours."""
        guide = self.guide
        if guide is None or guide.answer is None or token != self.machine.ids.think_close:
            return
        if self.machine.phase is Phase.ANSWER and self.num_new + len(guide.after_thought) < self.max_new:
            self._force(guide.after_thought)

    def _redirect(self, token: int) -> bool:
        """Where the model wants to end its thought: is something else appended instead of `token`?"""
        ids, guide = self.machine.ids, self.guide
        assert guide is not None and guide.budget is not None
        budget, thought = guide.budget, self.machine.reasoning_tokens
        if token == ids.tool_open:  # the call must be real: it stands behind a closed thought
            self._close_thought("natural", budget.close(self.num_new))
            return False
        if token != ids.think_close and token not in self.machine.stops:
            return False
        if wait := budget.wait(thought, self.num_new):
            self._force(wait)
        elif token in self.machine.stops:  # the turn ended inside the thought, but an answer is due
            self._close_thought("natural", budget.close(self.num_new))
        else:
            if budget.close_bias(thought, self.num_new):
                self.thinking_stop = "budget"
            return False
        self._react()
        return True

    def _react(self) -> None:
        """What follows from the state that is reached: the end, a closed thought, a call that is due."""
        guide = self.guide
        if self.max_new and self.num_new >= self.max_new:
            self.finish("length")
            return
        if guide is None:
            return
        if self.machine.phase is Phase.THINK and guide.budget is not None:
            if forced := guide.budget.observe(self.machine.reasoning_tokens, self.num_new):
                self._close_thought("budget", forced)
            elif self.loop:
                self._close_thought("loop", guide.budget.end(self.num_new))
        call = self.machine.ids.tool_open
        if guide.must_call and self.machine.phase is Phase.ANSWER and not self.machine.may_open:
            assert call is not None
            self._force((call,))
            if self.num_new >= self.max_new:
                self.finish("length")

    def _close_thought(self, reason: ThinkingStop, forced: Iterable[int]) -> None:
        self.thinking_stop = reason
        self._force(forced)

    def _force(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            # What is forced into an answer with a grammar leads up to it and is no part of it.
            silent = (
                self.machine.phase is Phase.ANSWER
                and self.guide is not None
                and self.guide.answer is not None
            )
            self._route(token, sampled=False, silent=silent)

    def _route(
        self, token: int, *, sampled: bool, logprob: TokenLogprob | None = None, silent: bool = False
    ) -> None:
        """Append one token and tell everybody who watches. silent: it has no text."""
        before = self.machine.phase
        step = self.machine.advance(token)
        after, guide = self.machine.phase, self.guide
        self.tokens.append(token)
        if before is not after:
            self._change(before, after)
        if step.phase is Phase.THINK and not step.is_control and guide is not None and guide.loops:
            self.loop = self.loop or guide.loops.observe(token)
        if silent:
            step = step._replace(is_control=True)
        self.output.push(token, step, after, sampled, logprob)
        if sampled and not step.is_control:
            self._follow(before, token)

    def _follow(self, phase: Phase, token: int) -> None:
        """The grammar in force moves over a sampled token of text."""
        matcher = self.call if phase is Phase.TOOL else None
        if phase is Phase.ANSWER and self.guide is not None:
            matcher = self.guide.answer
        if matcher is None:
            return
        try:
            matcher.advance(token)
        except UsageError as error:
            self.finish("error", error)

    def _change(self, before: Phase, after: Phase) -> None:
        """Another phase begins."""
        now = time.monotonic()
        if after is Phase.THINK:
            self.thought_began = now
        if before is Phase.THINK:
            self.thought_ended = now
            if self.thinking_stop == "none":
                self.thinking_stop = "natural"
        if after is Phase.TOOL and self.guide is not None:
            self.guide.must_call = False
            self.call = self.guide.tool_call.matcher() if self.guide.tool_call is not None else None

    # --- live steering, between two steps ---

    def end_thought(self) -> None:
        """Close the open thought now. Raises ControlError when there is none."""
        self._close_thought("user", self._open_budget().end(self.num_new))
        self._react()

    def extend_thought(self, tokens: int) -> None:
        """Let the open thought go on for at least `tokens` more. Raises ControlError when it cannot."""
        self._open_budget().extend(self.machine.reasoning_tokens, tokens)

    def set_budget(self, budget: int | None) -> None:
        """Change the budget of the open thought. Raises ControlError when there is none."""
        self._open_budget().change(budget)
        self._react()

    def hint(self, ids: list[int]) -> None:
        """Put words into the open thought. Raises ControlError when there is none, or no room."""
        room = self._open_budget().room(self.machine.reasoning_tokens, self.num_new)
        if len(ids) > room:
            raise ControlError(
                f"the hint has {len(ids)} tokens, but the thought has room for {room}. Shorten it."
            )
        self._force(ids)
        self._react()

    def _open_budget(self) -> Budget:
        state = "over" if self.thought_ended or self.finish_reason else "not open"
        if self.machine.phase is not Phase.THINK or self.finish_reason or self.guide is None:
            raise ControlError(f"the thought is {state}: it can only be steered while it runs.")
        assert self.guide.budget is not None
        return self.guide.budget

    # --- the end ---

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End the sequence once; later calls change nothing."""
        if self.finish_reason is not None:
            return
        self.finished = time.monotonic()
        if self.machine.phase is Phase.THINK:
            self.thought_ended = self.finished
        self.output.finish()
        self.error, self.finish_reason = error, reason  # from here on another thread may read the whole
        self.output.emit(None)
        if self.after is not None:
            self.after(self)

    def completion(self) -> Completion:
        """What came out, after `finish`."""
        assert self.finish_reason is not None
        out, guide, new = self.output, self.guide, self.tokens[self.num_prompt :]
        budget = guide.budget if guide is not None else None
        report = ThinkingReport(
            mode=guide.mode if guide is not None else "auto",
            budget=budget.budget if budget is not None else None,
            stop=self.thinking_stop,
            seconds=max(self.thought_ended - self.thought_began, 0.0) if self.thought_began else 0.0,
            source=guide.source if guide is not None else "default",
            waits=budget.waits if budget is not None else 0,
        )
        return Completion(
            reasoning=out.text("reasoning"),
            content=out.text("content"),
            tool_calls=tuple(out.tool_calls),
            token_ids=tuple(new),
            sampled=tuple(out.sampled),
            finish_reason=self.finish_reason,
            usage=self.usage,
            thinking=report,
            timing=Timing(max(self.first_token - self.created, 0.0), self.finished - self.created),
            kinds=tuple(out.kinds),
            logprobs=tuple(out.logprobs) if self.params.logprobs is not None else (),
            malformed=tuple(out.malformed),
            cache_miss=self.cache_miss,
            stop_string=out.stop_string if self.finish_reason == "stop" else None,
        )
