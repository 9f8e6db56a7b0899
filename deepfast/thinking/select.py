"""Choosing among several answers to one question: a vote on what they end in, or the best by a score.

In: Completions. Out: one of them, and how the others voted (self-consistency, arXiv 2203.11171). An answer
stands where benchmarks ask for it: \\boxed{} and `"answer": "C"` (the prompts in the model cards of Qwen3),
"the answer is X", the last number. Does not know: questions, right answers, how completions are drawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from ..types import Completion, ToolCall, UsageError

Score = Callable[[Completion], float]

# Atomic: a comma inside a number and one between two are told apart once, not tried both ways for each.
_NUMBER = r"(?>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2}\b)?"
_VALUE = rf"[-+]?{_NUMBER}(?:/{_NUMBER})?"
_LIST = rf"{_VALUE}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+){_VALUE})*"
_UNIT = (
    r"(?:\s*(?:%|°\s*[cfk]?)|(?:km/h|km|cm|mm|m/s|mph|ms|ml|m|kg|mg|g|l|hz|s|h|min|usd|eur|st|nd|rd|th)"
    r"|\s*[\u4e00-\u9fff]{1,4}|\s+(?!pi\b|sqrt\b)(?:[^\W\d_]{2,}|[mglshvwakcf])\b[^\d+*=^\\<>()|,-]*(?:\^?[23²³])?)"
)
_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9_.]){_LIST}")
_ONE = re.compile(rf"[€£¥]?\s*({_VALUE})\s*[€£¥]?{_UNIT}?", re.IGNORECASE)
_MANY = re.compile(_LIST)
_EACH = re.compile(_VALUE)
_EQUATION = re.compile(r"[^=,]{1,60}=\s*([^=]+)")
_CHOICE = re.compile(r"(?:option |choice )?\(?([a-j])(?:[).:](?:\s.*)?)?", re.DOTALL)

_BRACES = re.compile(r"(\\+(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_FIELD = re.compile(r'"answer"\s*:\s*', re.IGNORECASE)
_CUE = re.compile(
    r"(?:\banswer\**\s*(?:\b(?:is|was)\b|[:=])|答案\**\s*(?:[是为為]|[:=]))"
    r"(?:\s*(?:therefore|thus|then|simply|exactly|approximately|about)\b)?"
    r"(?:[\s:*$`]|\\[\[(])*(?=(\S[^\n]{0,300}))",
    re.IGNORECASE,
)
_SENTENCE_ENDS = re.compile(
    r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)[.!?](?:\s|$)|。|\s(?:because|since)\b|\s\("
)
_SAME = str.maketrans({"−": "-", "，": ",", "、": ",", "：": ":", "！": "!", "？": "?", "；": ";", "$": None})
_LATEX = [  # what is written -> what it says
    (re.compile(r"(?<!\d)\\[dt]?frac\s*\{\s*(-?\w+)\s*\}\s*\{\s*(\w+)\s*\}"), r"\1/\2"),
    (re.compile(r"(?<!\d)\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:!]|\\[()\[\]]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\\([%#&])"), r"\1"),
]
_AROUND = " \t\r\n*`\"'“”‘’"
_BEHIND = _AROUND + ".。!?:;,"


class Vote(NamedTuple):
    """answer: what most say, normalised (None: nobody voted). winner: the first who says so.

    count of total votes are for it. groups: every answer with its voters, the largest first.
    """

    answer: str | None
    winner: Completion
    count: int  # type: ignore[assignment]
    total: int
    groups: dict[str, tuple[Completion, ...]]


def final_answer(text: str) -> str | None:
    """The answer that a text ends in, in one spelling for equal answers; None: there is none.

    In this order: the last \\boxed{}; a JSON field "answer", or the text as JSON; the last "answer is X" or
    "答案：X"; the last number, or the list of numbers that the text ends in; the last line.
    """
    text = text.strip()
    for found in (_boxed, _json, _after_cue, _last_number, _last_line):
        if answer := found(text):
            return answer
    return None


def ballot(done: Completion) -> str | None:
    """What a completion votes for: its tool calls, or its final answer. None: it does not vote."""
    if done.finish_reason in ("abort", "error"):
        return None
    return "; ".join(map(_spelled, done.tool_calls)) or final_answer(done.content)


def majority(completions: Sequence[Completion]) -> Vote:
    """The answer that most completions end in. Raises UsageError when there are none.

    Blank, aborted and failed ones do not vote. Between equal groups the mean log-probability of their answers
    decides where all of them have one, else who came first.
    """
    if not completions:
        raise UsageError("there are no completions to vote on. Give at least one.")
    found: dict[str, list[Completion]] = {}
    for done in completions:
        if (answer := ballot(done)) is not None:
            found.setdefault(answer, []).append(done)
    groups = {a: tuple(found[a]) for a in sorted(found, key=lambda a: -len(found[a]))}
    if not groups:
        return Vote(None, completions[0], 0, 0, {})
    count = max(map(len, groups.values()))
    tied = [answer for answer, voters in groups.items() if len(voters) == count]
    sureness = [_sureness(groups[answer]) for answer in tied]
    known = [value for value in sureness if value is not None]
    best = tied[known.index(max(known))] if len(known) == len(tied) else tied[0]
    groups = {best: groups[best], **groups}
    return Vote(best, groups[best][0], count, sum(map(len, groups.values())), groups)


def best_of(completions: Sequence[Completion], score: Score | None = None) -> Completion:
    """The completion of the highest score, the first among equals; those that cannot vote come last.

    score: by default the mean log-probability of the sampled tokens of the answer.
    Raises UsageError when there are no completions, or no log-probabilities to score them by.
    """
    if not completions:
        raise UsageError("there are no completions to choose from. Give at least one.")
    judge = score or _default_score
    able = [done for done in completions if ballot(done) is not None] or list(completions)
    return max(able, key=judge)


def mean_logprob(done: Completion) -> float | None:
    """Of the sampled tokens of the answer (content or tool calls); None: they are not known."""
    values = [
        entry.logprob
        for entry, kind in zip(done.logprobs, done.kinds, strict=False)
        if entry is not None and kind in ("content", "tool_call")
    ]
    return sum(values) / len(values) if values else None


def _default_score(done: Completion) -> float:
    if done.token_ids and not done.logprobs:
        raise UsageError(
            "best_of needs log-probabilities, and a completion has none. "
            "Ask with SamplingParams(logprobs=0), or give a score."
        )
    value = mean_logprob(done)
    return float("-inf") if value is None else value


def _sureness(voters: Sequence[Completion]) -> float | None:
    """Mean over a group; None where one of its members has no log-probabilities."""
    values = [mean_logprob(done) for done in voters]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


# --- where the answer stands ---


def _boxed(text: str) -> str | None:
    """The box that begins last, among those that are closed and hold something."""
    open_braces: list[tuple[int, bool]] = []  # where its content begins, is it a box
    start, answer = -1, None
    for part in _BRACES.finditer(text):
        if part[1] or part[0] == "{":
            open_braces.append((part.end(), bool(part[1])))
        elif part[0] == "}" and open_braces:
            begin, is_box = open_braces.pop()
            if is_box and begin > start and (held := _normal(text[begin : part.start()])):
                start, answer = begin, held
    return answer


def _json(text: str) -> str | None:
    if text.startswith("```") and text.endswith("```"):
        text = text.removesuffix("```").partition("\n")[2]
    try:
        whole = json.loads(text, parse_float=_integral, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return next(filter(None, map(_from_json, _fields(text))), None)
    if isinstance(whole, dict) and whole.get("answer") is not None:
        return _from_json(whole["answer"])
    return _from_json(whole)


def _fields(text: str) -> Iterator[Any]:
    """The values of "answer": ..., the last first."""
    decoder = json.JSONDecoder(parse_float=_integral, parse_constant=_no_constant)
    for match in reversed(list(_FIELD.finditer(text))):
        try:
            yield decoder.raw_decode(text, match.end())[0]
        except (ValueError, RecursionError):
            continue


def _from_json(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return _normal(value if isinstance(value, str) else json.dumps(value))


def _integral(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _after_cue(text: str) -> str | None:
    for match in reversed(list(_CUE.finditer(text.translate(_SAME)))):
        if answer := _normal(_SENTENCE_ENDS.split(match[1], maxsplit=1)[0]):
            return answer
    return None


def _last_number(text: str) -> str | None:
    plain = _without_markup(text)
    runs = list(_IN_TEXT.finditer(plain))
    if not runs:
        return None
    if not plain[runs[-1].end() :].strip(_BEHIND):
        return _numbers(runs[-1][0])
    return _decimal(_EACH.findall(runs[-1][0])[-1])


def _last_line(text: str) -> str | None:
    return next(filter(None, map(_normal, reversed(text.splitlines()))), None)


# --- one spelling for equal answers ---


def _normal(text: str) -> str:
    """Without markup, units, quotes and trailing dots: a number in its shortest form, a choice as a capital
    letter, the rest case-folded."""
    text = _without_markup(text).strip(_AROUND).rstrip(_BEHIND)
    if _MANY.fullmatch(text):
        return _numbers(text)
    if number := _ONE.fullmatch(text):
        return _decimal(number[1])
    if (equation := _EQUATION.fullmatch(text)) and (number := _ONE.fullmatch(equation[1].strip())):
        return _decimal(number[1])
    folded = " ".join(text.casefold().split())
    if choice := _CHOICE.fullmatch(folded):
        return choice[1].upper()
    return re.sub(r"\s*,\s*", ", ", folded)


def _without_markup(text: str) -> str:
    text = text.replace("\\$", "").translate(_SAME)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _numbers(text: str) -> str:
    return ", ".join(map(_decimal, _EACH.findall(text)))


def _decimal(text: str) -> str:
    """1,234 -> 1234; 0.50 -> 0.5; 1/2 stays."""
    parts = []
    for number in text.replace(",", "").split("/"):
        whole, _, part = format(Decimal(number), "f").partition(".")
        shortest = f"{whole}.{part.rstrip('0')}".rstrip(".")
        parts.append("0" if shortest == "-0" else shortest)
    return "/".join(parts)


def _spelled(call: ToolCall) -> str:
    """A call on one line, its arguments in a fixed order where they are JSON."""
    try:
        arguments = json.dumps(json.loads(call.arguments), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        arguments = call.arguments.strip()
    return f"{call.name} {arguments}"
