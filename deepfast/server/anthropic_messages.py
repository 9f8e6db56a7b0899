"""Anthropic's conversations -> ours: system, content blocks, tools and their results in OpenAI's shape.

In: the JSON of a Messages request. Out: messages, tools, a tool choice, as Ask takes them. Whatever cannot be
honoured is a UsageError that names its place ("messages.2.content.0"). Thoughts that come back keep their
text; a thought that only another server can read (redacted, or of a foreign signature) has none to keep.
Does not know: HTTP, sampling, what an answer looks like.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from ..types import UsageError

Block = tuple[str, Mapping[str, Any]]  # its place, and itself
SEALED, SIGNED = "deepfast-thought-", "deepfast-"
LONGEST_THOUGHT = 4_000_000  # characters that a seal may unfold to
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
OURS = ("auto", "none", "required")  # words that the engine reads as a choice, not as the name of a tool


class Tools(NamedTuple):
    """schemas: in OpenAI's shape. eager: names of tools whose input is streamed while it is written."""

    schemas: list[dict[str, Any]]
    eager: frozenset[str]


def conversation(
    system: str | Sequence[Any] | None, messages: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages in OpenAI's shape. Neighbours of one role become one turn; the results of tools stand in
    the order of their calls, before what else the user says. Raises UsageError."""
    if not messages:
        raise UsageError("messages: there are none. Give at least one with role 'user'.")
    turns = [] if system is None else [{"role": "system", "content": _texts(_listed(system, "system"))}]
    calls: list[str] = []  # ids that want a result in the next turn
    role = ""
    for role, where, blocks in _grouped(messages):
        if calls and role != "user":
            _unanswered(where, calls[0])
        if role == "assistant":
            turn = _assistant(blocks)
            calls = [call["id"] for call in turn["tool_calls"]]
            turns.append(turn)
        elif role == "user":
            turns += _user(where, blocks, calls)
            calls = []
        else:
            turns.append({"role": "system", "content": _texts(blocks)})
    if role == "assistant":
        raise UsageError(
            f"messages.{len(messages) - 1}: the conversation ends with role 'assistant', but an answer that "
            "was begun cannot be continued here. End with a user message."
        )
    return turns


def tools(raw: Sequence[Any] | None) -> Tools | None:
    """The caller's own tools. Raises UsageError for those that only Anthropic's servers have."""
    if not raw:
        return None
    schemas, eager = [], set()
    for number, tool in enumerate(raw):
        where = f"tools.{number}"
        schema = _tool(tool, where)
        schemas.append({"type": "function", "function": schema})
        if tool.get("eager_input_streaming"):
            eager.add(schema["name"])
    return Tools(schemas, frozenset(eager))


def tool_choice(raw: Mapping[str, Any] | None, tools: Tools | None) -> tuple[str, bool]:
    """The choice in our words, and whether several calls may stand in one turn. Raises UsageError."""
    if raw is None:
        return "auto", True
    where, kind = "tool_choice", raw.get("type")
    _known(raw, where, ["type", "name", "disable_parallel_tool_use"])
    if not isinstance(kind, str) or kind not in (*CHOICES, "tool"):
        raise UsageError(f"{where}.type is {_shown(kind)}. Use 'auto', 'any', 'tool' or 'none'.")
    single = raw.get("disable_parallel_tool_use")
    if single is not None and not isinstance(single, bool):
        raise UsageError(f"{where}.disable_parallel_tool_use is {_shown(single)}. Give true or false.")
    if tools is None and kind in ("any", "tool"):
        raise UsageError(f"{where} {kind!r} needs tools. Give some, or use 'auto'.")
    if kind != "tool":
        if raw.get("name") is not None:
            raise UsageError(f"{where}.name belongs to the type 'tool', not {kind!r}. Leave it out.")
        return CHOICES[kind], not single
    name = _string(raw.get("name"), f"{where}.name")
    if name in OURS:
        raise UsageError(f"{where}.name: a tool called {name!r} cannot be forced. Give it another name.")
    return name, not single


def cache_control(raw: Any, where: str) -> None:
    """Prefixes are cached without being told, so a well-formed breakpoint changes nothing."""
    if raw is None:
        return
    _known(raw, where, ["type", "ttl"])
    if raw.get("type") != "ephemeral" or raw.get("ttl") not in (None, "5m", "1h"):
        raise UsageError(f"{where} is not understood. Give {{'type': 'ephemeral'}}, with ttl '5m' or '1h'.")


def signature(thought: str, *, sealed: bool) -> str:
    """What stands under a thinking block: a hash of the thought, the same for the same thought; or, for a
    thought that is not shown, the thought itself, packed, so that it can come back."""
    if sealed:
        return SEALED + base64.b64encode(zlib.compress(thought.encode())).decode()
    return SIGNED + hashlib.sha256(thought.encode()).hexdigest()[:32]


def _unsealed(signature: str, where: str) -> str:
    """The thought that a signature holds; none where it is only a hash, or not ours."""
    if not signature.startswith(SEALED):
        return ""
    try:
        packed = base64.b64decode(signature.removeprefix(SEALED), validate=True)
        return zlib.decompressobj().decompress(packed, LONGEST_THOUGHT).decode()
    except (ValueError, zlib.error) as error:
        raise UsageError(f"{where}: the signature is damaged. Send it back as it came.") from error


def _grouped(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[Block]]]:
    """(role, place, blocks) of each turn: neighbours of one role are combined, as Anthropic does."""
    before: tuple[str, str, list[Block]] | None = None
    for number, raw in enumerate(messages):
        where = f"messages.{number}"
        _known(raw, where, ["role", "content"])
        role = raw.get("role")
        if not isinstance(role, str) or role not in ("user", "assistant", "system"):
            raise UsageError(f"{where}.role is {_shown(role)}. Use 'user', 'assistant' or 'system'.")
        blocks = _listed(raw.get("content"), f"{where}.content")
        if before is not None and before[0] == role:
            before[2].extend(blocks)
            continue
        if before is not None:
            yield before
        before = role, where, blocks
    if before is not None:
        yield before


def _listed(raw: Any, where: str) -> list[Block]:
    """Content as blocks; a text alone is a block of text."""
    if isinstance(raw, str):
        return [(where, {"type": "text", "text": raw})]
    if not isinstance(raw, list):
        raise UsageError(f"{where} is {_shown(raw)}. Give a text or a list of content blocks.")
    for number, block in enumerate(raw):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise UsageError(f"{where}.{number} is no content block. Give an object with a type.")
    return [(f"{where}.{number}", block) for number, block in enumerate(raw)]


def _texts(blocks: Sequence[Block]) -> str:
    """The text of blocks that may hold nothing else."""
    return "\n".join(_text(where, block) for where, block in blocks)


def _text(where: str, block: Mapping[str, Any]) -> str:
    if block["type"] != "text":
        _refuse(where, block["type"], ["text"])
    _known(block, where, ["type", "text", "cache_control", "citations"])
    cache_control(block.get("cache_control"), f"{where}.cache_control")
    if block.get("citations"):
        raise UsageError(f"{where}.citations cannot be honoured: nothing is cited here. Leave them out.")
    return _string(block.get("text"), f"{where}.text")


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    """One turn of the model: its thought, its text, its calls."""
    thoughts, texts, calls = [], [], []
    for where, block in blocks:
        kind = block["type"]
        if kind == "thinking":
            _known(block, where, ["type", "thinking", "signature"])
            thought = _string(block.get("thinking"), f"{where}.thinking")
            sign = _string(block.get("signature") or "", f"{where}.signature")
            thoughts.append(thought or _unsealed(sign, where))
        elif kind == "redacted_thinking":
            _known(block, where, ["type", "data"])
        elif kind == "tool_use":
            calls.append(_call(where, block))
        elif kind == "text":
            texts.append(_text(where, block))
        else:
            _refuse(where, kind, ["text", "thinking", "redacted_thinking", "tool_use"])
    ids = [call["id"] for call in calls]
    if len(set(ids)) < len(ids):
        raise UsageError(
            f"{blocks[0][0]}: two tool_use blocks of one turn have the same id. Give each its own."
        )
    reasoning = "\n".join(filter(None, thoughts)) or None
    return {"role": "assistant", "content": "\n".join(texts), "reasoning": reasoning, "tool_calls": calls}


def _call(where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    _known(block, where, ["type", "id", "name", "input", "cache_control", "caller", "toolset_name"])
    cache_control(block.get("cache_control"), f"{where}.cache_control")
    caller = block.get("caller")
    if caller is not None and caller != {"type": "direct"}:
        raise UsageError(f"{where}.caller: only the model calls tools here. Use {{'type': 'direct'}}.")
    if block.get("toolset_name") is not None:
        raise UsageError(f"{where}.toolset_name: there are no toolsets here. Leave it out.")
    if not isinstance(block.get("input"), Mapping):
        raise UsageError(f"{where}.input is {_shown(block.get('input'))}. Give an object.")
    name, id = (_string(block.get(field), f"{where}.{field}") for field in ("name", "id"))
    return {"id": id, "type": "function", "function": {"name": name, "arguments": block["input"]}}


def _user(where: str, blocks: Sequence[Block], calls: Sequence[str]) -> list[dict[str, Any]]:
    """What a user sends: results of the calls before, in the order of the calls, then what is said."""
    results: dict[str, str] = {}
    wanted = frozenset(calls)
    said = []
    for place, block in blocks:
        if block["type"] == "tool_result":
            id, result = _result(place, block)
            if id not in wanted or id in results:
                why = "has a result already" if id in results else "is no tool_use of the turn before"
                raise UsageError(f"{place}.tool_use_id: {id[:60]!r} {why}. Send one result for each call.")
            results[id] = result
        elif block["type"] == "text":
            said.append(_text(place, block))
        else:
            _refuse(place, block["type"], ["text", "tool_result"])
    for id in calls:
        if id not in results:
            _unanswered(where, id)
    turns = [{"role": "tool", "tool_call_id": id, "content": results[id]} for id in calls]
    return turns + ([{"role": "user", "content": "\n".join(said)}] if said or not turns else [])


def _result(where: str, block: Mapping[str, Any]) -> tuple[str, str]:
    """(id of the call, what the tool said). The templates know no failure, so one is said in words."""
    _known(block, where, ["type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name"])
    cache_control(block.get("cache_control"), f"{where}.cache_control")
    if block.get("toolset_name") is not None:
        raise UsageError(f"{where}.toolset_name: there are no toolsets here. Leave it out.")
    raw, failed = block.get("content"), block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        raise UsageError(f"{where}.is_error is {_shown(failed)}. Give true or false.")
    text = "" if raw is None else _texts(_listed(raw, f"{where}.content"))
    return _string(block.get("tool_use_id"), f"{where}.tool_use_id"), f"Error: {text}" if failed else text


def _tool(raw: Any, where: str) -> dict[str, Any]:
    """A tool as `function` of OpenAI's shape. Examples of its input go where JSON schema has them."""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} is {_shown(raw)}. Give an object with name and input_schema.")
    if raw.get("type") not in (None, "custom"):
        raise UsageError(
            f"{where}: {_shown(raw['type'])} is a tool that Anthropic provides, and this server has none. "
            "Give one of your own, with name and input_schema."
        )
    own = ["name", "description", "input_schema", "type", "cache_control", "strict", "input_examples"]
    _known(raw, where, [*own, "eager_input_streaming", "allowed_callers", "defer_loading"])
    cache_control(raw.get("cache_control"), f"{where}.cache_control")
    for field in ("strict", "eager_input_streaming", "defer_loading"):
        if raw.get(field) is not None and not isinstance(raw[field], bool):
            raise UsageError(f"{where}.{field} is {_shown(raw[field])}. Give true or false.")
    if raw.get("defer_loading"):
        raise UsageError(f"{where}.defer_loading needs a tool search, and there is none. Leave it out.")
    if raw.get("allowed_callers") not in (None, ["direct"]):
        raise UsageError(f"{where}.allowed_callers: only the model calls tools here. Use ['direct'].")
    schema, examples = raw.get("input_schema"), raw.get("input_examples")
    if not isinstance(schema, Mapping):
        raise UsageError(f"{where}.input_schema is {_shown(schema)}. Give a JSON schema.")
    if examples is not None and not isinstance(examples, list):
        raise UsageError(f"{where}.input_examples is {_shown(examples)}. Give a list of inputs.")
    parameters = {**schema, "examples": examples} if examples else dict(schema)
    function = {"name": _string(raw.get("name"), f"{where}.name"), "parameters": parameters}
    if raw.get("description") is not None:
        function["description"] = _string(raw["description"], f"{where}.description")
    return function


def _unanswered(where: str, id: str) -> NoReturn:
    raise UsageError(
        f"{where}: the tool_use {id[:60]!r} before it has no tool_result. Send one for each call, in the "
        "next user message."
    )


def _refuse(where: str, kind: str, known: Sequence[str]) -> NoReturn:
    words = " or ".join(filter(None, [", ".join(map(repr, known[:-1])), repr(known[-1])]))
    raise UsageError(f"{where}: content of type {_shown(kind)} cannot be read here. Use {words}.")


def _known(raw: Any, where: str, fields: Collection[str]) -> None:
    """Refuse, by name, every field that says something and is not known."""
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} is {_shown(raw)}. Give an object.")
    for name, value in raw.items():
        if value is not None and name not in fields:
            raise UsageError(
                f"{where} has the unknown field {_shown(name)}. Use {', '.join(sorted(fields))}."
            )


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where} is {_shown(value)}. Give text.")
    return value


def _shown(value: Any) -> str:
    """A value for an error of one line."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    return repr(value[:60]) if isinstance(value, str) else {dict: "an object"}.get(type(value), "a list")
