"""The nouns everybody shares: messages in, deltas and completions out, and the errors on the way.

In: nothing. Out: frozen dataclasses, two protocols and the exception tree. Standard library only.
Does not know: tokens of any particular model, arrays, threads, HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
Mode = Literal["on", "off", "auto"]
FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
ThinkingStop = Literal["natural", "budget", "loop", "user", "none"]
DeltaKind = Literal["reasoning", "content", "tool_call"]
ModelKind = Literal["hybrid", "think", "no_think"]  # does it think: as asked, always, never
OnLoop = Literal["close", "ignore"]
CacheMiss = Literal["none", "cold", "diverged", "evicted", "off"]
ToolChoice = str  # "auto", "none", "required", or the name of the tool that must be called
MAX_LOGPROBS = 20  # alternatives per token, as in the OpenAI API
MAX_STOPS = 128  # stop strings, and stop ids: each is looked for behind every token


class DeepfastError(Exception):
    """Everything we raise on purpose; its text is one line that says what, the limit and the way out.

    DeepfastError
    ├── UsageError        the caller asked for something that makes no sense (exit code 2, HTTP 400)
    │   ├── ControlError  a thinking control contradicts another, or the model cannot obey it
    │   └── ContextError  the request can never fit the context or the KV cache
    ├── ModelError        the checkpoint is missing, damaged or of an unknown kind (exit code 1)
    └── EngineError       the engine failed or was closed while a request was running (exit code 1)
    """


class UsageError(DeepfastError):
    """A value the caller chose is out of range."""


class ControlError(UsageError):
    """A thinking control that contradicts another or that the loaded model cannot obey."""


class ContextError(UsageError):
    """A request that can never fit; the text holds the numbers. most: the largest max_tokens that would,
    where nothing else is wrong."""

    def __init__(self, text: str, most: int | None = None) -> None:
        super().__init__(text)
        self.most = most


class ModelError(DeepfastError):
    """A checkpoint that is missing, damaged or of an unknown kind."""


class EngineError(DeepfastError):
    """The engine failed while a request was running, or it is closed."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call of the model. `arguments` is a JSON object as text, exactly as it was written."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `reasoning` is an assistant's thought; templates drop it from old turns."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer must match, whole: a JSON schema, a regular expression or a Lark grammar, as text.

    It never binds the thought. Checked when a request is made: UsageError names what cannot be enforced.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str

    def __post_init__(self) -> None:
        """Refuse an unknown kind, by name."""
        if self.kind not in ("json_schema", "regex", "lark"):
            raise UsageError(f"grammar kind {self.kind!r} is unknown. Use 'json_schema', 'regex' or 'lark'.")
        if not isinstance(self.source, str):
            raise UsageError(
                f"a grammar's source is {type(self.source).__name__}. Give text (json.dumps(...))."
            )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `None` means: the default of the mode that is in force (config.py).

    temperature 0 is greedy. top_k 0 is off, top_p 1 is off, min_p 0 is off. presence and frequency penalties
    count generated tokens only; repetition_penalty (1 is off) counts the prompt too, as in transformers.
    stop strings and stop_token_ids end the answer; inside a thought they have no effect (but with ids in, ids
    out, stop_token_ids end everything). ignore_eos goes on after the end of the turn. logprobs: the
    log-probabilities (before temperature and penalties) of every sampled token and of so many alternatives.
    grammar: what the answer must match. parallel_tool_calls: False ends the turn after one tool call.
    Raises UsageError when a value is out of its range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        ranges: dict[str, tuple[float, float]] = {
            "logprobs": (0, MAX_LOGPROBS),
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31 - 1),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "presence_penalty": (-2.0, 2.0),
            "frequency_penalty": (-2.0, 2.0),
            "repetition_penalty": (0.01, 100.0),
            "max_tokens": (1, 2**31 - 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Real) or isinstance(value, bool)):
                raise UsageError(f"{name}={value!r} is not a number. Give one from {low:g} to {high:g}.")
            if value is not None and not low <= float(value) <= high:
                raise UsageError(
                    f"{name}={value} is outside {low:g} to {high:g}. Give a value in that range."
                )
        for name in ("top_k", "max_tokens", "seed", "logprobs"):
            _check_whole(name, getattr(self, name))
        for name in ("stop", "stop_token_ids"):
            if not isinstance(getattr(self, name), tuple | list):
                raise UsageError(f"{name}={getattr(self, name)!r} is not a tuple. Use {name}=(...,).")
            if (count := len(getattr(self, name))) > MAX_STOPS:
                raise UsageError(f"{name} holds {count} items. Give at most {MAX_STOPS}.")
        if not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop={self.stop!r} is not a tuple of strings. Use stop=('text',).")
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(f"logit_bias={self.logit_bias!r} is no mapping. Use {{token id: bias}}.")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise UsageError(f"grammar is {type(self.grammar).__name__}. Give Grammar('json_schema', '...').")
        for token in (*self.stop_token_ids, *self.logit_bias):
            _check_whole("a token id in stop_token_ids or logit_bias", token)
        if self.top_p == 0.0:
            raise UsageError(
                "top_p=0 would leave no token. Give a value above 0, or temperature=0 for greedy."
            )
        if any(not text for text in self.stop):
            raise UsageError("stop holds an empty string, which would stop at once. Leave it out.")
        biases = self.logit_bias.values()
        if any(not isinstance(bias, Real) or not -1e4 <= float(bias) <= 1e4 for bias in biases):
            raise UsageError("logit_bias holds a value outside -10000 to 10000. Use -100 to ban a token.")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request asks of the thought.

    mode: "on" and "off" are hard switches, "auto" follows the model's default and /think, /no_think in the
    text. budget: at most so many tokens inside the thought (None: no limit of its own; 0 closes it at once).
    min_tokens: a thought that would end earlier goes on with "Wait", a limited number of times, while that
    fits its limits.
    answer_reserve: tokens kept free for the answer before max_tokens or the context ends (None: the default).
    soft_landing: over so many tokens before its limit the thought is led to its end by a growing bias (0:
    off). on_loop: what happens when the thought repeats itself. source: the spelling that a client used.
    Raises UsageError when a value is out of its range, ControlError when two contradict each other.
    """

    mode: Mode = "auto"
    budget: int | None = None
    min_tokens: int = 0
    answer_reserve: int | None = None
    soft_landing: int = 0
    on_loop: OnLoop = "close"
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse values out of range and contradictions, by name."""
        if self.mode not in ("on", "off", "auto"):
            raise UsageError(f"mode={self.mode!r} is not a thinking mode. Use 'on', 'off' or 'auto'.")
        if self.on_loop not in ("close", "ignore"):
            raise UsageError(f"on_loop={self.on_loop!r} is unknown. Use 'close' or 'ignore'.")
        for name in ("budget", "min_tokens", "answer_reserve", "soft_landing"):
            value = getattr(self, name)
            _check_whole(name, value)
            if value is not None and value < 0:
                raise UsageError(
                    f"{name}={value} is negative. Give 0 or more tokens, or leave it out for no limit."
                )
        for name in ("budget", "min_tokens", "soft_landing"):
            if self.mode == "off" and getattr(self, name):
                raise ControlError(
                    f"{name}={getattr(self, name)} needs a thought, but mode is 'off'. "
                    f"Drop {name} or use mode='on'."
                )
        if self.budget is not None and self.min_tokens > self.budget:
            raise ControlError(
                f"min_tokens={self.min_tokens} is more than budget={self.budget}. "
                "Lower it, or raise the budget."
            )


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer a prompt, among several at once."""

    params: SamplingParams | None = None
    thinking: Thinking | None = None

    @staticmethod
    def branches(
        n: int, params: SamplingParams | None = None, thinking: Thinking | None = None
    ) -> list[Variant]:
        """n variants of a kind; branch i draws with seed + i, or freely where no seed is given."""
        if n < 1:
            raise UsageError(f"n={n} is below 1. Ask for at least one answer.")
        wanted = params or SamplingParams()
        seeds = [None if wanted.seed is None else wanted.seed + i for i in range(n)]
        return [Variant(replace(wanted, seed=seed), thinking) for seed in seeds]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. reasoning_tokens is the part of completion_tokens inside the thought."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingReport:
    """What was applied, where that wish came from, and why the thought ended ("none": there was no thought,
    or the request ended inside it).

    mode: "on" or "off", as put in force ("auto" for ids in, ids out). source: the control that decided
    ("enable_thinking", "/no_think", "mode", ...) or "default". budget: as asked; stop is "budget" too where
    the answer's reserve was the limit. waits: how often the thought was extended.
    """

    mode: Mode = "auto"
    budget: int | None = None
    stop: ThinkingStop = "none"
    seconds: float = 0.0
    source: str = "default"
    waits: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from the moment the request was handed in."""

    first_token_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token, its log-probability, and the most likely ones: (id, log-probability), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of output.

    A tool call comes as one Delta with its index, id and name, then Deltas whose texts, joined, are its
    arguments. `malformed` (a reason) takes the call of that index back: its text follows as content.
    logprobs: of the tokens since the last Delta, when they were asked for.
    """

    kind: DeltaKind
    text: str
    index: int = 0
    id: str = ""
    name: str = ""
    malformed: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    Per new token: `sampled` (False where the engine forced it), `kinds` (None: a control token, no text) and,
    when asked for, `logprobs` (None where forced). malformed: why calls were returned as content.
    cache_miss: why no more than usage.cached_tokens came from the prefix cache. stop_string: the one of
    SamplingParams.stop that ended the answer.
    """

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    finish_reason: FinishReason
    usage: Usage
    thinking: ThinkingReport
    timing: Timing
    kinds: tuple[DeltaKind | None, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] = ()
    malformed: tuple[str, ...] = ()
    cache_miss: CacheMiss = "none"
    stop_string: str | None = None


class ChatModel(Protocol):
    """Whatever can hold a conversation: the local engine, a remote endpoint, a script in a test."""

    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
    ) -> Completion:
        """Answer at once."""
        ...

    def stream(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
    ) -> Iterator[Delta]:
        """Answer piece by piece; the pieces joined are the answer of `chat`."""
        ...


def _check_whole(name: str, value: Any) -> None:
    """Raises UsageError unless `value` is a whole number, or None."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise UsageError(f"{name}={value!r} is not a whole number. Give one, or leave it out.")


def as_dict(value: Any) -> dict[str, Any]:
    """The fields of a (slotted) dataclass instance, one level deep."""
    return {item.name: getattr(value, item.name) for item in fields(value)}


def as_size(count: float) -> str:
    """Bytes for people: 7.2 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
