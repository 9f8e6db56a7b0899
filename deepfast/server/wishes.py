"""The bodies of the OpenAI APIs -> what the engine is asked for: sampling, grammar, thinking, tools.

In: bodies of schema.py. Out: SamplingParams, Thinking, Variants, an Ask; or a FieldError that names the
field. Does not know: routes, replies, running requests.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..thinking.controls import CONTROL_FIELDS, control_keys, from_request
from ..types import Grammar, SamplingParams, Thinking, UsageError, Variant
from .schema import ChatDraws, ChatRequest, Draws, FieldError, shown
from .service import Ask

# Fields that say the same thing in several ways: a variant that sends one of a group replaces the group.
GRAMMARS = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structured_outputs",
)
GROUPS = (frozenset(CONTROL_FIELDS), frozenset(GRAMMARS), frozenset({"max_tokens", "max_completion_tokens"}))
MAX_CHOICES = 1000  # more make a grammar that takes seconds to compile
SHARED_OBJECTS = ("chat_template_kwargs", "custom_params")  # objects that may hold other servers' keys
SAME_NAME = (  # fields that SamplingParams calls the same
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "ignore_eos",
)  # fmt: skip


def chat_ask(body: ChatRequest) -> Ask:
    """Everything that a chat request asks for. Raises UsageError, mostly as FieldError."""
    tools, choice = chosen_tools(body.tools, body.tool_choice)
    parallel = body.parallel_tool_calls is not False
    return Ask(chat_messages(body.messages), chat_variants(body, parallel), tools, choice)


def chat_variants(body: ChatRequest, parallel_tool_calls: bool) -> list[Variant]:
    """One variant, n of a kind, or those that the request lists."""
    own = {name: value for name, value in body.given().items() if name in ChatDraws.model_fields}
    if body.variants is None:
        one = variant_of(body, parallel_tool_calls)
        return Variant.branches(body.n or 1, one.params, one.thinking)
    if body.n not in (None, 1):
        raise FieldError("n", f"n={body.n} and variants contradict each other. List every variant.")
    if not body.variants:
        raise FieldError("variants", "variants is empty. List at least one, or leave it out.")
    made = []
    for number, variant in enumerate(body.variants):
        told = variant.given()
        replaced = {name for group in GROUPS if group & told.keys() for name in group}
        merged = {name: value for name, value in own.items() if name not in replaced} | told
        try:
            made.append(variant_of(ChatDraws.model_construct(set(merged), **merged), parallel_tool_calls))
        except UsageError as error:
            raise FieldError("variants", f"variant {number}: {error}") from None
    return made


def variant_of(body: ChatDraws, parallel_tool_calls: bool = True) -> Variant:
    """The sampling and the thinking of one body."""
    params = draw_params(body, _limit(body))
    if body.top_logprobs is not None and not body.logprobs:
        raise FieldError("top_logprobs", f"top_logprobs={body.top_logprobs} needs logprobs=true.")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = replace(
        params, logprobs=logprobs, grammar=grammar_of(body), parallel_tool_calls=parallel_tool_calls
    )
    return Variant(params, thinking_of(body.given()))


def draw_params(body: Draws, max_tokens: int | None) -> SamplingParams:
    """How tokens are drawn. Raises UsageError when a value is out of its range."""
    given = body.given()
    fields: dict[str, Any] = {name: given[name] for name in SAME_NAME if name in given}
    if body.top_k is not None:
        fields["top_k"] = max(body.top_k, 0)  # vLLM's spelling of "off" is -1
    if body.logit_bias is not None:
        fields["logit_bias"] = {_token_id(key): bias for key, bias in body.logit_bias.items()}
    if body.stop is not None:
        fields["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.stop_token_ids is not None:
        fields["stop_token_ids"] = tuple(body.stop_token_ids)
    return SamplingParams(**fields, max_tokens=max_tokens)


def _limit(body: ChatDraws) -> int | None:
    given = {getattr(body, name) for name in ("max_tokens", "max_completion_tokens")} - {None}
    if len(given) > 1:
        raise FieldError(
            "max_tokens",
            f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} "
            "contradict each other. Send one of them.",
        )
    limit: int | None = next(iter(given), None)
    return None if limit == -1 else limit  # llama.cpp's spelling of "no limit"


def _token_id(key: str) -> int:
    if not re.fullmatch(r"\d{1,9}", key, re.ASCII):
        raise FieldError("logit_bias", f"logit_bias holds the key {shown(key)}. Use token ids, as text.")
    return int(key)


def thinking_of(given: Mapping[str, Any]) -> Thinking | None:
    """The wish behind all spellings of a thinking control; unknown keys in their objects are refused."""
    controls = {name: given[name] for name in CONTROL_FIELDS if name in given}
    for name in SHARED_OBJECTS:
        value = controls.get(name)
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if key not in control_keys(name) and inner is not None:
                known = ", ".join(control_keys(name))
                raise FieldError(name, f"{name} holds the unknown key {shown(key)}. Use {known}.")
    return from_request(controls)


# --- what the answer must match ---


def grammar_of(body: ChatDraws) -> Grammar | None:
    """The one grammar that is asked for, in whatever spelling; None for plain text."""
    found: dict[str, Grammar | None] = {}
    if body.response_format is not None:
        found["response_format"] = format_grammar(body.response_format, "response_format")
    if body.guided_json is not None:
        found["guided_json"] = Grammar("json_schema", _source(body.guided_json))
    if body.guided_regex is not None:
        found["guided_regex"] = Grammar("regex", body.guided_regex)
    if body.guided_grammar is not None:
        found["guided_grammar"] = Grammar("lark", body.guided_grammar)
    if body.guided_choice is not None:
        found["guided_choice"] = _choice(body.guided_choice, "guided_choice")
    if body.structured_outputs is not None:
        found["structured_outputs"] = _structured(body.structured_outputs)
    grammars = {name: grammar for name, grammar in found.items() if grammar is not None}
    if len(grammars) > 1:
        first, second = list(grammars)[:2]
        raise FieldError(second, f"{first} and {second} both say what the answer must match. Send one.")
    return next(iter(grammars.values()), None)


def grammar_field(body: ChatRequest) -> str | None:
    """The name of the field that says what the answer must match."""
    found = [name for name in GRAMMARS if getattr(body, name) is not None]
    return found[0] if found else "variants" if body.variants else None


def format_grammar(value: Mapping[str, Any], where: str) -> Grammar | None:
    """OpenAI's formats: text, json_object, json_schema (nested in chats, flat in responses)."""
    field, nested = where.partition(".")[0], where == "response_format"
    kind = value.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise FieldError(
            field, f"{where}.type={shown(kind)} is unknown. Use 'text', 'json_object' or 'json_schema'."
        )
    if kind != "json_schema":
        _only(value, {"type"}, where)
        return Grammar("json_schema", '{"type": "object"}') if kind == "json_object" else None
    inner: Any = value
    if nested:
        _only(value, {"type", "json_schema"}, where)
        inner, where = value.get("json_schema"), "response_format.json_schema"
    if not isinstance(inner, Mapping):
        raise FieldError(field, f"{where}={shown(inner)} is no object. Give name and schema.")
    _only(inner, {"name", "schema", "strict", "description"} | (set() if nested else {"type"}), where)
    if inner.get("description"):
        raise FieldError(field, f"{where}.description is not shown to the model. Put it into a message.")
    if inner.get("strict") not in (None, True, False):
        raise FieldError(field, f"{where}.strict={shown(inner['strict'])} is not true or false.")
    if inner.get("name") is not None and not isinstance(inner["name"], str):
        raise FieldError(field, f"{where}.name={shown(inner['name'])} is no text.")
    schema = inner.get("schema")
    if not isinstance(schema, Mapping):
        raise FieldError(field, f"{where}.schema={shown(schema)} is no JSON schema. Give an object.")
    return Grammar("json_schema", json.dumps(schema))


