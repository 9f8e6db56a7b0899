"""Tokenizers and chat templates from GGUF metadata: the same ids as from tokenizer.json, however a converter
typed the added tokens; what is not byte-level BPE is refused by name.

In: the genuine Qwen3 vocabulary and small ones, written by the `gguf` package. Does not know: tensors.
"""

import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import finish, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from qwen_tokenizer_json import tokenizer_dir
from text_fixtures import SIZE, qwen

from deepfast.model.gguf import GgufFile
from deepfast.model.gguf_text import end_ids, text_files
from deepfast.model.hub import BUNDLED
from deepfast.text.repair import own_template
from deepfast.text.template import ChatTemplate
from deepfast.text.tokenizer import Tokenizer
from deepfast.types import Message, ModelError

SAMPLES = [
    "Hello world, it's 1234567 o'clock; they'LL say I'm \t\tdone\r\n\r\n  ok",
    "Größe, Maß und Übermut: «naïve» café\u0301 e\u0301\u0323 ﬁn",
    "你好，世界！今天是2025年4月29日。這是繁體字。",
    "こんにちは、ガギグ か\u3099き\u3099 ｶﾞ 東京タワー",
    "안녕하세요 \u1112\u1161\u11ab\u1100\u1173\u11af 한글",
    "Привет, мир! Ещё одно съезд 42-го №7",
    "مرحبا بالعالم، اللُّغَةُ العَرَبِيَّة ١٢٣٤",
    "नमस्ते दुनिया क़ ज़ १२३ தமிழ் ไทยภาษา ខ្មែរ မြန်မာ ქართული አማርኛ",
    "Ελληνικά ά ά ΐ Tiếng Việt Ả ệ İstanbul ıŞ",
    "🙂👩‍👩‍👧‍👦🇩🇪 \u200d\ufeff\u00a0\u2028 \u0000 \U0001f9d1\U0001f3fd‍💻",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # 100%\n\n\n\tend</div><br/><|x|>[PAD151670]",
    "   \n \n\n  \r \r\n\t  ",
    "Å Ω K ≠ \u2260 \u0958 \uf900 \ufb1d a\u0327\u0301",
]


def metadata(path, folder=BUNDLED, size=SIZE, change=None, **settings):
    """Of a file with this tokenizer; `change` edits the metadata after reading."""
    writer = gguf.GGUFWriter(path, "qwen3")
    write_tokenizer(writer, folder, size, **settings)
    finish(writer)
    found = dict(GgufFile(path).metadata)
    found.update(change(found) if change else {})
    return {key: value for key, value in found.items() if value is not None}


@cache
def genuine():
    """The metadata of the genuine Qwen3 vocabulary, and what is made of it. The file, which the package takes
    seconds to write, is kept for the next run as tokenizer_dir is."""
    version = hashlib.sha256(Path(gguf_files.__file__).read_bytes()).hexdigest()[:12]
    path = tokenizer_dir() / f"{version}.gguf"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            metadata(Path(folder) / "t.gguf", tokenizer_dir(), 151936)
            os.replace(Path(folder) / "t.gguf", path)
    found = GgufFile(path).metadata
    return found, text_files(path, found, 151936)


@cache
def from_gguf():
    """The genuine vocabulary by way of GGUF."""
    return Tokenizer.of(genuine()[1])


def test_the_genuine_vocabulary_gives_the_same_ids():
    """Thirteen samples, in as many scripts, normalised and not, with control text and without."""
    ours, wanted = from_gguf(), qwen()
    assert ours.num_ids == wanted.num_ids == 151669
    assert ours.control_ids == wanted.control_ids
    for token in wanted.control_ids:
        assert ours.bytes_of(token) == wanted.bytes_of(token)
    for text in SAMPLES:
        assert ours.encode(text) == wanted.encode(text), text
    marked = "<|im_start|>user\n<think>x</think><tool_call>é</tool_call> <|fim_pad|><|im_end|>"
    assert ours.encode(marked, control=True) == wanted.encode(marked, control=True)
    assert end_ids(Path("t.gguf"), genuine()[0]) == (151645, 151643)
    assert ours.specials == {"eos_token": "<|im_end|>"}


