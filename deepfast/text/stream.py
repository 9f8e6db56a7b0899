"""Token ids with their kind -> typed deltas, piece by piece; the whole answer is the pieces, joined.

In: (token id, kind) one at a time; kind None is a delimiter or a stop, which has no text. Out: deltas.
Reasoning loses its outer newlines, content its leading ones (unless `strip` is False); stop strings act in
content only. What may be cut or stripped is held back: half a character, the start of a stop string, newlines
after the reasoning. Does not know: phases, control tokens, JSON.
"""

from __future__ import annotations

from typing import NamedTuple

from ..types import Delta, DeltaKind
from .tokenizer import Tokenizer


class Stream:
    """The output of one request. `stopped`: a stop string was completed, the content is cut before it;
    `stop_string`: which one."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), *, strip: bool = True) -> None:
        self.stopped = False
        self.stop_string: str | None = None
        self._detokenizer = tokenizer.detokenizer()
        self._stop, self._strip = stop, strip
        self._kind: DeltaKind | None = None
        self._held: dict[DeltaKind, str] = {"reasoning": "", "content": "", "tool_call": ""}
        self._texts: dict[DeltaKind, list[str]] = {"reasoning": [], "content": [], "tool_call": []}
        self._visible: set[DeltaKind] = set()

    def push(self, token_id: int, kind: DeltaKind | None) -> list[Delta]:
        """The deltas that this token completes. After a stop string (`stopped`) there are none."""
        deltas = self._close() if kind != self._kind else []
        self._kind = kind
        if kind is None:
            return deltas
        return deltas + self._take(kind, self._detokenizer.push(token_id))

    def push_text(self, text: str, kind: DeltaKind) -> list[Delta]:
        """A whole piece of text that did not come as tokens; nothing of it is held back."""
        deltas = self._close()
        self._kind = kind
        return deltas + self._take(kind, text) + self._close()

    def finish(self) -> list[Delta]:
        """What was held back, when no token follows."""
        return self._close()

    def text(self, kind: DeltaKind) -> str:
        """All deltas of one kind so far, joined."""
        return "".join(self._texts[kind])

    def has_text(self, kind: DeltaKind) -> bool:
        """Is there more than white space in one kind, counting what is held back?"""
        if kind not in self._visible and any(text.strip() for text in self._texts[kind]):
            self._visible.add(kind)
        return kind in self._visible or bool(self._held[kind].strip())

    def _close(self) -> list[Delta]:
        """The current kind ends here: give out what it holds, except newlines at the end of the reasoning."""
        kind, self._kind = self._kind, None
        if kind is None:
            return []
        deltas = self._take(kind, self._detokenizer.flush())
        if kind == "content":
            deltas += self._give(kind, self._held[kind])
            self._held[kind] = ""
        return deltas

    def _take(self, kind: DeltaKind, text: str) -> list[Delta]:
        if self.stopped or not text:
            return []
        if kind == "tool_call":
            return self._give(kind, text)
        text = self._held[kind] + text
        if not self._texts[kind] and (self._strip or kind == "reasoning"):
            text = text.lstrip("\n")
        end = len(text.rstrip("\n")) if kind == "reasoning" else self._end_of_content(text)
        self._held[kind] = "" if self.stopped else text[end:]
        return self._give(kind, text[:end])

    def _end_of_content(self, text: str) -> int:
        """How much of `text` is certain: up to a stop string, or to what may begin one."""
        match = _first_match(text, self._stop)
        if match is None:
            return len(text) - held_length(text, self._stop)
        self.stopped, self.stop_string = True, text[match.start : match.end]
        return match.start

    def _give(self, kind: DeltaKind, text: str) -> list[Delta]:
        if not text:
            return []
        self._texts[kind].append(text)
        return [Delta(kind, text)]


class _Match(NamedTuple):
    end: int
    start: int


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the stop string that is complete first begins; None when there is none.

    "Complete first", not "begins first": so the cut does not depend on how the text was split.
    """
    match = _first_match(text, stop)
    return None if match is None else match.start


def _first_match(text: str, stop: tuple[str, ...]) -> _Match | None:
    starts = [(text.find(string), len(string)) for string in stop]
    return min((_Match(start + length, start) for start, length in starts if start >= 0), default=None)


def held_length(text: str, stop: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that may begin a stop string."""
    for length in range(min(len(text), max(map(len, stop), default=1) - 1), 0, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return length
    return 0
