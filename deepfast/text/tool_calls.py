"""One tool call, `{"name": N, "arguments": {...}}`, read while it arrives: pieces of text in, deltas out.

In: the text between <tool_call> and </tool_call>, in pieces of any size. Out: a head with the name, then the
arguments exactly as written, then a ToolCall; or why the text is no call. Accepts what `json.loads` accepts,
without NaN and Infinity, nested at most MAX_DEPTH deep.
Does not know: control tokens, which tools exist, their schemas.
"""

from __future__ import annotations

import json

from ..types import Delta, ToolCall

MAX_DEPTH = 256  # open brackets; readers of the arguments recurse, and must be able to
SPACE = " \t\n\r"
ESCAPES = '"\\/bfnrtu'
HEX = "0123456789abcdefABCDEF"
WORDS = {word[0]: word for word in ("true", "false", "null")}
CLOSES = {"{": "}", "[": "]"}
# Numbers: state -> (characters, next state). A number may end in the states of NUMBER_ENDS.
NUMBER = {
    "-": (("0", "0"), ("123456789", "digits")),
    "0": ((".", "."), ("eE", "e")),
    "digits": (("0123456789", "digits"), (".", "."), ("eE", "e")),
    ".": (("0123456789", "fraction"),),
    "fraction": (("0123456789", "fraction"), ("eE", "e")),
    "e": (("+-", "sign"), ("0123456789", "exponent")),
    "sign": (("0123456789", "exponent"),),
    "exponent": (("0123456789", "exponent"),),
}
NUMBER_STARTS = (("-", "-"), ("0", "0"), ("123456789", "digits"))
NUMBER_ENDS = ("0", "digits", "fraction", "exponent")


class ToolCallParser:
    """One call. However its text is split, the deltas joined are the same.

    reason: why the text is no call (empty as long as it may be one). begun: its head has been sent; such a
    call is taken back by a Delta with `malformed`, and no deltas follow.
    """

    def __init__(self, index: int, call_id: str) -> None:
        self.reason = ""
        self._index = index
        self._id = call_id
        self._raw: list[str] = []
        self._num_chars = 0
        self._json = _Json()
        self.begun = False  # has the head been sent?
        self._sent = 0  # pieces of the arguments that were sent

    @property
    def raw(self) -> str:
        """All text that was pushed."""
        return "".join(self._raw)

    def push(self, text: str) -> list[Delta]:
        """The deltas that this piece completes."""
        self._raw.append(text)
        if self.reason:
            return []
        for char in text:
            self._num_chars += 1
            try:
                self._json.push(char)
            except _Malformed as error:
                deltas = self._new_deltas()
                return deltas + self._take_back(f"{error} at character {self._num_chars}")
        return self._new_deltas()

    def finish(self, closed: bool) -> tuple[list[Delta], ToolCall | None]:
        """The end: `closed` by </tool_call>, or cut off. A call that is whole counts either way."""
        if self.reason:
            return [], None
        if not self._json.whole:
            how = "ends" if closed else "is cut off"
            return self._take_back(f"the call {how} before its JSON is whole"), None
        arguments = "".join(self._json.arguments)
        assert self._json.name is not None
        return [], ToolCall(self._json.name, arguments, self._id)

    def _new_deltas(self) -> list[Delta]:
        name, arguments = self._json.name, self._json.arguments
        if name is None:
            return []
        deltas = [] if self.begun else [Delta("tool_call", "", self._index, self._id, name)]
        self.begun = True
        if len(arguments) > self._sent:
            deltas.append(Delta("tool_call", "".join(arguments[self._sent :]), self._index))
            self._sent = len(arguments)
        return deltas

    def _take_back(self, reason: str) -> list[Delta]:
        self.reason = reason
        return [Delta("tool_call", "", self._index, malformed=reason)] if self.begun else []


class _Malformed(Exception):
    """Why the text can not become a call."""


