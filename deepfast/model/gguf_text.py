"""The texts of a GGUF model: its tokenizer as tokenizer.json has it, its chat templates, how answers end.

In: the metadata. Out: TextFiles, and the ids that end a turn. Only byte-level BPE is read ("gpt2").
Converters differ in the type they give to added tokens ("<think>"): a type is a hint here, not the truth.
What the types mean: llama.cpp's convert_hf_to_gguf.py; how "pre" splits text: its llama-vocab.cpp.
Does not know: tensors, how ids are found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..text.files import TextFiles
from ..text.repair import repaired
from ..types import ModelError
from .gguf import scalar, shown

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
# "pre" -> how text is split before BPE. The names after the first of a line are other spellings of it.
SPLITS = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), "qwen2"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), "llama-bpe"),
    **dict.fromkeys(("gpt-2", "gpt2"), "gpt-2"),
    "smollm": "smollm",
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKED = re.compile(r"<[^<>\s]{1,80}>")  # the shape of added tokens
_PADDING = re.compile(r"\[PAD(\d{1,9})\]")  # what converters fill unused rows of the embedding with
# Added tokens of the families we read that end a turn, whatever the file says (as llama.cpp has it).
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


def text_files(path: Path, metadata: Mapping[str, Any], rows: int) -> TextFiles:
    """Everything about text. rows: of the embedding. Raises ModelError for tokenizers of another kind."""
    tokens = _tokens(path, metadata)
    if len(tokens) > rows:
        raise ModelError(
            f"{path}: {len(tokens)} tokens, but the embedding has {rows} rows. Download it again."
        )
    split, notes = _split_of(path, metadata, tokens)
    config = _config(path, metadata, tokens)
    specials = {name: text for name, text in config.items() if isinstance(text, str)}
    templates, more = repaired(_templates(path, metadata), specials, "<|im_start|>" in tokens)
    merges = _strings(path, metadata, "merges")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        **_vocabulary(path, tokens, _types(path, metadata, tokens), merges, split == "llama-bpe"),
        **_pipeline(split),
    }
    return TextFiles(path, tokenizer, config, templates, None, (*notes, *more))


def end_ids(path: Path, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: those that are named so, and added tokens known for it."""
    tokens = _tokens(path, metadata)
    named = [_id(path, metadata, f"{key}_token_id", tokens) for key in ("eos", "eot", "eom")]
    known = [i for i, text in enumerate(tokens) if text[:2] == "<|" and text in _ENDS]
    return tuple(dict.fromkeys(i for i in (*named, *known) if i is not None))


def _tokens(path: Path, metadata: Mapping[str, Any]) -> list[str]:
    model = scalar(metadata, f"{PREFIX}model")
    if model != "gpt2":
        kind = "a SentencePiece tokenizer" if model in ("llama", "t5") else f"tokenizer {shown(model)}"
        raise ModelError(
            f"{path} has {kind} ({PREFIX}model); only byte-level BPE ('gpt2') is read. Use a model of the "
            "Qwen or Llama 3 families."
        )
    return _strings(path, metadata, "tokens")


def _strings(path: Path, metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(PREFIX + name)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):  # the others are alike
        raise ModelError(f"{path}: metadata {PREFIX}{name} is no list of strings. Download the file again.")
    return value


