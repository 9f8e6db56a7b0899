"""Where the pieces of an answer go: content to stdout, thoughts (dimmed on a terminal) and chatter to stderr.

In: Deltas and Completions. Out: text on the two streams, a tool call as a line of stdout. On a terminal,
control characters that a model wrote are dropped: no answer can move the cursor or retitle the window.
Does not know: models, options.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sized
from dataclasses import replace

import click

from ..types import Completion, Delta, ToolCall

LONGEST_BRIEF = 60  # characters
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_ONE_LINE = {ord("\n"): " ", ord("\r"): " "}  # in JSON they are white space
_ENDS = {
    "natural": "ended by itself",
    "budget": "closed at the budget",
    "loop": "closed because it went round in circles",
    "user": "ended by you",
}


class Printer:
    """Prints one answer as it comes; leaving its `with` block ends the last line, whatever happened.

    A tool call is an answer too: one line `name {arguments}` on stdout, when it is complete.
    """

    def __init__(self) -> None:
        """Both streams are at the start of a line."""
        self.kind = ""
        self.last = "\n"
        self.call: ToolCall | None = None  # it may still grow, or be taken back
        self.index = 0
        self.after_call = False  # nothing visible has followed a call yet

    def show(self, delta: Delta) -> None:
        """Print a piece, with an empty line where the thought ends and the answer begins."""
        if self.call is not None and (delta.kind != "tool_call" or delta.index != self.index):
            self._end_call()
        if delta.kind == "tool_call":
            self._take_call(delta)
            return
        if delta.kind != self.kind:
            self._end_thought()
            self.kind = delta.kind
        text = delta.text.lstrip() if self.after_call else delta.text
        if delta.kind == "content":
            _write(text)
        else:
            note(text, end="")
        self.last = text[-1:] or self.last
        self.after_call = self.after_call and not text

    def show_all(self, done: Completion) -> None:
        """Print a whole answer."""
        if done.reasoning:
            self.show(Delta("reasoning", done.reasoning))
        if done.content:
            self.show(Delta("content", done.content))
        for index, call in enumerate(done.tool_calls):
            self.show(Delta("tool_call", "", index, call.id, call.name))
            self.show(Delta("tool_call", call.arguments, index))

    def interject(self, text: str) -> None:
        """A remark on a line of its own, in the middle of a thought."""
        note(text if self.last == "\n" else f"\n{text}")
        self.last = "\n"

    def __enter__(self) -> Printer:
        """Nothing to prepare."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last line, unless nobody is there to read it; half a call is not printed."""
        if kind is not None and issubclass(kind, OSError):
            return
        if kind is None and self.call is not None:
            self._end_call()
        if self.kind == "content":
            self._end_line()
        else:
            self._end_thought()

    def _take_call(self, delta: Delta) -> None:
        if delta.malformed:
            self.call = None  # its text follows as content
        elif self.call is None:
            self.call, self.index = ToolCall(delta.name, delta.text, delta.id), delta.index
        else:
            self.call = replace(self.call, arguments=self.call.arguments + delta.text)

    def _end_call(self) -> None:
        assert self.call is not None
        self._end_thought()
        self._end_line()
        _write(f"{self.call.name} {self.call.arguments.strip().translate(_ONE_LINE)}\n")
        self.call, self.kind, self.last, self.after_call = None, "content", "\n", True

    def _end_line(self) -> None:
        if self.kind == "content" and self.last != "\n":
            _write("\n")
            self.last = "\n"

    def _end_thought(self) -> None:
        if self.kind == "reasoning":
            note("" if self.last == "\n" else "\n", end="\n")
            self.kind, self.last = "", "\n"


def _write(text: str) -> None:
    sys.stdout.write(_safe(text, sys.stdout.isatty()))
    sys.stdout.flush()


def note(text: str, end: str = "\n") -> None:
    """Dimmed text on stderr."""
    click.echo(click.style(_safe(text, sys.stderr.isatty()), dim=True) + end, err=True, nl=False)


def _safe(text: str, on_terminal: bool) -> str:
    return text.translate(_CONTROL) if on_terminal else text


def summary(done: Completion) -> str:
    """One line: tokens, speed, and what the thought cost and why it ended."""
    usage, timing, thought = done.usage, done.timing, done.thinking
    after = timing.total_s - timing.first_token_s
    speed = (
        f" at {(usage.completion_tokens - 1) / after:,.0f} tok/s"
        if usage.completion_tokens > 1 and after
        else ""
    )
    parts = [f"{usage.completion_tokens} tokens{speed}, {timing.total_s:.2f} s"]
    if thought.stop != "none" or usage.reasoning_tokens:
        ends = _ENDS.get(thought.stop, "did not end")
        if thought.stop == "budget" and (thought.budget is None or usage.reasoning_tokens < thought.budget):
            ends = "closed to leave room for the answer"
        parts.append(f"thought {usage.reasoning_tokens} tokens, {thought.seconds:.2f} s, {ends}")
        if thought.waits:
            parts.append(f"extended {thought.waits} times" if thought.waits > 1 else "extended once")
    else:
        parts.append("no thought")
    odd = done.cache_miss == "evicted" or (done.cache_miss == "diverged" and not usage.cached_tokens)
    if usage.cached_tokens or odd:
        why = f" ({done.cache_miss})" if odd else ""
        parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached{why}")
    parts += [f"no tool call: {reason}" for reason in done.malformed]
    if done.finish_reason == "length":
        parts.append("cut: no tokens left (see --max-tokens, --context)")
    elif done.finish_reason != "stop":
        parts.append(done.finish_reason)
    return "[" + " · ".join(parts) + "]"


def tally(groups: Mapping[str, Sized], samples: int) -> str:
    """One line: how many of the samples say what, the winner first."""
    parts: list[str] = []
    for answer, voters in groups.items():
        of = f" of {samples}" if not parts else ""
        parts.append(f"{len(voters)}{of} {'says' if len(voters) == 1 else 'say'} {brief(answer)}")
    silent = samples - sum(map(len, groups.values()))
    if silent:
        parts.append(f"{silent} of {samples} gave no answer" if not parts else f"{silent} gave no answer")
    return " · ".join(parts)


def brief(answer: str | None) -> str:
    """An answer as a part of a line."""
    text = " ".join((answer or "no answer").split())
    return text if len(text) <= LONGEST_BRIEF else text[: LONGEST_BRIEF - 1] + "…"
