"""The ops of `Backend` on the native core: packs weights, allocates results, and calls.

In and out: native arrays (float32; numpy arrays are copied into such); weights as packed buffers, keys and
values inside the native cache.
Does not know: how a kernel works, which instruction set runs (unless told), models, requests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from .. import _C
except ImportError as error:
    raise ImportError(
        "the native core is missing: this is the source tree, not the installed package. "
        "Start Python in another directory, or install with pip install -e ."
    ) from error
from ..config import BLOCK_SIZE, ENV_ISA, KVFormat, WeightFormat, kv_head_bytes
from ..types import EngineError, ModelError, UsageError
from .base import Batch, FloatArray, IntArray, SampleArgs
from .grouped import Grouped, Layout, PackedFormat, kept_layout, widened
from .machine import available_cpus

PACK_ROWS = 1024  # rows of a matrix that are in memory as float32 while it is packed; whole panels of 16
ALIGNMENT = 64  # a cache line, a 512-bit register


@dataclass(frozen=True, slots=True)
class Weight:
    """Packed matrices [E, M, K]: one buffer that could as well be mapped from a file, and its native view."""

    layout: Layout
    experts: int  # E
    rows: int  # M
    columns: int  # K
    buffer: npt.NDArray[np.uint8]
    native: _C.Matrix

    @property
    def format(self) -> PackedFormat:
        """Of the layout."""
        return self.layout.format


def aligned_empty(size: int) -> npt.NDArray[np.uint8]:
    """uint8 [size], on a cache line."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size]


def _pieces(parts: Sequence[Any]) -> Iterator[tuple[int, list[tuple[Any, int, int]]]]:
    """Cuts the stack of `parts` into runs of PACK_ROWS rows: (first row, [(part, first, last)])."""
    first, piece, room = 0, list[tuple[Any, int, int]](), PACK_ROWS
    for part in parts:
        at = 0
        while at < part.shape[0]:
            count = min(room, part.shape[0] - at)
            piece.append((part, at, at + count))
            at, room = at + count, room - count
            if room == 0:
                yield first, piece
                first, piece, room = first + PACK_ROWS, [], PACK_ROWS
    if piece:
        yield first, piece


