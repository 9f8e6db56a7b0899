"""Whatever a caller calls messages -> a checked list of Message.

In: a question, Messages, or dicts in the shape of OpenAI's API (and the spellings of a thought that other
servers return). Out: Messages. What makes no sense is a UsageError naming the message and the field.
Does not know: templates, tokens, HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ..types import Message, Role, ToolCall, UsageError

Messages = str | Sequence[Message] | Sequence[Mapping[str, Any]]

ROLES: dict[str, Role] = {role: role for role in get_args(Role)} | {"developer": "system"}
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
FIELDS = {"role", "content", *THOUGHT_FIELDS, "tool_calls", "tool_call_id", "name"}
PART_FIELDS = {"type", "text"}
CALL_FIELDS = {"id", "type", "index", "function", "name", "arguments"}


def as_messages(messages: Messages) -> list[Message]:
    """A question, Messages, or dicts in OpenAI's shape. Raises UsageError naming what is wrong."""
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    if isinstance(messages, bytes | bytearray) or not isinstance(messages, Sequence):
        raise UsageError(f"messages is {_kind(messages)}. Give a text, or a list of messages.")
    turns = [_turn(item, f"message {number}") for number, item in enumerate(messages)]
    if not turns:
        raise UsageError("there are no messages. Give at least one with role 'user'.")
    if turns[-1].role == "user" and not (turns[-1].content or "").strip():
        raise UsageError("the prompt is empty. Ask something.")
    return turns


def _turn(raw: Any, where: str) -> Message:
    """One message, checked; a Message is read as the dict that it stands for."""
    if isinstance(raw, Message):
        calls: Any = raw.tool_calls
        if isinstance(calls, list | tuple):
            calls = [_fields(call) for call in calls]
        turn = {"role": raw.role, "content": raw.content, "reasoning": raw.reasoning, "tool_calls": calls}
        return _message(turn, where)
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} is {_kind(raw)}. Give an object with 'role' and 'content'.")
    return _message(raw, where)


def _fields(call: Any) -> Any:
    if not isinstance(call, ToolCall):
        return call
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _message(raw: Mapping[str, Any], where: str) -> Message:
    _refuse_unknown(raw, FIELDS, where)
    named = raw.get("role")
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        known = ", ".join(map(repr, ROLES))
        raise UsageError(f"{where}: role {_shown(named)} is unknown. Use one of {known}.")
    reasoning, calls = _reasoning(raw, where), _calls(raw.get("tool_calls"), where)
    for name, value in (("reasoning", reasoning), ("tool_calls", calls)):
        if value and role != "assistant":
            raise UsageError(f"{where}: {name} belongs to role 'assistant', not {role!r}. Leave it out.")
    for name in ("tool_call_id", "name"):
        _text(raw.get(name), f"{where}: {name}")
    return Message(role, _content(raw.get("content"), where), reasoning, calls)


def _content(value: Any, where: str) -> str | None:
    """Text, or the texts of a list of parts, one after the other."""
    if not isinstance(value, list | tuple):
        return _text(value, f"{where}: content")
    texts = []
    for number, part in enumerate(value):
        at = f"{where}: content part {number}"
        if not isinstance(part, Mapping):
            raise UsageError(f'{at} is {_kind(part)}. Give {{"type": "text", "text": ...}}.')
        if part.get("type") != "text":
            raise UsageError(f"{at} has the type {_shown(part.get('type'))}. Only 'text' can be read.")
        _refuse_unknown(part, PART_FIELDS, at)
        texts.append(_required(part.get("text"), f"{at}: text"))
    return "\n".join(texts)


def _reasoning(raw: Mapping[str, Any], where: str) -> str | None:
    """The thought of an earlier answer, under any of its names."""
    found = {name: _text(raw.get(name), f"{where}: {name}") for name in THOUGHT_FIELDS}
    given = {name: text for name, text in found.items() if text is not None}
    if len(set(given.values())) > 1:
        raise UsageError(f"{where}: {' and '.join(given)} differ. Give the thought once.")
    return next(iter(given.values()), None)


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where}: tool_calls is {_kind(value)}. Give a list of calls.")
    return tuple(_call(call, f"{where}: tool call {number}") for number, call in enumerate(value))


def _call(raw: Any, where: str) -> ToolCall:
    """A call in OpenAI's shape, or with name and arguments at its top."""
    if not isinstance(raw, Mapping):
        raise UsageError(f'{where} is {_kind(raw)}. Give {{"id", "type", "function"}}.')
    _refuse_unknown(raw, CALL_FIELDS, where)
    if raw.get("type") not in (None, "function"):
        raise UsageError(f"{where} has the type {_shown(raw['type'])}. Only 'function' can be read.")
    function = raw if raw.get("function") is None else raw["function"]
    if not isinstance(function, Mapping):
        raise UsageError(f"{where}: function is {_kind(function)}. Give an object with name and arguments.")
    if function is not raw:
        _refuse_unknown(function, {"name", "arguments"}, f"{where}: function")
    name = _required(function.get("name"), f"{where}: name")
    if not name:
        raise UsageError(f"{where}: name is empty. Give the name of the function.")
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = _json(arguments, where)
    return ToolCall(
        name, _required(arguments, f"{where}: arguments"), _text(raw.get("id"), f"{where}: id") or ""
    )


def _json(value: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: arguments are no JSON. Give an object that JSON can hold.") from error


def _text(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{what} is {_kind(value)}. Give text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} holds half of a surrogate pair. Give valid Unicode.") from error
    return value


def _required(value: Any, what: str) -> str:
    text = _text(value, what)
    if text is None:
        raise UsageError(f"{what} is missing. Give text.")
    return text


def _refuse_unknown(raw: Mapping[str, Any], known: set[str], where: str) -> None:
    """Fields that say nothing (null, or an empty list) may stand: clients echo whole answers."""
    for name, value in raw.items():
        said = value is not None and not (isinstance(value, list | tuple) and not value)
        if said and name not in known:
            raise UsageError(f"{where} has the unknown field {_shown(name)}. Use {', '.join(sorted(known))}.")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    """A value for an error of one line."""
    return repr(value[:60]) if isinstance(value, str) else _kind(value)
