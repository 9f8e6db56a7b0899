"""Tokenizers for the text tests: a tiny byte-level BPE made here, and the genuine Qwen3 one.

In: nothing. Out: model directories and loaded tokenizers, each made once. Does not know: weights.
"""

import json
import tempfile
from functools import cache
from pathlib import Path

import qwen_tokenizer_json

from deepfast.model.hub import BUNDLED
from deepfast.text.tokenizer import Tokenizer
from deepfast.types import Message, ToolCall

BUNDLED_TEMPLATE = BUNDLED / "chat_template.jinja"
BUNDLED_CONFIG = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
SIZE: int = BUNDLED_CONFIG["vocab_size"]  # of the bundled model's vocabulary
END_ID: int = BUNDLED_CONFIG["eos_token_id"]
PAD_ID: int = json.loads((BUNDLED / "generation_config.json").read_text(encoding="utf-8"))["pad_token_id"]
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
)


def tiny_json(control: tuple[str, ...] = CONTROL) -> dict:
    """tokenizer.json with 256 bytes, a few merges and the control tokens."""
    letters = qwen_tokenizer_json._letters()
    joined = [["t", "h"], ["th", "i"], ["Ċ", "Ċ"], ["ä", "½"], ["i", "n"], ["Ġ", "th"]]
    vocab = {letter: byte for byte, letter in enumerate(letters)}
    for pair in joined:
        vocab["".join(pair)] = len(vocab)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": len(vocab) + i, "content": text} | flags for i, text in enumerate(control)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": joined},
    }


def write_model_dir(path: Path, raw: object, *, template: str | None = None) -> Path:
    """A directory with this tokenizer.json, and with a chat template where one is given."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    if template is not None:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return path


@cache
def tiny() -> Tokenizer:
    """The tiny tokenizer, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.from_dir(write_model_dir(Path(folder), tiny_json()))


@cache
def qwen() -> Tokenizer:
    """The genuine Qwen3 tokenizer, loaded."""
    return Tokenizer.from_dir(qwen_tokenizer_json.tokenizer_dir())


def message_of(raw: dict) -> Message:
    """A Message from the shape that Hugging Face's templates read."""
    calls = [call["function"] for call in raw.get("tool_calls") or ()]
    texts = [a if isinstance(a := call["arguments"], str) else json.dumps(a) for call in calls]
    return Message(
        raw["role"],
        raw["content"],
        raw.get("reasoning_content"),
        tuple(ToolCall(call["name"], text) for call, text in zip(calls, texts, strict=True)),
    )
