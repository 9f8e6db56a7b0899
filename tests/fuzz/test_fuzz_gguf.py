"""GGUF files changed at random: each opens or is one line of ModelError, with little memory.

In: a good file of a few kilobytes; flipped bytes, cut ends, numbers put in places, pieces moved. Out: nothing
but ModelError from opening, from reading every tensor and from making the tokenizer.
`make fuzz` sets FUZZ_EXAMPLES for the long run. Does not know: what is right about a file that opens.
"""

import struct
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from fuzzing import EXAMPLES
from gguf_files import Kind, write_model, write_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_fixtures import tiny_json, write_model_dir

from deepfast.model import gguf_model
from deepfast.model.gguf import open_shards
from deepfast.model.gguf_model import open_gguf
from deepfast.text.tokenizer import Tokenizer
from deepfast.types import ModelError

PEAK = 32 * 2**20  # bytes that one file of this size may need
NUMBERS = (0, 1, 2, 8, 9, 31, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**40, 2**63, 2**64 - 1)


@cache
def good() -> tuple[bytes, int]:
    """A file with every kind of thing in it, and where its tensors' data begin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        words = write_model_dir(Path(folder) / "words", tiny_json())
        (words / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")

        def more(writer: gguf.GGUFWriter) -> None:
            write_tokenizer(writer, words, 272)
            writer.add_array("general.tags", ["a", "b"])
            writer.add_array("nested", [[1, 2], [3, 4]])
            writer.add_float64("general.number", 0.5)

        write_model(
            path,
            "Qwen3MoeForCausalLM",
            kind=lambda name: Kind.Q8_0 if "q_proj" in name else Kind.F16,
            tokenizer=None,
            more=more,
            vocab_size=272,
            hidden_size=32,
            head_dim=16,
            num_hidden_layers=1,
            moe_intermediate_size=32,
            num_experts=2,
        )
        return path.read_bytes(), min(info.begin for info in opened_infos(path))


def opened_infos(path: Path) -> list:
    """Where the tensors of a file lie."""
    return list(open_gguf(path)[1]._files[0].tensors.values())


@cache
def fields() -> list[int]:
    """Places in the header where a number may stand: behind names, and every string's length."""
    raw, end = good()
    found = [4, 8, 16]
    for at in range(24, end - 8):
        length = struct.unpack_from("<Q", raw, at)[0]
        if 0 < length < 200 and raw[at + 8 : at + 8 + length].isascii():
            found += [at, at + 8 + length, at + 12 + length, at + 16 + length]
    return [at for at in found if at < end - 8]


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 2**31), st.integers(1, 255)),
        st.tuples(st.just("number"), st.integers(0, 2**31), st.sampled_from(NUMBERS)),
        st.tuples(st.just("small"), st.integers(0, 2**31), st.sampled_from(NUMBERS)),
        st.tuples(st.just("cut"), st.integers(0, 2**31), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 2**31), st.integers(1, 40)),
        st.tuples(st.just("repeat"), st.integers(0, 2**31), st.integers(1, 400)),
    ),
    min_size=1,
    max_size=4,
)


def changed(changes: list[tuple[str, int, int]]) -> bytes:
    """The good file with these changes; most of them in the header."""
    raw, end = good()
    data = bytearray(raw)
    for what, where, value in changes:
        at = where % (end if where % 8 else len(raw))
        if what == "flip":
            data[at : at + 1] = bytes([data[at] ^ value]) if at < len(data) else b""
        elif what in ("number", "small"):
            at = fields()[where % len(fields())]
            form = "<Q" if what == "number" else "<I"
            packed = struct.pack(form, value % 2 ** (64 if what == "number" else 32))
            data[at : at + len(packed)] = packed
        elif what == "cut":
            del data[at:]
        elif what == "drop":
            del data[at : at + value]
        else:
            data[at:at] = data[at : at + value]
    return bytes(data)


def read_all(path: Path) -> None:
    """Everything that loading would touch."""
    _, source, _, text = open_gguf(path)
    for name in source.names():
        shape = source.shape(name)
        source.where(name), source.nbytes(name)
        try:
            if len(shape) == 1:
                source.vector(name)
            else:
                matrix = source.matrix(name)
                matrix.rows(0, min(2, shape[0]))
                matrix.grouped(0, min(2, shape[0]))
        except ModelError as error:
            one_line(error)
    source.release()
    Tokenizer.of(text).encode("the thin 42 é")


def one_line(error: ModelError) -> None:
    """A message for people."""
    assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 1000, str(error)


def survives(data: bytes) -> None:
    """Only ModelError, and little memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with np.errstate(all="ignore"):
                read_all(path)
        except ModelError as error:
            one_line(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < PEAK, f"{peak} bytes"


def test_the_good_file_is_good():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(good()[0])
        read_all(path)


JUNK = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**9, 0.0, -1.5, 1e300, float("nan"), float("inf"), 1e-300),
    *("", "x", "qwen2", "yarn", "\n\x1b[31m", "9" * 5000, [], ["a"], ["a"] * 3000, [[], ["b"]]),
    *(np.arange(0), np.arange(3), np.ones(272, np.int32), np.full(2, np.nan), np.array([True, False])),
)


def test_every_key_with_every_kind_of_value(monkeypatch, tmp_path):
    """Whatever stands where a number, a text or a list is expected."""
    path = tmp_path / "m.gguf"
    path.write_bytes(good()[0])
    (file,) = open_shards(path)
    monkeypatch.setattr(gguf_model, "open_shards", lambda _: [file])
    kept = dict(file.metadata)
    more = ("rope.scaling.type", "rope.scaling.factor", "expert_weights_norm", "attention.causal")
    survived = 0
    for key in [*kept, *(f"qwen3moe.{name}" for name in more), "tokenizer.ggml.bos_token_id"]:
        for value in JUNK:
            file.metadata = {**kept, key: value}
            try:
                _, _, _, text = open_gguf(path)
                Tokenizer.of(text)
                survived += 1
            except ModelError as error:
                one_line(error)
    assert survived > 100  # of what the model does not depend on


@settings(max_examples=EXAMPLES or 80, derandomize=not EXAMPLES, suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_changed_files(changes):
    survives(changed(changes))


@pytest.mark.skipif(not EXAMPLES, reason="takes a minute: make fuzz")
@pytest.mark.parametrize("number", NUMBERS)
def test_every_field_with_every_number(number):
    """Not at random: each place where a number may stand."""
    raw, _ = good()
    for at in sorted(set(fields())):
        survives(raw[:at] + struct.pack("<Q", number) + raw[at + 8 :])
