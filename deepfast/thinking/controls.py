"""What a request asks of the thought -> what is done for the model at hand. Honours or refuses.

In: a request's JSON fields, in whatever spelling its client knows; the kind of the model; the messages.
Out: one Thinking; a Plan for the prompt and the sampling defaults.
Does not know: templates, tokens, budgets in force; the other fields of a request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

from ..types import ControlError, Message, ModelKind, Thinking

LARGEST_THOUGHT = 38_912  # the longest answer that Qwen3 was trained to write (model cards: hard maths, code)
# Words for an effort -> budget. The steps are points of the budget curve in the report of Qwen3 (arXiv
# 2505.09388, figure 2, AIME'24): 1K solves hardly more than no thought, 4K 56 %, 16K 84 %, 32K 87 %.
EFFORTS = {
    "minimal": 1024,  # the least that Qwen's documentation calls meaningful
    "low": 4096,
    "medium": 16_384,
    "high": 32_768,  # the length that the model cards recommend
    "xhigh": LARGEST_THOUGHT,
    "max": LARGEST_THOUGHT,
}
_SWITCH = re.compile(r"(?<![A-Za-z0-9_./:])/(no_)?think(?![A-Za-z0-9_/])")


class Plan(NamedTuple):
    """enable_thinking: for the template. open_thought: append "<think>\\n", unless the prompt opened one.
    thinks: a thought is expected, which chooses the sampling defaults. source: the control that decided."""

    enable_thinking: bool | None
    open_thought: bool
    thinks: bool
    source: str


def resolve(thinking: Thinking, kind: ModelKind, messages: Iterable[Message], *, opens: bool = False) -> Plan:
    """The plan for this request. opens: the template itself opens a thought when it is told nothing, so that
    a switch in the text must be passed on to it. Raises ControlError when the model can not obey."""
    mode, source = thinking.mode, thinking.source
    told = f" ({source})" if source else ""
    wants = {name: getattr(thinking, name) for name in ("budget", "min_tokens", "soft_landing")}
    asked = [f"{name}={value}" for name, value in wants.items() if value]
    if kind == "no_think" and (mode == "on" or asked):
        what = "mode 'on'" if mode == "on" else asked[0]
        raise ControlError(
            f"{what}{told} needs a thought, but this model never thinks. Use mode 'auto' or 'off'."
        )
    if kind == "think" and mode == "off":
        raise ControlError(
            f"mode 'off'{told} is not possible: this model always thinks. Use mode 'auto', or budget=0."
        )
    if mode != "auto":
        on = mode == "on"
        return Plan(enable_thinking=on, open_thought=on, thinks=on, source=source or "mode")
    if kind != "hybrid":
        return Plan(None, open_thought=False, thinks=kind == "think", source=source or "model")
    switch = last_switch(messages)
    if switch is False and thinking.min_tokens:
        raise ControlError(
            f"min_tokens={thinking.min_tokens}{told} and /no_think in the text contradict each other. "
            "Drop one of them, or use mode 'on'."
        )
    if switch is None:
        return Plan(None, open_thought=False, thinks=True, source=source or "default")
    told_template = switch if opens else None
    return Plan(told_template, open_thought=False, thinks=switch, source="/think" if switch else "/no_think")


def last_switch(messages: Iterable[Message]) -> bool | None:
    """True for /think, False for /no_think, None for neither: the last in system and user messages wins."""
    found = None
    for message in messages:
        if message.role in ("system", "user"):
            for match in _SWITCH.finditer(message.content or ""):
                found = match[1] is None
    return found


def from_request(fields: Mapping[str, Any]) -> Thinking | None:
    """The one wish behind all spellings in a request's JSON body, or None when there is none.

    Reads the fields in CONTROL_FIELDS, and of chat_template_kwargs and custom_params only the keys it knows.
    null is absent. Raises ControlError for a wrong value and for two spellings that contradict each other.
    """
    wishes = _Wishes()
    for spelling, value in _flat(fields).items():
        wishes.names.append(spelling)
        _READERS[spelling](wishes, spelling, value)
    return wishes.thinking()


class _Wish(NamedTuple):
    """sent: the value as it came. meant: the value of the setting."""

    spelling: str
    sent: Any
    meant: Any


class _Wishes:
    """Setting -> the wish that was read first; every later one must agree with it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._of: dict[str, _Wish] = {}

    def add(self, setting: str, spelling: str, sent: Any, meant: Any) -> None:
        """One more spelling."""
        wish = _Wish(spelling, sent, meant)
        first = self._of.setdefault(setting, wish)
        if first.meant != meant:
            _contradict(first, wish)

    def thinking(self) -> Thinking | None:
        """What all of them amount to."""
        if not self.names:
            return None
        mode, budget, least = (self._of.get(name) for name in ("mode", "budget", "min_tokens"))
        for wish in (budget, least, self._of.get("soft_landing")):
            if mode and mode.meant == "off" and wish and wish.meant:
                _contradict(mode, wish)
        if budget and least and budget.meant is not None and least.meant > budget.meant:
            _contradict(budget, least)
        return Thinking(**{name: w.meant for name, w in self._of.items()}, source=", ".join(self.names))


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """ "field" or "field.key" -> value, of every control that says something."""
    found: dict[str, Any] = {}
    for name, keys in _KEYS.items():
        value = fields.get(name)
        if value is None:
            continue
        if not keys or (name in _READERS and not isinstance(value, Mapping)):
            found[name] = value
            continue
        if not isinstance(value, Mapping):
            _refuse(name, value, "an object")
        for key, inner in value.items():
            if key in keys and inner is not None:
                found[f"{name}.{key}"] = inner
            elif name not in _SHARED and inner is not None:
                raise ControlError(f"{name} has the unknown key {_shown(key)}. Use {', '.join(keys)}.")
    return found


