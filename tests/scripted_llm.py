"""A pretend LLM for tests of the command line: it repeats the question, after a thought unless told not to.

In: what an LLM takes. Out: what an LLM gives. "slowly" in the question makes it take a minute, "fail" makes
the engine fail, "long" is more than the context holds, "cut" runs out of tokens. Run as a script, it is
`deepfast` with this model inside. Does not know: tokens, weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import deepfast
from deepfast.types import (
    Completion,
    ContextError,
    Delta,
    EngineError,
    Message,
    ModelError,
    SamplingParams,
    Thinking,
    ThinkingReport,
    Timing,
    Usage,
)


class ScriptedStream:
    """Iterate over the deltas; `completion` afterwards."""

    def __init__(self, question: str, wish: Thinking, turns: int) -> None:
        self.wish, self.cancelled = wish, False
        self.pause = 0.5 if "slowly" in question else 0.0
        self.fails, self.cut = "fail" in question, "cut" in question
        thought = ["let me ", "see"] if wish.mode != "off" else []
        self.deltas = [Delta("reasoning", text) for text in thought]
        self.deltas += [Delta("content", f"{turns} turns: "), Delta("content", question)]
        self.deltas += [Delta("content", ".")] * (100 if self.pause else 0)

    def __iter__(self) -> Iterator[Delta]:
        for delta in self.deltas:
            if self.fails and delta.kind == "content":
                raise EngineError("logits of sequence 0 hold NaN. The weights are damaged.")
            yield delta
            time.sleep(self.pause)

    def cancel(self) -> None:
        """Remember that it was asked for."""
        self.cancelled = True

    @property
    def completion(self) -> Completion:
        """Everything at once."""
        said = {k: "".join(d.text for d in self.deltas if d.kind == k) for k in ("reasoning", "content")}
        thought = 2 if said["reasoning"] else 0
        return Completion(
            reasoning=said["reasoning"],
            content=said["content"],
            tool_calls=(),
            token_ids=(1, 2, 3),
            sampled=(True, True, True),
            finish_reason="length" if self.cut else "stop",
            usage=Usage(5, 0, 2 + thought, thought),
            thinking=ThinkingReport(self.wish.mode, self.wish.budget, "natural" if thought else "none", 0.01),
            timing=Timing(0.01, 0.5),
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
    ) -> None:
        if model == "nowhere":
            raise ModelError("model 'nowhere' is not a directory. Give the path of a checkpoint.")
        self.name, self.load_seconds = model or "scripted", 0.25
        self.quantize, self.engine_config = quantize, config
        self.calls: list[tuple[list[Message], SamplingParams, Thinking]] = []
        self.closed = False
        type(self).last = self

    def __enter__(self) -> ScriptedLLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.closed = True

    def stream(self, messages: list[Message], params: SamplingParams, wish: Thinking) -> ScriptedStream:
        """A scripted answer to the last message."""
        self.calls.append((messages, params, wish))
        question = messages[-1].content or ""
        if "long" in question:
            raise ContextError("the prompt has 99 tokens, but the context holds 64. Shorten it.")
        return ScriptedStream(question, wish, sum(m.role == "user" for m in messages))

    def chat(self, messages: list[Message], params: SamplingParams, wish: Thinking) -> Completion:
        """The same answer, at once."""
        stream = self.stream(messages, params, wish)
        list(stream)
        return stream.completion


if __name__ == "__main__":
    deepfast.__dict__["LLM"] = ScriptedLLM
    from deepfast.cli.main import main

    sys.argv[0] = "deepfast"
    main()
