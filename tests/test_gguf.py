"""The GGUF format: what the `gguf` package writes is read back; whatever else there is in a file is one line
of ModelError, without a large allocation.

In: files written by the package, and bytes put together by hand. Does not know: models.
"""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import Kind, finish, random_blocks, write_model
from text_fixtures import SIZE

from deepfast.model.gguf import MAX_DEPTH, GgufFile, open_shards
from deepfast.types import ModelError

UINT8, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 6, 7, 8, 9, 10
HUGE = 10**9


def text(value: str | bytes) -> bytes:
    """A string of the format."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    """One metadata entry."""
    return text(name) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """One entry of the tensor list; shape as in the file, fastest axis first."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def made(
    path: Path,
    keys: list[bytes] = (),
    infos: list[bytes] = (),
    data: int = 0,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> Path:
    """A file of these parts, `data` zero bytes behind them."""
    tensors, entries = counts or (len(infos), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(keys) + b"".join(infos)
    head += bytes(-len(head) % 32) if infos else b""
    path.write_bytes(head + bytes(data))
    return path


def refused(path: Path) -> str:
    """The error of opening it: one line, and little memory on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            open_shards(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    assert peak < 3 * 2**20, f"{peak} bytes for {message}"
    return message


def test_what_the_package_writes_is_read_back(tmp_path):
    values = {
        "u8": 200,
        "i8": -100,
        "u16": 60000,
        "i16": -30000,
        "u32": 4_000_000_000,
        "i32": -2_000_000_000,
        "u64": 2**63,
        "i64": -(2**62),
        "f32": 0.5,
        "f64": 1e300,
        "b": True,
        "s": "grüß dich 世界",
    }
    adders = "uint8 int8 uint16 int16 uint32 int32 uint64 int64 float32 float64 bool string".split()
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    for (name, value), kind in zip(values.items(), adders, strict=True):
        getattr(writer, f"add_{kind}")(name, value)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("words", ["a", "", "ß"])
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    plain = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    blocks = random_blocks(Kind.Q4_K, 3, 512)
    writer.add_tensor("plain", plain)
    writer.add_tensor("blocks", blocks, raw_dtype=Kind.Q4_K)
    finish(writer)
    file = GgufFile(path)
    assert {name: file.metadata[name] for name in values} == values
    assert file.metadata["general.architecture"] == "qwen3" and file.version == 3
    assert file.metadata["numbers"].tolist() == [1, 2, 3] and file.metadata["flags"].tolist() == [True, False]
    assert file.metadata["words"] == ["a", "", "ß"]
    assert [part.tolist() for part in file.metadata["nested"]] == [[1, 2], [3]]
    assert file.tensors["plain"].shape == (2, 3, 4) and file.tensors["blocks"].shape == (3, 512)
    np.testing.assert_array_equal(file.raw("plain").view(np.float32).reshape(2, 3, 4), plain)
    np.testing.assert_array_equal(file.raw("blocks"), blocks)
    file.release()
    np.testing.assert_array_equal(file.raw("blocks"), blocks)


def test_other_alignments_and_version_2(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_custom_alignment(256)
    for i in range(3):
        writer.add_tensor(f"t{i}", np.full(5, i, np.float32))
    finish(writer)
    file = GgufFile(path)
    assert all(item.begin % 256 == 0 for item in file.tensors.values())
    assert [file.raw(f"t{i}").view(np.float32)[0, 0] for i in range(3)] == [0, 1, 2]
    raw = bytearray(path.read_bytes())
    raw[4] = 2
    path.write_bytes(raw)
    assert GgufFile(path).version == 2


def test_a_vocabulary_of_full_size_parses_at_once(tmp_path):
    """150,000 tokens and as many merges: in one pass, with no more memory than the strings need."""
    words = [f"token{i}" for i in range(151_936)]
    path = made(
        tmp_path / "a.gguf",
        [
            key(name, ARRAY, struct.pack("<IQ", STRING, len(words)) + b"".join(map(text, words)))
            for name in ("tokens", "merges")
        ],
    )
    file = GgufFile(path)
    assert file.metadata["tokens"] == words and file.metadata["merges"][-1] == "token151935"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1 is not read"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
        (b"GGUF" + struct.pack("<I", 77) + bytes(40), "version 77 is not read"),
        (b"GGUF" + struct.pack("<I", 0) + bytes(40), "version 0 is not read"),
    ],
)
def test_other_files_are_named(tmp_path, head, said):
    path = tmp_path / "a.gguf"
    path.write_bytes(head)
    assert said in refused(path)


def test_what_is_no_file_is_named(tmp_path):
    assert "missing" in refused(tmp_path / "none.gguf")
    assert "no plain file" in refused(tmp_path)
    assert "missing" in refused(tmp_path / "none-00001-of-00002.gguf")


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    """The value of an array."""
    return struct.pack("<IQ", kind, count) + data


def nested(depth: int) -> bytes:
    """Arrays in arrays."""
    return array(ARRAY, 1, nested(depth - 1)) if depth else array(UINT8, 1, b"x")


LYING_KEYS = {
    "a string of 10^9 bytes": (key("k", STRING, struct.pack("<Q", HUGE)), "1000000008 bytes"),
    "a string of 2^64 bytes": (key("k", STRING, b"\xff" * 8), "truncated"),
    "10^9 strings": (key("k", ARRAY, array(STRING, HUGE)), "1000000000 strings"),
    "2^64 strings": (key("k", ARRAY, array(STRING, 2**64 - 1)), "strings of metadata k"),
    "10^9 numbers": (key("k", ARRAY, array(FLOAT32, HUGE)), "1000000000 numbers"),
    "10^9 arrays": (key("k", ARRAY, array(ARRAY, HUGE)), "1000000000 arrays"),
    "deep nesting": (key("k", ARRAY, nested(MAX_DEPTH + 1)), "nested to a depth"),
    "very deep nesting": (key("k", ARRAY, nested(900)), "nested to a depth"),
    "an unknown type": (key("k", 13, bytes(8)), "type 13"),
    "an array of an unknown type": (key("k", ARRAY, array(99, 1, bytes(8))), "type 99"),
    "a truth value of 2": (key("k", BOOL, b"\x02"), "0 or 1"),
    "truth values of 2": (key("k", ARRAY, array(BOOL, 2, b"\x01\x02")), "0 or 1"),
    "no value at all": (text("k") + bytes(4), "with 1 numbers"),
    "half a number": (key("k", UINT64, b"\x00"), "needs|numbers"),
    "a long name": (text("k" * 70000) + bytes(12), "the limit is 65535"),
    "a key twice": (key("k", UINT8, b"\0") + key("k", UINT8, b"\0"), "comes twice"),
    "an alignment of 0": (key("general.alignment", UINT32, bytes(4)), "power of two"),
    "an alignment of 3": (key("general.alignment", UINT32, struct.pack("<I", 3)), "power of two"),
    "an alignment of 2^31": (key("general.alignment", UINT32, struct.pack("<I", 2**31)), "power of two"),
    "an alignment of text": (key("general.alignment", STRING, text("32")), "power of two"),
}


@pytest.mark.parametrize("what", LYING_KEYS)
def test_metadata_that_lies_is_refused(tmp_path, what):
    entry, said = LYING_KEYS[what]
    count = 2 if what == "a key twice" else 1
    message = refused(made(tmp_path / "a.gguf", [entry], counts=(0, count)))
    assert any(part in message for part in said.split("|")), message


LYING_TENSORS = {
    "an offset past the end": ([info("t", (4,), offset=64)], "truncated"),
    "an offset of 2^63": ([info("t", (4,), offset=2**63)], "truncated"),
    "no multiple of the alignment": ([info("t", (4,), offset=8)], "no multiple of 32"),
    "overlapping": ([info("t", (8,)), info("u", (4,))], "overlaps"),
    "partly overlapping": ([info("t", (10,)), info("u", (4,), offset=32)], "overlaps"),
    "a name twice": ([info("t", (1,)), info("t", (1,), offset=32)], "comes twice"),
    "an axis of 2^62": ([info("t", (2**62,))], "truncated"),
    "axes that overflow": ([info("t", (2**33, 2**33))], "truncated"),
    "an axis of 0": ([info("t", (0,))], "positive"),
    "no axis": ([info("t", ())], "0 axes"),
    "five axes": ([info("t", (1,) * 5)], "5 axes"),
    "2^32 axes": ([text("t") + b"\xff" * 40], "axes"),
    "an unknown type": ([info("t", (32,), kind=200)], "number 200"),
    "a type that was removed": ([info("t", (32,), kind=31)], "Q4_0_4_4"),
    "half a block": ([info("t", (48,), kind=2)], "whole blocks of 32"),
    "a line break in its name": ([info("t\n\x1b[31m", (48,), kind=2)], "whole blocks"),
}


@pytest.mark.parametrize("what", LYING_TENSORS)
def test_tensors_that_lie_are_refused(tmp_path, what):
    infos, said = LYING_TENSORS[what]
    message = refused(made(tmp_path / "a.gguf", [], infos, 64))
    assert said in message and "\x1b" not in message, message


@pytest.mark.parametrize("counts", [(HUGE, 0), (0, HUGE), (2**64 - 1, 0), (0, 2**64 - 1), (1, 0), (0, 1)])
def test_counts_that_lie_are_refused(tmp_path, counts):
    refused(made(tmp_path / "a.gguf", counts=counts))


def test_a_file_as_large_as_it_claims_exhausts_nothing(tmp_path):
    """A sparse file of a terabyte: what it says fits, and is still beyond every limit."""
    path = tmp_path / "a.gguf"
    cases = [
        ([], (HUGE, 0)),
        ([], (0, HUGE)),
        ([key("k", ARRAY, array(STRING, HUGE))], (0, 1)),
        ([key("k", STRING, struct.pack("<Q", HUGE))], (0, 1)),
        ([key("k", ARRAY, array(ARRAY, HUGE))], (0, 1)),
        ([key("k", ARRAY, array(BOOL, HUGE))], (0, 1)),
    ]
    for keys, counts in cases:
        made(path, keys, counts=counts)
        with path.open("r+b") as file:
            file.truncate(2**40)
        assert "limit" in refused(path)
    made(path, [key("k", ARRAY, array(FLOAT32, HUGE))])
    with path.open("r+b") as file:
        file.truncate(2**34)
    assert len(GgufFile(path).metadata["k"]) == HUGE  # a view, of which nothing is read


def test_a_file_cut_anywhere_is_refused(tmp_path):
    """No prefix of a good file opens."""
    whole = tmp_path / "whole.gguf"
    write_model(whole, vocab_size=SIZE, num_hidden_layers=1, hidden_size=64, intermediate_size=32)
    raw, path = whole.read_bytes(), tmp_path / "a.gguf"
    GgufFile(whole)
    random = np.random.RandomState(0)
    for length in sorted({0, 1, 23, 24, len(raw) - 1, *random.randint(0, len(raw), 60).tolist()}):
        path.write_bytes(raw[:length])
        refused_quietly(path)


def refused_quietly(path: Path) -> None:
    """As `refused`, for files whose strings alone need memory."""
    with pytest.raises(ModelError) as caught:
        open_shards(path)
    assert "\n" not in str(caught.value)


def shards(folder: Path) -> list[Path]:
    """A model in four files."""
    write_model(folder / "m.gguf", hidden_size=64, intermediate_size=32, shard_tensors=7)
    return sorted(folder.glob("m-0000*-of-0000*.gguf"))


def test_a_split_model_opens_by_any_of_its_files(tmp_path):
    paths = shards(tmp_path)
    assert len(paths) == 4
    named = [[file.path for file in open_shards(path)] for path in paths]
    assert all(found == paths for found in named)
    assert open_shards(paths[2])[0].metadata["general.architecture"] == "qwen3"


def test_split_models_that_do_not_belong_together_are_refused(tmp_path):
    paths = shards(tmp_path)
    kept = paths[1].read_bytes()
    paths[1].unlink()
    assert paths[1].name in refused(paths[3])
    paths[1].write_bytes(paths[2].read_bytes())
    assert "3 of 4" in refused(paths[0])
    paths[1].write_bytes(kept[: len(kept) // 2])
    assert "truncated" in refused(paths[0])
    paths[1].write_bytes(kept)
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(kept)
    assert "one of 4 files" in refused(alone)
    other = made(tmp_path / "n-00001-of-00002.gguf"), made(tmp_path / "n-00002-of-00002.gguf")
    assert "0 of 0" in refused(other[1])
    many = made(tmp_path / "n-00001-of-99999.gguf")
    assert "99999" in refused(many) or "0 of 0" in refused(many)
