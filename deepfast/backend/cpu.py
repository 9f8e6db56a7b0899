"""The ops of `Backend` on the native core: packs weights, allocates results, and calls.

In and out: float32 numpy arrays; weights as packed buffers, keys and values inside the native cache.
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
from ..config import BLOCK_SIZE, ENV_ISA, GROUP_SIZE, KVFormat, WeightFormat, kv_head_bytes
from ..types import EngineError, UsageError
from .base import Batch, FloatArray, IntArray, SampleArgs
from .machine import available_cpus

PACK_ROWS = 1024  # rows of a matrix that are in memory as float32 while it is packed; whole panels of 16
ALIGNMENT = 64  # a cache line, a 512-bit register


@dataclass(frozen=True, slots=True)
class Weight:
    """Packed matrices [E, M, K]: one buffer that could as well be mapped from a file, and its native view."""

    format: WeightFormat
    experts: int  # E
    rows: int  # M
    columns: int  # K
    buffer: npt.NDArray[np.uint8]
    native: _C.Matrix


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


def _ragged(lists: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Lists laid end to end, and where each starts."""
    starts = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(items) for items in lists], out=starts[1:])
    return np.fromiter((item for items in lists for item in items), np.int32, int(starts[-1])), starts


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

    def vector(self, values: FloatArray) -> FloatArray:
        """A norm weight or a bias, [D]."""
        return np.array(values, np.float32)

    def pack(self, parts: Sequence[Any], format: WeightFormat) -> Weight:
        """Stack matrices [M_i, K] along M and pack them."""
        return self.pack_experts([parts], format)

    def pack_experts(self, experts: Sequence[Sequence[Any]], format: WeightFormat) -> Weight:
        """E stacks of equal shape -> [E, M, K]"""
        rows, columns = sum(part.shape[0] for part in experts[0]), experts[0][0].shape[1]
        buffer = aligned_empty(_C.packed_bytes(format, len(experts), rows, columns))
        weight = Weight(
            format,
            len(experts),
            rows,
            columns,
            buffer,
            _C.Matrix(buffer, format, len(experts), rows, columns),
        )
        for expert, parts in enumerate(experts):
            if format == "q8" and all(part.quantised() is not None for part in parts):
                self._pack_codes(weight, expert, parts)
            else:
                self._pack_floats(weight, expert, parts)
        return weight

    def _pack_floats(self, weight: Weight, expert: int, parts: Sequence[Any]) -> None:
        """Rows [M, K] in float32, rounded to the format."""
        for first, piece in _pieces(parts):
            values = _stacked((part.rows(a, b) for part, a, b in piece), np.float32)
            self._core.pack(weight.native, weight.buffer, expert, first, values)

    def _pack_codes(self, weight: Weight, expert: int, parts: Sequence[Any]) -> None:
        """Codes [M, K] and scales [M, K / 32] of parts that are q8 already, as they are."""
        quantised = {id(part): part.quantised() for part in parts}
        width = -(-weight.columns // GROUP_SIZE) * GROUP_SIZE
        for first, piece in _pieces(parts):
            codes = _stacked((quantised[id(part)][0][a:b] for part, a, b in piece), np.int8)
            scales = _stacked((quantised[id(part)][1][a:b] for part, a, b in piece), np.float16)
            if codes.shape[1] < width:
                codes = np.pad(codes, ((0, 0), (0, width - codes.shape[1])))
            self._core.pack_codes(
                weight.native, weight.buffer, expert, first, codes, scales.view(np.uint16), None
            )

    def unpack(self, weight: Weight, expert: int = 0) -> FloatArray:
        """The values that a packed matrix stands for, [M, K]: for tests and inspection."""
        out = np.empty((weight.rows, weight.columns), np.float32)
        self._core.embed(np.arange(weight.rows, dtype=np.int32), weight.native, expert, out)
        return out

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

    def embed(self, token_ids: IntArray, table: Weight) -> FloatArray:
        """[N], [V, D] -> [N, D]"""
        out = np.empty((len(token_ids), table.columns), np.float32)
        self._core.embed(token_ids, table.native, 0, out)
        return out

    def rms_norm(self, x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
        """[N, D], [D] -> [N, D]"""
        out = np.empty(x.shape, np.float32)
        self._core.rms_norm(x, weight, eps, out)
        return out

    def linear(self, x: FloatArray, w: Weight, bias: FloatArray | None = None) -> FloatArray:
        """[N, K], [M, K], [M] -> [N, M]"""
        out = np.empty((len(x), w.rows), np.float32)
        self._core.linear(x, w.native, bias, out)
        return out

    def add(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """x + y, [N, D], in the storage of x."""
        return np.add(x, y, out=x)

    def _native(self, batch: Batch) -> _C.Batch:
        """The checked copy of `batch`, made once for all ops of a pass."""
        if self._checked is None or self._checked[0] is not batch:
            native = _C.Batch(batch.positions, batch.starts, batch.context_lens, batch.block_tables)
            self._checked = batch, native
        return self._checked[1]

    def store_kv(
        self,
        qkv: FloatArray,
        norms: tuple[FloatArray, FloatArray] | None,
        rope: FloatArray,
        eps: float,
        cache: _C.KVCache,
        layer: int,
        batch: Batch,
    ) -> FloatArray:
        """Split, normalise, rotate, write k and v to the cache; returns the queries [N, H C]."""
        q_norm, k_norm = norms or (None, None)
        q = np.empty((len(qkv), qkv.shape[1] - 2 * cache.kv_heads * cache.head_dim), np.float32)
        self._core.store_kv(qkv, q_norm, k_norm, rope, eps, cache, layer, self._native(batch), q)
        return q

    def rope_table(self, inverse_frequencies: Sequence[float], scale: float, positions: int) -> FloatArray:
        """float32 [positions, 2, C / 2]: cos and sin times `scale` of float32 angles."""
        frequencies = np.asarray(inverse_frequencies, np.float32)
        angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies  # [positions, C / 2]
        table = np.empty((positions, 2, len(frequencies)), np.float32)
        np.cos(angles, out=table[:, 0])
        np.sin(angles, out=table[:, 1])
        table *= np.float32(scale)
        return table

    def attention(self, q: FloatArray, cache: _C.KVCache, layer: int, batch: Batch) -> FloatArray:
        """[N, H C] -> [N, H C]"""
        out = np.empty(q.shape, np.float32)
        self._core.attention(q, cache, layer, self._native(batch), out)
        return out

    def swiglu(self, gate_up: FloatArray) -> FloatArray:
        """[N, 2F] -> silu(gate) * up [N, F]"""
        out = np.empty((len(gate_up), gate_up.shape[1] // 2), np.float32)
        self._core.swiglu(gate_up, out)
        return out

    def moe(
        self, x: FloatArray, router: FloatArray, gate_up: Weight, down: Weight, top_k: int, normalise: bool
    ) -> FloatArray:
        """[N, D], router logits [N, E], [E, 2F, D], [E, D, F] -> [N, D]"""
        out = np.empty(x.shape, np.float32)
        self._core.moe(x, router, gate_up.native, down.native, top_k, normalise, out)
        return out

    def take(self, x: FloatArray, rows: IntArray | Sequence[int]) -> FloatArray:
        """[N, D], [L] -> [L, D]"""
        return x[np.asarray(rows, np.int32)]

    def sample(self, logits: FloatArray, args: Sequence[SampleArgs], num_valid: int) -> list[int]:
        """[L, V] -> L token ids below num_valid."""
        numbers = np.array([_numbers(a) for a in args], np.float64).reshape(len(args), 8)
        bias_values = np.array([value for a in args for value in a.logit_bias.values()], np.float64)
        bias, bias_starts = _ragged([list(a.logit_bias) for a in args])
        banned, banned_starts = _ragged([a.banned_ids for a in args])
        prompt, prompt_starts = _ragged([a.prompt_ids if a.repetition_penalty != 1 else () for a in args])
        output, output_starts = _ragged([a.output_ids if _penalises(a) else () for a in args])
        tokens = np.empty(len(args), np.int32)
        self._core.sample(
            logits, num_valid, numbers, bias_values, bias, bias_starts, banned, banned_starts,
            prompt, prompt_starts, output, output_starts, [a.mask for a in args], tokens,
        )  # fmt: skip
        result: list[int] = tokens.tolist()
        if min(result, default=0) < 0:
            raise EngineError(_SAMPLE_ERRORS[min(result)])
        return result

    def log_probs(
        self, logits: FloatArray, tokens: Sequence[int], top: int, num_valid: int
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """[L, V], L token ids -> (log-probability of the token, the `top` most likely) of each row."""
        result = []
        for row, token in zip(logits[:, :num_valid], tokens, strict=True):
            peak = row.max()
            total = float(peak) + float(np.log(np.exp(row - peak).sum(dtype=np.float64)))
            ids = _largest(row, top)
            result.append((float(row[token]) - total, [(int(i), float(row[i]) - total) for i in ids]))
        return result

    def to_numpy(self, x: FloatArray) -> FloatArray:
        """[N, D] float32"""
        return np.asarray(x, np.float32)


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


def _penalises(args: SampleArgs) -> bool:
    """Whether the tokens written so far change the logits."""
    return args.repetition_penalty != 1 or args.presence_penalty != 0 or args.frequency_penalty != 0


def _numbers(args: SampleArgs) -> tuple[float, ...]:
    """The row of numbers that the native sampler reads, in its order."""
    return (
        args.temperature, args.top_k, args.top_p, args.min_p, args.uniform,
        args.presence_penalty, args.frequency_penalty, args.repetition_penalty,
    )  # fmt: skip
