"""Messages -> prompt: renders the model's own chat template as Hugging Face does, and encodes the result.

In: templates, messages, tool schemas, enable_thinking. Out: the prompt as text or ids; its modes.
What users, tools and earlier answers said is guarded before rendering: literal control text in it stays text.
An assistant message without `reasoning` that holds raw output ("<think>...</think>answer") is split first, as
the official templates split it; a template that knows no thoughts gets it verbatim, as text.
Does not know: phases, sampling, how the answer is read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..types import Message, ModelError, ModelKind, ToolCall, UsageError
from .files import TextFiles
from .tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]]
OPEN, CLOSE = "<think>", "</think>"
SECONDS = 5  # of the processor, that a template may take; a conversation of a megabyte takes a tenth of one
STEPS = 64  # loops and calls between two looks at the time
LONGEST = 2**26  # characters that a template may join with others


class Modes(NamedTuple):
    """kind: whether the model thinks. opens: the plain prompt already ends inside a thought."""

    kind: ModelKind
    opens: bool


class ChatTemplate:
    """The templates of one model ("default", perhaps "tool_use") and its tokenizer."""

    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sources = dict(sources)
        environment = _environment()
        try:
            self._templates = {name: environment.compiled(text) for name, text in sources.items()}
        except Exception as error:  # also RecursionError and SyntaxError, where it is nested too deeply
            raise ModelError(f"the chat template is no valid Jinja: {_one_line(error)}.") from error
        self._reads_reasoning = any("reasoning_content" in text for text in sources.values())
        self._knows_thoughts = any(CLOSE in text for text in sources.values())
        self.reads_tools = any("tools" in text for text in sources.values())
        self.modes = self._probe()

    @classmethod
    def of(cls, files: TextFiles, tokenizer: Tokenizer) -> ChatTemplate:
        """The templates of a checkpoint. Raises ModelError if it has none, or one that is no Jinja."""
        if "default" not in files.templates:
            way = "Put one in chat_template.jinja, or use" if files.path.is_dir() else "Use"
            raise ModelError(f"{files.path} has no chat template. {way} generate() on ids.")
        return cls(files.templates, tokenizer)

    @classmethod
    def from_dir(cls, path: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The templates of a model directory."""
        return cls.of(TextFiles.from_dir(path), tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for people. Raises UsageError where the template refuses the conversation."""
        text, marker = self._render(messages, tools, enable_thinking, add_generation_prompt)
        return text.replace(marker, "")

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt for the model. Only the template's own control tokens become control ids."""
        text, marker = self._render(messages, tools, enable_thinking, add_generation_prompt)
        return self._tokenizer.encode(text, control=True, marker=marker)

    def _render(
        self, messages: Sequence[Message], tools: Tools | None, enable_thinking: bool | None, generate: bool
    ) -> tuple[str, str]:
        if not messages:
            raise UsageError("there are no messages. Send at least one user message.")
        turns = [self._turn(message) for message in messages]
        schemas = [dict(tool) for tool in tools] if tools else None
        marker = _unused_marker([turns, schemas])
        variables: dict[str, Any] = {
            "messages": [self._guard_turn(turn, marker) for turn in turns],
            "tools": self._guard(schemas, marker),
            "documents": None,
            "add_generation_prompt": generate,
            "marker": marker,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        try:
            with _limited():
                return self._templates[name].render(self._tokenizer.specials | variables), marker
        except _RefusedError as error:
            raise UsageError(f"the chat template refuses this conversation: {_one_line(error)}.") from error
        except Exception as error:
            raise ModelError(f"the chat template failed: {_one_line(error)}.") from error

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as templates read it, with raw output split into reasoning and content."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        elif message.role == "assistant" and self._reads_reasoning and CLOSE in (message.content or ""):
            turn["reasoning_content"], turn["content"] = split_thought(message.content or "")
        if message.tool_calls:
            turn["tool_calls"] = [_call(call) for call in message.tool_calls]
        return turn

    def _guard_turn(self, turn: dict[str, Any], marker: str) -> dict[str, Any]:
        guarded = {key: self._guard(value, marker) for key, value in turn.items() if key != "role"}
        if turn["role"] == "assistant" and self._knows_thoughts and not self._reads_reasoning:
            # Such a template (QwQ) finds the thought in the content by its tags: they are its own.
            content = guarded["content"] or ""
            for tag in (OPEN, CLOSE):
                content = content.replace(self._tokenizer.guard(tag, marker), tag)
            guarded["content"] = content if turn["content"] is not None else None
        return {"role": turn["role"], **guarded}

    def _guard(self, value: Any, marker: str) -> Any:
        """A copy of `value` with the marker inside every control token's text, however deep."""
        if isinstance(value, str):
            return self._tokenizer.guard(value, marker)
        if isinstance(value, Mapping):
            return {self._guard(key, marker): self._guard(item, marker) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item, marker) for item in value]
        return value

    def _probe(self) -> Modes:
        """Find the kind by rendering: does the switch matter, is a thought open, do old thoughts go?"""
        opening, closing = self._tokenizer.control_id(OPEN), self._tokenizer.control_id(CLOSE)
        if opening is None or closing is None:
            return Modes("no_think", opens=False)
        question = [Message("user", "q")]
        ends = []
        for wish in (None, True, False):
            ids = self.encode(question, enable_thinking=wish)
            ends.append(next((token for token in reversed(ids) if token in (opening, closing)), None))
        default, on, off = ends
        if on != off:
            return Modes("hybrid", opens=default == opening)
        if on is not None:
            return Modes("think" if on == opening else "no_think", opens=on == opening)
        history = [*question, Message("assistant", f"{OPEN}\nzq\n{CLOSE}\n\na"), *question]
        drops = self._knows_thoughts and "zq" not in self.render(history)
        return Modes("think" if drops else "no_think", opens=False)


def split_thought(content: str) -> tuple[str, str]:
    """Raw output -> (reasoning, content), by the rule of the official templates."""
    reasoning = content.split(CLOSE)[0].rstrip("\n").split(OPEN)[-1].lstrip("\n")
    return reasoning, content.split(CLOSE)[-1].lstrip("\n")


class _RefusedError(jinja2.TemplateError):
    """A template called raise_exception."""


class _Generation(Extension):
    """`{% generation %}` marks what to train on; for a prompt it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements between the tags, as they are."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Work:
    """What one rendering has done: loops and calls are steps, and every so often the time is looked at."""

    def __init__(self) -> None:
        self._steps, self._began = 0, time.thread_time()

    def step(self) -> None:
        """Raise SecurityError where it has worked too long."""
        self._steps += 1
        if self._steps % STEPS == 0 and time.thread_time() - self._began > SECONDS:
            raise SecurityError(f"it works for more than {SECONDS} s")


_work = ContextVar[_Work]("_work")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    token = _work.set(_Work())
    try:
        yield
    finally:
        _work.reset(token)


class _Environment(ImmutableSandboxedEnvironment):
    """Templates are programs that came with a file: one that never ends, or only grows, is stopped."""

    intercepted_binops = frozenset(["+", "*", "**"])

    def compiled(self, source: str) -> jinja2.Template:
        """The template, its loops counted and the texts that it joins measured."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "counted")
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_filtered(part, "short") for part in joined.nodes]
        return self.from_string(tree)

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call is a step."""
        _work.get().step()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Sums and products of a sane size."""
        for value in (left, right):
            _short(context, value)
        if operator == "**":
            grows = isinstance(left, int) and isinstance(right, int) and _size(left) * right > LONGEST
        else:
            times = [value for value in (left, right) if isinstance(value, int)]
            others = [_size(value) for value in (left, right) if not isinstance(value, int)]
            grows = operator == "*" and bool(times and others) and max(others) * max(times) > LONGEST
        if grows:
            raise SecurityError("it makes something too large")
        return super().call_binop(context, operator, left, right)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _size(value: Any) -> int:
    """Characters, items, bits."""
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, str | list | tuple) else 0