def _stacked(arrays: Iterable[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    """The arrays along their first axis, contiguous; one that fits already is not copied."""
    several = list(arrays)
    whole = several[0] if len(several) == 1 else np.concatenate(several)
    return np.ascontiguousarray(whole, kind)


def _stacked_if(kind: type[np.generic], *arrays: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """The same of what a layout may lack, float16 as its bits."""
    there = [array for array in arrays if array is not None]
    if not there:
        return None
    stacked = _stacked(there, kind)
    return stacked.view(np.uint16) if kind is np.float16 else stacked


def _layouts(experts: Sequence[Sequence[Any]]) -> Iterator[Layout | None]:
    """Of every part."""
    return (part.layout for parts in experts for part in parts)


def _checked_rows(part: Any, first: int, last: int, layout: Layout) -> Grouped:
    """Quantised rows of a part in `layout`."""
    rows: Grouped = part.grouped(first, last)
    for numbers in (rows.scales, rows.minimums):
        if numbers is not None and not np.isfinite(numbers).all():
            raise ModelError(f"{part.name} holds a scale that is not finite: the file is damaged.")
    return widened(rows, layout)


class CpuBackend:
    """Implements `Backend` over the native core. One op runs at a time; results are fresh arrays.

    Make it after a fork, not before: a child process has none of its threads (it stays correct, on one).
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        wanted = isa or os.environ.get(ENV_ISA) or ""
        supported = _C.supported_isas()
        if wanted and wanted not in supported:
            raise UsageError(
                f"{ENV_ISA}={wanted!r} does not run on this machine; it supports {', '.join(supported)}."
            )
        self._core = _C.Core(threads or available_cpus(), wanted)
        self._checked: tuple[Batch, _C.Batch] | None = None  # the batch of the pass that is running

    @property
    def isa(self) -> str:
        """The instruction set in use: avx512, avx2 or scalar."""
        return self._core.isa

    @property
    def threads(self) -> int:
        """Threads that work, the caller's included."""
        return self._core.threads

    def probe_dots(self, chunks: int) -> int:
        """Run int8 dot products that nobody wants; returns how many products. The caller takes the time."""
        return self._core.probe_dots(chunks)

    def probe_read(self, x: FloatArray) -> None:
        """Read an array from end to end; its size is a multiple of 2^18."""
        self._core.probe_read(x)

    def vector(self, values: FloatArray) -> _C.Array:
        """A norm weight or a bias, [D]."""
        return _C.Array(np.ascontiguousarray(values, np.float32))

    def pack(self, parts: Sequence[Any], format: WeightFormat) -> Weight:
        """Stack matrices [M_i, K] along M and pack them."""
        return self.pack_experts([parts], format)

    def pack_experts(self, experts: Sequence[Sequence[Any]], format: WeightFormat) -> Weight:
        """E stacks of equal shape -> [E, M, K]"""
        rows, columns = sum(part.shape[0] for part in experts[0]), experts[0][0].shape[1]
        shape, kept = (len(experts), rows, columns), kept_layout(_layouts(experts), format)
        layout = kept or Layout(format)
        buffer = aligned_empty(self.packed_bytes(layout, *shape))
        native = _C.Matrix(buffer, layout.format, *shape, layout.span)
        weight = Weight(layout, *shape, buffer, native)
        for expert, parts in enumerate(experts):
            if kept is not None:
                self._pack_codes(weight, expert, parts)
            else:
                self._pack_floats(weight, expert, parts)
        return weight

    def layout_of(self, experts: Sequence[Sequence[Any]], format: WeightFormat) -> Layout:
        """How `pack_experts` packs these."""
        return kept_layout(_layouts(experts), format) or Layout(format)

    @staticmethod
    def packed_bytes(layout: Layout, experts: int, rows: int, columns: int) -> int:
        """Bytes of matrices [E, M, K] in the packed layout."""
        return _C.packed_bytes(layout.format, experts, rows, columns, layout.span)

    def mapped(self, matrix: Any) -> Weight:
        """Packed matrices [E, M, K] of a file, used where they lie. Raises ModelError when they cannot be."""
        shape = matrix.experts, matrix.rows, matrix.columns
        try:
            native = _C.Matrix(matrix.data, matrix.format, *shape, matrix.span)
        except ValueError as error:
            raise ModelError(f"{matrix.name} is damaged: {error}. Run deepfast quantize again.") from error
        return Weight(Layout(matrix.format, matrix.span), *shape, matrix.data, native)

    def _pack_floats(self, weight: Weight, expert: int, parts: Sequence[Any]) -> None:
        """Rows [M, K] in float32, rounded to the format."""
        for first, piece in _pieces(parts):
            values = _stacked((part.rows(a, b) for part, a, b in piece), np.float32)
            self._core.pack(weight.native, weight.buffer, expert, first, values)

    def _pack_codes(self, weight: Weight, expert: int, parts: Sequence[Any]) -> None:
        """Rows of parts that are quantised already, as they are. Raises ModelError on a damaged scale."""
        for first, piece in _pieces(parts):
            rows = [_checked_rows(part, a, b, weight.layout) for part, a, b in piece]
            codes = _stacked((r.codes for r in rows), rows[0].codes.dtype.type).view(np.int8)
            self._core.pack_codes(
                weight.native,
                weight.buffer,
                expert,
                first,
                codes,
                _stacked((r.scales for r in rows), np.float16).view(np.uint16),
                _stacked_if(np.float16, *(r.minimums for r in rows)),
                _stacked_if(np.int8, *(r.steps for r in rows)),
                _stacked_if(np.int8, *(r.lows for r in rows)),
            )

    def unpack(self, weight: Weight, expert: int = 0, first: int = 0, last: int | None = None) -> FloatArray:
        """The values that rows first..last-1 of a packed matrix stand for, [m, K]: to inspect and compare."""
        rows = np.arange(first, weight.rows if last is None else last, dtype=np.int32)
        return np.asarray(self._core.embed(rows, weight.native, expert))

    def new_cache(
        self, layers: int, blocks: int, kv_heads: int, head_dim: int, format: KVFormat
    ) -> _C.KVCache:
        """An empty paged KV cache."""
        try:
            return _C.KVCache(layers, blocks, kv_heads, head_dim, format)
        except MemoryError as error:
            size = layers * blocks * BLOCK_SIZE * kv_heads * kv_head_bytes(head_dim, format)
            raise UsageError(
                f"a KV cache of {size / 2**20:.0f} MiB does not fit in memory. Lower max_kv_tokens."
            ) from error

    def touch(self, cache: _C.KVCache, layer: int, blocks: Sequence[int]) -> None:
        """Have memory behind these blocks of a layer."""
        cache.touch(layer, list(blocks))

    def embed(self, token_ids: IntArray, table: Weight) -> _C.Array:
        """[N], [V, D] -> [N, D]"""
        return self._core.embed(token_ids, table.native, 0)

    def rms_norm(self, x: _C.Array, weight: _C.Array, eps: float) -> _C.Array:
        """[N, D], [D] -> [N, D]"""
        return self._core.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: _C.Array, y: _C.Array, weight: _C.Array, eps: float
    ) -> tuple[_C.Array, _C.Array]:
        """[N, D], [N, D], [D] -> x + y and its rms_norm, [N, D] each"""
        return self._core.add_rms_norm(x, y, weight, eps)

    def linear(self, x: _C.Array, w: Weight, bias: _C.Array | None = None) -> _C.Array:
        """[N, K], [M, K], [M] -> [N, M]"""
        return self._core.linear(x, w.native, bias)

    def _native(self, batch: Batch) -> _C.Batch:
        """The checked copy of `batch`, made once for all ops of a pass."""
        if self._checked is None or self._checked[0] is not batch:
            native = _C.Batch(batch.positions, batch.starts, batch.context_lens, batch.block_tables)
            self._checked = batch, native
        return self._checked[1]

    def store_kv(
        self,
        qkv: _C.Array,
        norms: tuple[_C.Array, _C.Array] | None,
        rope: _C.Array,
        eps: float,
        cache: _C.KVCache,
        layer: int,
        batch: Batch,
    ) -> _C.Array:
        """Split, normalise, rotate, write k and v to the cache; returns the queries [N, H C]."""
        q_norm, k_norm = norms or (None, None)
        return self._core.store_kv(qkv, q_norm, k_norm, rope, eps, cache, layer, self._native(batch))

    def rope_table(self, inverse_frequencies: Sequence[float], scale: float, positions: int) -> _C.Array:
        """float32 [positions, 2, C / 2]: cos and sin times `scale` of float32 angles."""
        frequencies = np.asarray(inverse_frequencies, np.float32)
        angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies  # [positions, C / 2]
        table = np.empty((positions, 2, len(frequencies)), np.float32)
        np.cos(angles, out=table[:, 0])
        np.sin(angles, out=table[:, 1])
        table *= np.float32(scale)
        return _C.Array(table)

    def attention(self, q: _C.Array, cache: _C.KVCache, layer: int, batch: Batch) -> _C.Array:
        """[N, H C] -> [N, H C]"""
        return self._core.attention(q, cache, layer, self._native(batch))

    def mlp(
        self,
        x: _C.Array,
        gate_up: Weight,
        gate_up_bias: _C.Array | None,
        down: Weight,
        down_bias: _C.Array | None,
    ) -> _C.Array:
        """[N, D], [2F, D], [2F], [D, F], [D] -> [N, D]"""
        return self._core.mlp(x, gate_up.native, gate_up_bias, down.native, down_bias)

    def moe(
        self, x: _C.Array, router: _C.Array, gate_up: Weight, down: Weight, top_k: int, normalise: bool
    ) -> _C.Array:
        """[N, D], router logits [N, E], [E, 2F, D], [E, D, F] -> [N, D]"""
        return self._core.moe(x, router, gate_up.native, down.native, top_k, normalise)

    def take(self, x: _C.Array, rows: IntArray | Sequence[int]) -> _C.Array:
        """[N, D], [L] -> [L, D]"""
        return _C.take(x, np.asarray(rows, np.int32))

    def sample(self, logits: _C.Array, args: Sequence[SampleArgs], num_valid: int) -> list[int]:
        """[L, V] -> L token ids below num_valid."""
        result = self._core.sample(logits, num_valid, [_row_args(a) for a in args])
        if min(result, default=0) < 0:
            raise EngineError(_SAMPLE_ERRORS[min(result)])
        return result

    def log_probs(
        self, logits: _C.Array, tokens: Sequence[int], top: int, num_valid: int
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """[L, V], L token ids -> (log-probability of the token, the `top` most likely) of each row."""
        result = []
        for row, token in zip(self.to_numpy(logits)[:, :num_valid], tokens, strict=True):
            peak = row.max()
            total = float(peak) + float(np.log(np.exp(row - peak).sum(dtype=np.float64)))
            ids = _largest(row, top)
            result.append((float(row[token]) - total, [(int(i), float(row[i]) - total) for i in ids]))
        return result

    def to_numpy(self, x: _C.Array) -> FloatArray:
        """[N, D] float32, in the memory of x"""
        return np.asarray(x)


_SAMPLE_ERRORS = {
    -1: "the logits hold NaN or infinity: the weights are damaged or the values overflowed.",
    -2: "no token is left to sample: every one is banned or has a logit of -infinity.",
}


def _largest(row: FloatArray, count: int) -> npt.NDArray[np.intp]:
    """Indices of the `count` largest values of [V], descending, ties by index."""
    count = min(count, len(row))
    if count == 0:
        return np.empty(0, np.intp)
    least = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= least)  # more than `count` where several equal the least
    return ids[np.argsort(-row[ids], kind="stable")[:count]]


def _row_args(args: SampleArgs) -> _C.RowArgs:
    """What the native sampler reads of one row, in its order. The past counts only where it is penalised."""
    repeats = args.repetition_penalty != 1
    penalised = repeats or args.presence_penalty != 0 or args.frequency_penalty != 0
    numbers = (
        args.temperature, args.top_k, args.top_p, args.min_p, args.uniform,
        args.presence_penalty, args.frequency_penalty, args.repetition_penalty,
    )  # fmt: skip
    return (
        numbers,
        list(args.logit_bias.items()),
        args.banned_ids,
        args.prompt_ids if repeats else (),
        args.output_ids if penalised else (),
        args.mask,
    )
