"""Codes and scales chosen by search: q4 and q8 with the least error that counts, instead of the plain rule.

In: float32 rows, what each column counts (or nothing: all the same). Out: codes and float16 scales of the
formats that backend/quant.py gives, in each group of 32 with sum(importance (w - w')^2) never above that of
the plain rule. The search: for a scale the best codes are the nearest, for codes the best scale is that of
weighted least squares; so candidates around the plain scale give codes, codes a scale, and the best stays.
Does not know: where importance comes from, files, packed bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np

from ..backend.grouped import Grouped, Layout
from ..backend.quant import F16_MAX, padded
from ..config import GROUP_SIZE
from .load import ROUTER
from .tensors import FloatArray, Matrix

Format = Literal["q4", "q8"]

BLOCK = 1024  # groups that are searched at once: what the search reads again and again stays in the cache
# What the largest weight of a group, made negative, is multiplied by to become a code before it is rounded.
CANDIDATES: dict[Format, tuple[float, ...]] = {
    "q4": (*np.arange(5.2, 10.1, 0.6).tolist(), *np.arange(-9.0, -5.3, 0.6).tolist()),
    "q8": (126.0, 126.4, 126.7, 127.3, 127.6, 128.0),
}
RANGE: dict[Format, tuple[float, float]] = {"q4": (-8.0, 7.0), "q8": (-127.0, 127.0)}


class _Best(NamedTuple):
    """Of each group [G]: the scale, the signed codes [32, G], the error."""

    scale: FloatArray
    codes: FloatArray
    error: FloatArray


def fitted(w: FloatArray, importance: FloatArray | None, format: Format) -> Grouped:
    """Rows [m, K] and what each column counts [K] -> codes [m, K] and scales [m, ceil(K / 32)]."""
    rows, width = w.shape
    full = padded(width)
    x = np.zeros((rows, full), np.float32)
    x[:, :width] = w
    counts = np.ones(full, np.float32)
    if importance is not None:
        counts[:width] = importance
    groups = x.reshape(-1, GROUP_SIZE)  # [G, 32]
    weights = counts.reshape(-1, GROUP_SIZE)  # [Q, 32]
    codes = np.empty(groups.shape, np.uint8 if format == "q4" else np.int8)
    scales = np.empty(len(groups), np.float16)
    for first in range(0, len(groups), BLOCK):
        block = slice(first, min(first + BLOCK, len(groups)))
        columns = np.arange(block.start, block.stop) % len(weights)
        best = _search(
            np.ascontiguousarray(groups[block].T), np.ascontiguousarray(weights[columns].T), format
        )
        signed = best.codes.T + 8 if format == "q4" else best.codes.T
        codes[block], scales[block] = signed.astype(codes.dtype), best.scale
    return Grouped(Layout(format), codes.reshape(rows, full)[:, :width], scales.reshape(rows, -1))


def _search(x: FloatArray, d: FloatArray, format: Format) -> _Best:
    """Groups [32, G] and what their weights count [32, G]."""
    low, high = RANGE[format]
    at = np.abs(x).argmax(axis=0)
    extreme = np.take_along_axis(x, at[None], axis=0)[0]  # [G]
    size = np.where(extreme == 0, np.float32(1), -extreme)
    unit = x / size  # [32, G], its extreme is -1
    weighted = unit * d
    gain, scale = np.zeros(len(size), np.float32), np.zeros(len(size), np.float32)
    tiny = np.float32(1e-30)  # only where a group is all zeros; elsewhere its extreme has a code
    q, squares = np.empty_like(x), np.empty_like(x)
    for candidate in CANDIDATES[format]:
        np.multiply(unit, np.float32(candidate), out=q)
        np.rint(q, out=q)
        np.clip(q, low, high, out=q)
        along = np.einsum("kg,kg->g", q, weighted)
        np.multiply(q, q, out=squares)
        best_scale = along / np.maximum(np.einsum("kg,kg->g", squares, d), tiny)
        found = along * best_scale  # sum d x^2 less the error
        better = found > gain
        gain, scale = np.where(better, found, gain), np.where(better, best_scale, scale)
    best = _plain(x, d, extreme, format)
    for _ in range(2):
        now = _rounded(x, d, scale * size, format)
        best = _better(best, now)
        across = np.einsum("kg,kg->g", now.codes * now.codes, d)
        scale = np.einsum("kg,kg->g", now.codes, weighted) / np.maximum(across, tiny)
    return best


def _plain(x: FloatArray, d: FloatArray, extreme: FloatArray, format: Format) -> _Best:
    """What backend/quant.py gives."""
    if format == "q8":
        return _rounded(x, d, np.asarray(np.abs(extreme) / np.float32(127), np.float32), format)
    scale = _half(extreme / np.float32(-8))
    codes = np.clip(np.floor(x / _divisor(scale) + np.float32(8.5)), 0, 15) - np.float32(8)
    return _with_error(x, d, scale, codes)


def _rounded(x: FloatArray, d: FloatArray, scale: FloatArray, format: Format) -> _Best:
    """The nearest codes under these scales, once they are float16."""
    half = _half(scale)
    codes = np.rint(x / _divisor(half))
    return _with_error(x, d, half, np.clip(codes, *RANGE[format], out=codes))


def _half(scale: FloatArray) -> FloatArray:
    """As float16 keeps it."""
    return np.clip(scale, -F16_MAX, F16_MAX).astype(np.float16).astype(np.float32)


def _divisor(scale: FloatArray) -> FloatArray:
    """Gives codes 0 where the scale is 0."""
    return np.where(scale == 0, np.float32(np.inf), scale)


def _with_error(x: FloatArray, d: FloatArray, scale: FloatArray, codes: FloatArray) -> _Best:
    with np.errstate(over="ignore"):  # weights beyond float16 keep an infinite error under any rule
        left = x - codes * scale
        return _Best(scale, codes, np.einsum("kg,kg->g", left * left, d))


def _better(a: _Best, b: _Best) -> _Best:
    """Group by group the one with the smaller error, `a` on a tie."""
    take = b.error < a.error
    scale, error = np.where(take, b.scale, a.scale), np.where(take, b.error, a.error)
    return _Best(scale, np.where(take, b.codes, a.codes), error)


class FittedMatrix(Matrix):
    """A matrix in q4 or q8 by search. Its rows are what the codes stand for."""

    def __init__(
        self,
        matrix: Matrix,
        importance: FloatArray | None,
        format: Format,
        pool: ThreadPoolExecutor,
        parts: int,
    ) -> None:
        self.name, self.shape, self.nbytes = matrix.name, matrix.shape, matrix.nbytes
        self.stored, self.layout, self.lossless = format, Layout(format), False
        self._matrix, self._importance, self._format = matrix, importance, format
        self._pool, self._parts = pool, parts

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        return self.grouped(first, last).floats()

    def grouped(self, first: int, last: int) -> Grouped:
        """Codes and scales; the rows are shared among the threads."""
        values = self._matrix.rows(first, last)
        pieces = [piece for piece in np.array_split(values, self._parts) if len(piece)] or [values]
        found = list(self._pool.map(lambda piece: fitted(piece, self._importance, self._format), pieces))
        codes, scales = np.concatenate([f.codes for f in found]), np.concatenate([f.scales for f in found])
        return Grouped(Layout(self._format), codes, scales)


class Rounder:
    """Makes a FittedMatrix of every matrix that loses something in `format`; for the `prepare` of loading.

    `columns(name, K)`: what the columns of a matrix count, or None. Use it in a `with` block: it has threads.
    """

    def __init__(
        self, format: Format, columns: Callable[[str, int], FloatArray | None] | None, threads: int
    ) -> None:
        self._format, self._columns, self._threads = format, columns, threads
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> Rounder:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._pool.shutdown()

    def __call__(self, name: str, matrix: Matrix) -> Matrix:
        """The matrix as it shall be packed: a router as it is, and what is in the format (or fewer bits)."""
        kept = matrix.layout is not None and matrix.layout.bits <= int(self._format[1:])
        if kept or name.endswith(ROUTER):
            return matrix
        importance = self._columns(name, matrix.shape[1]) if self._columns else None
        return FittedMatrix(matrix, importance, self._format, self._pool, self._threads)