def _switch(wishes: _Wishes, spelling: str, value: Any) -> None:
    """true or false."""
    if not isinstance(value, bool):
        _refuse(spelling, value, "true or false")
    wishes.add("mode", spelling, value, "on" if value else "off")


def _word(**modes: str) -> _Reader:
    """A word for a mode. "auto" leaves the choice to the model and so contradicts nothing."""

    def read(wishes: _Wishes, spelling: str, value: Any) -> None:
        if not isinstance(value, str) or value not in modes:
            _refuse(spelling, value, _either(modes))
        if modes[value] != "auto":
            wishes.add("mode", spelling, value, modes[value])

    return read


def _effort(wishes: _Wishes, spelling: str, value: Any) -> None:
    """A word from EFFORTS or "none", or a share of the largest thought."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        budget = max(round(value * LARGEST_THOUGHT), 1) if value else 0
    elif isinstance(value, str) and (value == "none" or value in EFFORTS):
        budget = EFFORTS.get(value, 0)
    else:
        _refuse(spelling, value, f"{_either(['none', *EFFORTS])}, or a number from 0 to below 1")
    wishes.add("mode", spelling, value, "on" if budget else "off")
    if budget:
        wishes.add("budget", spelling, value, budget)


def _think(wishes: _Wishes, spelling: str, value: Any) -> None:
    """Ollama's: a switch or a word."""
    if isinstance(value, bool):
        _switch(wishes, spelling, value)
    elif isinstance(value, str) and (value == "none" or value in EFFORTS):
        _effort(wishes, spelling, value)
    else:
        _refuse(spelling, value, f"true, false, {_either(['none', *EFFORTS])}")


def _object(wishes: _Wishes, spelling: str, value: Any) -> None:
    """`thinking` as a plain switch; as an object its keys have readers of their own."""
    if not isinstance(value, bool):
        _refuse(spelling, value, "an object, true or false")
    _switch(wishes, spelling, value)


