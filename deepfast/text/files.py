"""What a checkpoint says about text, parsed once for everybody who reads it.

In: a directory with tokenizer.json, tokenizer_config.json, chat_template.jinja and thinking.json, each
of which may be missing; or the same objects from elsewhere. Out: TextFiles. A damaged file
is a ModelError. Does not know: what the objects mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..types import ModelError


@dataclass(frozen=True, slots=True)
class TextFiles:
    """path: where they come from, for messages. tokenizer: tokenizer.json. config: tokenizer_config.json.
    templates: the chat templates, name -> Jinja. thinking: thinking.json. notes: what a person should know
    about them."""

    path: Path
    tokenizer: Mapping[str, Any] | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    thinking: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dir(cls, path: Path) -> TextFiles:
        """Read what there is in a directory."""
        config = _object(path / "tokenizer_config.json") or {}
        template = path / "chat_template.jinja"
        own = (
            {"default": _text(template)}
            if template.is_file()
            else named_templates(config.get("chat_template"))
        )
        return cls(path, _object(path / "tokenizer.json"), config, own, _object(path / "thinking.json"))


def named_templates(value: Any) -> dict[str, str]:
    """The templates in tokenizer_config.json: one string, or a list of {"name", "template"}."""
    if isinstance(value, str):
        return {"default": value}
    items = value if isinstance(value, list) else []
    return {str(item["name"]): str(item["template"]) for item in items if isinstance(item, dict)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error


def _object(file: Path) -> dict[str, Any] | None:
    """The object in `file`, None when there is no such file."""
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from error
    if not isinstance(raw, dict):
        raise ModelError(f"{file} holds a {type(raw).__name__}; expected a JSON object. Fetch it again.")
    return raw


def _damaged(file: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ModelError(f"{file} can not be read: {reason}. Fetch it again.")
