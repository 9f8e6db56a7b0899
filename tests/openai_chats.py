"""What the tests of the OpenAI APIs share: questions and tools, and chunks joined to what they add up to.

In: a client. Out: answers as plain values. Does not know: what they should be.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is 47 * 86?"}]
SHORT = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "It computes.", "parameters": SHORT}}
    for name in ("mul", "add")
]


class Near(list[float]):
    """Numbers that equal others that are about the same: what was cached is computed in other sums."""

    def __eq__(self, other: object) -> bool:
        """Equal within 1e-3."""
        return isinstance(other, list) and list(self) == pytest.approx(list(other), abs=1e-3)


def ask(client, **fields: Any):
    """One chat, not streamed; fields that the client does not know go as extra_body."""
    return client.chat.completions.create(model="nano", messages=QUESTION, **fields)


def refused(client, error=openai.BadRequestError, **fields: Any):
    with pytest.raises(error) as caught:
        ask(client, **fields)
    assert "\n" not in caught.value.message
    return caught.value


def joined(chunks) -> dict[int, dict[str, Any]]:
    """What chunks add up to, per choice."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            whole = found.setdefault(
                choice.index,
                {"content": "", "reasoning": "", "reasoning_content": "", "calls": {}, "logprobs": []},
            )
            delta = choice.delta
            for name in ("content", "reasoning", "reasoning_content"):
                whole[name] += getattr(delta, name, None) or ""
            for call in delta.tool_calls or ():
                kept = whole["calls"].setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                kept["name"] += call.function.name or ""
                kept["arguments"] += call.function.arguments or ""
            if choice.logprobs:
                whole["logprobs"] += [token.logprob for token in choice.logprobs.content or ()]
            whole["finish_reason"] = choice.finish_reason
    return found


def as_joined(completion) -> dict[int, dict[str, Any]]:
    """The same of an answer that was not streamed."""
    found = {}
    for choice in completion.choices:
        said = choice.message
        calls = {
            i: {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for i, call in enumerate(said.tool_calls or ())
        }
        logprobs = [token.logprob for token in (choice.logprobs and choice.logprobs.content) or ()]
        found[choice.index] = {
            "content": said.content or "",
            "reasoning": said.reasoning or "",
            "reasoning_content": said.reasoning_content or "",
            "calls": calls,
            "logprobs": Near(logprobs),
            "finish_reason": choice.finish_reason,
        }
    return found
