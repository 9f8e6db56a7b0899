"""What an OpenAI-compatible endpoint is sent: the body of a chat completion, in the dialect that it speaks.

In: messages and wishes. Out: JSON; what a dialect has no word for is a UsageError naming it.
Does not know: HTTP, connections, keys, what comes back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .types import (
    ControlError,
    Grammar,
    Message,
    SamplingParams,
    Thinking,
    ToolCall,
    UsageError,
    Variant,
    as_dict,
)

CHOICES = ("auto", "none", "required")
MORE_SAMPLING = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos")
OWN_THOUGHT = ("min_tokens", "answer_reserve", "soft_landing")  # only a Deepfast has words for them


class Dialect(NamedTuple):
    """How a kind of endpoint spells what OpenAI's API has no word for. switch: thought on or off; budget: its
    limit in tokens; more: sampling fields beyond OpenAI's; grammars: of which kinds."""

    switch: Callable[[bool], dict[str, Any]]
    budget: Callable[[int], dict[str, Any]] | None = None
    more: Sequence[str] = ()
    grammars: Sequence[str] = ("json_schema",)
    limit: str = "max_tokens"
    thoughts: bool = True  # do messages carry the thought of earlier answers?


def _template(on: bool) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": on}}


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(
        lambda on: {"reasoning_effort": "medium" if on else "none"},
        limit="max_completion_tokens",
        thoughts=False,
    ),
    "deepfast": Dialect(
        lambda on: {"thinking": {"mode": "on" if on else "off"}},
        lambda budget: {"thinking": {"budget": budget}},
        MORE_SAMPLING,
        ("json_schema", "regex", "lark"),
    ),
    "vllm": Dialect(
        _template,
        lambda budget: {"thinking_token_budget": budget},
        MORE_SAMPLING,
        ("json_schema", "regex"),
    ),
    "llamacpp": Dialect(
        _template, lambda budget: {"thinking_budget_tokens": budget}, ("top_k", "min_p", "ignore_eos")
    ),
    "dashscope": Dialect(
        lambda on: {"enable_thinking": on}, lambda budget: {"thinking_budget": budget}, ("top_k",)
    ),
    "openrouter": Dialect(
        lambda on: {"reasoning": {"enabled": on}},
        lambda budget: {"reasoning": {"max_tokens": budget}},
        ("top_k", "min_p", "repetition_penalty"),
    ),
}


def chat_body(
    where: str,
    dialect: str,
    model: str,
    messages: str | Sequence[Message] | Sequence[Mapping[str, Any]],
    variant: Variant,
    tools: list[dict[str, Any]] | None,
    tool_choice: str,
) -> dict[str, Any]:
    """The body of a streamed chat completion. Raises UsageError for what the dialect cannot say."""
    speaks = DIALECTS[dialect]
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(messages, thoughts=speaks.thoughts),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= _sampling(where, dialect, variant.params or SamplingParams())
    body |= _thinking(where, dialect, variant.thinking or Thinking())
    if tools:
        named = {"type": "function", "function": {"name": tool_choice}}
        body |= {"tools": tools, "tool_choice": tool_choice if tool_choice in CHOICES else named}
    else:
        body.pop("parallel_tool_calls", None)  # OpenAI refuses it where there are no tools
    if not tools and tool_choice not in ("auto", "none"):
        raise UsageError(f"tool_choice={tool_choice!r} needs tools. Give some, or use 'auto'.")
    return body


def _messages(messages: str | Sequence[Any], *, thoughts: bool) -> list[dict[str, Any]]:
    """In OpenAI's shape, each result of a tool with the id of its call."""
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    made: list[dict[str, Any]] = []
    waiting: dict[str, None] = {}  # ids of calls without a result, in order
    for item in messages:
        raw = _fields(item)
        turn: dict[str, Any] = {"role": raw.get("role"), "content": raw.get("content")}
        thought = raw.get("reasoning_content") or raw.get("reasoning") or raw.get("thinking")
        if thought and thoughts:
            turn["reasoning_content"] = thought
        if calls := raw.get("tool_calls"):
            if not isinstance(calls, list | tuple):
                raise UsageError(f"message {len(made)}: tool_calls is no list. Give a list of calls.")
            turn["tool_calls"] = [_tool_call(call, len(made), i) for i, call in enumerate(calls)]
            waiting = dict.fromkeys(call["id"] for call in turn["tool_calls"])
        if turn["role"] == "tool":
            if not raw.get("tool_call_id") and not waiting:
                raise UsageError(f"message {len(made)}: a tool's result answers no call. Leave it out.")
            turn["tool_call_id"] = id = raw.get("tool_call_id") or next(iter(waiting))
            if not isinstance(id, str):
                raise UsageError(f"message {len(made)}: tool_call_id is no text. Give the id of a call.")
            waiting.pop(id, None)
        made.append(turn)
    return made