@jinja2.pass_context  # so that nothing is computed before its time
def _counted(context: jinja2.runtime.Context, items: Any) -> Iterator[Any]:
    """Each turn of a loop is a step."""
    work = _work.get()
    for item in items:
        work.step()
        yield item


@jinja2.pass_context
def _short(context: jinja2.runtime.Context, value: Any) -> Any:
    """A value that may become a part of a larger one."""
    if _size(value) > LONGEST:
        raise SecurityError("it makes something too large")
    return value


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters |= {"counted": _counted, "short": _short}
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@jinja2.pass_context
def _tojson(
    context: jinja2.runtime.Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: no HTML escapes, key order kept, non-ASCII raw."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    marker = context.get("marker")
    return text.replace(json.dumps(marker)[1:-1], marker) if ensure_ascii and marker else text


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _call(call: ToolCall) -> dict[str, Any]:
    """A call in the OpenAI shape; arguments that are a JSON object go in parsed, others as they are."""
    try:
        parsed = json.loads(call.arguments)
    except (ValueError, RecursionError):
        parsed = None
    arguments = parsed if isinstance(parsed, dict) else call.arguments
    return {"type": "function", "function": {"name": call.name, "arguments": arguments}}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _unused_marker(values: Any) -> str:
    """A character (noncharacters first) that occurs nowhere in `values`, neither raw nor as a JSON escape."""
    text = "\n".join(_strings(values))
    candidates = (chr(code) for span in (range(0xFDD0, 0xFDF0), range(0xF0000, 0x10FFFE)) for code in span)
    return next(c for c in candidates if c not in text and json.dumps(c)[1:-1] not in text)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
