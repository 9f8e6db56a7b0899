"""What the text may become: JSON schemas, regular expressions and Lark grammars as masks over token ids.

In: a Grammar, or tools as a request lists them. Out: Compiled (shared), and Matchers that say after every
token which ids may come next. This is the only file that knows `llguidance`; it is imported at first use.
Does not know: logits, phases, sequences, which ids mean what.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..types import Grammar, UsageError
from .tokenizer import Tokenizer

Mask = bytes  # little-endian uint32 words, bit t: may token t be next? ceil(width / 32) words

MAX_CACHED = 64  # compiled grammars that are kept
MAX_REASON = 300  # characters of the library's reason in an error

# Every token whose bytes fit is allowed, not only the tokenizer's own spelling of a text that is certain.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# JSON as people and models lay it out. Bounded, so that white space can not go on for ever.
FREE_JSON = {"whitespace_pattern": r" |\n[ \t]{0,40}"}
# JSON as `json.dumps` writes it, which is how Qwen3 was taught to call tools.
TOOL_JSON = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}

# What a Lark grammar may hold, in order: strings, comments, regexes; then what we refuse: tokens, options.
LARK_PARTS = re.compile(
    r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/'
    r"|(?P<token><[^<>\s]+>)|\b(?P<option>temperature|stop|stop_capture|max_tokens)\s*="
)


class Grammars:
    """The grammars of one loaded model, compiled once each.

    width: how many ids the logits have. stops: the ids that end an answer. Any thread may compile; a Matcher
    belongs to one thread. The vocabulary is prepared at first use (about a second for Qwen's), once.
    """

    def __init__(self, tokenizer: Tokenizer, width: int, stops: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._stops = stops
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._compiled: OrderedDict[tuple[str, str, frozenset[int]], Compiled] = OrderedDict()

    def answer(self, grammar: Grammar) -> Compiled:
        """What the whole answer must match. Raises UsageError when that cannot be enforced."""
        kind = grammar.kind.replace("json_schema", "JSON schema").replace("lark", "Lark grammar")
        source = _surely_text(grammar.source, kind)
        if grammar.kind == "json_schema":
            lark = f"start: {_json_rule(_parse(source), FREE_JSON)}"
        elif grammar.kind == "regex":
            lark = f"start: {_regex_rule(source)}"
        else:
            _check_lark(source)
            lark = source
        return self._compile(f"the {kind}", lark, self._stops)

    def tool_call(
        self, tools: Sequence[Mapping[str, Any]], name: str | None = None, ends: frozenset[int] = frozenset()
    ) -> Compiled:
        """What may stand between <tool_call> and </tool_call>: a call of one of the tools, or of `name`.

        ends: the ids that may follow the call. Raises UsageError for tools without a name, a name that comes
        twice, an unknown `name`, and a schema that cannot be enforced.
        """
        rules: dict[str, str] = {}
        for number, tool in enumerate(tools):
            called, rule = _tool_rule(number, tool)
            if called in rules:
                raise UsageError(f"two tools are called {called!r}. Give every tool its own name.")
            rules[called] = rule
        if not rules:
            raise UsageError("there is no tool to call. Give at least one, or let the model answer in text.")
        if name is not None and name not in rules:
            known = ", ".join(map(repr, rules))
            raise UsageError(f"tool {name!r} is not among the tools: {known}. Name one of them.")
        if name is not None or len(rules) == 1:
            only = name or next(iter(rules))
            return self._compile(f"the schema of tool {only!r}", f"start: {rules[only]}", ends)
        lines = [f"tool{number}: {rule}" for number, rule in enumerate(rules.values())]
        start = " | ".join(f"tool{number}" for number in range(len(rules)))
        try:
            return self._compile("the list of tools", "\n".join([f"start: {start}", *lines]), ends)
        except UsageError:
            for only in rules:
                self.tool_call(tools, only, ends)  # one of them is at fault: say which
            raise

    def _compile(self, what: str, lark: str, ends: frozenset[int]) -> Compiled:
        ends = frozenset(token for token in ends if token < self._width)
        key = (what, lark, ends)
        with self._lock:
            found = self._compiled.get(key)
            if found is None:
                found = self._compiled[key] = Compiled(self._matcher_of(what, lark), self._width, ends)
            self._compiled.move_to_end(key)
            while len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
            return found

    def _matcher_of(self, what: str, lark: str) -> Any:
        import llguidance

        if self._vocabulary is None:
            words = _Vocabulary(self._tokenizer, self._width)
            self._vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words))
        # log_level 0: nothing is printed, whoever asks for the reason gets it.
        grammar = llguidance.LLMatcher.grammar_from_lark(lark + OPTIONS)
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
        if reason := matcher.get_error():
            raise UsageError(f"{what} cannot be enforced: {_reason(reason)}. Change it, or drop it.")
        probe = matcher.deep_copy()
        probe.compute_bitmask()
        if probe.is_error():
            raise UsageError(f"{what} matches no text at all, not even an empty one. Change it, or drop it.")
        return matcher


class Compiled:
    """A checked grammar, for any number of sequences. ends: the ids allowed where the text is complete."""

    def __init__(self, matcher: Any, width: int, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._width = width
        self._ends = ends

    def matcher(self) -> Matcher:
        """A matcher at the start of the text, for one sequence; cheap."""
        return Matcher(self._matcher.deep_copy(), self._width, self._ends)


class Matcher:
    """One text on its way through a grammar. Raises UsageError when the grammar grows too large to follow."""

    def __init__(self, matcher: Any, width: int, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._width = width
        self._ends = ends

    @property
    def accepting(self) -> bool:
        """Is the text so far complete?"""
        return bool(self._matcher.is_accepting())

    def mask(self, extra: Iterable[int] = ()) -> Mask:
        """The ids that may come next, `extra` among them; where the text is complete, those of `ends` too."""
        bits = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_error():
            raise self._failure()
        # The library's end token is the id after the last one; here the ends speak for it.
        complete = bits[self._width >> 3] >> (self._width & 7) & 1
        bits[self._width >> 3] &= ~(1 << (self._width & 7))
        del bits[-(-self._width // 32) * 4 :]
        for token in (*self._ends, *extra) if complete else extra:
            assert 0 <= token < self._width, token
            bits[token >> 3] |= 1 << (token & 7)
        return bytes(bits)

    def advance(self, token: int) -> None:
        """Move over a token that the mask allowed; never one of the ends or of `extra`."""
        if not self._matcher.consume_token(token):
            raise self._failure()

    def _failure(self) -> UsageError:
        reason = _reason(self._matcher.get_error())
        return UsageError(f"the grammar cannot be followed any further: {reason}. Make it simpler.")


class _Vocabulary:
    """The bytes of every id, as llguidance wants them; the end of a text is one more id, after the last.

    Control tokens, ids without a token and the byte 0xFF (which it reads as a mark, and no text holds) are
    empty: never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        words = [self._text_of(tokenizer, token) for token in range(width)]
        self.tokens = [*words, b"end of text"]  # no grammar can spell this name: it holds spaces
        self.eos_token_id = width
        self.bos_token_id: int | None = None
        self.special_token_ids = [width]
        self._encode: Callable[[str], list[int]] = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        """The tokenizer's own spelling of a text."""
        return self._encode(text.decode())

    @staticmethod
    def _text_of(tokenizer: Tokenizer, token: int) -> bytes:
        if token in tokenizer.control_ids:
            return b""
        try:
            text = tokenizer.bytes_of(token)
        except UsageError:
            return b""
        return b"" if b"\xff" in text else text


def _tool_rule(number: int, tool: Mapping[str, Any]) -> tuple[str, str]:
    """A tool's name, and the rule for a call of it."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise UsageError(f"tool {number} has no name. Give it one, as text.")
    schema = function.get("parameters")
    schema = NO_ARGUMENTS if schema is None else schema
    kinds = schema.get("type", "object") if isinstance(schema, Mapping) else None
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise UsageError(f"the parameters of tool {name!r} are no schema of an object. Use type 'object'.")
    try:
        _surely_text(json.dumps([name, schema], ensure_ascii=False, allow_nan=False), f"tool {name!r}")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"tool {name!r} is no JSON: {_reason(str(error))}. Send plain JSON.") from None
    # Spelled as the chat templates spell calls in the prompt.
    head = '\n{"name": ' + json.dumps(name, ensure_ascii=False) + ', "arguments": '
    rule = _json_rule({**schema, "type": "object"}, TOOL_JSON)
    return name, " ".join([_lark_string(head), rule, _lark_string("}\n")])


def _json_rule(schema: Any, layout: Mapping[str, Any]) -> str:
    """The Lark spelling of "JSON of this schema, laid out so". Overrides what the schema says of layout."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": layout}
    elif schema is True:
        schema = {"x-guidance": layout}
    return f"%json {json.dumps(schema)}"