def _fields(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Message | ToolCall):
        return as_dict(value)
    if not isinstance(value, Mapping):
        raise UsageError(
            f"the messages hold {type(value).__name__}. Give Messages, or objects like OpenAI's."
        )
    return value


def _tool_call(call: Any, message: int, number: int) -> dict[str, Any]:
    raw: Any = as_dict(call) if isinstance(call, ToolCall) else call
    function: Any = (raw.get("function") or raw) if isinstance(raw, Mapping) else None
    named = isinstance(function, Mapping) and isinstance(function.get("name"), str)
    id = raw.get("id") or f"call_{message}_{number}" if named else None
    if not named or "arguments" not in function or not isinstance(id, str):
        raise UsageError(
            f"message {message}: tool call {number} is not understood. Give id, function.name and "
            "function.arguments."
        )
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": id,
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def _sampling(where: str, dialect: str, params: SamplingParams) -> dict[str, Any]:
    """What was asked for, and nothing else: the endpoint has defaults of its own."""
    speaks, plain, asked = DIALECTS[dialect], as_dict(SamplingParams()), as_dict(params)
    given = {name: value for name, value in asked.items() if value != plain[name]}
    grammar: Grammar | None = given.pop("grammar", None)
    if "logprobs" in given:
        raise UsageError("logprobs of a remote model have no token ids of ours. Leave them out.")
    for name in MORE_SAMPLING:
        if name in given and name not in speaks.more:
            raise UsageError(
                f"{name}={given[name]} cannot be told to {where} in its dialect {dialect!r}. Leave it out."
            )
    body = {speaks.limit if name == "max_tokens" else name: value for name, value in given.items()}
    if "logit_bias" in body:
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    return body | ({} if grammar is None else _grammar(where, dialect, grammar))


def _grammar(where: str, dialect: str, grammar: Grammar) -> dict[str, Any]:
    if grammar.kind not in DIALECTS[dialect].grammars:
        raise UsageError(
            f"a grammar of kind {grammar.kind!r} cannot be told to {where} in its dialect {dialect!r}. "
            "Use a JSON schema."
        )
    if grammar.kind != "json_schema":
        return {"structured_outputs": {{"regex": "regex", "lark": "grammar"}[grammar.kind]: grammar.source}}
    try:
        schema = json.loads(grammar.source)
    except ValueError as error:
        raise UsageError(f"the JSON schema is no JSON: {error}. Correct it.") from error
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    }


def _thinking(where: str, dialect: str, asked: Thinking) -> dict[str, Any]:
    """The wish in the dialect's words. A loop guard is a promise of ours alone, so none is asked for."""
    told = f" ({asked.source})" if asked.source else ""
    speaks = DIALECTS[dialect]
    body: dict[str, Any] = {}
    wishes = [speaks.switch(asked.mode == "on")] if asked.mode != "auto" else []
    if asked.budget is not None:
        if speaks.budget is None:
            raise ControlError(
                f"budget={asked.budget}{told} cannot be told to {where} in its dialect {dialect!r}. Leave it "
                "out, or name the dialect that it speaks."
            )
        wishes.append(speaks.budget(asked.budget))
    own = {name: getattr(asked, name) for name in OWN_THOUGHT if getattr(asked, name)}
    if dialect == "deepfast":
        own |= {"on_loop": asked.on_loop} if asked.on_loop != "close" else {}
        wishes += [{"thinking": own}] if own else []
    elif own:
        name, value = next(iter(own.items()))
        raise ControlError(
            f"{name}={value}{told} is known to Deepfast servers only. Leave it out for {where}."
        )
    for wish in wishes:
        for name, value in wish.items():
            body[name] = {**body[name], **value} if isinstance(value, dict) and name in body else value
    return body
