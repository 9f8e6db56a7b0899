"""What an OpenAI-compatible endpoint sends back: chunks of a chat completion, and errors.

In: lines of a stream. Out: Deltas, a Completion; errors as one line. Does not know: HTTP, what was sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from .types import (
    Completion,
    Delta,
    EngineError,
    FinishReason,
    SamplingParams,
    Thinking,
    ThinkingReport,
    Timing,
    ToolCall,
    Usage,
    as_dict,
)

OPEN, CLOSE = "<think>", "</think>"
REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "abort",
    "abort": "abort",
}
LONGEST_ERROR = 500  # characters of what an endpoint says about an error


def error_text(body: str) -> str:
    """What a response that is no success says: the message inside, in one line, with a full stop."""
    try:
        read = json.loads(body)
    except ValueError:
        read = body
    for name in ("error", "message", "detail"):
        if isinstance(read, Mapping) and read.get(name):
            read = read[name]
    text = " ".join((read if isinstance(read, str) else json.dumps(read)).split())[:LONGEST_ERROR]
    return text if text.endswith((".", "!", "?")) else f"{text or 'it gave no reason'}."


class Reader:
    """The chunks of one chat completion, line by line -> Deltas, and a Completion at the end.

    id: of the completion, from its first chunk on. A thought comes under reasoning_content, under reasoning,
    or between <think> and </think> at the start of the content.
    """

    def __init__(self, where: str, params: SamplingParams | None, thinking: Thinking | None) -> None:
        self.id: str | None = None
        self._where, self._stops, self._asked = (
            where,
            (params or SamplingParams()).stop,
            thinking or Thinking(),
        )
        self._split = _Thought()
        self._line = ""  # that has not ended yet
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._calls: dict[int, list[str]] = {}  # id, name, pieces of the arguments
        self._malformed: list[str] = []
        self._usage, self._reason = Usage(), ""
        self._stop: str | None = None
        self._report: Mapping[str, Any] | None = None
        self._start, self._first, self._last = time.monotonic(), 0.0, 0.0
        self._thought = [0.0, 0.0]  # when it began and when it was last heard of

    def lines(self, text: str) -> list[str]:
        """The lines that end in this piece of the stream. A line feed alone ends one: others (httpx too) end
        them at U+0085 and U+2028, which may stand in JSON."""
        *whole, self._line = (self._line + text).split("\n")
        return whole

    def push(self, line: str) -> list[Delta]:
        """The Deltas of one line of the stream. Raises EngineError for an error in it, and for nonsense."""
        if not line.startswith("data:") or (data := line[5:].strip()) in ("", "[DONE]"):
            return []
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                raise EngineError(f"{self._where} failed: {error_text(data)}")
            return self._chunk(chunk)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise EngineError(
                f"{self._where} sent something that is no chunk of a chat completion: {data[:80]!r}."
            ) from error

    def finish(self) -> list[Delta]:
        """The stream has ended: what was held back; a call that is no JSON is taken back, and is content.
        Raises EngineError when the end came before the answer was complete."""
        if not self._reason:
            what = (
                "broke off in the middle of the answer" if self.id else "sent no chat completion as a stream"
            )
            raise EngineError(f"{self._where} {what}. Try again, or check the URL.")
        deltas = self._say(self._split.finish())
        for index, (_, name, *pieces) in list(self._calls.items()):
            arguments = "".join(pieces) or "{}"
            try:
                json.loads(arguments)
            except ValueError:
                del self._calls[index]
                reason = "the call is cut off before its JSON is whole"
                self._malformed.append(reason)
                text = f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}'
                deltas.append(Delta("tool_call", "", index, malformed=reason))
                deltas += self._say([("content", text)])
        return deltas

    def completion(self, *, aborted: bool = False) -> Completion:
        """What came out. token_ids and their kinds are not known of a remote answer."""
        reason: FinishReason = "abort" if aborted else REASONS.get(self._reason, "abort")
        calls = [ToolCall(name, "".join(pieces) or "{}", id) for id, name, *pieces in self._calls.values()]
        end = self._last or time.monotonic()
        return Completion(
            reasoning="".join(self._texts["reasoning"]),
            content="".join(self._texts["content"]),
            tool_calls=() if aborted else tuple(calls),
            token_ids=(),
            sampled=(),
            finish_reason=reason,
            usage=self._usage,
            thinking=self._thinking(),
            timing=Timing(max(self._first - self._start, 0.0), end - self._start),
            malformed=tuple(self._malformed),
            stop_string=self._stop if reason == "stop" else None,
        )

    def _chunk(self, chunk: Mapping[str, Any]) -> list[Delta]:
        self._last = time.monotonic()
        self.id = self.id or chunk.get("id")
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        if not chunk.get("choices"):
            return []
        choice = chunk["choices"][0]
        said = choice.get("delta") or {}
        deltas: list[Delta] = []
        thought = said.get("reasoning_content") or said.get("reasoning")
        if thought:
            deltas += self._say([("reasoning", thought)])
        if content := said.get("content"):
            deltas += self._say([("content", content)] if thought else self._split.push(content))
        for call in said.get("tool_calls") or ():
            deltas += self._call(call)
        if choice.get("finish_reason"):
            self._reason, self._report = choice["finish_reason"], choice.get("thinking")
            stop = choice.get("stop_reason")  # vLLM's, and ours
            self._stop = stop if isinstance(stop, str) and stop in self._stops else None
        return deltas

    def _call(self, call: Mapping[str, Any]) -> list[Delta]:
        index, function = call.get("index", 0), call.get("function") or {}
        pieces: list[Delta] = self._say(self._split.finish())
        if index not in self._calls:
            self._calls[index] = [call.get("id") or f"call_{index}", function["name"]]
            id, name = self._calls[index]
            pieces.append(Delta("tool_call", "", index, id, name))
        if arguments := function.get("arguments"):
            self._calls[index].append(arguments)
            pieces.append(Delta("tool_call", arguments, index))
        self._first = self._first or self._last
        return pieces

    def _say(self, said: Sequence[tuple[str, str]]) -> list[Delta]:
        """Texts as Deltas, kept and timed."""
        deltas = []
        for kind, text in said:
            now = time.monotonic()
            self._first = self._first or now
            if kind == "reasoning":
                self._thought = [self._thought[0] or now, now]
            self._texts[kind].append(text)
            deltas.append(Delta("reasoning" if kind == "reasoning" else "content", text))
        return deltas

    def _thinking(self) -> ThinkingReport:
        """What the endpoint says of the thought, or what can be seen of it."""
        asked, report = self._asked, self._report
        thought = bool(self._texts["reasoning"])
        seen: dict[str, Any] = {
            "mode": "on" if thought else "off" if asked.mode == "off" else "auto",
            "budget": asked.budget,
            "stop": "natural" if thought and (self._texts["content"] or self._calls) else "none",
            "seconds": self._thought[1] - self._thought[0],
            "source": asked.source or "default",
        }
        told = {name: report[name] for name in as_dict(ThinkingReport()) if name in report} if report else {}
        return ThinkingReport(**(seen | told))


class _Thought:
    """Content that may begin with <think>: (kind, text) pieces without the tags; what is not sure is held."""

    def __init__(self) -> None:
        self._state, self._held = "start", ""

    def push(self, text: str) -> list[tuple[str, str]]:
        """The pieces that are sure now."""
        self._held += text
        if self._state == "start":
            begun = self._held.lstrip()
            if len(begun) < len(OPEN) and OPEN.startswith(begun):
                return []
            inside = begun.startswith(OPEN)
            self._state = "opened" if inside else "answer"
            self._held = begun.removeprefix(OPEN) if inside else self._held
        pieces: list[tuple[str, str]] = []
        if self._state == "opened":
            self._held = self._held.lstrip("\n")
            self._state = "thought" if self._held else "opened"
        if self._state == "thought":
            thought, tag, rest = self._held.partition(CLOSE)
            sure = thought.rstrip("\n") if tag else _sure(thought)
            pieces, self._held = [("reasoning", sure)], rest if tag else thought[len(sure) :]
            if not tag:
                return [piece for piece in pieces if piece[1]]
            self._state = "lead-in"
        if self._state == "lead-in":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "lead-in"
        held, self._held = self._held, ""
        return [piece for piece in [*pieces, ("content", held)] if piece[1]]

    def finish(self) -> list[tuple[str, str]]:
        """What was held back."""
        held, self._held = self._held, ""
        kind = "reasoning" if self._state == "thought" else "content"
        return [(kind, held)] if held.strip("\n") else []


def _sure(thought: str) -> str:
    """The thought without an end that may be line ends before the tag, or begin the tag."""
    for length in range(min(len(CLOSE) - 1, len(thought)), 0, -1):
        if CLOSE.startswith(thought[-length:]):
            thought = thought[:-length]
            break
    return thought.rstrip("\n")


def _usage(raw: Mapping[str, Any]) -> Usage:
    def count(name: str, inside: str | None = None) -> int:
        place = raw if inside is None else raw.get(inside) or {}
        return cast(int, place.get(name) or 0)

    return Usage(
        count("prompt_tokens"),
        count("cached_tokens", "prompt_tokens_details"),
        count("completion_tokens"),
        count("reasoning_tokens", "completion_tokens_details"),
    )
