"""The safetensors file format: a validated reader over a memory map, and a writer.

In: a path. Out: for each tensor its dtype, shape and a view of its bytes, read when they are touched. What we
write begins its data on 64 bytes, so that packed weights can be used where they lie.
A damaged file raises ModelError in one line that names the file and the tensor.
Does not know: models, what a tensor means.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from ..types import ModelError

MAX_HEADER = 100 * 2**20  # bytes; the limit of the format
MAX_NAME, MAX_DIMENSIONS = 500, 8  # of a tensor; ours have 2, and 3 where experts are stacked
ALIGNMENT = 64  # of the first tensor in a file that we write

# dtype name -> numpy type of its raw bytes. BF16 and F8 have no numpy type: their bits come as numbers.
STORAGE: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}


class Entry(NamedTuple):
    """One tensor of a header: begin and end are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file. Raises ModelError when it is missing, truncated or inconsistent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                self.entries, self.metadata = _read_header(path, file.read(8), file, self.size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be read ({error.strerror}). Check the path and permissions."
            ) from error

    def array(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of a tensor's storage, in its shape (BF16 as uint16 bits)."""
        dtype, shape, begin, _ = self.entries[name]
        return np.frombuffer(self._map, STORAGE[dtype], math.prod(shape), begin).reshape(shape)

    def release(self) -> None:
        """Give back the memory of what was read; it is read again from the file if it is needed again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def prefetch(self, name: str) -> None:
        """Read a tensor into the system's page cache, all at once instead of page by page at first use."""
        if hasattr(mmap, "MADV_WILLNEED"):
            entry = self.entries[name]
            first = entry.begin // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, entry.end - first)


def _read_header(
    path: Path, prefix: bytes, file: IO[bytes], size: int
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Name -> Entry, checked: within the file, of the right length, end to end without gap or overlap; and
    the metadata."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= MAX_HEADER:
        raise ModelError(f"{path}: not a safetensors file (header of {length} bytes in a file of {size}).")
    if 8 + length > size:
        raise ModelError(
            f"{path}: truncated: {size} bytes, but the header alone needs {8 + length}. Download it again."
        )
    try:
        raw = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: its header is not JSON ({error}). Download it again.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: damaged: its header is {type(raw).__name__}, expected a JSON object.")
    entries = {name: _entry(path, name, e, 8 + length) for name, e in raw.items() if name != "__metadata__"}
    end, previous = 8 + length, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.end > size:
            raise ModelError(
                f"{path}: truncated: tensor {name} ends at byte {entry.end}, the file at {size}. "
                "Download it again."
            )
        if entry.begin != end:
            what = "overlaps" if entry.begin < end else "leaves a gap after"
            raise ModelError(
                f"{path}: damaged: tensor {name} {what} {previous} (byte {entry.begin}, expected {end})."
            )
        end, previous = entry.end, name
    if end != size:
        raise ModelError(
            f"{path}: damaged: {size} bytes, but its tensors end at byte {end}. Download it again."
        )
    metadata = raw.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ModelError(f"{path}: damaged: its __metadata__ is no object of strings. Download it again.")
    return entries, metadata


def _entry(path: Path, name: str, raw: Any, data: int) -> Entry:
    """One header line; `data` is where tensor bytes begin."""
    if not name.isprintable() or len(name) > MAX_NAME:
        raise ModelError(f"{path}: damaged: it names a tensor {name!r:.100}. Download it again.")
    fields = raw if isinstance(raw, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in STORAGE:
        raise ModelError(
            f"{path}: tensor {name} has dtype {dtype!r:.100}; expected one of {', '.join(STORAGE)}."
        )
    if not (_counts(shape) and len(shape) <= MAX_DIMENSIONS and _counts(offsets) and len(offsets) == 2):
        raise ModelError(
            f"{path}: damaged: tensor {name} has shape {shape!r:.100} and offsets {offsets!r:.100}."
        )
    begin, end = offsets
    needed = math.prod(shape) * STORAGE[dtype].itemsize
    if end - begin != needed:
        raise ModelError(
            f"{path}: damaged: tensor {name}, {shape} of {dtype}, needs {needed} bytes; "
            f"its offsets give {end - begin}."
        )
    return Entry(dtype, tuple(shape), data + begin, data + end)


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Is it a list of whole numbers from 0 that a file can have?"""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def write_header(
    file: IO[bytes], tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> None:
    """What stands before the data: tensors as (name, dtype name, shape), in the order of their bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * STORAGE[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write name -> (dtype name, storage array as in STORAGE), widest elements first: all are aligned."""
    order = sorted(tensors, key=lambda name: (-STORAGE[tensors[name][0]].itemsize, name))
    with path.open("wb") as file:
        write_header(
            file, ((name, tensors[name][0], tensors[name][1].shape) for name in order), metadata or {}
        )
        for name in order:
            dtype, array = tensors[name]
            file.write(np.ascontiguousarray(array, STORAGE[dtype]).tobytes())
