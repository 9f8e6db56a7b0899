"""Checkpoints that others quantised as a Source: AWQ, GPTQ, FP8, compressed-tensors; under the plain names.

In: the tensors of a directory, what config.json says of their quantisation. Out: matrices that give their
codes without loss where a layout holds them, and float32 rows; everything else as it lies in the files.
ModelError for tensors missing, of a wrong type or shape, groups out of range, scales that are no numbers.
Does not know: how words are unpacked, kernels.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backend.grouped import Grouped, HalfArray, Layout
from ..config import GROUP_SIZE, ModelConfig, Quantisation
from ..types import ModelError
from . import unpack
from .directory import STORED_AS, SafetensorsSource
from .tensors import FloatArray, Matrix, as_float, finite

PARTS = {  # of a matrix of words: codes, zeros, scales, order, and what says the shape once more
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "compressed-tensors": (
        "weight_packed",
        "weight_zero_point",
        "weight_scale",
        "weight_g_idx",
        "weight_shape",
    ),
}
SCALES = ("weight_scale_inv", "weight_scale")  # of one of FP8, in this order


class Words(NamedTuple):
    """The tensors of a matrix [M, K] with S groups in a row, their shapes checked."""

    codes: unpack.WordArray  # awq [K, M / 8], gptq [K bits / 32, M], compressed-tensors [M, K bits / 32]
    zeros: unpack.WordArray | None  # [S, M bits / 32]; None: the middle of the codes
    scales: npt.NDArray[Any]  # [S, M], compressed-tensors [M, S], as stored
    order: npt.NDArray[np.int32] | None  # [K] the group of each input; None: in order


class WordMatrix(Matrix):
    """A matrix of AWQ, GPTQ or compressed-tensors."""

    def __init__(
        self, name: str, shape: tuple[int, int], nbytes: int, path: Path, quant: Quantisation, words: Words
    ) -> None:
        self.name, self.shape, self.nbytes, self._path = name, shape, nbytes, path
        self._quant, self._words = quant, words
        self._group = group_of(quant, shape[1])
        self._span = -(-self._group // GROUP_SIZE)
        self.layout = self._find_layout()
        self.lossless = self.layout is not None
        self.stored = "q8" if self.layout is None or quant.bits == 8 else "q4"

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        packed = self.grouped(first, last)
        if packed is not None:
            return packed.floats()
        first, last = self._within(first, last)
        order = self._words.order
        group = np.arange(self.shape[1]) // self._group if order is None else order
        scales = as_float(self._scales(first, last))
        return unpack.floats(self._codes(first, last), scales, self._zeros(first, last), group)

    def grouped(self, first: int, last: int) -> Grouped | None:
        """The codes as they are, None where no layout holds them."""
        if self.layout is None:
            return None
        first, last = self._within(first, last)
        scales = self._scales(first, last)
        halves = scales if scales.dtype == np.float16 else as_float(scales).astype(np.float16)
        zeros = self._zeros(first, last)
        return unpack.grouped(self._codes(first, last), halves, zeros, self.layout, self._span)

    def _within(self, first: int, last: int) -> tuple[int, int]:
        """Rows that exist, as slices give them."""
        return min(first, self.shape[0]), min(last, self.shape[0])

    def _codes(self, first: int, last: int) -> unpack.ByteArray:
        """[m, K]"""
        if self._quant.method == "awq":
            return unpack.awq_codes(self._words.codes, first, last)
        if self._quant.method == "compressed-tensors":
            return unpack.row_codes(self._words.codes[first:last], self._quant.bits)
        return unpack.gptq_codes(self._words.codes, self._quant.bits, first, last)

    def _zeros(self, first: int, last: int) -> unpack.ByteArray:
        """[m, S]"""
        quant, words = self._quant, self._words
        if words.zeros is None:
            middle = 1 << (quant.bits - 1)
            return np.full((last - first, -(-self.shape[1] // self._group)), middle, np.uint8)
        if quant.method == "awq":
            return unpack.awq_codes(words.zeros, first, last)
        return unpack.gptq_zeros(words.zeros, quant.bits, quant.less_one, first, last)

    def _scales(self, first: int, last: int) -> npt.NDArray[Any]:
        """[m, S] as stored, numbers all of them."""
        if self._quant.method == "compressed-tensors":
            scales = self._words.scales[first:last]
        else:
            scales = unpack.transposed(self._words.scales, first, last)
        finite(as_float(scales), f"{self.name} (its scales)", self._path)
        return scales

    def _find_layout(self) -> Layout | None:
        """The one that keeps all of it, if there is one."""
        if self._words.order is not None or not _are_halves(self._words.scales):
            return None
        middle = 1 << (self._quant.bits - 1)
        zeros = self._zeros(0, self.shape[0])
        return unpack.layout_of(self._quant.bits, bool((zeros == middle).all()), self._span)


class Fp8Matrix(Matrix):
    """A matrix of 8-bit floating-point numbers; no layout of integers holds it."""

    lossless = False

    def __init__(
        self,
        name: str,
        codes: unpack.ByteArray,
        scales: FloatArray,
        block: tuple[int, int],
        path: Path,
    ) -> None:
        self.name, self.nbytes, self.stored = name, codes.nbytes + scales.nbytes, "q8"
        self.shape = codes.shape[0], codes.shape[1]
        self._codes, self._scales, self._block, self._path = codes, scales, block, path

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        first, last = (min(row, self.shape[0]) for row in (first, last))
        values = unpack.fp8_floats(self._codes, self._scales, first, last, self._block)
        return finite(values, self.name, self._path)


class QuantisedSource:
    """The tensors of a quantised checkpoint. A matrix is quantised when its tensors say so: what config.json
    lists as left alone is not needed."""

    def __init__(self, plain: SafetensorsSource, config: ModelConfig) -> None:
        assert config.quantised is not None
        self._plain, self._quant, self.size = plain, config.quantised, plain.size
        self._parts = self._find_parts(plain.names())
        if not self._parts:
            raise ModelError(
                f"config.json says {config.quantised.name}, but no tensor is: fetch config.json again."
            )
        stored = {part for parts in self._parts.values() for part in parts}
        for name in self._parts.keys() & (set(plain.names()) - stored):
            raise ModelError(f"{plain.where(name)}: tensor {name} is there twice, plain and quantised.")
        self._names = {*self._parts, *(set(plain.names()) - stored)} - self._empty_biases(config)
        self._matrices: dict[str, Matrix] = {}

    def _find_parts(self, stored: Collection[str]) -> dict[str, list[str]]:
        """The tensors of each quantised matrix, that with its codes first."""
        found, method = {}, self._quant.method
        for name in stored:
            base, _, kind = name.rpartition(".")
            if method == "fp8" and self._plain.entry(name).dtype == "F8_E4M3":
                beside = (f"{base}.{part}" for part in SCALES)
                found[name] = [name, *(part for part in beside if self._plain.has(part))]
            elif method != "fp8" and kind == PARTS[method][0]:
                beside = (f"{base}.{part}" for part in PARTS[method][1:])
                found[f"{base}.weight"] = [name, *(part for part in beside if self._plain.has(part))]
        return found

    def _empty_biases(self, config: ModelConfig) -> set[str]:
        """Biases of zeros that GPTQ's tools write beside matrices that have none."""
        biases = {f"{name.removesuffix('weight')}bias" for name in self._parts}
        extra = {name for name in biases if self._plain.has(name) and not _wanted(name, config)}
        return {name for name in extra if not self._plain.vector(name).any()}

    def names(self) -> Collection[str]:
        """Every tensor, the parts of a quantised matrix as one."""
        return self._names

    def where(self, name: str) -> Path:
        """The file with the codes."""
        return self._plain.where(self._parts.get(name, [name])[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """As the plain tensor would have it."""
        parts = self._parts.get(name, [name])
        shape = self._plain.shape(parts[0])
        if parts[0] == name:
            return shape
        if len(shape) != 2:
            raise self._wrong(parts[0], f"has shape {shape_text(shape)}; expected two dimensions")
        each = 32 // self._quant.bits
        if self._quant.method == "awq":
            return shape[1] * each, shape[0]
        if self._quant.method == "gptq":
            return shape[1], shape[0] * each
        return shape[0], shape[1] * each

    def nbytes(self, name: str) -> int:
        """In the files, of all parts."""
        return sum(self._plain.nbytes(part) for part in self._parts.get(name, [name]))

    def kind(self, name: str) -> str:
        """A dtype, "AWQ 4 bits"."""
        if name not in self._parts or self._quant.method == "fp8":
            return self._plain.kind(name)
        return f"{self._quant.label} {self._quant.bits} bits"

    def vector(self, name: str) -> FloatArray:
        """float32 [n]"""
        if name in self._parts:
            raise self._wrong(name, "is quantised; only matrices can be")
        return self._plain.vector(name)

    def matrix(self, name: str) -> Matrix:
        """A matrix; of a quantised one the zeros are read, and scales that are not float16."""
        if name not in self._parts:
            return self._plain.matrix(name)
        if name not in self._matrices:
            make = self._fp8 if self._quant.method == "fp8" else self._words
            self._matrices[name] = make(name)
        return self._matrices[name]

    def release(self) -> None:
        """Let the system drop the file pages that were read."""
        self._plain.release()

    def _words(self, name: str) -> Matrix:
        quant, base = self._quant, name.removesuffix(".weight")
        (packed, *_), rows = self._parts[name], quant.method == "compressed-tensors"
        outputs, inputs = self.shape(name)
        each = 32 // quant.bits
        if not rows and (outputs % each or inputs % each):
            raise self._wrong(packed, f"stands for {outputs} x {inputs}; {each} share a word")
        group = group_of(quant, inputs)
        if quant.method == "awq" and inputs % group:
            raise self._wrong(packed, f"has {inputs} inputs, no multiple of group_size {group}")
        groups = -(-inputs // group)
        _, zeros_name, scales_name, *more = (f"{base}.{part}" for part in PARTS[quant.method])
        codes = self._part(packed, ("I32",), self._plain.shape(packed))
        wanted = (outputs, groups) if rows else (groups, outputs)
        scales = self._part(scales_name, tuple(STORED_AS), wanted)
        zeros = order = None
        if rows and self._plain.has(zeros_name):
            raise self._wrong(zeros_name, "is there, but config.json says symmetric")
        if self._plain.has(zeros_name) or not quant.symmetric:
            zeros = self._part(zeros_name, ("I32",), (groups, outputs // each))
        if more and (self._plain.has(more[0]) or quant.ordered):
            order = self._order(more[0], inputs, group, groups)
        if more[1:] and self._part(more[1], ("I64", "I32"), (2,)).tolist() != [outputs, inputs]:
            raise self._wrong(more[1], f"is not {outputs} x {inputs}, the shape of {packed}")
        words = Words(codes, zeros, scales, order)
        return WordMatrix(name, (outputs, inputs), self.nbytes(name), self.where(name), quant, words)

    def _order(self, name: str, inputs: int, group: int, groups: int) -> npt.NDArray[np.int32] | None:
        """The group of each input, None when they follow one another. All 0 means that too."""
        order = self._part(name, ("I32",), (inputs,))
        if np.array_equal(order, np.arange(inputs) // group) or not order.any():
            return None
        if order.min() < 0 or order.max() >= groups:
            raise self._wrong(name, f"names groups {order.min()} to {order.max()}; there are {groups}")
        return np.array(order)

    def _fp8(self, name: str) -> Matrix:
        parts = self._parts[name]
        shape = self._plain.shape(name)
        if len(shape) != 2:
            raise self._wrong(name, f"has shape {shape_text(shape)}; expected two dimensions")
        if len(parts) < 2:
            raise self._wrong(name, f"is F8_E4M3 and has no scales: {name}_scale_inv is missing")
        said = self._quant.block or shape  # a block larger than the matrix is all of it
        block = min(said[0], shape[0]) or 1, min(said[1], shape[1]) or 1
        grid = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        found = self._plain.shape(parts[1])
        whole = grid == (1, 1) and found in ((), (1,))
        scales = as_float(self._part(parts[1], tuple(STORED_AS), found if whole else grid)).reshape(grid)
        finite(scales, parts[1], self.where(name))
        return Fp8Matrix(name, self._plain.array(name), scales, block, self.where(name))

    def _part(self, name: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A stored tensor of one of these types and of this shape."""
        if not self._plain.has(name):
            base, _, kind = name.rpartition(".")
            codes = f"{base}.{PARTS[self._quant.method][0]}"
            raise self._wrong(codes, f"has no {kind} beside it; {self._quant.method} needs one")
        entry = self._plain.entry(name)
        if entry.dtype not in kinds:
            raise self._wrong(name, f"has dtype {entry.dtype}; expected {' or '.join(kinds)}")
        if entry.shape != shape:
            said = f"{self._quant.name} asks for {shape_text(shape)}"
            raise self._wrong(name, f"has shape {shape_text(entry.shape)}; {said}")
        return self._plain.array(name)

    def _wrong(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self._plain.where(name)}: tensor {name} {what}. Fetch the file again.")


def _wanted(bias: str, config: ModelConfig) -> bool:
    """Does the model have this bias?"""
    if ".self_attn." not in bias:
        return config.mlp_bias
    return config.output_bias if bias.endswith(".o_proj.bias") else config.qkv_bias


def group_of(quant: Quantisation, inputs: int) -> int:
    """Inputs of a matrix that share a scale: never more than it has, whatever config.json says."""
    return min(quant.group_size or inputs, inputs) or 1


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for a message, cut where a file lies about it."""
    return f"[{', '.join(map(str, shape[:6]))}{', ...' if len(shape) > 6 else ''}]"


def _are_halves(scales: npt.NDArray[Any]) -> bool:
    """Are all scales float16 numbers? What is no number is found when it is read."""
    if scales.dtype == np.float16:
        return True
    for row in range(0, len(scales), 256):
        values = as_float(scales[row : row + 256])
        with np.errstate(over="ignore", invalid="ignore"):
            halves: HalfArray = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            return False
    return True
