"""The items of OpenAI's responses API -> the messages of a conversation.

In: a text or items, as clients send them and as our answers hold them. Out: items with ids, to be kept; and
messages in the shape of chats, each thought with the turn that it led to. Does not know: stores, answers.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from .schema import FieldError, shown

Item = dict[str, Any]
FIELDS = {  # type of an item -> the fields that it may have
    "message": {"type", "id", "status", "role", "content"},
    "reasoning": {"type", "id", "status", "summary", "content", "encrypted_content"},
    "function_call": {"type", "id", "status", "call_id", "name", "arguments"},
    "function_call_output": {"type", "id", "status", "call_id", "output"},
}
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
ROLES = ("user", "system", "developer", "assistant")
TEXT_PARTS = ("input_text", "output_text", "text")


def new_id(kind: str) -> str:
    """An id for an item of this type."""
    return f"{PREFIXES[kind]}_{secrets.token_hex(12)}"


def as_items(given: str | list[dict[str, Any]]) -> list[Item]:
    """What a request sends as `input`, checked: every item has a type, an id, and text as parts. Raises
    FieldError naming the item."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_item(item, f"input item {number}") for number, item in enumerate(given)]


def as_messages(items: Iterable[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The conversation. A thought, a text and calls that follow each other are one turn of the assistant."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    turn: dict[str, Any] | None = None  # the assistant's, as long as it may grow
    for item in items:
        kind = item["type"]
        if kind == "function_call_output":
            output = _joined(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
            turn = None
        elif kind == "message" and item["role"] != "assistant":
            messages.append({"role": item["role"], "content": _joined(item["content"])})
            turn = None
        else:
            if turn is None or _is_over(turn, kind):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _grow(turn, item)
    return messages


def _is_over(turn: Mapping[str, Any], kind: str) -> bool:
    """Does an item of this kind begin another turn?"""
    said = bool(turn["content"]) or "tool_calls" in turn
    return (kind == "reasoning" and (said or "reasoning" in turn)) or (kind == "message" and said)


def _grow(turn: dict[str, Any], item: Item) -> None:
    if item["type"] == "reasoning":
        turn["reasoning"] = _thought(item)
    elif item["type"] == "message":
        turn["content"] = _joined(item["content"])
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)


def _joined(parts: str | list[dict[str, str]]) -> str:
    return parts if isinstance(parts, str) else "\n".join(part["text"] for part in parts)


# --- checks ---


def _item(raw: Mapping[str, Any], where: str) -> Item:
    """One item, checked and complete."""
    item = {name: value for name, value in raw.items() if value is not None}
    kind = item.setdefault("type", "message" if "role" in item else None)
    if kind not in FIELDS:
        if kind == "item_reference":
            what = "refers to an item by its id. Send the item itself, or previous_response_id"
        else:
            what = f"is of type {shown(kind)}. Use {', '.join(FIELDS)}"
        raise FieldError("input", f"{where} {what}.")
    for name, value in item.items():
        if name not in FIELDS[kind]:
            raise FieldError(
                "input", f"{where} ({kind}) has the unknown field {shown(name)}={shown(value)}. Leave it out."
            )
    if not isinstance(item.setdefault("id", new_id(kind)), str):
        raise FieldError("input", f"{where}: id={shown(item['id'])} is no text.")
    if item.setdefault("status", "completed") not in ("completed", "incomplete", "in_progress"):
        raise FieldError("input", f"{where}: status={shown(item['status'])} is unknown. Leave it out.")
    _CHECKS[kind](item, where)
    return item


def _message(item: Item, where: str) -> None:
    if item.get("role") not in ROLES:
        role = shown(item.get("role"))
        raise FieldError("input", f"{where}: role={role} is unknown. Use one of {', '.join(ROLES)}.")
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    item["content"] = _parts(item.get("content"), f"{where}: content", kind)


def _reasoning(item: Item, where: str) -> None:
    """The thought as it was handed out: in plain text, or encoded."""
    summary, content = item.setdefault("summary", []), item.get("content")
    if summary != []:
        raise FieldError("input", f"{where}: a summary is no thought. Send the item's content instead.")
    if content is not None:
        item["content"] = _parts(content, f"{where}: content", "reasoning_text")
    _decoded(item.get("encrypted_content"), where)
    if content is None and "encrypted_content" not in item:
        raise FieldError("input", f"{where}: the thought is missing. Send content, as it came.")


def _call(item: Item, where: str) -> None:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise FieldError("input", f"{where}: {name}={shown(item.get(name))} is no text. Give it.")


def _output(item: Item, where: str) -> None:
    if not isinstance(item.get("call_id"), str):
        raise FieldError("input", f"{where}: call_id={shown(item.get('call_id'))} is no text. Give it.")
    if not isinstance(item.get("output"), str):
        item["output"] = _parts(item.get("output"), f"{where}: output", "input_text")


_CHECKS = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _call,
    "function_call_output": _output,
}


def _parts(content: Any, where: str, kind: str) -> list[dict[str, str]]:
    """Parts of text, all of the kind that belongs here. Labels that came with our own answers are dropped."""
    if isinstance(content, str):
        return [{"type": kind, "text": content}]
    if not isinstance(content, list):
        raise FieldError("input", f"{where}={shown(content)} is neither text nor a list of parts.")
    parts = []
    for number, part in enumerate(content):
        at = f"{where} part {number}"
        if not isinstance(part, Mapping) or part.get("type") not in (*TEXT_PARTS, kind):
            found = shown(part.get("type") if isinstance(part, Mapping) else part)
            raise FieldError("input", f"{at} is of type {found}. Only text ({kind!r}) can be read.")
        unknown = [name for name, value in part.items() if value and name not in ("type", "text", "logprobs")]
        if unknown:
            raise FieldError("input", f"{at} has the unknown field {shown(unknown[0])}. Leave it out.")
        if not isinstance(part.get("text"), str):
            raise FieldError("input", f"{at}: text={shown(part.get('text'))} is no text.")
        parts.append({"type": kind, "text": part["text"]})
    return parts


# --- the thought in a field for clients that keep no other ---


def encoded(thought: str) -> str:
    """A thought as `encrypted_content`: the same text in base64. It hides nothing."""
    return base64.b64encode(thought.encode()).decode()


def _thought(item: Item) -> str:
    content = item.get("content")
    return _joined(content) if content else _decoded(item.get("encrypted_content"), "")


def _decoded(value: Any, where: str) -> str:
    try:
        return "" if value is None else base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError, TypeError):
        raise FieldError(
            "input", f"{where}: encrypted_content does not come from this server. Leave the item out."
        ) from None
