"""Chat templates that are known to be wrong: found by what they render, replaced by ones that are right.

In: the templates of a file that others converted. Out: templates that work, and notes that say what was done.
Files carry early or edited versions of the official templates: some fail when an assistant's message is only
a tool call (its content is null), one closes every thought before it begins, one writes " # Tools". Which
one it is does not show in a model's name, so a few conversations are rendered.
Does not know: files, tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..types import Message, ModelError, ToolCall, UsageError
from .template import CLOSE, OPEN, ChatTemplate
from .tokenizer import Tokenizer

_OWN = Path(__file__).resolve().parent / "templates"
_HYBRID = Path(__file__).resolve().parent.parent / "bundled" / "chat_template.jinja"
# SHA-256 of texts that are known to be wrong -> what is wrong with them
KNOWN_BAD = {
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": (
        "fails on an answer that is only a tool call (Qwen3's first one)"
    ),
    "57f1fd00f0013a2be96aa79b857391f27e23df5b5f847072b524c897e24d0361": (
        "fails on an answer that is only a tool call (the first one in Qwen's own GGUF files)"
    ),
    "5ed15374ce53e19a7798710736a2c9fe41c79f7385e8421a2080d6575a80ef1b": (
        "closes every thought before it begins (QwQ's, as llama.cpp edited it)"
    ),
}
_QUESTION, _RULES, _RESULT = "What is 6 times 7?", "Answer briefly.", "42 and no more"
_CALL = Message("assistant", None, tool_calls=(ToolCall("product", '{"a": 6, "b": 7}'),))
_TOOLS = [{"type": "function", "function": {"name": "product", "parameters": {"type": "object"}}}]
_USER, _SYSTEM = Message("user", _QUESTION), Message("system", _RULES)
_ANSWER = Message("assistant", "It is 42.", "Six sevens.")


class Fault(NamedTuple):
    """What is wrong with a template. useless: no conversation at all can be rendered."""

    reason: str
    useless: bool = False


class _NoTokens:
    """Stands where a template expects a tokenizer: every text stays as it is."""

    def __init__(self, specials: Mapping[str, str]) -> None:
        self.specials = dict(specials)

    def guard(self, text: str, marker: str) -> str:
        return text

    def control_id(self, token: str) -> None:
        return None


def repaired(
    templates: Mapping[str, str], specials: Mapping[str, str], chatml: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The templates, or ours in their place where the default one is wrong; and what to tell about it.

    chatml: the vocabulary has the marks of Qwen's format; without them there is nothing to replace it by.
    """
    source = templates.get("default")
    fault = None if source is None else fault_of(source, specials)
    if source is None or fault is None:
        return dict(templates), ()
    known = f"the chat template of this file {fault.reason}"
    kind = _kind_of(source) if chatml else None
    if kind is not None:
        return {"default": own_template(kind)}, (
            f"{known}; a working one for {kind} models takes its place.",
        )
    if fault.useless:
        return {}, (f"{known}; it is left out, so there is no chat, only completion.",)
    return dict(templates), (f"{known}; such conversations will be refused.",)


def fault_of(source: str, specials: Mapping[str, str]) -> Fault | None:
    """What is wrong with a template, None when nothing shows."""
    known = KNOWN_BAD.get(hashlib.sha256(source.encode("utf-8", "replace")).hexdigest())
    if known:
        return Fault(known)
    try:
        template = ChatTemplate({"default": source}, cast(Tokenizer, _NoTokens(specials)))
        plain = template.render([_USER])
    except UsageError:
        return None  # it refuses a conversation on purpose
    except ModelError as error:
        return Fault(f"does not work ({str(error).rstrip('.')})", useless=True)
    if _QUESTION not in plain:
        return Fault("leaves out what the user says", useless=True)
    if plain.rstrip().endswith(CLOSE) and template.render([_USER], enable_thinking=True).rstrip().endswith(
        OPEN
    ):
        return Fault("closes every thought before it begins")
    return _fault_in_conversations(template)


def _fault_in_conversations(template: ChatTemplate) -> Fault | None:
    """Conversations that every client sends sooner or later."""
    result = Message("tool", _RESULT)
    probes: list[tuple[str, list[Message], Any, str]] = [
        ("a system message", [_SYSTEM, _USER], None, _RULES),
        ("an answer with a thought", [_USER, _ANSWER, _USER], None, _ANSWER.content or ""),
        ("an answer that is only a tool call", [_SYSTEM, _USER, _CALL, result], _TOOLS, _RESULT),
        ("an old tool call", [_USER, _CALL, result, _ANSWER, _USER], _TOOLS, _RESULT),
    ]
    for what, messages, tools, expected in probes:
        if tools and not template.reads_tools:
            continue
        try:
            text = template.render(messages, tools=tools)
        except UsageError:
            continue
        except ModelError:
            return Fault(f"fails on {what}")
        if expected not in text:
            return Fault(f"leaves out {what}")
        if tools and "\n # Tools" in text:
            return Fault("writes ' # Tools' where models have learned '# Tools'")
    return None


def _kind_of(source: str) -> str | None:
    """Which of our templates says the same: by what the text of a faulty one mentions."""
    if "<|im_start|>" not in source or "You are Qwen, created by" in source:
        return None  # Qwen2.5 puts in a system message of its own
    opens = f"assistant\\n{OPEN}" in source or f"assistant\n{OPEN}" in source
    if opens and "reasoning_content" not in source:
        return "QwQ"
    if opens:
        return "thinking"
    if "enable_thinking" in source:
        return "hybrid"
    return None if CLOSE in source else "instruct"


def own_template(kind: str) -> str:
    """Our template for hybrid, thinking, instruct or QwQ models."""
    if kind in ("instruct", "QwQ"):
        return (_OWN / f"{kind.lower()}.jinja").read_text(encoding="utf-8")
    hybrid = _HYBRID.read_text(encoding="utf-8")
    if kind == "hybrid":
        return hybrid
    start = "{%- if add_generation_prompt -%}"
    before = hybrid[: hybrid.rindex(start)]
    return before + start + "{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}\n"
