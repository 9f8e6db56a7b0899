"""Deepfast: run, steer, serve, evaluate and train hybrid-reasoning language models. Think deep, act fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import EngineConfig
from .types import (
    ChatModel,
    Completion,
    ContextError,
    ControlError,
    DeepfastError,
    Delta,
    EngineError,
    Grammar,
    Message,
    ModelError,
    SamplingParams,
    Thinking,
    ThinkingReport,
    TokenLogprob,
    ToolCall,
    Usage,
    UsageError,
    Variant,
)

if TYPE_CHECKING:
    from .engine.llm import LLM, AsyncLLM

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "ChatModel",
    "Completion",
    "ContextError",
    "ControlError",
    "DeepfastError",
    "Delta",
    "EngineConfig",
    "EngineError",
    "Grammar",
    "Message",
    "ModelError",
    "SamplingParams",
    "Thinking",
    "ThinkingReport",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "UsageError",
    "Variant",
]


def __getattr__(name: str) -> Any:
    """Load the engine when it is first asked for, so that importing the package stays instant."""
    if name in ("LLM", "AsyncLLM"):
        from .engine import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'deepfast' has no attribute {name!r}")