def _structured(value: Mapping[str, Any]) -> Grammar | None:
    """vLLM's structured_outputs: one of json, regex, grammar, choice, json_object."""
    name, known = "structured_outputs", ("json", "regex", "grammar", "choice", "json_object")
    given = {key: inner for key, inner in value.items() if inner is not None and inner is not False}
    _only(given, set(known), name)
    if len(given) != 1:
        raise FieldError(
            name, f"structured_outputs holds {len(given)} rules. Give one of {', '.join(known)}."
        )
    key, inner = next(iter(given.items()))
    if key == "json_object":
        return Grammar("json_schema", '{"type": "object"}')
    if key == "choice":
        return _choice(inner, name)
    if key == "json" and isinstance(inner, str | Mapping):
        return Grammar("json_schema", _source(inner))
    if not isinstance(inner, str):
        raise FieldError(name, f"structured_outputs.{key}={shown(inner)} is no text. Give text.")
    return Grammar("regex" if key == "regex" else "lark", inner)


def _choice(options: Any, field: str) -> Grammar:
    """One of several texts, as a regular expression."""
    if not isinstance(options, list) or not options or not all(isinstance(text, str) for text in options):
        raise FieldError(field, f"{field}: the choice is {shown(options)}. Give a list of texts.")
    if len(options) > MAX_CHOICES:
        raise FieldError(field, f"{field}: {len(options)} texts to choose from. Give at most {MAX_CHOICES}.")
    return Grammar("regex", "|".join(f"({re.escape(text)})" for text in options))


def _source(schema: str | Mapping[str, Any]) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema)


def _only(value: Mapping[str, Any], known: set[str], where: str, field: str | None = None) -> None:
    for key, inner in value.items():
        if inner is not None and key not in known:
            raise FieldError(
                field or where.partition(".")[0],
                f"{where} has the unknown key {shown(key)}. Use {', '.join(sorted(known))}.",
            )


# --- tools ---


