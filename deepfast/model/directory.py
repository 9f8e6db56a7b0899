"""A directory in Hugging Face format: its safetensors files as a Source, plain or in our own formats.

In: a directory with model.safetensors, or shards and their index. Out: its tensors: float32, float16 or
bfloat16 ones, pairs NAME.q8 and NAME.scales, or packed ones as they lie in the file.
Does not know: config.json, which tensors an architecture needs, how a packed weight looks inside.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from ..backend.grouped import Grouped, Layout, PackedFormat
from ..config import GROUP_SIZE, WeightFormat
from ..types import ModelError
from .safetensors import Entry, SafetensorsFile
from .tensors import FloatArray, Matrix, as_float, finite

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED_AS: dict[str, WeightFormat] = {"F32": "f32", "F16": "f32", "BF16": "bf16"}  # without loss
_PACKED = re.compile(r"([a-z0-9_]+)(?:/([1-9][0-9]{0,8}))? ([0-9]+) x ([0-9]+) x ([0-9]+)")


class PlainMatrix(Matrix):
    """float32, float16 or bfloat16, as it lies in the file."""

    def __init__(self, name: str, raw: npt.NDArray[Any], stored: WeightFormat, path: Path) -> None:
        self.name, self.nbytes, self.stored = name, raw.nbytes, stored
        self.shape = raw.shape[0], raw.shape[1]
        self._raw, self._path = raw, path

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        return finite(as_float(self._raw[first:last]), self.name, self._path)


class CodedMatrix(Matrix):
    """A pair NAME.q8 [M, K] and NAME.scales [M, ceil(K / 32)]."""

    layout = Layout("q8")

    def __init__(self, name: str, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> None:
        self.name, self.nbytes, self.stored = name, codes.nbytes + scales.nbytes, "q8"
        self.shape = codes.shape[0], codes.shape[1]
        self._codes, self._scales = codes, scales

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        return self.grouped(first, last).floats()

    def grouped(self, first: int, last: int) -> Grouped:
        """Codes and scales, as they lie in the file."""
        return Grouped(Layout("q8"), self._codes[first:last], self._scales[first:last])


class PackedMatrix(NamedTuple):
    """Matrices [E, M, K] in the layout of csrc/ops.h, as they lie in the file, for `Backend.mapped`."""

    name: str  # with the path of its file
    format: PackedFormat
    span: int
    experts: int  # E
    rows: int  # M
    columns: int  # K
    data: npt.NDArray[np.uint8]


class SafetensorsSource:
    """The tensors of one or more files. coded: NAME.q8 and NAME.scales are the matrix NAME."""

    def __init__(self, files: list[SafetensorsFile], *, coded: bool = False) -> None:
        self.size = sum(file.size for file in files)
        self._files, self._coded = files, coded
        self._owner: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self._owner:
                    raise ModelError(f"{file.path}: tensor {name} is also in {self._owner[name].path.name}.")
                self._owner[name] = file
        self._names = {self._logical(name) for name in self._owner}

    @classmethod
    def open(cls, path: Path, *, coded: bool = False) -> SafetensorsSource:
        """The files of a directory. Raises ModelError when one is missing or damaged."""
        return cls(_open_files(path), coded=coded)

    def _logical(self, name: str) -> str:
        base, dot, kind = name.rpartition(".")
        return base if self._coded and dot and kind in ("q8", "scales") else name

    def _stored(self, name: str) -> str:
        """The tensor in a file that has the shape of this one."""
        return name if name in self._owner else f"{name}.q8"

    def names(self) -> Collection[str]:
        """Every tensor, a pair as one."""
        return self._names

    def has(self, name: str) -> bool:
        """Is there a tensor stored under just this name?"""
        return name in self._owner

    def entry(self, name: str) -> Entry:
        """The header line of a stored tensor."""
        return self._owner[name].entries[name]

    def array(self, name: str) -> npt.NDArray[Any]:
        """The storage of a stored tensor, as in safetensors.STORAGE."""
        return self._owner[name].array(name)

    def where(self, name: str) -> Path:
        """The file that holds it."""
        for stored in (name, f"{name}.q8", f"{name}.scales"):
            if stored in self._owner:
                return self._owner[stored].path
        raise KeyError(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """As in the header."""
        self._expect(self._stored(name), name)
        return self.entry(self._stored(name)).shape

    def nbytes(self, name: str) -> int:
        """In the file, of both of a pair."""
        stored = [s for s in (name, f"{name}.q8", f"{name}.scales") if s in self._owner]
        return sum(self.entry(s).end - self.entry(s).begin for s in stored)

    def kind(self, name: str) -> str:
        """How a tensor is stored, for people: a dtype, "Q8" of a pair, the format of a packed one."""
        if name not in self._owner:
            return "Q8"
        said = _PACKED.fullmatch(self._owner[name].metadata.get(name, ""))
        if said is None:
            return self.entry(name).dtype
        return f"{said[1]}/{said[2]}" if said[2] else said[1]

    def matrix(self, name: str) -> Matrix:
        """A matrix. Nothing is read yet but the scales of a pair."""
        if name in self._owner:
            raw = self._storage(name, tuple(STORED_AS))
            return PlainMatrix(name, raw, STORED_AS[self.entry(name).dtype], self.where(name))
        codes, scales = self._storage(f"{name}.q8", ("I8",)), self._storage(f"{name}.scales", ("F16",))
        wanted = (codes.shape[0], math.ceil(codes.shape[1] / GROUP_SIZE))
        path = self.where(name)
        if scales.shape != wanted:
            raise ModelError(
                f"{path}: tensor {name}.scales has shape {list(scales.shape)}; its codes need {list(wanted)}."
            )
        if not np.isfinite(scales).all() or (codes.size and codes.min() < -127):
            raise ModelError(f"{path}: tensor {name} holds a scale that is not finite or a code below -127.")
        return CodedMatrix(name, codes, np.require(scales, requirements=["A", "C"]))

    def vector(self, name: str) -> FloatArray:
        """float32 [n]"""
        return finite(as_float(self._storage(name, tuple(STORED_AS))), name, self.where(name))

    def packed(self, name: str, experts: int, rows: int, columns: int) -> PackedMatrix:
        """A packed weight that must have this shape, already on its way into memory."""
        data = self._storage(name, ("U8",))
        file = self._owner[name]
        said = _PACKED.fullmatch(file.metadata.get(name, ""))
        numbers = tuple(int(n) for n in said.group(3, 4, 5)) if said else ()
        if said is None or said[1] not in get_args(PackedFormat) or numbers != (experts, rows, columns):
            raise ModelError(
                f"{file.path}: packed tensor {name} is described as {file.metadata.get(name, '')!r:.100}; "
                f"config.json asks for {experts} x {rows} x {columns}."
            )
        file.prefetch(name)
        where = f"{file.path}: tensor {name}"
        span = int(said[2] or 1)
        return PackedMatrix(where, cast(PackedFormat, said[1]), span, experts, rows, columns, data)

    def release(self) -> None:
        """Let the system drop the file pages that were read."""
        for file in self._files:
            file.release()

    def _expect(self, stored: str, name: str) -> None:
        if stored not in self._owner:
            raise ModelError(f"{self.where(name)}: tensor {stored} is missing beside {name}.scales.")

    def _storage(self, name: str, kinds: tuple[str, ...]) -> npt.NDArray[Any]:
        """The storage of a tensor of one of these dtypes."""
        if name not in self._owner:
            base = name.rpartition(".")[0]
            raise ModelError(f"{self.where(base)}: tensor {name} is missing; half of a pair is there.")
        dtype = self.entry(name).dtype
        if dtype not in kinds:
            raise ModelError(
                f"{self.where(name)}: tensor {name} has dtype {dtype}; expected {' or '.join(kinds)}."
            )
        return self.array(name)


def describe_packed(layout: Layout, experts: int, rows: int, columns: int) -> str:
    """What the metadata of a packed file says of a weight: "q4 1 x 4096 x 1024", "q4_k/8 1 x 4096 x 1024"."""
    span = f"/{layout.span}" if layout.two_level else ""
    return f"{layout.format}{span} {experts} x {rows} x {columns}"


def read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; {hint}.") from None
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}). Check the path and permissions."
        ) from error
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:  # no text, too deep, a number of thousands of digits
        raise ModelError(f"{path}: not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(raw).__name__}.")
    return raw


def _open_files(path: Path) -> list[SafetensorsFile]:
    """The single file, or every shard that the index names."""
    if (path / SINGLE).exists():
        return [SafetensorsFile(path / SINGLE)]
    if not (path / INDEX).exists():
        raise ModelError(f"{path}: no weights: expected {SINGLE} or {INDEX}{_other_weights(path)}.")
    weight_map = read_json(path / INDEX, "").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelError(f"{path / INDEX}: expected 'weight_map', an object from tensor to file name.")
    files = []
    for shard in dict.fromkeys(weight_map.values()):
        if Path(shard).name != shard or not shard.isprintable() or len(shard.encode()) > 255:
            raise ModelError(f"{path / INDEX}: shard {shard!r:.100} is not a plain file name.")
        if not (path / shard).exists():
            raise ModelError(f"{path / shard} is missing; {INDEX} names it. Download it again.")
        file = SafetensorsFile(path / shard)
        lost = [name for name, owner in weight_map.items() if owner == shard and name not in file.entries]
        if lost:
            raise ModelError(f"{file.path}: tensor {lost[0]!r:.200} is missing; {INDEX} places it there.")
        files.append(file)
    if not files:
        raise ModelError(f"{path / INDEX}: names no tensor.")
    return files


def _other_weights(path: Path) -> str:
    """What to do with weights in a form that we do not read."""
    found = {p.suffix: p.name for p in sorted(path.iterdir(), reverse=True)} if path.is_dir() else {}
    for suffix in (".bin", ".pt", ".pth", ".ckpt"):
        if suffix in found:
            return (
                f" (found {found[suffix]}, a pickle of PyTorch, which may run code as it is read: fetch the "
                "safetensors files of the model instead, or convert it where you trust it)"
            )
    return f" (found {found['.gguf']}: give that file itself)" if ".gguf" in found else ""