def _types(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """The type of each token; without any, all are normal."""
    value = metadata.get(f"{PREFIX}token_type")
    if value is None:
        return [NORMAL] * len(tokens)
    good = isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.shape == (len(tokens),)
    if not good or value.min() < 0 or value.max() > 6:
        raise ModelError(
            f"{path}: metadata {PREFIX}token_type is no list of {len(tokens)} types from 0 to 6."
        )
    types: list[int] = value.tolist()
    return types


def _split_of(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> tuple[str, tuple[str, ...]]:
    """How text is split; a file that does not say it gets what its tokens tell."""
    pre = scalar(metadata, f"{PREFIX}pre")
    if pre in SPLITS:
        return SPLITS[str(pre)], ()
    if pre not in ("default", None):
        raise ModelError(
            f"{path}: {PREFIX}pre is {shown(pre)}, a way to split text that is unknown; expected one of "
            f"{', '.join(SPLITS)}."
        )
    guess = "qwen2" if "<|im_start|>" in tokens else "llama-bpe" if "<|eot_id|>" in tokens else "gpt-2"
    return guess, (f"{path.name} does not say how text is split into words; as its tokens are, {guess}.",)


def _pipeline(split: str) -> dict[str, Any]:
    """Normaliser, pre-tokenizer and decoder."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    steps: list[dict[str, Any]] = [{**level, "use_regex": split in ("gpt-2", "smollm")}]
    if split == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    elif split != "gpt-2":
        regex = _WORDS % ("" if split == "qwen2" else "{1,3}")
        cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        steps.insert(0, cut)
    return {
        "normalizer": {"type": "NFC"} if split == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
    }


def _vocabulary(
    path: Path, tokens: list[str], types: list[int], merges: list[str], ignore_merges: bool
) -> dict[str, Any]:
    """The BPE model and the added tokens."""
    added = _added(tokens, types, merges)
    unused = {i for i, t in enumerate(types) if t == UNUSED}
    unused |= {i for i, text in enumerate(tokens) if text[:4] == "[PAD" and _padding_of(text) == i}
    vocab = {text: i for i, text in enumerate(tokens) if i not in added and i not in unused}
    if len(vocab) + len(added | unused) < len(tokens):
        raise ModelError(f"{path}: metadata {PREFIX}tokens holds a token twice. Download the file again.")
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "added_tokens": [
            {"id": i, "content": tokens[i], **plain, "special": types[i] == CONTROL}
            for i in sorted(added - unused)
            if tokens[i]
        ],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _added(tokens: list[str], types: list[int], merges: list[str]) -> set[int]:
    """Tokens that are found in the text as they are. Some files call "<think>" a normal token: what has that
    shape and no merge leads to was added, too."""
    added = {i for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    marked = [
        i for i, text in enumerate(tokens) if text[:1] == "<" and i not in added and _MARKED.fullmatch(text)
    ]
    if marked:
        pairs = set(merges)  # "a b" makes "ab"
        added |= {
            i for i in marked if not any(f"{(t := tokens[i])[:k]} {t[k:]}" in pairs for k in range(1, 82))
        }
    return added


def _padding_of(text: str) -> int:
    match = _PADDING.fullmatch(text)
    return int(match[1]) if match else -1


def _id(path: Path, metadata: Mapping[str, Any], name: str, tokens: list[str]) -> int | None:
    """A token's id; some converters write -1 or 2^32 - 1 for none."""
    value = scalar(metadata, PREFIX + name)
    if value is None or value in (-1, 2**32 - 1):
        return None
    if type(value) is not int or not 0 <= value < len(tokens):
        raise ModelError(f"{path}: metadata {PREFIX}{name} is {shown(value)}; expected an id of a token.")
    return value


def _config(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """What tokenizer_config.json would say. A begin token that is never put first is none (Qwen)."""
    ids = {name: _id(path, metadata, key, tokens) for name, key in _NAMED.items()}
    first = scalar(metadata, f"{PREFIX}add_bos_token")
    if first is False:
        ids["bos_token"] = None
    named = {name: None if i is None else tokens[i] for name, i in ids.items()}
    return {**named, "add_bos_token": bool(first)}


def _templates(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name -> Jinja: "default", and what stands under names of its own."""
    start = "tokenizer.chat_template"
    found = {"default": metadata.get(start)}
    found |= {key[len(start) + 1 :]: value for key, value in metadata.items() if key.startswith(f"{start}.")}
    for name, text in found.items():
        if text is not None and not isinstance(text, str):
            raise ModelError(f"{path}: chat template {shown(name)} is no text. Download the file again.")
    return {name: text for name, text in found.items() if text}
