"""What a running chat says -> the items and typed events of OpenAI's responses API.

In: Deltas, then a Completion, of one answer. Out: events, numbered; the items they add up to. Does not know:
HTTP, stores, what was asked.
"""

from __future__ import annotations

from typing import Any

from ..types import Completion, Delta
from .openai_reply import BytesOf, token_logprob
from .response_items import Item, encoded, new_id

Event = dict[str, Any]
KINDS = {"reasoning": "reasoning", "content": "message", "tool_call": "function_call"}
DELTAS = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}


class Writer:
    """The items of one answer while they are written. items: those that have begun, the last one growing.

    White space between two items is no item of its own. A call that is cut off stays as far as it was sent,
    marked incomplete. with_encoded: thoughts are also given as `encrypted_content`.
    """

    def __init__(self, bytes_of: BytesOf | None, *, with_encoded: bool = False) -> None:
        self.items: list[Item] = []
        self._bytes_of, self._with_encoded = bytes_of, with_encoded
        self._numbered = 0
        self._open: Item | None = None
        self._texts: list[str] = []  # of the open item
        self._logprobs: list[dict[str, Any]] = []
        self._blank: list[Delta] = []  # content that is white space so far
        self._taken_back = False

    def event(self, kind: str, **fields: Any) -> Event:
        """An event with the next number."""
        number, self._numbered = self._numbered, self._numbered + 1
        return {"type": kind, "sequence_number": number, **fields}

    def push(self, delta: Delta) -> list[Event]:
        """The events of one Delta."""
        if delta.malformed:
            self._taken_back = True
            return self._close("incomplete")
        kind = KINDS[delta.kind]
        if kind == "message":
            return self._push_content(delta)
        events: list[Event] = []
        if kind == "function_call" and delta.name:
            events += self._begin(kind, call_id=delta.id, name=delta.name, arguments="")
        elif kind == "reasoning" and delta.text and not self._is_open(kind):
            events += self._begin(kind, summary=[], content=[])
        return events + (self._grow(delta) if delta.text else [])

    def finish(self, done: Completion) -> list[Event]:
        """The events of the end: the open item is done, or incomplete where the answer was cut."""
        events: list[Event] = []
        if self._blank and not any(item["type"] != "reasoning" for item in self.items):
            events += self._flush_content()
        return events + self._close(
            "completed" if done.finish_reason in ("stop", "tool_calls") else "incomplete"
        )

    def _push_content(self, delta: Delta) -> list[Event]:
        if self._taken_back:  # the text of a call that was sent as one
            return []
        if self._is_open("message"):
            return self._grow(delta) if delta.text or delta.logprobs else []
        self._blank.append(delta)
        return self._flush_content() if delta.text.strip() else []

    def _flush_content(self) -> list[Event]:
        held, self._blank = self._blank, []
        events = self._begin("message", role="assistant", content=[])
        for delta in held:
            events += self._grow(delta)
        return events

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _begin(self, kind: str, **fields: Any) -> list[Event]:
        events = self._close("completed")
        self._blank = []
        self._open = {"type": kind, "id": new_id(kind), "status": "in_progress", **fields}
        self.items.append(self._open)
        index = len(self.items) - 1
        events.append(self.event("response.output_item.added", output_index=index, item=dict(self._open)))
        if kind != "function_call":
            part = self._part(kind, "")
            events.append(self._at("response.content_part.added", content_index=0, part=part))
        return events

    def _grow(self, delta: Delta) -> list[Event]:
        assert self._open is not None
        kind = self._open["type"]
        self._texts.append(delta.text)
        place = {} if kind == "function_call" else {"content_index": 0}
        if kind == "message":
            bytes_of = self._bytes_of
            new = [] if bytes_of is None else [token_logprob(token, bytes_of) for token in delta.logprobs]
            self._logprobs += new
            place["logprobs"] = new  # type: ignore[assignment]
        return [self._at(f"{DELTAS[kind]}.delta", delta=delta.text, **place)]

    def _close(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        kind, text = self._open["type"], "".join(self._texts)
        events: list[Event] = []
        if kind == "function_call":
            self._open["arguments"] = text
            done = {"arguments": text, "name": self._open["name"]}
            events.append(self._at(f"{DELTAS[kind]}.done", **done))
        else:
            part = self._part(kind, text)
            self._open["content"] = [part]
            more = {"logprobs": list(self._logprobs)} if kind == "message" else {}
            events.append(self._at(f"{DELTAS[kind]}.done", content_index=0, text=text, **more))
            events.append(self._at("response.content_part.done", content_index=0, part=part))
            if kind == "reasoning" and self._with_encoded:
                self._open["encrypted_content"] = encoded(text)
        self._open["status"] = status
        index = len(self.items) - 1
        events.append(self.event("response.output_item.done", output_index=index, item=dict(self._open)))
        self._open, self._texts, self._logprobs = None, [], []
        return events

    def _part(self, kind: str, text: str) -> dict[str, Any]:
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = list(self._logprobs)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _at(self, kind: str, **fields: Any) -> Event:
        """An event of the open item."""
        assert self._open is not None
        return self.event(kind, item_id=self._open["id"], output_index=len(self.items) - 1, **fields)
