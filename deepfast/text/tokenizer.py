"""Text to token ids and back, for byte-level BPE vocabularies (the only file that knows `tokenizers`).

In: a parsed tokenizer.json and tokenizer_config.json. Out: ids, texts, an incremental detokenizer.
The BPE below never sees a control token: they are found here, and only where the caller says that the text is
ours (`control=True`), so text that a user wrote can not become one.
Does not know: messages, templates, phases, which ids end a turn.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from ..types import ModelError, UsageError
from .files import TextFiles

BPE_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ControlToken(NamedTuple):
    """An added token. lstrip and rstrip: it swallows the white space before or after it."""

    id: int
    lstrip: bool
    rstrip: bool


class Tokenizer:
    """One vocabulary. specials: the named tokens of tokenizer_config.json ("eos_token": "<|im_end|>")."""

    def __init__(
        self,
        plain: tokenizers.Tokenizer,
        num_ids: int,
        control: Mapping[str, ControlToken],
        specials: Mapping[str, str],
    ) -> None:
        self.num_ids = num_ids
        self.specials = dict(specials)
        self._plain = plain
        self._blank: tuple[int, ...] | None = None
        self._control = dict(control)
        self.control_ids = frozenset(token.id for token in self._control.values())
        self._bytes = {token.id: text.encode() for text, token in self._control.items()}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._splitter = re.compile("|".join(map(self._pattern_of, longest_first)) or r"(?!)")
        breakable = [re.escape(text) for text in longest_first if len(text) > 1]
        self._start = re.compile(f"(?={'|'.join(breakable)})(.)" if breakable else r"(?!)", re.DOTALL)

    @classmethod
    def of(cls, files: TextFiles) -> Tokenizer:
        """From a parsed tokenizer.json. Raises ModelError when it is missing, damaged or not byte-level."""
        file, raw, config = files.path / "tokenizer.json", files.tokenizer, files.config
        if raw is None:
            raise ModelError(f"{file} is missing. A model directory holds tokenizer.json beside config.json.")
        try:
            _check_kind(file, raw)
            control = dict(_control_tokens(raw, config))
            highest = max([*raw["model"]["vocab"].values(), *(token.id for token in control.values())])
            return cls(_plain(raw), highest + 1, control, _specials(config))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{file} is damaged: {_one_line(error)}. Fetch it again.") from error

    @classmethod
    def from_dir(cls, path: Path) -> Tokenizer:
        """The tokenizer of a model directory."""
        return cls.of(TextFiles.from_dir(path))

    def encode(self, text: str, *, control: bool = False, marker: str = "") -> list[int]:
        """Text to ids. Control tokens are found only when `control`; `marker` (see `guard`) is dropped."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            bad = text[error.start]
            raise UsageError(
                f"text holds {bad!r} at {error.start}, half of a character. Send valid text."
            ) from None
        if not control:
            return self._encode_plain(text.replace(marker, "") if marker else text)
        ids: list[int] = []
        end = 0
        for match in self._splitter.finditer(text):
            ids += self._encode_plain(_without(text[end : match.start()], marker))
            ids.append((self._control.get(match[0]) or self._control[match[0].strip()]).id)
            end = match.end()
        return ids + self._encode_plain(_without(text[end:], marker))

    def guard(self, text: str, marker: str) -> str:
        """Put `marker` into every control token's text, so that `encode(control=True)` leaves it text."""
        return self._start.sub(lambda match: match[0] + marker, text)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, control tokens included. Bytes that are no character become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that one id stands for. Raises UsageError for an id outside the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._plain.id_to_token(token_id) if 0 <= token_id < self.num_ids else None
            if token is None:
                limit = self.num_ids - 1
                raise UsageError(f"token id {token_id} is not in the vocabulary. Give ids from 0 to {limit}.")
            known = self._bytes[token_id] = _from_byte_level(token)
        return known

    def blank_ids(self) -> tuple[int, ...]:
        """The ids whose text is white space only."""
        if self._blank is None:
            texts = ((i, self._plain.id_to_token(i)) for i in range(self.num_ids))
            likely = ((i, t) for i, t in texts if t and i not in self.control_ids and _may_be_blank(t))
            decoded = ((i, _from_byte_level(t).decode("utf-8", "replace")) for i, t in likely)
            self._blank = tuple(i for i, text in decoded if not text.strip())
        return self._blank

    def control_id(self, token: str) -> int | None:
        """The id of a control token by its text; None when this vocabulary has no such control token."""
        found = self._control.get(token)
        return None if found is None else found.id

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer, for one stream of ids."""
        return Detokenizer(self)

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []

    def _pattern_of(self, text: str) -> str:
        token = self._control[text]
        return (r"\s*" if token.lstrip else "") + re.escape(text) + (r"\s*" if token.rstrip else "")


class Detokenizer:
    """Ids to text while they arrive: never half a character; pushes and flush, joined, equal `decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; the bytes of an unfinished one are held back."""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    def flush(self) -> str:
        """What is still held back (U+FFFD, or nothing); afterwards the detokenizer is as new."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


@cache
def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _from_byte_level(token: str) -> bytes:
    table = _byte_of_char()
    try:
        return bytes(table[char] for char in token)
    except KeyError:
        return token.encode()


def _may_be_blank(token: str) -> bool:
    """Does its first byte begin white space: ASCII, or the first of a longer character?"""
    return _byte_of_char().get(token[0], 0) in b"\t\n\v\f\r\x1c\x1d\x1e\x1f \xc2\xe1\xe2\xe3"


def _without(text: str, marker: str) -> str:
    return text.replace(marker, "") if marker else text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _check_kind(file: Path, raw: Mapping[str, Any]) -> None:
    """Refuse what is not byte-level BPE: only there is every token a plain run of bytes."""
    model, decoder = raw["model"], raw.get("decoder") or {}
    kind = model.get("type", "BPE")
    steps = [step.get("type") for step in decoder.get("decoders", [decoder])]
    if kind != "BPE" or not isinstance(model["vocab"], dict) or "ByteLevel" not in steps:
        found = f"{kind} with decoder {'+'.join(map(str, steps))}"
        raise ModelError(f"{file} holds {found}; only BPE with decoder ByteLevel is supported.")


def _plain(raw: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The BPE alone, without control tokens. Its vocabulary goes in as objects: to parse it once more would
    take longer than all else at the start."""
    model = raw["model"]
    bare: dict[str, Any] = {
        "added_tokens": [],
        "truncation": None,
        "padding": None,
        "model": {**model, "vocab": {}, "merges": []},
    }
    plain = tokenizers.Tokenizer.from_str(json.dumps({**raw, **bare}))
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    options = {name: model[name] for name in BPE_OPTIONS if model.get(name) is not None}
    plain.model = tokenizers.models.BPE(model["vocab"], merges, **options)
    return plain


def _control_tokens(raw: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, ControlToken]]:
    listed = [(item["id"], item) for item in raw.get("added_tokens") or []]
    listed += [(int(key), item) for key, item in (config.get("added_tokens_decoder") or {}).items()]
    for token_id, item in listed:
        lstrip, rstrip = bool(item.get("lstrip")), bool(item.get("rstrip"))
        yield str(item["content"]), ControlToken(int(token_id), lstrip, rstrip)


def _specials(config: Mapping[str, Any]) -> dict[str, str]:
    """Named tokens, written as a string or as {"content": ...}."""
    named = {name: config.get(name) for name in SPECIAL_NAMES}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}
