"""Where the pieces of an answer go: content to stdout, thoughts (dimmed on a terminal) and chatter to stderr.

In: Deltas and Completions. Out: text on the two streams. On a terminal, control characters that a model wrote
are dropped, so that no answer can move the cursor or retitle the window. Does not know: models, options.
"""

from __future__ import annotations

import sys

import click

from ..types import Completion, Delta

_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_ENDS = {
    "natural": "ended by itself",
    "budget": "closed at the budget",
    "loop": "closed because it went round in circles",
    "user": "ended by you",
}


class Printer:
    """Prints one answer as it comes; leaving its `with` block ends the last line, whatever happened."""

    def __init__(self) -> None:
        """Both streams are at the start of a line."""
        self.kind = ""
        self.last = "\n"

    def show(self, delta: Delta) -> None:
        """Print a piece, with an empty line where the thought ends and the answer begins."""
        if delta.kind != self.kind:
            self._end_thought()
            self.kind = delta.kind
        if delta.kind == "content":
            sys.stdout.write(_safe(delta.text, sys.stdout.isatty()))
            sys.stdout.flush()
        else:
            note(delta.text, end="")
        self.last = delta.text[-1:] or self.last

    def __enter__(self) -> Printer:
        """Nothing to prepare."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last line, unless nobody is there to read it."""
        if kind is not None and issubclass(kind, OSError):
            return
        if self.kind == "content":
            if self.last != "\n":
                sys.stdout.write("\n")
            sys.stdout.flush()
        else:
            self._end_thought()

    def _end_thought(self) -> None:
        if self.kind in ("reasoning", "tool_call"):
            note("" if self.last == "\n" else "\n", end="\n")


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
    else:
        parts.append("no thought")
    if done.finish_reason == "length":
        parts.append("cut: no tokens left (see --max-tokens, --context)")
    elif done.finish_reason != "stop":
        parts.append(done.finish_reason)
    return "[" + " · ".join(parts) + "]"