class _Json:
    """The machine under the parser: one character at a time, no recursion.

    name: once its string is closed. arguments: the characters of the object so far.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self._open: list[str] = []  # brackets
        self._expect = "start"  # start, key, first key, colon, value, first value, next, end
        self._scalar = ""  # string, escape, hex, word, a state of NUMBER; empty between scalars
        self._left = ""  # the rest of a word, or one character per hex digit to come
        self._string: list[str] = []  # a key of the call, or its name, with quotes
        self._key = ""
        self._seen: set[str] = set()  # keys of the call

    @property
    def whole(self) -> bool:
        """Has the call been closed? Only white space may follow."""
        return self._expect == "end"

    def push(self, char: str) -> None:
        """Move over one character. Raises _Malformed."""
        inside = len(self._open) > 1
        if self._scalar in NUMBER:
            if self._in_number(char):
                self.arguments.append(char)
                return
            self._scalar = ""
        if self._scalar:
            self._in_scalar(char)
        elif char not in SPACE:
            self._between(char)
        # The object's own brackets belong to it: the first makes us inside, the last finds us there.
        if inside or len(self._open) > 1:
            self.arguments.append(char)

    def _in_number(self, char: str) -> bool:
        """Does the number go on? Raises _Malformed when it neither may nor can be over."""
        for chars, state in NUMBER[self._scalar]:
            if char in chars:
                self._scalar = state
                return True
        if self._scalar not in NUMBER_ENDS:
            raise _Malformed(f"{char!r} breaks a number")
        return False

    def _in_scalar(self, char: str) -> None:
        if len(self._open) == 1:
            self._string.append(char)
        if self._scalar == "string":
            if char < " ":
                raise _Malformed(f"{char!r} stands in a string without an escape")
            if char == "\\":
                self._scalar = "escape"
            elif char == '"':
                self._scalar = ""
                self._end_of_string()
        elif self._scalar == "escape":
            if char not in ESCAPES:
                raise _Malformed(f"{char!r} follows a backslash")
            self._scalar, self._left = ("hex", "hhhh") if char == "u" else ("string", "")
        else:
            if char not in (HEX if self._scalar == "hex" else self._left[0]):
                raise _Malformed(f"{char!r} breaks a {'hex escape' if self._scalar == 'hex' else 'word'}")
            self._left = self._left[1:]
            if not self._left:
                self._scalar = "string" if self._scalar == "hex" else ""

    def _between(self, char: str) -> None:
        """A character outside of scalars that is no white space."""
        expect = self._expect
        if expect == "end":
            raise _Malformed(f"{char!r} follows the call")
        if expect == "start" and char != "{":
            raise _Malformed(f"{char!r} where the call's object should open")
        if expect in ("next", "first key", "first value") and self._open and char == CLOSES[self._open[-1]]:
            self._close()
        elif expect == "next" and char == ",":
            self._expect = "key" if self._open[-1] == "{" else "value"
        elif expect in ("key", "first key") and char == '"':
            self._begin_string("key")
        elif expect == "colon" and char == ":":
            self._expect = "value"
        elif expect in ("value", "first value", "start"):
            self._value(char)
        else:
            raise _Malformed(f"{char!r} where {'a key' if 'key' in expect else expect} should be")

    def _value(self, char: str) -> None:
        if len(self._open) == 1 and char != ('"' if self._key == "name" else "{"):
            raise _Malformed(f"{self._key!r} is not {'text' if self._key == 'name' else 'an object'}")
        if char in CLOSES:
            if len(self._open) == MAX_DEPTH:
                raise _Malformed(f"more than {MAX_DEPTH} brackets are open")
            self._open.append(char)
            self._expect = "first key" if char == "{" else "first value"
        elif char == '"':
            self._begin_string("next")
        elif char in WORDS:
            self._scalar, self._left, self._expect = "word", WORDS[char][1:], "next"
        else:
            state = next((state for chars, state in NUMBER_STARTS if char in chars), None)
            if state is None:
                raise _Malformed(f"{char!r} where a value should be")
            self._scalar, self._expect = state, "next"

    def _begin_string(self, then: str) -> None:
        self._scalar, self._string = "string", ['"']
        self._expect = "colon" if then == "key" else "next"

    def _end_of_string(self) -> None:
        if len(self._open) > 1:
            return
        text = json.loads("".join(self._string))
        if self._expect == "next":
            self._check_name(text)
            self.name = text
            return
        if text not in ("name", "arguments"):
            raise _Malformed(f"{text[:40]!r} is no key of a call")
        if text in self._seen:
            raise _Malformed(f"{text!r} comes twice")
        self._seen.add(text)
        self._key = text

    def _check_name(self, name: str) -> None:
        if not name or any("\ud800" <= char <= "\udfff" for char in name):
            raise _Malformed("the name is empty or holds half of a character")

    def _close(self) -> None:
        self._open.pop()
        self._expect = "next" if self._open else "end"
        if not self._open and len(self._seen) < 2:
            missing = "name" if "name" not in self._seen else "arguments"
            raise _Malformed(f"{missing!r} is missing")
