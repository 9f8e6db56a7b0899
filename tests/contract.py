"""What every chat request gets, whatever it asked: checks on one finished request, for tests of many.

In: what was asked, the deltas that came, the Completion. Out: nothing, or an AssertionError that names the
promise. It reads ids and kinds afresh, without the phase machine and the stream that made them.
Does not know: engines' insides, what tokens mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deepfast import LLM, Completion, Delta, Grammar, Message, SamplingParams, Thinking
from deepfast.thinking.phases import ControlIds
from deepfast.thinking.sentences import language_of

REASONS = {"stop", "length", "tool_calls", "abort", "error"}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """A function with these properties, all of them required."""
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    parameters["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ADD = tool("add", a={"type": "integer"}, b={"enum": ["x", "y"]})
SAY = tool("say")
TOOL_FITS: dict[str, Callable[[Any], bool]] = {
    "add": lambda a: set(a) == {"a", "b"} and type(a["a"]) is int and a["b"] in ("x", "y"),
    "say": lambda a: a == {},
}


def _schema(**schema: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


# name -> a grammar, and what a text that ended by itself must fulfil
SHAPES: dict[str, tuple[Grammar, Callable[[str], bool]]] = {
    "object": (
        _schema(type="object", properties={"n": {"type": "integer"}}, required=["n"]),
        lambda text: type(json.loads(text)["n"]) is int,
    ),
    "list": (
        _schema(type="array", items={"enum": ["ja", "nein", "不", 7]}, minItems=1, maxItems=3),
        lambda text: 1 <= len(json.loads(text)) <= 3 and set(json.loads(text)) <= {"ja", "nein", "不", 7},
    ),
    "text": (_schema(type="string", maxLength=6), lambda text: len(json.loads(text)) <= 6),
    "regex": (
        Grammar("regex", "(ab|cd){2,4}[0-9]"),
        lambda text: len(text) in (5, 7, 9) and not set(text[:-1]) - set("abcd") and text[-1].isdigit(),
    ),
    "lark": (Grammar("lark", 'start: "yes" | "no"'), lambda text: text in ("yes", "no")),
}


@dataclass(frozen=True)
class Ask:
    """One request."""

    messages: str | tuple[Message, ...]
    params: SamplingParams
    thinking: Thinking
    tools: tuple[dict[str, Any], ...] | None = None
    choice: str = "auto"

    @property
    def question(self) -> str:
        """The last thing that the user said."""
        if isinstance(self.messages, str):
            return self.messages
        return next((m.content or "" for m in reversed(self.messages) if m.role == "user"), "")


def check(
    llm: LLM,
    ask: Ask,
    deltas: Sequence[Delta],
    done: Completion,
    *,
    steered: bool = False,
    left: bool = False,
) -> None:
    """Every promise. steered: the thought was changed while it ran. left: the request was cancelled."""
    ids = llm.requests.ids
    assert done.finish_reason in REASONS - {"error"}
    assert left or done.finish_reason != "abort"
    check_tokens(ids, ask, done)
    check_ending(ids, ask, done)
    check_texts(llm, ask, done)
    check_stream(deltas, done)
    if ask.params.logprobs is not None:
        check_logprobs(done, deltas)
    check_thought(llm, ids, ask, done, steered)
    if done.finish_reason != "abort":
        check_answer(llm, ids, ask, done)


def check_tokens(ids: ControlIds, ask: Ask, done: Completion) -> None:
    """Reasoning, content, tool calls and control tokens partition the tokens; the counts are exact."""
    tokens, kinds, usage = done.token_ids, done.kinds, done.usage
    assert len(tokens) == len(kinds) == len(done.sampled) == usage.completion_tokens
    assert kinds.count("reasoning") == usage.reasoning_tokens
    assert usage.completion_tokens <= (ask.params.max_tokens or usage.completion_tokens)
    assert 0 <= usage.cached_tokens <= usage.prompt_tokens
    stopped = done.finish_reason == "stop" and tokens[-1] in ask.params.stop_token_ids
    cut = {len(tokens) - 1} if stopped and kinds[-1] is None else set()
    if ask.params.grammar and ids.think_close in tokens:  # what leads up to a structured answer is none of it
        behind = tokens.index(ids.think_close) + 1
        cut |= {i for i in range(behind, behind + 3) if i < len(tokens) and not done.sampled[i]}
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        assert (kind is None) == (token in ids.all or i in cut), (i, token, kind)
    assert all(kind != "reasoning" for kind in kinds[_first(kinds, "content", "tool_call") :])
    assert tokens.count(ids.think_close) <= 1 and tokens.count(ids.think_open) <= 1
    assert not any(token in ids.stops for token in tokens[:-1])
    assert not set(tokens) & ids.others


def _first(kinds: Sequence[str | None], *wanted: str) -> int:
    return next((i for i, kind in enumerate(kinds) if kind in wanted), len(kinds))


def check_ending(ids: ControlIds, ask: Ask, done: Completion) -> None:
    """The finish_reason says what happened."""
    last = done.token_ids[-1] if done.token_ids else None
    if done.finish_reason == "length":
        assert ask.params.max_tokens is None or done.usage.completion_tokens == ask.params.max_tokens
    elif done.finish_reason == "tool_calls":
        assert done.tool_calls and last in ids.stops
    elif done.finish_reason == "stop":
        assert ask.params.stop or last in ids.stops or last in ask.params.stop_token_ids
        assert not (done.tool_calls and last in ids.stops)
    if ask.params.ignore_eos:
        assert not set(done.token_ids) & ids.stops


def runs(ids: ControlIds, done: Completion) -> Iterator[tuple[str, list[int], bool]]:
    """(kind, ids, closed) of every run of text; a call is a run even when it is empty."""
    kind, run = "", list[int]()
    for token, of in zip(done.token_ids, done.kinds, strict=True):
        if of == kind and token not in ids.all:
            run.append(token)
            continue
        if kind:
            yield kind, run, token == ids.tool_close
        kind, run = ("tool_call", []) if token == ids.tool_open else (of or "", [token] if of else [])
    if kind:
        yield kind, run, False


def check_texts(llm: LLM, ask: Ask, done: Completion) -> None:
    """Reasoning and content are their tokens, decoded; a call that is none stands in the content."""
    whole = {int(call.id.rsplit("_", 1)[1]) for call in done.tool_calls}
    said = {"reasoning": "", "content": ""}
    calls = 0
    for kind, tokens, closed in runs(llm.requests.ids, done):
        text = llm.tokenizer.decode(tokens)
        if kind != "tool_call":
            said[kind] += text
            continue
        if calls not in whole:
            said["content"] += f"<tool_call>{text}{'</tool_call>' if closed else ''}"
        calls += 1
    assert done.reasoning == said["reasoning"].strip("\n")
    content = said["content"].lstrip("\n")
    ends = [(content.find(s) + len(s), content.find(s)) for s in ask.params.stop if s in content]
    assert done.content == (content[: min(ends)[1]] if ends else content)
    assert len(done.malformed) + len(done.tool_calls) == calls


def check_stream(deltas: Sequence[Delta], done: Completion) -> None:
    """What was streamed, joined, is the completion."""
    for kind, text in (("reasoning", done.reasoning), ("content", done.content)):
        assert "".join(d.text for d in deltas if d.kind == kind) == text
    pieces: dict[int, list[Delta]] = {}
    for delta in deltas:
        if delta.kind == "tool_call":
            pieces.setdefault(delta.index, []).append(delta)
    taken = {index: parts[-1].malformed for index, parts in pieces.items() if parts[-1].malformed}
    assert set(taken.values()) <= set(done.malformed)
    whole = [parts for index, parts in sorted(pieces.items()) if index not in taken]
    assert len(whole) == len(done.tool_calls)
    for parts, call in zip(whole, done.tool_calls, strict=True):
        named = [(d.id, d.name) for d in parts if d.name]
        assert named == [(call.id, call.name)] and parts[0].name
        assert "".join(d.text for d in parts) == call.arguments


def check_logprobs(done: Completion, deltas: Sequence[Delta]) -> None:
    """One for every sampled token, none for a forced one; all that belong to text were streamed."""
    assert len(done.logprobs) == len(done.token_ids)
    for token, sampled, item in zip(done.token_ids, done.sampled, done.logprobs, strict=True):
        assert (item is not None) == sampled
        assert item is None or (item.token_id == token and item.logprob <= 1e-6)
    texts = [
        p for p, kind in zip(done.logprobs, done.kinds, strict=True) if p is not None and kind is not None
    ]
    assert [item for delta in deltas for item in delta.logprobs] == texts


def check_thought(llm: LLM, ids: ControlIds, ask: Ask, done: Completion, steered: bool) -> None:
    """Mode, budget and minimum held; the report says why the thought ended."""
    report, thought = done.thinking, done.usage.reasoning_tokens
    if ask.thinking.mode == "off":
        assert (report.mode, report.stop, done.reasoning) == ("off", "none", "")
    if ids.think_close in done.token_ids:
        assert report.stop != "none" and report.seconds >= 0
    sentence = llm.tokenizer.encode(llm.requests.sentences.stop(language_of(ask.question)), control=True)
    closing = sentence.index(ids.think_close)
    if not steered:
        assert report.stop != "user"
        assert report.mode == "off" or report.budget == ask.thinking.budget
        sampled = sum(s and k == "reasoning" for s, k in zip(done.sampled, done.kinds, strict=True))
        if ask.thinking.budget is not None:
            assert sampled <= ask.thinking.budget and thought <= ask.thinking.budget + closing
        if report.stop == "natural" and thought < ask.thinking.min_tokens:
            assert report.waits == 6 or _no_room(llm, ids, ask, done, len(sentence))
    if ask.thinking.on_loop == "ignore":
        assert report.stop != "loop"


def _no_room(llm: LLM, ids: ControlIds, ask: Ask, done: Completion, sentence: int) -> bool:
    """A thought below its minimum may end for a call, or where another "Wait" would break a limit."""
    at = done.token_ids.index(ids.think_close)
    wait = len(llm.tokenizer.encode(llm.requests.sentences.wait(language_of(ask.question))))
    most = ask.params.max_tokens or llm.max_context - done.usage.prompt_tokens
    kept = ask.thinking.answer_reserve or most // 4
    budget = ask.thinking.budget
    return (
        ids.tool_open in done.token_ids[at : at + 3]
        or most - at <= sentence + kept + wait
        or (budget is not None and budget - done.usage.reasoning_tokens <= wait + 1)
    )


def check_answer(llm: LLM, ids: ControlIds, ask: Ask, done: Completion) -> None:
    """There is an answer; structure and tools are as they were asked for."""
    shape = ask.params.grammar
    last = done.token_ids[-1]
    word = last in ask.params.stop_token_ids and llm.tokenizer.decode([last]).strip()
    cut = bool(
        ask.params.stop or word
    )  # the caller's own stop may leave nothing; an empty line does not count
    if shape is None and not cut:
        assert done.content.strip() or done.tool_calls, "the answer is empty"
    by_itself = done.finish_reason == "stop" and last in ids.stops and not ask.params.stop
    if shape is not None and by_itself:
        fits = [fits for grammar, fits in SHAPES.values() if grammar == shape]
        assert all(fit(done.content) for fit in fits), done.content
    if ask.choice == "none":
        assert not done.tool_calls and ids.tool_open not in done.token_ids
    if ask.choice not in ("auto", "none") and not cut:
        assert done.tool_calls or done.finish_reason == "length"
    if ask.tools:
        for call in done.tool_calls:
            assert TOOL_FITS[call.name](json.loads(call.arguments)), call
            assert ask.choice in ("auto", "required", call.name)


def at_rest(llm: LLM) -> bool:
    """Waits until nothing runs; True when nobody owns a block."""
    deadline = time.monotonic() + 10
    while llm.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.001)
    pool = llm.engine.scheduler.pool
    return pool.num_free == pool.num_blocks


def outcome(done: Completion) -> tuple[Any, ...]:
    """What must not depend on speculation, caches and company."""
    said = (done.token_ids, done.kinds, done.sampled, done.reasoning, done.content, done.tool_calls)
    return (*said, done.malformed, done.finish_reason, done.thinking.stop, done.thinking.waits)
