"""A checkpoint directory: its config and its tensors by name, whatever files they lie in.

In: a directory in Hugging Face format (config.json, model.safetensors or shards with an index), plain or
packed. Out: ModelConfig, matrices that are read row by row, or packed ones as they lie in the file, vectors.
Uses are noted: what is left over can be named.
Does not know: which tensors an architecture needs, backends.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..config import GROUP_SIZE, ModelConfig, WeightFormat
from ..types import ModelError
from .safetensors import SafetensorsFile
from .shapes import EMBEDDING

FloatArray = npt.NDArray[np.float32]
Codes = tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED_AS: dict[str, WeightFormat] = {"F32": "f32", "F16": "f32", "BF16": "bf16"}  # without loss


class Matrix:
    """A matrix [M, K] of a checkpoint, read from the file when its rows are asked for."""

    def __init__(
        self, name: str, shape: tuple[int, int], nbytes: int, stored: WeightFormat, data: _Data
    ) -> None:
        self.name, self.shape, self.nbytes = name, shape, nbytes
        self.stored: WeightFormat = stored  # the format that keeps it without loss
        self._data = data

    def rows(self, first: int, last: int) -> FloatArray:
        """Rows first..last-1 as float32 [last - first, K]. Raises ModelError on a NaN or an infinity."""
        codes = self.quantised()
        if codes is None:
            return _finite(_as_float(self._data[0][first:last]), self.name, self._data[2])
        wide = np.repeat(codes[1][first:last].astype(np.float32), GROUP_SIZE, axis=1)  # [m, P]
        return np.ascontiguousarray(codes[0][first:last] * wide[:, : self.shape[1]])

    def quantised(self) -> Codes | None:
        """(int8 [M, K], float16 [M, ceil(K / 32)]) as they lie in the file, or None when it is not q8."""
        values, scales, _ = self._data
        return None if scales is None else (values, scales)


_Data = tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None, Path]  # values or codes [M, K], scales, file


class PackedMatrix(NamedTuple):
    """Matrices [E, M, K] in the layout of csrc/ops.h, as they lie in the file, for `Backend.mapped`."""

    name: str  # with the path of its file
    format: WeightFormat
    experts: int  # E
    rows: int  # M
    columns: int  # K
    data: npt.NDArray[np.uint8]


class Checkpoint:
    """An open model directory. Raises ModelError when a file is missing or damaged."""

    def __init__(
        self, path: Path, config: ModelConfig, files: list[SafetensorsFile], eos_ids: tuple[int, ...]
    ) -> None:
        self.path, self.config, self.eos_ids = path, config, eos_ids
        self._files = files
        self._owner: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self._owner:
                    raise ModelError(f"{file.path}: tensor {name} is also in {self._owner[name].path.name}.")
                self._owner[name] = file
        self._used: set[str] = set()
        self._bytes_used = 0

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the small files, map the large ones."""
        raw = _read_json(path / "config.json", "a directory in Hugging Face format has one")
        config = ModelConfig.from_hf(raw)
        generation = path / "generation_config.json"
        wanted = _read_json(generation, "").get("eos_token_id") if generation.exists() else None
        more = wanted if isinstance(wanted, list) else [wanted]
        eos = dict.fromkeys([*config.eos_ids, *(i for i in more if type(i) is int)])
        return cls(path, config, _open_files(path), tuple(eos))

    @property
    def names(self) -> list[str]:
        """Every tensor, a quantised pair NAME.q8, NAME.scales as NAME."""
        return sorted({self._logical(name) for name in self._owner})

    def _logical(self, name: str) -> str:
        base, dot, kind = name.rpartition(".")
        return base if self.config.weight_bits and dot and kind in ("q8", "scales") else name

    def __contains__(self, name: str) -> bool:
        """Is there a tensor of that name, plain or quantised?"""
        return name in self._owner or (bool(self.config.weight_bits) and f"{name}.q8" in self._owner)

    def _take(self, name: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The storage of a tensor of one of these dtypes and of this shape; notes the use."""
        file = self._owner.get(name)
        if file is None:
            raise ModelError(
                f"{self.path}: tensor {name} is missing; "
                f"{self.config.architecture} needs it with shape {list(shape)}."
            )
        entry = file.entries[name]
        if entry.shape != shape:
            raise ModelError(
                f"{file.path}: tensor {name} has shape {list(entry.shape)}; "
                f"config.json asks for {list(shape)}."
            )
        if entry.dtype not in kinds:
            raise ModelError(
                f"{file.path}: tensor {name} has dtype {entry.dtype}; expected {' or '.join(kinds)}."
            )
        self._note(name)
        return file.array(name)

    def _note(self, name: str) -> None:
        """This stored tensor is used."""
        if name not in self._used:
            self._used.add(name)
            entry = self._owner[name].entries[name]
            self._bytes_used += entry.end - entry.begin

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """A matrix that must have this shape. Nothing is read yet."""
        if name in self._owner or name not in self:
            values = self._take(name, tuple(STORED_AS), shape)
            file = self._owner[name]
            stored = STORED_AS[file.entries[name].dtype]
            return Matrix(name, shape, values.nbytes, stored, (values, None, file.path))
        codes = self._take(f"{name}.q8", ("I8",), shape)
        scales = self._take(f"{name}.scales", ("F16",), (shape[0], math.ceil(shape[1] / GROUP_SIZE)))
        path = self._owner[f"{name}.q8"].path
        if not np.isfinite(scales).all() or (codes.size and codes.min() < -127):
            raise ModelError(f"{path}: tensor {name} holds a scale that is not finite or a code below -127.")
        aligned = np.require(scales, requirements=["A", "C"])
        return Matrix(name, shape, codes.nbytes + scales.nbytes, "q8", (codes, aligned, path))

    def packed(self, name: str, experts: int, rows: int, columns: int) -> PackedMatrix:
        """A packed weight that must have this shape, already on its way into memory."""
        file = self._owner.get(name)
        size = file.entries[name].end - file.entries[name].begin if file else 0
        data = self._take(name, ("U8",), (size,))
        file = self._owner[name]
        said = file.metadata.get(name, "")
        formats = {describe_packed(f, experts, rows, columns): f for f in get_args(WeightFormat)}
        if said not in formats:
            raise ModelError(
                f"{file.path}: packed tensor {name} is described as {said!r}; config.json asks for one of "
                f"{', '.join(formats)}."
            )
        file.prefetch(name)
        return PackedMatrix(f"{file.path}: tensor {name}", formats[said], experts, rows, columns, data)

    def vector(self, name: str, length: int) -> FloatArray:
        """A norm weight or a bias, float32 [length]."""
        raw = self._take(name, tuple(STORED_AS), (length,))
        return _finite(_as_float(raw), name, self._owner[name].path)

    def note_used(self, name: str) -> None:
        """Count a tensor as used without reading it: it is known, and not needed."""
        for stored in self._owner:
            if self._logical(stored) == name:
                self._note(stored)

    def unused(self) -> list[str]:
        """Tensors that nothing asked for."""
        return sorted({self._logical(name) for name in self._owner.keys() - self._used})

    @property
    def stored(self) -> WeightFormat:
        """The format of the embedding, and so of most matrices."""
        if self.config.packed:
            return "q4" if self.config.weight_bits == 4 else "q8"
        return self.matrix(EMBEDDING, (self.config.vocab_size, self.config.hidden_size)).stored

    @property
    def fraction_used(self) -> float:
        """The share of all bytes that was asked for."""
        return self._bytes_used / max(sum(file.size for file in self._files), 1)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of files that the loaded model goes on reading: they live in the system's page cache."""
        return sum(file.size for file in self._files) if self.config.packed else 0

    def release(self) -> None:
        """Let the system drop the file pages that were read, unless the model goes on reading them."""
        for file in self._files if not self.config.packed else ():
            file.release()


def describe_packed(format: WeightFormat, experts: int, rows: int, columns: int) -> str:
    """What the metadata of a packed file says of a weight."""
    return f"{format} {experts} x {rows} x {columns}"


def _as_float(raw: npt.NDArray[Any]) -> FloatArray:
    """float32, float16 or bfloat16 bits (as uint16) -> float32, in memory of its own."""
    if raw.dtype != np.uint16:
        return np.array(raw, np.float32)
    wide = raw.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _finite(values: FloatArray, name: str, path: Path) -> FloatArray:
    if not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "an infinity"
        raise ModelError(f"{path}: tensor {name} holds {what}: the file is damaged. Download it again.")
    return values


def _read_json(path: Path, hint: str) -> dict[str, Any]:
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
    except (UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(raw).__name__}.")
    return raw


def _open_files(path: Path) -> list[SafetensorsFile]:
    """The single file, or every shard that the index names."""
    if (path / SINGLE).exists():
        return [SafetensorsFile(path / SINGLE)]
    if not (path / INDEX).exists():
        others = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f" (found {others[0]}: convert it to safetensors first)" if others else ""
        raise ModelError(f"{path}: no weights: expected {SINGLE} or {INDEX}{found}.")
    weight_map = _read_json(path / INDEX, "").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelError(f"{path / INDEX}: expected 'weight_map', an object from tensor to file name.")
    files = []
    for shard in dict.fromkeys(weight_map.values()):
        if Path(shard).name != shard:
            raise ModelError(f"{path / INDEX}: shard {shard!r} is not a plain file name.")
        if not (path / shard).exists():
            raise ModelError(f"{path / shard} is missing; {INDEX} names it. Download it again.")
        file = SafetensorsFile(path / shard)
        lost = [name for name, owner in weight_map.items() if owner == shard and name not in file.entries]
        if lost:
            raise ModelError(f"{file.path}: tensor {lost[0]} is missing, though {INDEX} places it there.")
        files.append(file)
    if not files:
        raise ModelError(f"{path / INDEX}: names no tensor.")
    return files