def chosen_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]] | None, str]:
    """The tools in the shape that the engine reads, and which of them may or must be called.

    Without tools no call is possible, whatever the conversation says. Of tool_choice's allowed_tools only
    those are shown to the model.
    """
    shaped = [_tool(tool, number) for number, tool in enumerate(tools or ())]
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("tools"), list):
            raise FieldError("tool_choice", "tool_choice.allowed_tools holds no tools. List some.")
        allowed = [_named(item) for item in inner["tools"]]
        known = [tool["function"].get("name") for tool in shaped]
        if missing := [name for name in allowed if name not in known]:
            raise FieldError(
                "tool_choice",
                f"tool_choice allows {shown(missing[0])}, which is not among the tools. Give it there.",
            )
        shaped = [tool for tool in shaped if tool["function"].get("name") in allowed]
        choice = inner.get("mode", "auto")
        if choice not in ("auto", "required"):
            raise FieldError(
                "tool_choice", f"tool_choice's mode={shown(choice)} is not 'auto' or 'required'."
            )
    word = choice if isinstance(choice, str) else "auto" if choice is None else _named(choice)
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise FieldError("tool_choice", f"tool_choice={shown(choice)} is not 'auto', 'none' or 'required'.")
    if isinstance(choice, Mapping):
        if word in ("auto", "none", "required"):
            raise FieldError("tool_choice", f"a tool must not be called {word!r} to be chosen. Rename it.")
        if word not in (tool["function"].get("name") for tool in shaped):
            raise FieldError(
                "tool_choice", f"tool_choice {shown(word)} is not among the tools. Give it there."
            )
    return (shaped, word) if shaped else (None, "none" if word == "auto" else word)


def _named(choice: Any) -> str:
    """The name in {"type": "function", "function": {"name"}} or {"type": "function", "name"}."""
    if not isinstance(choice, Mapping) or choice.get("type", "function") != "function":
        kind = choice.get("type") if isinstance(choice, Mapping) else choice
        raise FieldError("tool_choice", f"tool_choice of type {shown(kind)} is unknown. Use 'function'.")
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise FieldError("tool_choice", "tool_choice names no function. Give function.name.")
    return name


def _tool(tool: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One tool, in OpenAI's chat shape (or flat, as in responses). Raises FieldError."""
    if tool.get("type") != "function":
        kind = shown(tool.get("type"))
        raise FieldError(
            "tools", f"tool {number} is of type {kind}. The server runs none itself: 'function'."
        )
    function = tool.get("function", tool)
    if not isinstance(function, Mapping):
        raise FieldError("tools", f"tool {number}: function is no object. Give name and parameters.")
    keys = {"name", "description", "parameters", "strict"}
    _only(tool, {"type", "function"} if function is not tool else {"type", *keys}, f"tool {number}", "tools")
    _only(function, {"type", *keys}, f"tool {number}: function", "tools")
    if function.get("strict") not in (None, True, False):
        raise FieldError("tools", f"tool {number}: strict={shown(function['strict'])} is not true or false.")
    if not isinstance(function.get("description", "") or "", str):
        raise FieldError("tools", f"tool {number}: its description is no text. Give text.")
    kept = ("name", "description", "parameters")  # every call is held to its schema: strict says nothing new
    return {
        "type": "function",
        "function": {key: function[key] for key in kept if function.get(key) is not None},
    }


# --- messages ---


def chat_messages(messages: Sequence[dict[str, Any]], field: str = "messages") -> list[dict[str, Any]]:
    """The messages with each run of tool results in the order of the calls they answer: the templates tell
    results apart by their order alone. Raises FieldError for a result that answers no call, and for a name
    that no template can show."""
    ordered: list[dict[str, Any]] = []
    calls: dict[str, int] = {}  # id -> its place
    run: list[tuple[int, dict[str, Any]]] = []
    for number, message in enumerate(messages):
        if message.get("role") == "tool":
            run.append((_place(message, calls, f"message {number}", field), message))
            continue
        ordered += [result for _, result in sorted(run, key=lambda item: item[0])]
        run = []
        if message.get("name") is not None:
            text = f"message {number}: name is not shown to the model. Write it into the content."
            raise FieldError(field, text)
        made = message.get("tool_calls")
        if message.get("role") == "assistant" and isinstance(made, list):
            ids = [call.get("id") for call in made if isinstance(call, Mapping)]
            calls = {id: place for place, id in reversed([*enumerate(ids)]) if id and isinstance(id, str)}
        ordered.append(message)
    return ordered + [result for _, result in sorted(run, key=lambda item: item[0])]


def _place(message: Mapping[str, Any], calls: Mapping[str, int], where: str, field: str) -> int:
    call_id = message.get("tool_call_id")
    if call_id is None or not calls:
        return sys.maxsize  # nothing to match: such results keep their own order
    if not isinstance(call_id, str) or call_id not in calls:
        raise FieldError(
            field,
            f"{where}: the call id {shown(call_id)} is not among the calls before it. "
            "Give the id of the call that it answers.",
        )
    return calls[call_id]
