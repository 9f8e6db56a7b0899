"""A pretend LLM for tests of the command line: it repeats the question, after a thought unless told not to.

In: what an LLM takes. Out: what an LLM gives. Words in the question direct it: "slowly" takes a minute,
"ponder" thinks for a minute, "late" has ended its thought before anybody can, "fail" makes the engine fail,
"long" is more than the context holds, "cut" runs out of tokens, "nothing" has a blank answer, "call" calls
two tools, "garble" begins a call that cannot be read, "odd" answers with its seed modulo 2. Run as a script,
it is `deepfast` with this model inside. Does not know: tokens, weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import deepfast
from deepfast.model.fit import Fit
from deepfast.types import (
    Completion,
    ContextError,
    ControlError,
    Delta,
    EngineError,
    Message,
    ModelError,
    SamplingParams,
    Thinking,
    ThinkingReport,
    ThinkingStop,
    Timing,
    ToolCall,
    Usage,
    Variant,
)

CALLS = [
    Delta("tool_call", "", 0, "call_0", "add"),
    *(Delta("tool_call", text) for text in ('{"a": 1,', '\n"b": 2}')),
    Delta("content", "\n"),
    Delta("tool_call", "", 1, "call_1", "now"),
    Delta("tool_call", "{}", 1),
]
GARBLED = [
    Delta("tool_call", "", 0, "call_0", "add"),
    Delta("tool_call", '{"a": ', 0),
    Delta("tool_call", "", 0, malformed="'x' is no value"),
    Delta("content", '<tool_call>{"name": "add", "arguments": {"a": x</tool_call>'),
]


class ScriptedStream:
    """Iterate over the deltas; `completion` afterwards."""

    def __init__(self, question: str, params: SamplingParams, wish: Thinking, turns: int) -> None:
        self.question, self.wish, self.cancelled = question, wish, False
        self.stop: ThinkingStop = "none" if wish.mode == "off" else "natural"
        self.pause = 0.5 if "slowly" in question or "ponder" in question else 0.0
        thought = ["let me ", "see", *[" more"] * (100 if "ponder" in question else 0)]
        content = [f"{turns} turns: ", question, *["."] * (100 if "slowly" in question else 0)]
        if "odd" in question:
            content = ["", "it is ", str((params.seed or 0) % 2)]
        if "nothing" in question:
            content = [" "]
        self.given = list[Delta]()
        self.left = [Delta("reasoning", text) for text in thought if wish.mode != "off"]
        self.left += [Delta("content", text) for text in content]
        self.calls = "call" in question
        self.left += CALLS if self.calls else GARBLED if "garble" in question else []

    def __iter__(self) -> Iterator[Delta]:
        while self.left:
            self.given.append(self.left.pop(0))
            if "fail" in self.question and self.given[-1].kind == "content":
                raise EngineError("logits of sequence 0 hold NaN. The weights are damaged.")
            yield self.given[-1]
            time.sleep(self.pause)

    def end_thought(self) -> None:
        """What is left of the thought is dropped."""
        if "late" in self.question:
            raise ControlError("the thought is over: it can only be steered while it runs.")
        self.left = [Delta("reasoning", " so be it"), *(d for d in self.left if d.kind != "reasoning")]
        self.stop = "user"

    def cancel(self) -> None:
        """Remember that it was asked for."""
        self.cancelled = True

    def result(self) -> Completion:
        """Run to the end."""
        list(self)
        return self.completion

    @property
    def completion(self) -> Completion:
        """Everything at once."""
        said = {k: "".join(d.text for d in self.given if d.kind == k) for k in ("reasoning", "content")}
        calls = (ToolCall("add", '{"a": 1,\n"b": 2}', "call_0"), ToolCall("now", "{}", "call_1"))
        thought = 2 if said["reasoning"] else 0
        return Completion(
            reasoning=said["reasoning"],
            content=said["content"],
            tool_calls=calls if self.calls else (),
            token_ids=(1, 2, 3),
            sampled=(True, True, True),
            finish_reason="length" if "cut" in self.question else "tool_calls" if self.calls else "stop",
            usage=Usage(5, 3, 2 + thought, thought),
            thinking=ThinkingReport(
                self.wish.mode, self.wish.budget, self.stop, 0.01, self.wish.source or "default"
            ),
            timing=Timing(0.01, 0.5),
            malformed=tuple(d.malformed for d in self.given if d.malformed),
            cache_miss="diverged",
        )


class ScriptedLLM:
    """Takes the arguments of LLM, keeps what it was asked, answers from the script above."""

    last: ScriptedLLM

    def __init__(
        self,
        model: str | None = None,
        *,
        quantize: str | None = None,
        config: Any = None,
        progress: Callable[[float], None] | None = None,
        fetching: Callable[[Any], None] | None = None,
    ) -> None:
        if model == "nowhere":
            raise ModelError("model 'nowhere' is not a directory. Give the path of a checkpoint.")
        self.name, self.load_seconds = model or "scripted", 0.25
        self.quantize, self.engine_config, self.notes = quantize, config, ()
        self.calls: list[tuple[list[Message], SamplingParams, Thinking]] = []
        self.closed = False
        self.fit = Fit(1000, 0, 1000, 1000, 1000, context=64, native=64, kv_tokens=64, free=10**6)
        type(self).last = self

    def __enter__(self) -> ScriptedLLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.closed = True

    def stream(
        self,
        messages: list[Message],
        params: SamplingParams,
        wish: Thinking,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str = "auto",
    ) -> ScriptedStream:
        """A scripted answer to the last message."""
        self.calls.append((messages, params, wish))
        self.tools, self.tool_choice = tools, tool_choice
        question = messages[-1].content or ""
        if "long" in question:
            raise ContextError("the prompt has 99 tokens, but the context holds 64. Shorten it.")
        return ScriptedStream(question, params, wish, sum(m.role == "user" for m in messages))

    def chat(self, *ask: Any) -> Completion:
        """The same answer, at once."""
        return self.stream(*ask).result()

    def fork_streams(
        self, messages: list[Message], variants: list[Variant], *tools: Any
    ) -> list[ScriptedStream]:
        """One answer for each variant."""
        return [
            self.stream(messages, v.params or SamplingParams(), v.thinking or Thinking(), *tools)
            for v in variants
        ]


if __name__ == "__main__":
    deepfast.__dict__["LLM"] = ScriptedLLM
    from deepfast.cli.main import main

    sys.argv[0] = "deepfast"
    main()
