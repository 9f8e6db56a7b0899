"""Every op of `Backend` in plain numpy, slow and obvious: the truth that the kernels are tested against.

In and out: float32 arrays; inside, float64, so that a result hardly depends on how rows are batched.
Quantised weights are used through their dequantised values, with float activations.
Does not know: speed, threads, memory limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import BLOCK_SIZE, KVFormat, WeightFormat
from ..types import EngineError, ModelError
from .base import Batch, FloatArray, IntArray, SampleArgs
from .grouped import kept_layout
from .quant import rounded, rounded_heads


@dataclass(frozen=True, slots=True)
class ReferenceWeight:
    """A matrix as its format stores it: float32 [M, K], or [E, M, K] for experts."""

    format: WeightFormat
    values: FloatArray


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """Paged keys and values, [layers, blocks, 16, G, C] each: what the format can hold, as floats."""

    format: KVFormat
    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]


def _stack(experts: Sequence[Sequence[Any]], format: WeightFormat) -> FloatArray:
    """Parts [M_i, K] of each expert -> [E, M, K] with the values that `format` can hold."""
    kept = kept_layout((part.layout for parts in experts for part in parts), format)
    if kept is not None:
        return np.stack([np.concatenate([p.grouped(0, p.shape[0]).floats() for p in e]) for e in experts])
    return np.stack([np.concatenate([rounded(p.rows(0, p.shape[0]), format) for p in e]) for e in experts])


def _matmul(x: FloatArray, w: FloatArray) -> FloatArray:
    """[N, K], [M, K] -> [N, M]"""
    return (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.float32)


def _normalise(x: npt.NDArray[Any], weight: FloatArray, eps: float) -> FloatArray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    wide = x.astype(np.float64)
    scale = 1.0 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return np.asarray(wide * scale * weight, np.float32)


def _swiglu(gate_up: FloatArray) -> FloatArray:
    """[N, 2F] -> silu(gate) * up [N, F]"""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    return np.asarray(gate * 0.5 * (1.0 + np.tanh(gate * 0.5)) * up, np.float32)


def _rotate(x: FloatArray, table: FloatArray) -> FloatArray:
    """Half-rotation RoPE: [N, heads, C] with [N, 2, C / 2] -> [N, heads, C]"""
    cos, sin = table[:, None, 0, :], table[:, None, 1, :]  # [N, 1, C / 2]
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _softmax(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Over the last axis, float64."""
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