def _regex_rule(regex: str) -> str:
    import llguidance

    # \d, \w and \s mean what they mean in Rust and in Python's `re`: Unicode.
    return f"/{llguidance.regex_to_lark(regex, '')}/"


def _lark_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _parse(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is no JSON: {_reason(str(error))}. Send a schema.") from None


def _check_lark(source: str) -> None:
    """Refuse what would reach beyond text: tokens by name or id, and options that need another sampler."""
    for part in LARK_PARTS.finditer(source):
        if token := part["token"]:
            raise UsageError(f"the Lark grammar names the token {token}. Grammars describe text: write text.")
        if option := part["option"]:
            raise UsageError(f"the Lark grammar sets {option}, which is not supported. Take it out.")


def _surely_text(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {what} holds half of a character at {error.start}. Send valid text.") from None
    return text


def _reason(message: str) -> str:
    """The library's reason as one line: without its drawing of the place, and without its state."""
    message = message.split("\n<state>")[0]
    lines = [line for line in message.splitlines() if not re.match(r"\s*\d+ \||[\s^]*$", line)]
    text = " ".join(" ".join(lines).split()).rpartition("error: ")[2]
    text = text.split("failed to compile JSON schema: ")[-1].split("Parser Error: ")[-1]
    return text[:MAX_REASON].rstrip(". ") or "no reason given"
