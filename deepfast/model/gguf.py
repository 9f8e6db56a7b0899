"""The GGUF file format: a validated reader over a memory map, for single files and for split ones.

In: a path. Out: metadata, and for each tensor its type, shape and a view of its raw bytes, read when they are
touched. Nothing is believed: counts, lengths and offsets are held against the size of the file before
anything is allocated, and a damaged file raises ModelError in one line that names the file and the place.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
Does not know: models, what a tensor means, how its blocks hold numbers.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..types import ModelError

# Far above every model there is; a hostile file as large as it claims to be must not exhaust the memory.
MAX_KEYS, MAX_TENSORS = 2**16, 2**17
MAX_STRINGS, MAX_STRING_BYTES = 2**21, 2**27  # of the metadata, all together
MAX_NAME, MAX_DEPTH, MAX_ALIGNMENT = 2**16 - 1, 4, 2**20

# A tensor type: number, name, weights per block, bytes per block (ggml.h). 0 bytes: removed from the format.
_TYPES = """
0 F32 1 4      2 Q4_0 32 18     10 Q2_K 256 84    16 IQ2_XXS 256 66   22 IQ2_S 256 82    24 I8 1 1
1 F16 1 2      3 Q4_1 32 20     11 Q3_K 256 110   17 IQ2_XS 256 74    23 IQ4_XS 256 136  25 I16 1 2
30 BF16 1 2    6 Q5_0 32 22     12 Q4_K 256 144   18 IQ3_XXS 256 98   29 IQ1_M 256 56    26 I32 1 4
28 F64 1 8     7 Q5_1 32 24     13 Q5_K 256 176   19 IQ1_S 256 50     34 TQ1_0 256 54    27 I64 1 8
39 MXFP4 32 17 8 Q8_0 32 34     14 Q6_K 256 210   20 IQ4_NL 32 18     35 TQ2_0 256 66    40 NVFP4 64 36
41 Q1_0 128 18 9 Q8_1 32 40     15 Q8_K 256 292   21 IQ3_S 256 110
4 Q4_2 0 0     31 Q4_0_4_4 0 0  32 Q4_0_4_8 0 0   33 Q4_0_8_8 0 0
5 Q4_3 0 0     36 IQ4_NL_4_4 0 0 37 IQ4_NL_4_8 0 0 38 IQ4_NL_8_8 0 0
""".split()
TYPES = {
    int(number): (name, int(weights), int(nbytes))
    for number, name, weights, nbytes in zip(*(_TYPES[i::4] for i in range(4)), strict=True)
}
# numpy types in the order of the format's numbers; 8 is a string, 9 an array
SCALARS: dict[int, Any] = dict(enumerate(map(np.dtype, "u1 i1 <u2 <i2 <u4 <i4 <f4 ?".split())))
SCALARS |= {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}
STRING, ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class TensorInfo(NamedTuple):
    """One tensor: shape with the contiguous axis last, and where its bytes lie in the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class GgufFile:
    """An open file. metadata: key -> int, float, bool, str, numpy array, or list of str or of arrays.

    Raises ModelError when the file is missing, truncated or inconsistent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():
                raise ModelError(f"{path} is missing or no plain file. Check the path.")
            with path.open("rb") as file:
                self.size = path.stat().st_size
                self.version = _version(path, file.read(8), self.size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be read ({error.strerror}). Check the path and permissions."
            ) from error
        cursor = _Cursor(path, self._map)
        num_tensors = cursor.count("tensors", 32, MAX_TENSORS)
        num_keys = cursor.count("metadata keys", 13, MAX_KEYS)
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = cursor.text("a metadata key", MAX_NAME)
            if key in self.metadata:
                raise ModelError(
                    f"{path}: damaged: metadata key {shown(key)} comes twice. Download it again."
                )
            self.metadata[key] = cursor.value(cursor.number("<I"), key, 0)
        self.alignment = self._alignment()
        self.tensors = _tensors(cursor, num_tensors, self.alignment)

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            raise ModelError(
                f"{self.path}: damaged: general.alignment is {shown(value)}; expected a power of two "
                f"up to {MAX_ALIGNMENT}."
            )
        return value

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A read-only view of a tensor's bytes, [rows, bytes per row]; all axes but the last are rows."""
        info = self.tensors[name]
        rows = math.prod(info.shape[:-1])
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.begin).reshape(rows, -1)

    def release(self) -> None:
        """Give back the memory of what was read; it is read again from the file if it is needed again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def open_shards(path: Path) -> list[GgufFile]:
    """The file, or all files of a split model whichever of them is named; the first has the metadata.

    Raises ModelError when a shard is missing, is another's, or the tensors are not as many as announced.
    """
    match = _SHARD.fullmatch(path.name)
    named = int(match["count"]) if match else 1
    if match is None or named <= 1:
        file = GgufFile(path)
        count = _split(file, "split.count", 1)
        if count > 1:
            raise ModelError(
                f"{path} is one of {count} files of a split model, but is not called "
                f"NAME-00001-of-{count:05}.gguf. Give all of them their original names."
            )
        return [file]
    if not path.exists():
        raise ModelError(f"{path} is missing. Check the path.")
    files: list[GgufFile] = []
    seen: dict[str, Path] = {}
    for number in range(1, named + 1):
        shard = path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf")
        if not shard.exists():
            raise ModelError(
                f"{shard} is missing: the model is split in {named} files. Download all of them."
            )
        file = GgufFile(shard)
        if _split(file, "split.count", 0) != named or _split(file, "split.no", -1) != number - 1:
            told = f"{_split(file, 'split.no', -1) + 1} of {_split(file, 'split.count', 0)}"
            raise ModelError(f"{shard}: its metadata says {told}. Download it again.")
        for name in file.tensors:
            if name in seen:
                raise ModelError(f"{shard}: tensor {shown(name)} is also in {seen[name].name}.")
            seen[name] = shard
        files.append(file)
    announced = _split(files[0], "split.tensors.count", len(seen))
    if announced != len(seen):
        raise ModelError(f"{path}: the {named} files hold {len(seen)} tensors, {announced} are announced.")
    return files


def _split(file: GgufFile, key: str, missing: int) -> int:
    value = scalar(file.metadata, key)
    if value is None:
        return missing
    if type(value) is not int:
        raise ModelError(f"{file.path}: damaged: {key} is {shown(value)}; expected a whole number.")
    return value


def shown(value: Any) -> str:
    """A value of a file for a message: short, on one line."""
    value = value[:8] if isinstance(value, list) else value[:1000] if isinstance(value, str) else value
    value = value[:8] if isinstance(value, list) else value[:1000] if isinstance(value, str) else value
    value = value[:8] if isinstance(value, list) else value[:1000] if isinstance(value, str) else value
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def scalar(metadata: Mapping[str, Any], key: str) -> str | int | float | bool | None:
    """A metadata value that can be compared with anything: of an array, only what it looks like."""
    value = metadata.get(key)
    return value if value is None or isinstance(value, str | int | float) else shown(value)


def _version(path: Path, head: bytes, size: int) -> int:
    """The version of a file that begins so; ModelError when it is none that we read."""
    if len(head) < 8 or head[:4] != b"GGUF" or size < 24:
        raise ModelError(f"{path}: not a GGUF file ({size} bytes, begins with {head[:4]!r}).")
    version = int.from_bytes(head[4:], "little")
    if version & 0xFFFF == 0 and version:
        raise ModelError(f"{path}: a big-endian GGUF file; only little-endian ones are read. Convert it.")
    if version not in (2, 3):
        raise ModelError(
            f"{path}: GGUF version {version} is not read; expected 2 or 3. Convert the model again."
        )
    return version


class _Cursor:
    """Reads one item after another and never believes a length."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.at = path, data, 8
        self._strings, self._bytes = MAX_STRINGS, MAX_STRING_BYTES  # left to read

    def _truncated(self, what: str, needed: int) -> ModelError:
        return ModelError(
            f"{self._path}: truncated or damaged: {what} at byte {self.at} needs {needed} bytes, "
            f"{len(self._data) - self.at} are left. Download it again."
        )

    def _large(self, what: str, number: int, limit: int) -> ModelError:
        return ModelError(
            f"{self._path}: damaged: {what} of {number}; the limit is {limit}. Download it again."
        )

    def number(self, form: str, what: str = "the header") -> int:
        """One integer."""
        size = struct.calcsize(form)
        if self.at + size > len(self._data):
            raise self._truncated(what, size)
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += size
        return int(value)

    def count(self, what: str, least: int, limit: int) -> int:
        """A number of items of at least so many bytes each, that the rest of the file can hold."""
        count = self.number("<Q", what)
        if count * least > len(self._data) - self.at:
            raise self._truncated(f"{count} {what}", count * least)
        if count > limit:
            raise self._large(f"a number of {what}", count, limit)
        return count

    def text(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        """One string."""
        self._strings += 1  # it is none of an array
        found = self._texts(1, what)[0]
        if len(found) > limit:
            raise self._large(f"{what} with a length", len(found), limit)
        return found

    def _texts(self, count: int, what: str) -> list[str]:
        """`count` strings, one behind the other. Bytes that are no UTF-8 become U+FFFD."""
        self._strings -= count
        if count * 8 > len(self._data) - self.at:
            raise self._truncated(f"{count} strings of {what}", count * 8)
        if self._strings < 0:
            raise self._large("a number of strings", count, MAX_STRINGS)
        data, at, left = self._data, self.at, self._bytes
        unpack, end = _LENGTH.unpack_from, len(data) - 8
        texts = []
        for _ in range(count):
            self.at = at
            if at > end:
                raise self._truncated(f"a string of {what}", 8)
            length = unpack(data, at)[0]
            at += 8
            left -= length
            if at + length > end + 8:
                raise self._truncated(f"a string of {what}", 8 + length)
            if left < 0:
                raise self._large("a string with a length", length, MAX_STRING_BYTES)
            texts.append(data[at : at + length].decode("utf-8", "replace"))
            at += length
        self.at, self._bytes = at, left
        return texts

    def value(self, kind: int, key: str, depth: int) -> Any:
        """A metadata value of this type."""
        where = f"metadata {shown(key)}"
        if kind == STRING:
            return self.text(where)
        if kind == ARRAY:
            return self._array(key, depth)
        dtype = self._scalar(kind, where)
        return self._numbers(dtype, 1, where)[0].item()

    def _scalar(self, kind: int, where: str) -> Any:
        if kind not in SCALARS:
            raise ModelError(f"{self._path}: damaged: {where} has type {kind}; expected 0 to 12.")
        return SCALARS[kind]

    def _numbers(self, dtype: Any, count: int, where: str) -> npt.NDArray[Any]:
        """A view of `count` numbers; nothing is copied."""
        if count * dtype.itemsize > len(self._data) - self.at:
            raise self._truncated(f"{where} with {count} numbers", count * dtype.itemsize)
        values = np.frombuffer(self._data, "u1" if dtype.kind == "b" else dtype, count, self.at)
        if dtype.kind == "b":
            if count > MAX_STRINGS:
                raise self._large(f"{where}, truth values in a number", count, MAX_STRINGS)
            if count and values.max() > 1:
                raise ModelError(
                    f"{self._path}: damaged: {where} holds {values.max()} where 0 or 1 may stand."
                )
            values = values.view(np.bool_)
        self.at += count * dtype.itemsize
        return values

    def _array(self, key: str, depth: int) -> Any:
        where = f"metadata {shown(key)}"
        kind, count = self.number("<I", where), self.number("<Q", where)
        if kind == STRING:
            return self._texts(count, where)
        if kind != ARRAY:
            return self._numbers(self._scalar(kind, where), count, where)
        if depth >= MAX_DEPTH:
            raise self._large(f"{where}, arrays nested to a depth", depth + 1, MAX_DEPTH)
        self._strings -= count
        if count * 12 > len(self._data) - self.at:
            raise self._truncated(f"{where} with {count} arrays", count * 12)
        if self._strings < 0:
            raise self._large("a number of nested arrays", count, MAX_STRINGS)
        return [self._array(key, depth + 1) for _ in range(count)]


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    """Name -> TensorInfo, checked: within the file, aligned, no two on the same bytes."""
    path, size = cursor._path, len(cursor._data)
    found: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = cursor.text("a tensor's name", MAX_NAME)
        if name in found:
            raise ModelError(f"{path}: damaged: tensor {shown(name)} comes twice. Download it again.")
        found[name] = _info(cursor, path, name, alignment)
    start = -(-cursor.at // alignment) * alignment
    found = {name: info._replace(begin=start + info.begin) for name, info in found.items()}
    end, previous = start, ""
    for name, info in sorted(found.items(), key=lambda item: item[1].begin):
        if info.begin + info.nbytes > size:
            raise ModelError(
                f"{path}: truncated: tensor {shown(name)} ends at byte {info.begin + info.nbytes}, the file "
                f"at {size}. Download it again."
            )
        if info.begin < end:
            raise ModelError(
                f"{path}: damaged: tensor {shown(name)} overlaps {shown(previous)} (byte {info.begin}, "
                f"expected {end} or more). Download it again."
            )
        end, previous = info.begin + info.nbytes, name
    return found


def _info(cursor: _Cursor, path: Path, name: str, alignment: int) -> TensorInfo:
    """One entry of the tensor list; `begin` is still counted from the start of the data."""
    where = f"tensor {shown(name)}"
    axes = cursor.number("<I", where)
    if not 1 <= axes <= 4:
        raise ModelError(f"{path}: damaged: {where} has {axes} axes; expected 1 to 4.")
    shape = tuple(cursor.number("<Q", where) for _ in range(axes))[::-1]
    number, offset = cursor.number("<I", where), cursor.number("<Q", where)
    kind, weights, nbytes = TYPES.get(number, (f"number {number}", 0, 0))
    if not nbytes:
        raise ModelError(
            f"{path}: {where} has type {kind}, which is unknown or no longer in use. Get the model as Q4_K_M "
            "or Q8_0."
        )
    if min(shape) < 1 or shape[-1] % weights:
        raise ModelError(
            f"{path}: damaged: {where} has shape {list(shape)}; expected positive numbers, and rows in whole "
            f"blocks of {weights} ({kind})."
        )
    if offset % alignment:
        raise ModelError(f"{path}: damaged: {where} begins at {offset}, no multiple of {alignment}.")
    return TensorInfo(kind, shape, offset, math.prod(shape) // weights * nbytes)
