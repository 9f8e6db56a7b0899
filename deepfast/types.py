"""The nouns everybody shares: messages in, deltas and completions out, and the errors on the way.

In: nothing. Out: frozen dataclasses, two protocols and the exception tree. Standard library only.
Does not know: tokens of any particular model, arrays, threads, HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
Mode = Literal["on", "off", "auto"]
FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
ThinkingStop = Literal["natural", "budget", "loop", "user", "none"]
DeltaKind = Literal["reasoning", "content", "tool_call"]
ModelKind = Literal["hybrid", "think", "no_think"]  # does it think: as asked, always, never


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
    """A request that can never fit; the text holds the numbers."""


class ModelError(DeepfastError):
    """A checkpoint that is missing, damaged or of an unknown kind."""


class EngineError(DeepfastError):
    """The engine failed, or was closed, while a request was running."""


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
class SamplingParams:
    """How tokens are drawn. `None` means: the default of the mode that is in force (config.py).

    temperature 0 is greedy. top_k 0 is off, top_p 1 is off, min_p 0 is off. presence and frequency penalties
    count generated tokens only; repetition_penalty (1 is off) counts the prompt too, as in transformers.
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
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        ranges: dict[str, tuple[float, float]] = {
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
            if value is not None and not low <= value <= high:
                raise UsageError(
                    f"{name}={value} is outside {low:g} to {high:g}. Give a value in that range."
                )
        if self.top_p == 0.0:
            raise UsageError(
                "top_p=0 would leave no token. Give a value above 0, or temperature=0 for greedy."
            )
        if any(not text for text in self.stop):
            raise UsageError("stop holds an empty string, which would stop at once. Leave it out.")
        if any(not -1e4 <= bias <= 1e4 for bias in self.logit_bias.values()):
            raise UsageError("logit_bias holds a value outside -10000 to 10000. Use -100 to ban a token.")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request asks of the thought.

    mode: "on" and "off" are hard switches, "auto" follows the model's default and /think, /no_think in the
    text. budget: at most so many tokens inside the thought (None: no limit of its own; 0 closes it at once).
    answer_reserve: tokens kept free for the answer before max_tokens or the context ends (None: the default).
    Raises UsageError when a value is out of its range.
    """

    mode: Mode = "auto"
    budget: int | None = None
    answer_reserve: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        if self.mode not in ("on", "off", "auto"):
            raise UsageError(f"mode={self.mode!r} is not a thinking mode. Use 'on', 'off' or 'auto'.")
        for name in ("budget", "answer_reserve"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(
                    f"{name}={value} is negative. Give 0 or more tokens, or leave it out for no limit."
                )
        if self.mode == "off" and self.budget:
            raise ControlError(
                f"budget={self.budget} needs a thought, but mode is 'off'. Drop the budget or use mode='on'."
            )


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. reasoning_tokens is the part of completion_tokens inside the thought."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingReport:
    """What was applied, and why the thought ended ("none": there was no thought)."""

    mode: Mode = "auto"
    budget: int | None = None
    stop: ThinkingStop = "none"
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from the moment the request was handed in."""

    first_token_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of output. For a tool_call, `text` is the raw text between the tags."""

    kind: DeltaKind
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request. `sampled[i]` is False where token_ids[i] was forced by the engine, not drawn."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    finish_reason: FinishReason
    usage: Usage
    thinking: ThinkingReport
    timing: Timing


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


def as_dict(value: Any) -> dict[str, Any]:
    """The fields of a (slotted) dataclass instance, one level deep."""
    return {item.name: getattr(value, item.name) for item in fields(value)}
