"""What came out of one sequence: texts, tool calls, deltas, and what every new token was.

In: each new token with its phase (and its log-probability, when asked for). Out: Deltas through `emit`, and
the parts of a Completion. Does not know: why a token came, other sequences, how the engine runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..text.stream import Stream
from ..text.tokenizer import Tokenizer
from ..text.tool_calls import ToolCallParser
from ..thinking.phases import Phase, Step
from ..types import Delta, DeltaKind, TokenLogprob, ToolCall

Emit = Callable[[Delta | None], None]  # None: the sequence has finished, nothing follows
KINDS: dict[Phase, DeltaKind] = {Phase.THINK: "reasoning", Phase.ANSWER: "content", Phase.TOOL: "tool_call"}


class Output:
    """The output of one request. call_ids: what the ids of its tool calls begin with. strip: the content
    loses its leading newlines. whole: everything is content, the text of control tokens too."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        emit: Emit,
        call_ids: str,
        *,
        strip: bool = True,
        whole: bool = False,
    ) -> None:
        self.emit = emit
        self.sampled: list[bool] = []  # per new token: sampled (train on it) or forced
        self.kinds: list[DeltaKind | None] = []
        self.logprobs: list[TokenLogprob | None] = []
        self.tool_calls: list[ToolCall] = []
        self.malformed: list[str] = []
        self._stream = Stream(tokenizer, stop, strip=strip and not whole)
        self._control_ids = tokenizer.control_ids if whole else None
        self._call_ids, self._num_calls = call_ids, 0
        self._call: ToolCallParser | None = None  # the call that is open
        self._kind: DeltaKind | None = None
        self._unsent: list[TokenLogprob] = []  # of tokens whose text is still held back
        self._unsent_kind: DeltaKind = "content"

    @property
    def stopped(self) -> bool:
        """A stop string was completed."""
        return self._stream.stopped

    @property
    def stop_string(self) -> str | None:
        """The stop string that was completed."""
        return self._stream.stop_string

    @property
    def has_content(self) -> bool:
        """Is there more than white space in the content?"""
        return self._stream.has_text("content")

    @property
    def is_blank(self) -> bool:
        """No content, and no tool call."""
        return not self.tool_calls and not self.has_content

    def text(self, kind: DeltaKind) -> str:
        """All text of one kind so far."""
        return self._stream.text(kind)

    def push(self, token: int, step: Step, after: Phase, sampled: bool, logprob: TokenLogprob | None) -> None:
        """Take one token. step: its phase; after: the phase that follows it."""
        kind = None if step.is_control else KINDS.get(step.phase)
        if self._control_ids is not None:
            ends = after is Phase.DONE or (step.is_control and token not in self._control_ids)
            kind = None if ends else "content"
        self.sampled.append(sampled)
        self.kinds.append(kind)
        self.logprobs.append(logprob)
        if kind != self._kind:
            self._change(kind)
        if step.phase is Phase.TOOL and self._call is None and self._control_ids is None:
            self._call = ToolCallParser(self._num_calls, f"{self._call_ids}_{self._num_calls}")
            self._num_calls += 1
        if logprob is not None and kind is not None:
            self._unsent.append(logprob)
            self._unsent_kind = kind
        if kind is not None:
            self._send(self._stream.push(token, kind))
        if self._call is not None and after is not Phase.TOOL:
            self._end_call(closed=after is Phase.ANSWER)

    def finish(self) -> None:
        """Nothing follows: give out what is held back."""
        self._change(None)
        if self._call is not None:
            self._end_call(closed=False)

    def _change(self, kind: DeltaKind | None) -> None:
        """A run of tokens of one kind is over: give out what is held back of its text."""
        self._send(self._stream.finish())
        if self._unsent and self._unsent_kind != "tool_call":  # `_end_call` knows where those belong
            self._emit(Delta(self._unsent_kind, ""))
        self._kind = kind

    def _end_call(self, closed: bool) -> None:
        """A call that cannot be read is passed on as content, never dropped."""
        parser, self._call = self._call, None
        assert parser is not None
        self._change(None)
        deltas, call = parser.finish(closed)
        for delta in deltas:
            self._emit(delta)
        if call is not None:
            self.tool_calls.append(call)
            if self._unsent:
                self._emit(Delta("tool_call", "", index=self._num_calls - 1))
            return
        self._num_calls -= not parser.begun  # nobody has seen this index: the next call takes it
        self.malformed.append(parser.reason)
        self._unsent_kind = "content"
        ending = "</tool_call>" if closed else ""
        self._send(self._stream.push_text(f"<tool_call>{parser.raw}{ending}", "content"))

    def _send(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if delta.kind != "tool_call":
                self._emit(delta)
            elif self._call is not None:
                for piece in self._call.push(delta.text):
                    self._emit(piece)

    def _emit(self, delta: Delta) -> None:
        if self._unsent and delta.kind == self._unsent_kind:
            delta, self._unsent = replace(delta, logprobs=tuple(self._unsent)), []
        self.emit(delta)