class ReferenceBackend:
    """The oracle. Implements `Backend`; holds no state."""

    def vector(self, values: FloatArray) -> FloatArray:
        """A norm weight or a bias, [D]."""
        return np.array(values, np.float32)

    def pack(self, parts: Sequence[Any], format: WeightFormat) -> ReferenceWeight:
        """Stack matrices [M_i, K] along M."""
        return ReferenceWeight(format, _stack([parts], format)[0])

    def pack_experts(self, experts: Sequence[Sequence[Any]], format: WeightFormat) -> ReferenceWeight:
        """E stacks of parts -> [E, M, K]"""
        return ReferenceWeight(format, _stack(experts, format))

    def mapped(self, matrix: Any) -> ReferenceWeight:
        """Refused: the packed layout is the native core's own."""
        raise ModelError(
            f"{matrix.name} is packed; the reference backend reads plain checkpoints only. Use backend 'cpu'."
        )

    def new_cache(
        self, layers: int, blocks: int, kv_heads: int, head_dim: int, format: KVFormat
    ) -> ReferenceCache:
        """Zeros, [layers, blocks, 16, G, C]."""
        shape = (layers, blocks, BLOCK_SIZE, kv_heads, head_dim)
        kind = np.float16 if format == "f16" else np.float32
        return ReferenceCache(format, np.zeros(shape, kind), np.zeros(shape, kind))

    def touch(self, cache: ReferenceCache, layer: int, blocks: Sequence[int]) -> None:
        """Nothing: nobody waits for speed here."""

    def embed(self, token_ids: IntArray, table: ReferenceWeight) -> FloatArray:
        """[N], [V, D] -> [N, D]"""
        return table.values[token_ids]

    def rms_norm(self, x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
        """[N, D], [D] -> [N, D]"""
        return _normalise(x, weight, eps)

    def add_rms_norm(
        self, x: FloatArray, y: FloatArray, weight: FloatArray, eps: float
    ) -> tuple[FloatArray, FloatArray]:
        """[N, D], [N, D], [D] -> x + y and its rms_norm, [N, D] each"""
        return x + y, _normalise(x + y, weight, eps)

    def linear(self, x: FloatArray, w: ReferenceWeight, bias: FloatArray | None = None) -> FloatArray:
        """[N, K], [M, K], [M] -> [N, M]"""
        y = _matmul(x, w.values)
        return y if bias is None else y + bias

    def store_kv(
        self,
        qkv: FloatArray,
        norms: tuple[FloatArray, FloatArray] | None,
        rope: FloatArray,
        eps: float,
        cache: ReferenceCache,
        layer: int,
        batch: Batch,
    ) -> FloatArray:
        """Split, normalise, rotate, write k and v to the cache; returns the queries [N, H C]."""
        groups, dim = cache.keys.shape[3:]
        heads = qkv.reshape(len(qkv), -1, dim)  # [N, H + 2G, C]
        q, k, v = np.split(heads, [heads.shape[1] - 2 * groups, heads.shape[1] - groups], axis=1)
        if norms is not None:
            q, k = _normalise(q, norms[0], eps), _normalise(k, norms[1], eps)
        table = rope[batch.positions]  # [N, 2, C / 2]
        owner = np.repeat(np.arange(len(batch.context_lens)), np.diff(batch.starts))  # [N]
        block = batch.block_tables[owner, batch.positions // BLOCK_SIZE]  # [N]
        offset = batch.positions % BLOCK_SIZE  # [N]
        k = _rotate(k, table)
        if cache.format == "q8":
            k, v = rounded_heads(k), rounded_heads(v)
        cache.keys[layer, block, offset] = k
        cache.values[layer, block, offset] = v
        return _rotate(q, table).reshape(len(qkv), -1)

    def rope_table(self, inverse_frequencies: Sequence[float], scale: float, positions: int) -> FloatArray:
        """float32 [positions, 2, C / 2]: cos and sin times `scale` of float32 angles."""
        frequencies = np.asarray(inverse_frequencies, np.float32)
        angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies  # [positions, C / 2]
        return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * scale).astype(np.float32)

    def attention(self, q: FloatArray, cache: ReferenceCache, layer: int, batch: Batch) -> FloatArray:
        """[N, H C] -> [N, H C]; row with position p sees positions 0..p of its sequence."""
        groups, dim = cache.keys.shape[3:]
        out = np.empty_like(q)
        for s, length in enumerate(batch.context_lens):
            rows = slice(batch.starts[s], batch.starts[s + 1])
            blocks = batch.block_tables[s, : -(-int(length) // BLOCK_SIZE)]
            k = cache.keys[layer, blocks].reshape(-1, groups, dim)[:length].astype(np.float64)  # [T, G, C]
            v = cache.values[layer, blocks].reshape(-1, groups, dim)[:length].astype(np.float64)  # [T, G, C]
            heads = q[rows].reshape(-1, groups, q.shape[1] // groups // dim, dim)  # [n, G, H / G, C]
            scores = np.einsum("ngrc,tgc->ngrt", heads.astype(np.float64), k) * dim**-0.5
            hidden = np.arange(length) > batch.positions[rows][:, None]  # [n, T]
            scores[np.broadcast_to(hidden[:, None, None, :], scores.shape)] = -np.inf
            out[rows] = np.einsum("ngrt,tgc->ngrc", _softmax(scores), v).reshape(-1, q.shape[1])
        return out

    def mlp(
        self,
        x: FloatArray,
        gate_up: ReferenceWeight,
        gate_up_bias: FloatArray | None,
        down: ReferenceWeight,
        down_bias: FloatArray | None,
    ) -> FloatArray:
        """[N, D], [2F, D], [2F], [D, F], [D] -> [N, D]"""
        return self.linear(_swiglu(self.linear(x, gate_up, gate_up_bias)), down, down_bias)

    def moe(
        self,
        x: FloatArray,
        router: FloatArray,
        gate_up: ReferenceWeight,
        down: ReferenceWeight,
        top_k: int,
        normalise: bool,
    ) -> FloatArray:
        """[N, D], router logits [N, E], [E, 2F, D], [E, D, F] -> [N, D]; on a tie the lower expert id."""
        shares = _softmax(router)  # [N, E]
        chosen = np.argsort(-shares, axis=1, kind="stable")[:, :top_k]  # [N, top_k]
        weights = np.take_along_axis(shares, chosen, axis=1)  # [N, top_k]
        if normalise:
            weights = weights / weights.sum(axis=1, keepdims=True)
        out = np.zeros(x.shape, np.float64)
        for expert in np.unique(chosen):
            rows, slots = np.nonzero(chosen == expert)
            inner = _swiglu(_matmul(x[rows], gate_up.values[expert]))  # [n, F]
            out[rows] += weights[rows, slots, None] * _matmul(inner, down.values[expert])
        return out.astype(np.float32)

    def take(self, x: FloatArray, rows: IntArray | Sequence[int]) -> FloatArray:
        """[N, D], [L] -> [L, D]"""
        return x[np.asarray(rows, np.int32)]

    def sample(self, logits: FloatArray, args: Sequence[SampleArgs], num_valid: int) -> list[int]:
        """[L, V] -> L token ids below num_valid."""
        return [sample_row(row[:num_valid], a) for row, a in zip(logits, args, strict=True)]

    def log_probs(
        self, logits: FloatArray, tokens: Sequence[int], top: int, num_valid: int
    ) -> list[tuple[float, list[tuple[int, float]]]]:
        """[L, V], L token ids -> (log-probability of the token, the `top` most likely) of each row."""
        result = []
        for row, token in zip(logits, tokens, strict=True):
            wide = row[:num_valid].astype(np.float64)
            values = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
            ids = np.argsort(-row[:num_valid], kind="stable")[:top]
            result.append((float(values[token]), [(int(i), float(values[i])) for i in ids]))
        return result

    def to_numpy(self, x: FloatArray) -> FloatArray:
        """[N, D] float32"""
        return np.asarray(x, np.float32)


def _adjusted(row: FloatArray, args: SampleArgs) -> npt.NDArray[np.float64]:
    """Logits [V] after bans, logit_bias and penalties. Raises EngineError where no distribution is left."""
    if np.isnan(row).any() or np.isposinf(row).any():
        raise EngineError(
            "the logits hold NaN or infinity: the weights are damaged or the values overflowed."
        )
    out = row.astype(np.float64)
    for token, bias in args.logit_bias.items():
        if 0 <= token < len(out):
            out[token] += bias
    out[[token for token in args.banned_ids if 0 <= token < len(out)]] = -np.inf
    if args.mask is not None:
        if len(args.mask) < 4 * -(-len(out) // 32):
            raise ValueError(f"a mask has {len(args.mask)} bytes; expected 4 for every 32 of {len(out)} ids.")
        allowed = np.unpackbits(np.frombuffer(args.mask, np.uint8), count=len(out), bitorder="little")
        out[allowed == 0] = -np.inf
    seen = [t for t in {*args.prompt_ids, *args.output_ids} if t < len(out)]
    if args.repetition_penalty != 1.0:
        old = out[seen]
        out[seen] = np.where(old > 0, old / args.repetition_penalty, old * args.repetition_penalty)
    for token in args.output_ids:
        if token < len(out):
            out[token] -= args.frequency_penalty
    out[[t for t in set(args.output_ids) if t < len(out)]] -= args.presence_penalty
    if np.isneginf(out).all():
        raise EngineError("no token is left to sample: every one is banned or has a logit of -infinity.")
    return out


def sample_row(row: FloatArray, args: SampleArgs) -> int:
    """One token from logits [V], exactly as SampleArgs says. A logit of -infinity is never drawn."""
    logits = _adjusted(row, args)
    if args.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")  # descending, ties by id
    order = order[: args.top_k or None]
    shares = _softmax(logits[order] / args.temperature)
    before = np.cumsum(shares) - shares  # what more likely tokens hold
    keep = (before < args.top_p) if args.top_p < 1 else np.ones(len(shares), bool)
    keep &= (shares >= args.min_p * shares[0]) & (logits[order] > -np.inf)
    keep[0] = True
    kept, shares = order[keep], shares[keep]
    reached = np.cumsum(shares) > args.uniform * shares.sum()
    return int(kept[reached.argmax()]) if reached.any() else int(kept[-1])