def _count(setting: str) -> _Reader:
    """A number of tokens."""

    def read(wishes: _Wishes, spelling: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            _refuse(spelling, value, "a whole number of tokens, 0 or more")
        wishes.add(setting, spelling, value, value)

    return read


def _llama_budget(wishes: _Wishes, spelling: str, value: Any) -> None:
    """llama.cpp's: -1 is no limit; as `reasoning_budget`, 0 is no thought at all."""
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        _refuse(spelling, value, "a whole number of tokens, or -1 for no limit")
    if value == 0 and spelling == "reasoning_budget":
        wishes.add("mode", spelling, value, "off")
    else:
        wishes.add("budget", spelling, value, None if value == -1 else value)


def _on_loop(wishes: _Wishes, spelling: str, value: Any) -> None:
    if not isinstance(value, str) or value not in ("close", "ignore"):
        _refuse(spelling, value, "'close' or 'ignore'")
    wishes.add("on_loop", spelling, value, value)


def _either(words: Iterable[str]) -> str:
    *most, last = (repr(word) for word in words)
    return f"{', '.join(most)} or {last}"


def _refuse(spelling: str, value: Any, allowed: str) -> NoReturn:
    raise ControlError(f"{spelling}={_shown(value)} is not understood. Give {allowed}.")


def _contradict(one: _Wish, other: _Wish) -> NoReturn:
    told = " and ".join(f"{wish.spelling}={_shown(wish.sent)}" for wish in (one, other))
    raise ControlError(f"{told} contradict each other. Send one of them.")


def _shown(value: Any) -> str:
    """A value for an error of one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_Reader = Callable[[_Wishes, str, Any], None]
_READERS: dict[str, _Reader] = {  # every spelling -> what reads it
    "enable_thinking": _switch,  # DashScope, LMDeploy
    "chat_template_kwargs.enable_thinking": _switch,  # vLLM, SGLang, llama.cpp, transformers
    "chat_template_kwargs.thinking": _switch,
    "chat_template_kwargs.thinking_budget": _count("budget"),
    "chat_template_kwargs.reasoning_effort": _effort,
    "reasoning_effort": _effort,  # OpenAI; SGLang also as a number
    "reasoning.effort": _effort,  # OpenAI Responses
    "reasoning.max_tokens": _count("budget"),  # OpenRouter
    "reasoning.enabled": _switch,
    "think": _think,  # Ollama
    "thinking": _object,
    "thinking.type": _word(enabled="on", disabled="off", adaptive="auto"),  # Anthropic
    "thinking.budget_tokens": _count("budget"),
    "thinking.mode": _word(on="on", off="off", auto="auto"),  # our own, as in Thinking
    "thinking.budget": _count("budget"),
    "thinking.min_tokens": _count("min_tokens"),
    "thinking.answer_reserve": _count("answer_reserve"),
    "thinking.soft_landing": _count("soft_landing"),
    "thinking.on_loop": _on_loop,
    "thinking_budget": _count("budget"),  # DashScope
    "thinking_token_budget": _count("budget"),  # vLLM
    "custom_params.thinking_budget": _count("budget"),  # SGLang
    "reasoning_budget_tokens": _llama_budget,
    "thinking_budget_tokens": _llama_budget,
    "reasoning_budget": _llama_budget,
}
_SHARED = ("chat_template_kwargs", "custom_params")  # objects that hold other people's keys too
_KEYS: dict[str, list[str]] = {}  # top-level field -> the keys inside it that are read
for _spelling in _READERS:
    _keys = _KEYS.setdefault(_spelling.partition(".")[0], [])
    _keys += [_spelling.partition(".")[2]] if "." in _spelling else []
CONTROL_FIELDS: frozenset[str] = frozenset(_KEYS)  # a server may refuse every other field as unknown


def control_keys(name: str) -> list[str]:
    """The keys that `from_request` reads inside the field `name`; none for one that is no object."""
    return list(_KEYS.get(name, ()))
