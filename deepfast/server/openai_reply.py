"""What a running chat says -> the chunks, choices and usage of OpenAI's chat API.

In: Deltas, then a Completion, of one variant (Choice) or of all (usage). Out: dicts in OpenAI's shape, with
our extensions. A whole answer is its chunks, joined. Does not know: HTTP, what was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..types import Completion, Delta, TokenLogprob, Usage

BytesOf = Callable[[int], bytes]  # what a token id stands for
LOGPROBS_OF = {"content": "content", "reasoning": "reasoning", "tool_call": "tool_calls"}


class Choice:
    """One answer on its way: what a chunk says of each Delta, and the message that they add up to.

    A call that is cut off stays as far as it was sent, as in OpenAI's API: its finish_reason says "length".
    (The engine hands such a call out once more, as content; that is left out.)
    """

    def __init__(self, index: int, bytes_of: BytesOf | None) -> None:
        """bytes_of: None when no log-probabilities were asked for."""
        self.index = index
        self._bytes_of = bytes_of
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._logprobs: dict[str, list[dict[str, Any]]] = {}
        self._taken_back = False

    def first(self) -> dict[str, Any]:
        """The first chunk's choice: whose turn it is."""
        return self._chunk({"role": "assistant", "content": ""})

    def push(self, delta: Delta) -> dict[str, Any] | None:
        """The choice of the chunk for this Delta; None when it says nothing."""
        kind = delta.kind
        if delta.malformed:
            self._taken_back = True
        elif self._taken_back and kind == "content":
            kind = "tool_call"
        logprobs = self._take_logprobs(LOGPROBS_OF[kind], delta.logprobs)
        if kind == "tool_call":
            said = self._call(delta) if delta.kind == "tool_call" and not delta.malformed else {}
        else:
            self._texts[kind].append(delta.text)
            names = ("reasoning_content", "reasoning") if kind == "reasoning" else ("content",)
            said = dict.fromkeys(names, delta.text) if delta.text else {}
        return self._chunk(said, logprobs) if said or logprobs else None

    def last(self, done: Completion) -> dict[str, Any]:
        """The last chunk's choice."""
        return {**self._chunk({}), "finish_reason": done.finish_reason, **extensions(done)}

    def whole(self, done: Completion) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        calls = [self._joined(index) for index in sorted(self._calls)]
        reasoning = "".join(self._texts["reasoning"]) or None
        message = {
            "role": "assistant",
            "content": "".join(self._texts["content"]) or (None if calls else ""),
            "refusal": None,
            "reasoning_content": reasoning,
            "reasoning": reasoning,
        }
        return {
            "index": self.index,
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": _logprobs(self._logprobs) if self._bytes_of is not None else None,
            "finish_reason": done.finish_reason,
            **extensions(done),
        }

    def _call(self, delta: Delta) -> dict[str, Any]:
        call: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.text}}
        if delta.name:
            call |= {"id": delta.id, "type": "function"}
            call["function"] = {"name": delta.name, "arguments": delta.text}
            self._calls[delta.index] = {"id": delta.id, "type": "function", "name": delta.name}
        elif not delta.text:
            return {}
        self._arguments.setdefault(delta.index, []).append(delta.text)
        return {"tool_calls": [call]}

    def _joined(self, index: int) -> dict[str, Any]:
        call = self._calls[index]
        function = {"name": call["name"], "arguments": "".join(self._arguments[index])}
        return {"id": call["id"], "type": "function", "function": function}

    def _take_logprobs(self, name: str, new: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._bytes_of is None or not new:
            return None
        shaped = [token_logprob(token, self._bytes_of) for token in new]
        self._logprobs.setdefault(name, []).extend(shaped)
        return _logprobs({name: shaped})

    def _chunk(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def extensions(done: Completion) -> dict[str, Any]:
    """What our answers say beyond OpenAI's: how the thought went, and the tokens of this choice alone."""
    report = done.thinking
    thinking = {
        "mode": report.mode,
        "budget": report.budget,
        "stop": report.stop,
        "seconds": round(report.seconds, 4),
        "source": report.source,
        "waits": report.waits,
    }
    more: dict[str, Any] = {"malformed": list(done.malformed)} if done.malformed else {}
    more |= {} if done.stop_string is None else {"stop_reason": done.stop_string}  # as vLLM says it
    return {"thinking": thinking, "usage": usage([done]), **more}


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """Tokens of all answers to one prompt, which is computed and counted once."""
    prompt = completions[0].usage if completions else Usage()
    written = sum(done.usage.completion_tokens for done in completions)
    thought = sum(done.usage.reasoning_tokens for done in completions)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": prompt.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def timing(completions: Iterable[Completion]) -> dict[str, float]:
    """Seconds to the first token of any answer and to the end of the last one."""
    times = [done.timing for done in completions]
    return {
        "first_token_s": round(min((t.first_token_s for t in times), default=0.0), 4),
        "total_s": round(max((t.total_s for t in times), default=0.0), 4),
    }


def token_logprob(token: TokenLogprob, bytes_of: BytesOf) -> dict[str, Any]:
    """One token with its alternatives. A token may be half a character: `bytes` is exact, `token` is not."""
    top = [_text_logprob(other, logprob, bytes_of) for other, logprob in token.top]
    return {**_text_logprob(token.token_id, token.logprob, bytes_of), "top_logprobs": top}


def _text_logprob(token: int, logprob: float, bytes_of: BytesOf) -> dict[str, Any]:
    raw = bytes_of(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(raw)}


def finite(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI's API writes -9999."""
    return max(logprob, -9999.0)


def _logprobs(by_kind: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"content": None, "refusal": None} | by_kind
