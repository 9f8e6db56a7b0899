"""Weights that are quantised already, and the forms in which packing keeps them without loss.

In: codes, scales and minimums as file formats have them, in one common shape. Out: the layout that holds them
all, the same values in a wider layout, float32. A form with "k" has scales on two levels, as the K-quants of
GGUF: w = (scale * step) * code - minimum * low, with float16 scales and minimums shared by `span` groups, and
int8 steps and lows of 32 or 16 weights. All arithmetic is float32, in that order.
Does not know: files, packed bytes, kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import GROUP_SIZE

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
CodeArray = npt.NDArray[Any]  # uint8 0..15 with 4 bits, int8 with 8
ByteArray = npt.NDArray[np.int8]

# q8      w = scale * code                     one scale per group of 32
# q4      w = scale * (code - 8)
# q4_min  w = scale * code + minimum           (added: as GGUF's Q4_1 has it)
# *_k     w = (scale * step) * code - minimum * low, steps and lows per group of 32; "16": per half of a group
# q8_k16  the same without minimums and lows
PackedFormat = Literal["f32", "bf16", "q8", "q4", "q4_min", "q4_k", "q4_k16", "q8_k", "q8_k16", "q8_k16_min"]


class Layout(NamedTuple):
    """A packed format; span: consecutive groups of 32 inputs that share a scale (always 1 without a "k")."""

    format: PackedFormat
    span: int = 1

    @property
    def bits(self) -> Literal[4, 8]:
        """Of a code."""
        return 4 if self.format.startswith("q4") else 8

    @property
    def two_level(self) -> bool:
        """Are there steps under the scales?"""
        return "_k" in self.format

    @property
    def part(self) -> Literal[16, 32]:
        """Weights that share a step."""
        return 16 if "16" in self.format else 32

    @property
    def has_minimums(self) -> bool:
        """Is there a minimum beside each scale (and a low beside each step)?"""
        return self.format == "q4_min" or self.two_level and self.format != "q8_k16"


@dataclass(frozen=True, slots=True)
class Grouped:
    """Rows [m, K] of a matrix in a layout. Q = ceil(K / 32) groups, S = ceil(Q / span)."""

    layout: Layout
    codes: CodeArray  # [m, K]
    scales: HalfArray  # [m, S]
    minimums: HalfArray | None = None  # [m, S]
    steps: ByteArray | None = None  # [m, ceil(K / part)], two-level layouts only
    lows: ByteArray | None = None  # the same, where there are minimums

    def floats(self) -> FloatArray:
        """What the rows stand for, float32 [m, K]."""
        codes = self.codes.astype(np.float32)
        if self.layout.format == "q4":
            codes -= np.float32(8)
        scales = self._wide(self.scales, self.steps)
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged file's infinity shows in the result
            values = np.multiply(codes, scales, out=codes)
            if self.minimums is not None:
                lows = self._wide(self.minimums, self.lows)
                values = values - lows if self.layout.two_level else values + lows
        return values

    def _wide(self, scales: HalfArray, steps: ByteArray | None) -> FloatArray:
        """A scale for each weight, [m, K]"""
        width, span = self.codes.shape[1], self.layout.span * GROUP_SIZE
        if steps is None:
            return np.repeat(scales.astype(np.float32), span, axis=1)[:, :width]
        per_step = np.repeat(scales.astype(np.float32), span // self.layout.part, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            products = per_step[:, : steps.shape[1]] * steps.astype(np.float32)
        return np.repeat(products, self.layout.part, axis=1)[:, :width]


def join(layouts: Iterable[Layout]) -> Layout:
    """The narrowest layout that holds rows of all these without loss."""
    found = set(layouts)
    if len(found) == 1:
        return found.pop()
    bits = max(layout.bits for layout in found)
    span = math.gcd(*(layout.span for layout in found))
    halves = any(layout.part == 16 for layout in found)
    if bits == 4:
        return Layout("q4_k16" if halves else "q4_k", span)
    if {layout.format for layout in found} <= {"q8", "q4"}:
        return Layout("q8")
    lows = any(layout.has_minimums for layout in found)
    return Layout(("q8_k16_min" if halves else "q8_k") if lows else "q8_k16", span)


def kept_layout(layouts: Iterable[Layout | None], format: str) -> Layout | None:
    """How matrices of these layouts (None: floats) are packed together in a WeightFormat without loss.

    None when they cannot be: then their values are rounded. q4 keeps layouts of 4 bits. q8 keeps all: it
    promises precision, not a size, so matrices of 4 bits alone stay at 4 bits. A stack has one layout: one
    matrix of 8 bits widens the others.
    """
    found = list(layouts)
    bits = {"q4": 4, "q8": 8}.get(format, 0)
    grouped = [layout for layout in found if layout is not None and layout.bits <= bits]
    return join(grouped) if grouped and len(grouped) == len(found) else None


def widened(rows: Grouped, to: Layout) -> Grouped:
    """The same values in `to`, a layout that `join` gave for this one and others."""
    if rows.layout == to:
        return rows
    codes, offset = rows.codes, 0
    if rows.layout.format == "q4" and to.bits == 8:
        codes = codes.astype(np.int8) - np.int8(8)
    elif rows.layout.format == "q4":
        offset = 8  # w = scale * code - scale * 8
    codes = codes.astype(np.uint8 if to.bits == 4 else np.int8)
    if not to.two_level:
        return Grouped(to, codes, rows.scales)
    m, width = codes.shape
    parts, groups = -(-width // to.part), -(-width // GROUP_SIZE)
    scales = _spread(rows.scales, rows.layout.span, to.span, groups)
    steps = _split(rows.steps, m, 1, rows.layout.part, to.part, parts)
    if not to.has_minimums:
        return Grouped(to, codes, scales, steps=steps)
    if rows.layout.two_level and rows.lows is not None and rows.minimums is not None:
        minimums = _spread(rows.minimums, rows.layout.span, to.span, groups)
        return Grouped(
            to, codes, scales, minimums, steps, _split(rows.lows, m, 0, rows.layout.part, to.part, parts)
        )
    if rows.minimums is not None:  # q4_min adds its minimum: subtract it -1 times
        minimums, low = _spread(rows.minimums, 1, to.span, groups), -1
    else:
        minimums, low = scales, offset
    return Grouped(to, codes, scales, minimums, steps, np.full((m, parts), low, np.int8))


def _spread(scales: HalfArray, span: int, to: int, groups: int) -> HalfArray:
    """Scales of `span` groups each, repeated for `to` groups each; `to` divides `span`."""
    return np.repeat(scales, span // to, axis=1)[:, : -(-groups // to)]


def _split(steps: ByteArray | None, m: int, missing: int, part: int, to: int, parts: int) -> ByteArray:
    """Steps of `part` weights each, repeated for `to` weights each; [m, parts]"""
    if steps is None:
        return np.full((m, parts), missing, np.int8)
    return np.repeat(steps, part // to, axis=1)[:, :parts]


def take_rows(rows: Grouped, first: int, last: int) -> Grouped:
    """Rows first..last-1."""
    names = ("codes", "scales", "minimums", "steps", "lows")
    arrays = {name: getattr(rows, name) for name in names}
    return replace(rows, **{name: a[first:last] for name, a in arrays.items() if a is not None})
