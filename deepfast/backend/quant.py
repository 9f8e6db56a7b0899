"""The one rule by which weights are rounded to q8, q4 and bf16, and keys and values to q8; the native core
gives equal codes.

In: float32 matrices [M, K]. Out: codes [M, P] and one float16 scale per row and group of 32 inputs,
[M, P / 32], where P is K padded with zeros to whole groups; and back to float32. All arithmetic is float32.
Does not know: packed layouts, files, models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import GROUP_SIZE, WeightFormat
from .grouped import Grouped, Layout, take_rows

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
Codes = tuple[npt.NDArray[Any], HalfArray]  # q8: int8 -127..127; q4: uint8 0..15; and the scales

F16_MAX = np.float32(65504.0)


def padded(width: int) -> int:
    """K rounded up to whole groups."""
    return -(-width // GROUP_SIZE) * GROUP_SIZE


def _groups(w: FloatArray) -> FloatArray:
    """[M, K] -> [M, P / 32, 32], zeros at the end."""
    rows, width = w.shape
    full = np.zeros((rows, padded(width)), np.float32)
    full[:, :width] = w
    return full.reshape(rows, -1, GROUP_SIZE)


def quantise_q8(w: FloatArray) -> Codes:
    """scale = f16(max|w| / 127) over the group; code = nearest even integer of w / scale, within +-127.

    A group whose scale rounds to 0 has codes 0. [M, K] -> int8 [M, P], float16 [M, P / 32]
    """
    groups = _groups(w)
    wanted = np.abs(groups).max(axis=2) / np.float32(127)
    scales = np.minimum(wanted, F16_MAX).astype(np.float16)
    divisor = np.where(scales == 0, np.float32(np.inf), scales.astype(np.float32))
    codes = np.clip(np.rint(groups / divisor[:, :, None]), -127, 127).astype(np.int8)
    return codes.reshape(len(w), -1), scales


def dequantise_q8(codes: npt.NDArray[Any], scales: HalfArray, width: int | None = None) -> FloatArray:
    """scale * code: [M, P], [M, P / 32] -> float32 [M, width] (K before padding). P may also be K itself."""
    wide = np.repeat(scales.astype(np.float32), GROUP_SIZE, axis=1)[:, : codes.shape[1]]
    return np.ascontiguousarray((codes.astype(np.float32) * wide)[:, :width])


def rounded_heads(x: FloatArray) -> FloatArray:
    """Keys or values as the q8 cache holds them: one scale f16(max|x| / 127) per position and head.

    [N, G, C] -> the same shape; a head with NaN or infinity is all NaN.
    """
    wanted = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    scales = np.minimum(wanted, F16_MAX).astype(np.float16).astype(np.float32)
    scales[~np.isfinite(wanted)] = np.nan
    divisor = np.where(scales == 0, np.float32(np.inf), scales)
    return np.asarray(np.clip(np.rint(x / divisor), -127, 127) * scales, np.float32)


def quantise_q4(w: FloatArray) -> Codes:
    """m = the value of largest magnitude of the group (the first on a tie), scale d = f16(m / -8),
    code = floor(w / d + 8.5) within 0..15.

    A group whose scale rounds to 0 has codes 8. [M, K] -> uint8 [M, P], float16 [M, P / 32]
    """
    groups = _groups(w)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    scales = np.clip(largest / np.float32(-8), -F16_MAX, F16_MAX).astype(np.float16)
    divisor = np.where(scales == 0, np.float32(np.inf), scales.astype(np.float32))
    codes = np.clip(np.floor(groups / divisor[:, :, None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    return codes.reshape(len(w), -1), scales


def dequantise_q4(codes: npt.NDArray[Any], scales: HalfArray, width: int | None = None) -> FloatArray:
    """scale * (code - 8): [M, P], [M, P / 32] -> float32 [M, width] (K before padding)."""
    wide = np.repeat(scales.astype(np.float32), GROUP_SIZE, axis=1)[:, : codes.shape[1]]
    return np.ascontiguousarray(((codes.astype(np.float32) - np.float32(8)) * wide)[:, :width])


def round_bf16(w: FloatArray) -> FloatArray:
    """The nearest bfloat16 values (ties to even), as float32 of the same shape. Finite values only."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def rounded(w: FloatArray, format: WeightFormat) -> FloatArray:
    """What a matrix [M, K] becomes when it is stored in `format`, as float32 [M, K]."""
    if format == "q8":
        return dequantise_q8(*quantise_q8(w), w.shape[1])
    if format == "q4":
        return dequantise_q4(*quantise_q4(w), w.shape[1])
    return round_bf16(w) if format == "bf16" else np.array(w, np.float32)


@dataclass(frozen=True, slots=True)
class ArrayMatrix:
    """A matrix in memory with the face that `Backend.pack` reads (a checkpoint's Matrix has the same)."""

    values: FloatArray  # [M, K]
    kept: Grouped | None = None  # the same in a layout, when it is quantised already
    name: str = "a matrix"

    @classmethod
    def of(cls, rows: Grouped) -> ArrayMatrix:
        """A matrix that is quantised already."""
        return cls(rows.floats(), rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)"""
        return self.values.shape[0], self.values.shape[1]

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        return self.values[first:last]

    @property
    def layout(self) -> Layout | None:
        """How it is quantised, if it is."""
        return None if self.kept is None else self.kept.layout

    def grouped(self, first: int, last: int) -> Grouped | None:
        """The same rows in `layout`."""
        return None if self.kept is None else take_rows(self.kept, first, last)
