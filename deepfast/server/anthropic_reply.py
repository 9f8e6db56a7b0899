"""What a running chat says -> the content blocks, events and messages of Anthropic's API.

In: Deltas, then a Completion. Out: events as dicts, and the message that they add up to. A tool_use block
comes when its call is whole, so one that is cut off is text and never half an input; tools that ask for it
(eager_input_streaming) get theirs piece by piece. Does not know: HTTP, what was asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

from ..types import Completion, DeepfastError, Delta, EngineError, Usage, UsageError
from .anthropic_messages import signature
from .openai_reply import extensions, timing
from .service import Running

Event = dict[str, Any]
LONGEST_NUMBER = 4000  # digits that Python turns into a number


class Blocks:
    """The content of one message on its way. content: the blocks that are whole."""

    def __init__(self, *, hidden: bool = False, eager: Collection[str] = ()) -> None:
        """hidden: thoughts keep their text to themselves. eager: tools whose input is not held back."""
        self.content: list[dict[str, Any]] = []
        self._hidden, self._eager = hidden, eager
        self._block: dict[str, Any] | None = None  # the one that is open
        self._parts: list[str] = []  # of its text
        self._blank = ""  # white space that may begin a text
        self._call: list[Delta] = []  # that may still be taken back

    def push(self, delta: Delta) -> list[Event]:
        """The events of this Delta."""
        if delta.kind == "tool_call":
            return self._take_call(delta)
        events = self._end_call()
        kind, text = ("thinking", delta.text) if delta.kind == "reasoning" else ("text", delta.text)
        if kind == "text" and not self._is_open("text"):
            self._blank += text
            if not self._blank.strip():
                return events
            text, self._blank = self._blank, ""
        if text and not self._is_open(kind):
            new = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            events += self._open({"type": kind, **new})
        if not text:
            return events
        self._parts.append(text)
        return events if kind == "thinking" and self._hidden else [*events, self._delta(kind, kind, text)]

    def finish(self) -> list[Event]:
        """What is still open ends."""
        return self._end_call() + self._close()

    def _take_call(self, delta: Delta) -> list[Event]:
        """Hold the pieces of a call back until it is whole, unless its tool is eager."""
        if delta.malformed:
            self._call = []
            return self._close() if self._is_open("tool_use") else []
        if not delta.name:
            if not self._is_open("tool_use"):
                self._call.append(delta)
                return []
            return self._input(delta.text)
        events = self._end_call()
        if delta.name in self._eager:
            return events + self._begin_call(delta) + self._input(delta.text)
        self._call = [delta]
        return events

    def _end_call(self) -> list[Event]:
        if not self._call:
            return []
        (head, *_), arguments = self._call, "".join(piece.text for piece in self._call)
        self._call = []
        return self._begin_call(head) + self._input(arguments) + self._close()

    def _begin_call(self, head: Delta) -> list[Event]:
        id = head.id.replace("call_", "toolu_", 1)
        return self._open({"type": "tool_use", "id": id, "name": head.name, "input": {}})

    def _input(self, text: str) -> list[Event]:
        if not text:
            return []
        self._parts.append(text)
        return [self._delta("input_json", "partial_json", text)]

    def _is_open(self, kind: str) -> bool:
        return self._block is not None and self._block["type"] == kind

    def _open(self, block: dict[str, Any]) -> list[Event]:
        events = self._close()
        self._block, self._parts, self._blank = block, [], ""
        return [*events, {"type": "content_block_start", "index": len(self.content), "content_block": block}]

    def _close(self) -> list[Event]:
        """End the open block, and keep it as a whole."""
        block, self._block = self._block, None
        if block is None:
            return []
        events, text, kind = [], "".join(self._parts), block["type"]
        if kind == "thinking":
            sign = signature(text, sealed=self._hidden)
            events.append(self._delta("signature", "signature", sign))
            whole: Event = {"thinking": "" if self._hidden else text, "signature": sign}
        else:
            whole = {"text": text} if kind == "text" else {"input": as_input(text)}
        events.append({"type": "content_block_stop", "index": len(self.content)})
        self.content.append({**block, **whole})
        return events

    def _delta(self, kind: str, field: str, text: str) -> Event:
        delta = {"type": f"{kind}_delta", field: text}
        return {"type": "content_block_delta", "index": len(self.content), "delta": delta}


def as_input(arguments: str) -> dict[str, Any]:
    """The input of a tool. A number that Python or JSON cannot hold stays text; half an object is empty."""
    try:
        read = json.loads(arguments, parse_int=_whole, parse_float=_real)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def head(running: Running) -> dict[str, Any]:
    """The message before anything is said. A remote prompt is not counted yet."""
    count = getattr(running.streams[0], "num_prompt", 0)
    return _message(running, [], None, None, Usage(prompt_tokens=count))


def message(
    running: Running, content: list[dict[str, Any]], done: Completion, max_tokens: int
) -> dict[str, Any]:
    """The whole message. Raises EngineError when it was aborted."""
    end = stopped(done, max_tokens)
    reason, stop = end["delta"]["stop_reason"], end["delta"]["stop_sequence"]
    extra = {"thinking": end["thinking"], "timing": end["timing"]}
    return _message(running, content, reason, stop, done.usage) | extra


def stopped(done: Completion, max_tokens: int) -> Event:
    """The event message_delta: why it ended, and what it cost. Raises EngineError when it was aborted."""
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    if done.finish_reason not in reasons:
        raise EngineError("the answer was aborted before its end. Ask again.")
    reason = reasons[done.finish_reason]
    if done.stop_string is not None:
        reason = "stop_sequence"
    elif reason == "max_tokens" and 0 < done.usage.completion_tokens < max_tokens:
        reason = "model_context_window_exceeded"
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": done.stop_string},
        "usage": _usage(done.usage),
        "thinking": extensions(done)["thinking"],
        "timing": timing([done]),
    }


def error_event(error: DeepfastError) -> Event:
    """An error that came after the stream had begun."""
    kind = "invalid_request_error" if isinstance(error, UsageError) else "api_error"
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def _message(
    running: Running, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: Usage
) -> dict[str, Any]:
    return {
        "id": running.id,
        "type": "message",
        "role": "assistant",
        "model": running.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": {**_usage(usage), "service_tier": "standard"},
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts cached tokens beside the others, not among them."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) <= LONGEST_NUMBER else digits


def _real(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text
