"""Requests of every kind, out of numbers: what a test of many requests draws from.

In: a number. Out: a Plan, and for a loaded model the request that it stands for; equal numbers, equal plans.
Does not know: engines, what comes of a request.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from contract import ADD, SAY, SHAPES, Ask

from deepfast import LLM, Message, SamplingParams, Thinking

BIASES = (
    "none",
    "ends its thought",
    "never ends it",
    "calls",
    "ends its turn",
    "loops",
    "thinks",
    "misplaces",
)
ACTS = ("cancel", "end", "extend", "budget", "hint")
HINTS = ("the sum is 7", "</think> <tool_call>", "是的")
TOOL_TURNS = (
    Message("user", "Add 1."),
    Message("assistant", None, "I must add."),
    Message("tool", '{"sum": 2}'),
)
TALK = (
    Message("system", "Be brief."),
    Message("user", "Hi /think"),
    Message("assistant", "Hello.", "A greeting."),
    Message("user", "again again again again"),
)
PROMPTS = (
    "Hi",
    "47 * 86 = 47 * 86 = 47 * 86 =",
    "你好，你是谁？",
    "Hi /no_think",
    TALK,
    TOOL_TURNS,
    "word " * 60,
)


def bias(llm: LLM, name: str) -> dict[int, float]:
    """A logit_bias that makes the model misbehave so."""
    ids = llm.requests.ids
    assert ids.think_open and ids.think_close and ids.tool_open
    (end,) = llm.tokenizer.encode("<|im_end|>", control=True)
    return {
        "none": {},
        "ends its thought": {ids.think_close: 7.0},
        "never ends it": {ids.think_close: -100.0},
        "calls": {ids.tool_open: 6.0, end: 9.0},
        "ends its turn": {end: 6.0},
        "loops": {llm.tokenizer.encode("a")[0]: 20.0},
        "thinks": {ids.think_open: 20.0},
        "misplaces": {token: 20.0 for token in (*ids.others, ids.tool_close) if token is not None},
    }[name]


@dataclass(frozen=True)
class Plan:
    """A request as hypothesis draws it. act: what its reader does after so many deltas."""

    prompt: int
    sampling: dict[str, Any]
    thinking: dict[str, Any]
    shape: str | None
    tools: tuple[dict[str, Any], ...] | None
    choice: str
    bias: str
    act: tuple[str, int] | None = None

    def ask(self, llm: LLM) -> Ask:
        """The request."""
        grammar = SHAPES[self.shape][0] if self.shape else None
        params = SamplingParams(**self.sampling, grammar=grammar, logit_bias=bias(llm, self.bias))
        messages = PROMPTS[self.prompt]
        choice = self.choice if self.tools else "auto"
        return Ask(messages, params, Thinking(**self.thinking), self.tools, choice)


LOOPING = Plan(
    prompt=0,
    sampling={"temperature": 0.0, "max_tokens": 640, "seed": 1},
    thinking={"mode": "on", "answer_reserve": 1},
    shape=None,
    tools=None,
    choice="auto",
    bias="loops",
)


def wish(luck: random.Random) -> dict[str, Any]:
    """Arguments of Thinking that do not contradict each other."""
    mode = luck.choice(["on", "on", "auto", "off"])
    found: dict[str, Any] = {"mode": mode, "answer_reserve": luck.choice([None, None, 1, 12])}
    if mode != "off":
        budget, least = luck.choice([None, 0, 1, 7, 30, 60]), luck.choice([0, 6, 20])
        found |= {"budget": budget, "min_tokens": least if budget is None else min(least, budget)}
        found |= {
            "soft_landing": luck.choice([0, 0, 8]),
            "on_loop": luck.choice(["close", "close", "ignore"]),
        }
    return found


def plan(number: int) -> Plan:
    """The request of that number."""
    luck = random.Random(number)
    sampling = {
        "temperature": luck.choice([1.0, 1.0, 0.0, None]),
        "top_k": luck.choice([0, 3]),
        "seed": luck.randint(0, 9),
        "max_tokens": luck.choice([12, 40, 90, 90, 150]),
        "frequency_penalty": luck.choice([0.0, 0.0, 0.5]),
        "repetition_penalty": luck.choice([1.0, 1.0, 1.2]),
        "stop": luck.choice([(), (), (), ("e", "ab"), ("\n\n", "}")]),
        "stop_token_ids": luck.choice([(), (), (), (198, 531), tuple(range(0, 600, 13))]),  # newlines; many
        "ignore_eos": luck.random() < 0.2,
        "logprobs": luck.choice([None, None, 0, 2]),
    }
    made = Plan(
        prompt=luck.randrange(len(PROMPTS)),
        sampling=sampling,
        thinking=wish(luck),
        shape=luck.choice([None, None, None, None, None, *SHAPES]),
        tools=luck.choice([None, None, None, (SAY,), (SAY, ADD)]),
        choice=luck.choice(["auto", "auto", "none", "required", "say"]),
        bias=luck.choice(BIASES),
    )
    if luck.random() < 0.04:
        return LOOPING
    if luck.random() < 0.6:
        return made
    act = luck.choice(ACTS), luck.choice([0, 0, luck.randint(1, 25)])
    if luck.random() < 0.3:
        return replace(made, act=act)
    long = {"mode": "on", "min_tokens": 0, "soft_landing": 0}  # or most acts would come too late
    return replace(
        made,
        act=act,
        sampling=sampling | {"max_tokens": 180},
        thinking=made.thinking | long | {"budget": luck.choice([None, 120])},
        bias=luck.choice(["none", "never ends it"]),
    )


def group(numbers: list[int]) -> list[Plan]:
    """The requests of these numbers; in one group of four the first one comes twice."""
    plans = [plan(number) for number in numbers]
    return plans + plans[:1] if numbers[0] % 4 == 0 else plans