@given(st.text(max_size=40))
def test_any_text_gives_the_same_ids(text):
    assert from_gguf().encode(text) == qwen().encode(text)


@pytest.mark.parametrize("typed", ["added as normal", "rows without a token as added", "not at all"])
def test_types_of_converters_are_only_hints(typed):
    """Files differ in the types of "<think>" and "[PAD151700]", and still mean the same."""
    found, wanted = genuine()
    types = np.array(found["tokenizer.ggml.token_type"])
    if typed == "added as normal":
        types[types == gguf.TokenType.USER_DEFINED] = gguf.TokenType.NORMAL
    else:
        types[types == gguf.TokenType.UNUSED] = gguf.TokenType.USER_DEFINED
    changed = {**found, "tokenizer.ggml.token_type": None if typed == "not at all" else types}
    got = text_files(wanted.path, {k: v for k, v in changed.items() if v is not None}, 151936).tokenizer
    assert got["model"] == wanted.tokenizer["model"]
    contents = [
        [(item["id"], item["content"]) for item in one["added_tokens"]] for one in (got, wanted.tokenizer)
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 26


def test_the_config_is_that_of_tokenizer_config_json(tmp_path):
    path = tmp_path / "t.gguf"
    found = metadata(path)
    files = text_files(path, found, SIZE)
    assert files.path == path and files.notes == () and files.thinking is None
    tokens = found["tokenizer.ggml.tokens"]
    assert files.config["eos_token"] == "<|im_end|>" and files.config["bos_token"] is None
    first = tokens.index("<|endoftext|>")
    for said, wanted in ((True, "<|endoftext|>"), (False, None), (None, "<|endoftext|>")):
        more = {"tokenizer.ggml.bos_token_id": first, "tokenizer.ggml.add_bos_token": said}
        changed = {key: value for key, value in {**found, **more}.items() if value is not None}
        config = text_files(path, changed, SIZE).config
        assert (config["bos_token"], config["add_bos_token"]) == (wanted, bool(said))


def test_templates_come_with_their_names(tmp_path):
    path = tmp_path / "t.gguf"
    own = own_template("hybrid")
    found = metadata(path, change=lambda m: {"tokenizer.chat_template.tool_use": own, "x": 1})
    files = text_files(path, found, SIZE)
    assert dict(files.templates) == {"default": own, "tool_use": own}
    tokenizer = Tokenizer.of(files)
    assert ChatTemplate.of(files, tokenizer).modes.kind == "hybrid"
    assert text_files(path, {k: v for k, v in found.items() if "template" not in k}, SIZE).templates == {}
    with pytest.raises(ModelError, match="chat template default is no text"):
        text_files(path, {**found, "tokenizer.chat_template": 5}, SIZE)


def test_a_bad_template_is_replaced_and_it_is_told(tmp_path):
    path = tmp_path / "t.gguf"
    bad = own_template("hybrid").replace(
        "message.content if message.content is string else ''", "message.content + ''"
    )
    files = text_files(path, metadata(path, change=lambda m: {"tokenizer.chat_template": bad}), SIZE)
    assert files.templates == {"default": own_template("hybrid")}
    assert len(files.notes) == 1 and "only a tool call" in files.notes[0]
    template = ChatTemplate.of(files, Tokenizer.of(files))
    assert template.encode([Message("user", "q"), Message("assistant", None), Message("user", "q")])


# "pre" -> what makes it different: digits one by one, in threes, all together, and letters of one word
PRES = {"qwen2": 8, "deepseek-r1-qwen": 8, "llama-bpe": 3, "llama3": 3, "gpt-2": 1, "smollm": 8}


@pytest.mark.parametrize("pre", PRES)
def test_text_is_split_as_pre_says(tmp_path, pre):
    path = tmp_path / "t.gguf"
    files = text_files(path, metadata(path, pre=pre), SIZE)
    plain = Tokenizer.of(files)._plain
    pieces = [piece for piece, _ in plain.pre_tokenizer.pre_tokenize_str("ab 12345678")]
    assert len(pieces) - sum("b" in piece or piece in "Ġ" for piece in pieces) == PRES[pre], pieces
    composed = plain.normalizer is not None and plain.normalizer.normalize_str("e\u0301") == "é"
    assert composed == ("qwen" in pre)
    assert files.tokenizer["model"]["ignore_merges"] == ("llama" in pre)


def test_a_file_that_names_no_pre_gets_what_its_tokens_tell(tmp_path):
    path = tmp_path / "t.gguf"
    for missing in (None, "default"):
        files = text_files(path, metadata(path, change=lambda m, v=missing: {"tokenizer.ggml.pre": v}), SIZE)
        assert files.tokenizer["normalizer"] == {"type": "NFC"}
        assert len(files.notes) == 1 and "qwen2" in files.notes[0]


REFUSED = {
    "sentencepiece": ({"model": "llama"}, "a SentencePiece tokenizer"),
    "wordpiece": ({"model": "bert"}, "tokenizer bert"),
    "no model": ({"model": None}, "tokenizer None"),
    "another way to split": ({"pre": "tekken"}, "pre is tekken"),
    "pre is a number": ({"pre": 3}, "pre is 3"),
    "tokens of numbers": ({"tokens": np.arange(3)}, "tokens is no list of strings"),
    "no tokens": ({"tokens": []}, "tokens is no list"),
    "too many tokens": (
        {"tokens": ["a"] * (SIZE + 1), "token_type": None},
        f"{SIZE + 1} tokens, but the embedding has {SIZE}",
    ),
    "a token twice": (
        {"tokens": ["a", "b", "a"], "token_type": None, "eos_token_id": 0},
        "holds a token twice",
    ),
    "types of text": ({"token_type": ["x"]}, f"token_type is no list of {SIZE}"),
    "too few types": ({"token_type": np.ones(3, np.int32)}, f"token_type is no list of {SIZE}"),
    "types beyond 6": ({"token_type": np.full(SIZE, 7, np.int32)}, "types from 0 to 6"),
    "pre is a list": ({"pre": ["qwen2"]}, "pre is ['qwen2']"),
    "model is numbers": ({"model": np.arange(3)}, "tokenizer array"),
    "eos is a list": ({"eos_token_id": np.arange(2)}, "eos_token_id is array"),
    "no merges": ({"merges": None}, "merges is no list"),
    "eos beyond the end": ({"eos_token_id": SIZE}, f"eos_token_id is {SIZE}"),
    "eos of text": ({"eos_token_id": "x"}, "eos_token_id is x"),
    "eos is a truth value": ({"eos_token_id": True}, "eos_token_id is True"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_named(tmp_path, what):
    changes, said = REFUSED[what]
    path = tmp_path / "t.gguf"
    found = metadata(
        path, change=lambda m: {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    )
    with pytest.raises(ModelError) as caught:
        text_files(path, found, SIZE)
        end_ids(path, found)
    assert said in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_damaged_merges_are_a_model_error(tmp_path):
    path = tmp_path / "t.gguf"
    for merges in (["ab"], ["a"], [" "], [""], ["zzz qqq"]):
        found = metadata(path, change=lambda m, v=merges: {"tokenizer.ggml.merges": v})
        with pytest.raises(ModelError):
            Tokenizer.of(text_files(path, found, SIZE))


def test_no_id_is_no_id(tmp_path):
    """Some converters write -1, or its 32 bits, for a token that there is none of."""
    path = tmp_path / "t.gguf"
    found = metadata(path, change=lambda m: {"tokenizer.ggml.padding_token_id": 2**32 - 1})
    assert text_files(path, found, SIZE).config["pad_token"] is None


def test_bundled_vocabulary_round_trip(tmp_path):
    """The parsed objects themselves: vocabulary and merges as in tokenizer.json."""
    path = tmp_path / "t.gguf"
    files = text_files(path, metadata(path), SIZE)
    raw = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    assert files.tokenizer["model"]["vocab"] == {
        text: i
        for text, i in raw["model"]["vocab"].items()
        if text not in {t["content"] for t in raw["added_tokens"]}
    }
    assert [item["content"] for item in files.tokenizer["added_tokens"]] == [
        item["content"] for item in sorted(raw["added_tokens"], key=lambda item: item["id"])
    ]
