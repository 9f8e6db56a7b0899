"""Exact values of written expressions: + - * / and brackets over whole numbers and decimals.

In: an expression of at most `LONGEST` characters. Out: its value as a Fraction and the numbers that it uses,
or None when it is not one. No eval: a recursive descent that bounds depth and size. It knows no task.
"""

import re
from fractions import Fraction
from typing import NamedTuple

LONGEST = 200
_TOKEN = re.compile(r" *([0-9]+(?:\.[0-9]+)?|[-+*/()])")
_LARGEST = 10**60
_DEEPEST = 40


class Value(NamedTuple):
    value: Fraction
    numbers: tuple[str, ...]  # as they are written, in order


class _Wrong(Exception):
    pass


def evaluate(text: str) -> Value | None:
    """The value of an expression, exactly; None for anything else, a division by zero included."""
    if len(text) > LONGEST:
        return None
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[1])
        at = match.end()
    parser = _Parser(tokens)
    try:
        value = parser.sum(0)
    except (_Wrong, ZeroDivisionError):
        return None
    if parser.at != len(tokens):
        return None
    return Value(value, tuple(token for token in tokens if token[0].isdigit()))


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next()
        self.at += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.next() in ("+", "-"):
            value = value + self.product(depth) if self.take() == "+" else value - self.product(depth)
        return self.bounded(value)

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.next() in ("*", "/"):
            value = value * self.factor(depth) if self.take() == "*" else value / self.factor(depth)
            self.bounded(value)
        return value

    def factor(self, depth: int) -> Fraction:
        token = self.take()
        if depth > _DEEPEST or not token:
            raise _Wrong
        if token == "-":
            return -self.factor(depth + 1)
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise _Wrong
            return value
        if not token[0].isdigit():
            raise _Wrong
        return Fraction(token)

    def bounded(self, value: Fraction) -> Fraction:
        if max(abs(value.numerator), value.denominator) > _LARGEST:
            raise _Wrong
        return value


def shown(value: Fraction, places: int = 6) -> str:
    """A value as a calculator shows it: whole, or rounded to so many decimals without zeros at the end."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(value * 10**places)
    sign, digits = "-" if scaled < 0 else "", f"{abs(scaled):0{places + 1}}"
    text = f"{sign}{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
