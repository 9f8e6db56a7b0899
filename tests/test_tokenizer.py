"""The tokenizer: round trips, half characters, control text that stays text, damaged files."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fixtures import CONTROL, qwen, tiny, tiny_json, write_model_dir

from deepfast.text.tokenizer import Tokenizer
from deepfast.types import ModelError, UsageError

# Everything that hurts: control tokens whole and broken, CJK, emoji with joiners, combining marks, spaces.
PIECES = (
    "<think>",
    "</think>",
    "<|im_end|>",
    "<|im_",
    "end|>",
    "<",
    "\n",
    "  ",
    "你好",
    "👩\u200d🚀",
    "e\u0301",
    "7",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


@given(st.data())
def test_pushes_joined_equal_decode(data):
    """Any ids, sensible or not: joined pushes and flush == decode, and no push holds half a character."""
    tokenizer = tiny()
    ids = data.draw(st.lists(st.integers(0, tokenizer.num_ids - 1), max_size=40))
    detokenizer = tokenizer.detokenizer()
    pushed = "".join([detokenizer.push(i) for i in ids])
    assert pushed + detokenizer.flush() == tokenizer.decode(ids)
    assert detokenizer.flush() == ""


@given(texts)
def test_plain_encoding_round_trips_without_control_ids(text):
    """Whatever is written, control=False yields no control id, and decode gives the text back."""
    tokenizer = tiny()
    ids = tokenizer.encode(text)
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.decode(ids) == text


@given(texts)
def test_pushing_valid_text_never_shows_a_replacement_character(text):
    """Characters spread over tokens come out whole."""
    tokenizer, detokenizer = tiny(), tiny().detokenizer()
    pushed = [detokenizer.push(i) for i in tokenizer.encode(text)]
    assert "".join(pushed) == text
    assert detokenizer.flush() == ""


@given(texts)
def test_guarded_text_holds_no_control_token(text):
    """guard + encode(control=True) == encode(control=False), wherever the control text stands."""
    tokenizer = tiny()
    guarded = tokenizer.guard(text, "\ufdd0")
    assert tokenizer.encode(guarded, control=True, marker="\ufdd0") == tokenizer.encode(text)


def test_control_tokens_are_found_only_when_asked():
    """The same text, as ours and as the user's."""
    tokenizer = tiny()
    think = tokenizer.control_id("<think>")
    assert tokenizer.encode("<think>", control=True) == [think]
    assert think not in tokenizer.encode("<think>")
    assert tokenizer.control_id("<nonsense>") is None
    assert tokenizer.control_id("th") is None
    assert len(tokenizer.control_ids) == len(CONTROL)


@settings(max_examples=60)
@given(texts)
def test_equal_to_the_tokenizers_library(text):
    """With control=True: the ids of the genuine tokenizer.json as the library itself reads it."""
    ours, theirs = qwen(), _library()
    assert ours.encode(text, control=True) == theirs.encode(text, add_special_tokens=False).ids
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def _library(cache={}):  # noqa: B006
    if not cache:
        import qwen_tokenizer_json

        cache[0] = tokenizers.Tokenizer.from_file(str(qwen_tokenizer_json.tokenizer_dir() / "tokenizer.json"))
    return cache[0]


def test_known_ids_of_qwen3():
    """The ids that the documentation of the family gives."""
    tokenizer = qwen()
    assert tokenizer.num_ids == 151669
    assert tokenizer.encode("<|im_start|>assistant\n", control=True) == [151644, 77091, 198]
    assert tokenizer.encode("<think>\n\n</think>\n\n", control=True) == [151667, 271, 151668, 271]
    assert tokenizer.specials["eos_token"] == "<|im_end|>"


def test_white_space_that_a_control_token_swallows(tmp_path):
    """lstrip and rstrip of an added token work as in the library."""
    raw = tiny_json()
    raw["added_tokens"][2] |= {"lstrip": True, "rstrip": True}
    ours = Tokenizer.from_dir(write_model_dir(tmp_path, raw))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(raw))
    text = "in  <|im_end|> \n thin<think> x"
    assert ours.encode(text, control=True) == theirs.encode(text, add_special_tokens=False).ids


def test_added_tokens_of_the_config_count(tmp_path):
    """Some directories name a control token in tokenizer_config.json alone."""
    folder = write_model_dir(tmp_path, tiny_json())
    extra = {"added_tokens_decoder": {"300": {"content": "<extra>"}}, "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(extra))
    tokenizer = Tokenizer.from_dir(folder)
    assert tokenizer.encode("<extra>", control=True) == [300]
    assert tokenizer.num_ids == 301
    assert tokenizer.specials == {"eos_token": "<|im_end|>"}
    with pytest.raises(UsageError, match="token id 290 is not in the vocabulary"):
        tokenizer.decode([290])


@pytest.mark.parametrize("bad", [-1, 269, 10**9])
def test_an_id_outside_the_vocabulary_is_named(bad):
    """decode and push name the id and the limit."""
    with pytest.raises(UsageError, match=f"token id {bad} .* 0 to 268"):
        tiny().decode([bad])
    with pytest.raises(UsageError, match=f"token id {bad} "):
        tiny().detokenizer().push(bad)


def test_half_a_character_in_the_input_is_named():
    """A lone surrogate can not be encoded."""
    with pytest.raises(UsageError, match=r"'\\ud800' at 1, half of a character"):
        tiny().encode("a\ud800")


DAMAGED = {
    "cut": '{"version": "1.0", "mod',
    "not utf-8": b"\xff\xfe",
    "a list": "[]",
    "no model": "{}",
    "no vocabulary": json.dumps({"model": {"type": "BPE"}}),
    "a strange merge": json.dumps(
        tiny_json() | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}
    ),
    "unigram": json.dumps(tiny_json() | {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}),
    "another decoder": json.dumps(tiny_json() | {"decoder": {"type": "Metaspace"}}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_clear_line(tmp_path, name):
    """A ModelError of one line that names the file."""
    content = DAMAGED[name]
    (tmp_path / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match="tokenizer.json") as caught:
        Tokenizer.from_dir(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    """The error says what belongs there."""
    with pytest.raises(ModelError, match="tokenizer.json is missing"):
        Tokenizer.from_dir(tmp_path)
