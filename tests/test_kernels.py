"""Every native op, in every instruction set that runs here, against backend/reference.py within stated bounds.

Bounds: float weights 1e-5 of the largest output (float32 sums against float64); q8 and q4 against their own dequantised
weights at most 1 % of the output's norm (activations are int8 per group of 32); float16 keys and values as stored by both.
Needs numpy alone: this file also runs under the sanitizers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from deepfast import _C
from deepfast.backend.base import Batch, FloatArray, SampleArgs
from deepfast.backend.cpu import CpuBackend, aligned_empty, available_cpus
from deepfast.backend.quant import ArrayMatrix, quantise_q4, quantise_q8, rounded
from deepfast.backend.reference import ReferenceBackend, sample_row
from deepfast.config import ENV_ISA, WeightFormat
from deepfast.types import EngineError, UsageError

REFERENCE = ReferenceBackend()
FORMATS: tuple[WeightFormat, ...] = ("f32", "bf16", "q8", "q4")


@pytest.fixture(scope="module", params=["avx512", "avx2", "scalar"])
def cpu(request: pytest.FixtureRequest) -> CpuBackend:
    if request.param not in _C.supported_isas():
        pytest.skip(f"this machine has no {request.param}")
    return CpuBackend(threads=3, isa=request.param)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> FloatArray:
    """Normal numbers, float32."""
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * scale).astype(np.float32)


def assert_close(got: FloatArray, wanted: FloatArray, bound: float) -> None:
    """The largest difference is within `bound` of the largest value."""
    assert got.shape == wanted.shape and got.dtype == np.float32
    assert np.abs(got - wanted).max() <= bound * max(float(np.abs(wanted).max()), 1e-30)


def assert_near(got: FloatArray, wanted: FloatArray, bound: float) -> None:
    """The norm of the difference is within `bound` of the norm."""
    assert got.shape == wanted.shape
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)


class TestPacking:
    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("shape", [(16, 32), (5, 7), (33, 100), (1030, 64)])
    def test_packed_weights_hold_what_the_rule_of_rounding_says(
        self, cpu: CpuBackend, format: WeightFormat, shape: tuple[int, int]
    ) -> None:
        w = numbers(*shape)
        assert np.array_equal(cpu.unpack(cpu.pack([ArrayMatrix(w)], format)), rounded(w, format))

    def test_edges_of_rounding(self, cpu: CpuBackend) -> None:
        steps = np.array([0.5, -0.5, 1.5, 2.5, -127, 127, 1e-9, -8, 7.5, 8], np.float32)
        rows = np.zeros((16, 64), np.float32)
        rows[:, : len(steps)] = steps * (10.0 ** np.arange(-12, 4))[:, None].astype(np.float32)
        rows[3, 5] = 1e9
        for format in FORMATS:
            assert np.array_equal(cpu.unpack(cpu.pack([ArrayMatrix(rows)], format)), rounded(rows, format))

    @pytest.mark.parametrize("format", FORMATS)
    def test_parts_are_stacked_across_panels(self, cpu: CpuBackend, format: WeightFormat) -> None:
        parts = [numbers(m, 40, seed=m) for m in (3, 1100, 18)]
        packed = cpu.pack([ArrayMatrix(p) for p in parts], format)
        assert np.array_equal(cpu.unpack(packed), rounded(np.concatenate(parts), format))

    @pytest.mark.parametrize("width", [64, 70])
    def test_q8_codes_are_kept_without_loss(self, cpu: CpuBackend, width: int) -> None:
        codes, scales = quantise_q8(numbers(20, width))
        wanted = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), 32, axis=1)
        for kept in (codes, codes[:, :width]):
            part = ArrayMatrix(wanted[:, :width].copy(), (np.ascontiguousarray(kept), scales))
            assert np.array_equal(cpu.unpack(cpu.pack([part, part], "q8"))[20:], wanted[:, :width])

    def test_q4_with_minimums(self, cpu: CpuBackend) -> None:
        rng = np.random.default_rng(1)
        codes = rng.integers(0, 16, (19, 96), dtype=np.int8)
        scales, minimums = (rng.standard_normal((19, 3)).astype(np.float16) for _ in range(2))
        buffer = aligned_empty(_C.packed_bytes("q4_min", 1, 19, 96))
        native = _C.Matrix(buffer, "q4_min", 1, 19, 96)
        cpu._core.pack_codes(native, buffer, 0, 0, codes, scales.view(np.uint16), minimums.view(np.uint16))
        wide = (np.repeat(a.astype(np.float32), 32, axis=1) for a in (scales, minimums))
        wanted = codes * next(wide) + next(wide)
        values, x, y = np.empty((19, 96), np.float32), numbers(9, 96), np.empty((9, 19), np.float32)
        cpu._core.embed(np.arange(19, dtype=np.int32), native, 0, values)
        assert_close(values, wanted, 1e-6)
        cpu._core.linear(x, native, None, y)
        assert_near(y, x @ wanted.T, 0.01)

    def test_a_damaged_weight_stays_visible(self, cpu: CpuBackend) -> None:
        w = numbers(16, 64)
        w[2, 3], w[5, 40] = np.nan, np.inf
        for format in FORMATS:
            y = cpu.linear(numbers(3, 64), cpu.pack([ArrayMatrix(w)], format))
            bad = ~np.isfinite(y).any(axis=0)
            assert bad[2] and bad[5] and bad.sum() == 2


class TestLinear:
    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
    @pytest.mark.parametrize("shape", [(16, 32), (70, 45), (200, 160)])
    def test_matches_reference(
        self, cpu: CpuBackend, format: WeightFormat, rows: int, shape: tuple[int, int]
    ) -> None:
        w, x, bias = ArrayMatrix(numbers(*shape)), numbers(rows, shape[1], seed=1), numbers(shape[0], seed=2)
        packed, truth = cpu.pack([w], format), REFERENCE.pack([w], format)
        for b in (None, bias):
            got, wanted = cpu.linear(x, packed, b), REFERENCE.linear(x, truth, b)
            if format in ("f32", "bf16"):
                assert_close(got, wanted, 1e-5)
            else:
                assert_near(got, wanted, 0.01)

    @pytest.mark.parametrize("format", FORMATS)
    def test_a_row_does_not_depend_on_the_rows_beside_it(self, cpu: CpuBackend, format: WeightFormat) -> None:
        packed, x = cpu.pack([ArrayMatrix(numbers(150, 96))], format), numbers(33, 96, seed=1)
        together = cpu.linear(x, packed)
        for first, last in ((0, 1), (7, 9), (10, 13), (20, 33)):
            assert np.array_equal(cpu.linear(x[first:last], packed), together[first:last])

    @pytest.mark.parametrize("format", ["q8", "q4"])
    def test_the_largest_products_do_not_saturate(self, cpu: CpuBackend, format: WeightFormat) -> None:
        for sign in (1, -1):
            w, x = np.ones((16, 1024), np.float32) * sign, np.ones((2, 1024), np.float32)
            y = cpu.linear(x, cpu.pack([ArrayMatrix(w)], format))
            assert_close(y, np.full((2, 16), 1024.0 * sign, np.float32), 1e-3)
        codes = np.full((16, 64), -128, np.int8)
        part = ArrayMatrix(codes.astype(np.float32), (codes, np.ones((16, 2), np.float16)))
        y = cpu.linear(-np.ones((2, 64), np.float32), cpu.pack([part], "q8"))
        assert_close(y, np.full((2, 16), 128.0 * 64, np.float32), 1e-5)

    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_damaged_activation_stays_visible(
        self, cpu: CpuBackend, format: WeightFormat, value: float
    ) -> None:
        x = numbers(3, 64)
        x[1, 50] = value
        y = cpu.linear(x, cpu.pack([ArrayMatrix(numbers(20, 64))], format))
        assert not np.isfinite(y[1]).any() and np.isfinite(y[[0, 2]]).all()

    def test_zero_and_tiny_activations(self, cpu: CpuBackend) -> None:
        for format in FORMATS:
            packed = cpu.pack([ArrayMatrix(numbers(16, 64))], format)
            for scale in (0.0, 1e-38, 1e-44):
                y = cpu.linear(numbers(2, 64, scale=scale), packed)
                assert np.isfinite(y).all() and np.abs(y).max() < 1e-30

    @pytest.mark.parametrize("format", FORMATS)
    def test_embed(self, cpu: CpuBackend, format: WeightFormat) -> None:
        w, ids = ArrayMatrix(numbers(37, 50)), np.array([0, 36, 15, 16, 16] * 5, np.int32)
        wanted = REFERENCE.embed(ids, REFERENCE.pack([w], format))
        assert np.array_equal(cpu.embed(ids, cpu.pack([w], format)), wanted)


class TestRows:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 1024), (3, 48), (70, 33)])
    def test_rms_norm(self, cpu: CpuBackend, shape: tuple[int, int]) -> None:
        x, weight = numbers(*shape, scale=3), numbers(shape[1], seed=1)
        assert_close(cpu.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6), 1e-6)

    @pytest.mark.parametrize("shape", [(1, 6), (3, 64), (40, 78)])
    def test_swiglu(self, cpu: CpuBackend, shape: tuple[int, int]) -> None:
        x = numbers(*shape, scale=8)
        x[0, 0] = -200.0
        assert_close(cpu.swiglu(x), REFERENCE.swiglu(x), 1e-6)

    def test_add_take_vector(self, cpu: CpuBackend) -> None:
        x, y = numbers(4, 8), numbers(4, 8, seed=1)
        wanted = x + y
        assert np.array_equal(cpu.add(x, y), wanted)
        assert np.array_equal(cpu.take(wanted, np.array([3, 0], np.int32)), wanted[[3, 0]])
        assert np.array_equal(cpu.to_numpy(cpu.vector(wanted[0])), wanted[0])

    def test_rope_table(self, cpu: CpuBackend) -> None:
        table = cpu.rope_table([1.0, 0.1, 0.01], 1.25, 40)
        assert np.array_equal(table, REFERENCE.rope_table([1.0, 0.1, 0.01], 1.25, 40))


def make_batch(lengths: list[tuple[int, int]], seed: int = 0) -> tuple[Batch, int]:
    """Per sequence (computed before, new): a batch over shuffled blocks, and how many blocks the cache needs."""
    counts = [-(-(old + new) // 16) for old, new in lengths]
    blocks = np.random.default_rng(seed).permutation(sum(counts) + 3)
    chunks, at = [], 0
    for (old, new), count in zip(lengths, counts, strict=True):
        chunks.append(([1] * new, old, blocks[at : at + count].tolist()))
        at += count
    return Batch.build(chunks, [True] * len(chunks)), len(blocks)


def run_attention(
    backend: Any, lengths: list[tuple[int, int]], heads: int, groups: int, dim: int, format: Any, norms: bool
) -> tuple[FloatArray, FloatArray]:
    """Stores each sequence's past, then the new rows, in layer 1 of 2; returns q and the attention's output."""
    batch, blocks = make_batch(lengths)
    cache = backend.new_cache(2, blocks, groups, dim, format)
    rope = backend.rope_table(list(1e4 ** -(np.arange(0, dim, 2) / dim)), 1.0, int(batch.context_lens.max()))
    weights = (numbers(dim, seed=5), numbers(dim, seed=6)) if norms else None
    past = [(old, table) for (old, _), table in zip(lengths, batch.block_tables, strict=True) if old]
    if past:
        before = Batch.build([([1] * old, 0, table.tolist()) for old, table in past], [True] * len(past))
        qkv = numbers(len(before.token_ids), (heads + 2 * groups) * dim, seed=7)
        backend.store_kv(qkv, weights, rope, 1e-6, cache, 1, before)
    qkv = numbers(len(batch.token_ids), (heads + 2 * groups) * dim, seed=8)
    q = backend.store_kv(qkv, weights, rope, 1e-6, cache, 1, batch)
    return q, backend.attention(q, cache, 1, batch)


class TestAttention:
    @pytest.mark.parametrize("format", ["f32", "f16"])
    @pytest.mark.parametrize(
        "lengths", [[(0, 1)], [(15, 1), (16, 1)], [(0, 40)], [(130, 3), (0, 70), (63, 1)]]
    )
    @pytest.mark.parametrize(("heads", "groups", "dim"), [(2, 2, 16), (4, 2, 64), (10, 2, 128), (8, 1, 36)])
    def test_matches_reference(
        self,
        cpu: CpuBackend,
        heads: int,
        groups: int,
        dim: int,
        lengths: list[tuple[int, int]],
        format: Any,
    ) -> None:
        q, y = run_attention(cpu, lengths, heads, groups, dim, format, norms=dim != 64)
        q_truth, y_truth = run_attention(REFERENCE, lengths, heads, groups, dim, format, norms=dim != 64)
        assert_close(q, q_truth, 1e-5)
        # A key that rounds to the other neighbouring float16 moves the result by about 1e-4.
        assert_close(y, y_truth, 1e-5 if format == "f32" else 1e-3)

    def test_a_row_does_not_depend_on_chunks_or_neighbours(self, cpu: CpuBackend) -> None:
        heads, groups, dim, total = 4, 2, 32, 150
        qkv = numbers(total, (heads + 2 * groups) * dim)
        rope = cpu.rope_table(list(1e4 ** -(np.arange(0, dim, 2) / dim)), 1.0, total)
        outputs = []
        for sizes in ([total], [1, 99, 50], [64] + [1] * 86):
            cache, at, rows = cpu.new_cache(1, 20, groups, dim, "f16"), 0, []
            for size in sizes:
                other = ([1] * 3, 0, [19])
                batch = Batch.build([([1] * size, at, list(range(10))), other], [True, True])
                part = np.concatenate([qkv[at : at + size], qkv[:3]])
                q = cpu.store_kv(part, None, rope, 1e-6, cache, 0, batch)
                rows.append(cpu.attention(q, cache, 0, batch)[:size])
                at += size
            outputs.append(np.concatenate(rows))
        assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])

    def test_large_scores(self, cpu: CpuBackend) -> None:
        qkv = numbers(20, 3 * 16, scale=60)
        rope = cpu.rope_table([0.0] * 8, 1.0, 20)
        batch = Batch.build([([1] * 20, 0, [0, 1])], [True])
        got, wanted = (
            b.attention(b.store_kv(qkv, None, rope, 1e-6, cache, 0, batch), cache, 0, batch)
            for b, cache in ((b, b.new_cache(1, 2, 1, 16, "f32")) for b in (cpu, REFERENCE))
        )
        assert_close(got, wanted, 1e-4)


class TestMoe:
    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 4, 2), (7, 8, 3), (33, 5, 5), (20, 16, 1)])
    def test_matches_reference(
        self, cpu: CpuBackend, format: WeightFormat, rows: int, experts: int, top_k: int
    ) -> None:
        d, f = 48, 40
        up = [[ArrayMatrix(numbers(f, d, seed=10 * e + i)) for i in (0, 1)] for e in range(experts)]
        down = [[ArrayMatrix(numbers(d, f, seed=10 * e + 2))] for e in range(experts)]
        x, router = numbers(rows, d, seed=3), numbers(rows, experts, seed=4)
        router[0] = 0.0  # all tied: the lowest ids are chosen
        results = []
        for backend in (cpu, REFERENCE):
            a, b = backend.pack_experts(up, format), backend.pack_experts(down, format)  # type: ignore[attr-defined]
            results.append([backend.moe(x, router, a, b, top_k, n) for n in (False, True)])  # type: ignore[attr-defined]
        for got, wanted in zip(*results, strict=True):
            if format in ("f32", "bf16"):
                assert_close(got, wanted, 2e-5)
            else:
                assert_near(got, wanted, 0.015)


def sample_args(**changes: Any) -> SampleArgs:
    defaults: dict[str, Any] = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.5,
    }  # fmt: skip
    return SampleArgs(**(defaults | changes))


def random_args(rng: np.random.Generator, vocab: int) -> SampleArgs:
    ids = [int(i) for i in rng.integers(0, vocab + 5, 30)]
    return sample_args(
        temperature=float(rng.choice([0.0, 0.3, 0.6, 1.0, 2.0])),
        top_k=int(rng.choice([0, 1, 20, 100, 10**6])),
        top_p=float(rng.choice([0.0, 0.5, 0.95, 1.0])),
        min_p=float(rng.choice([0.0, 0.02, 0.3, 1.0])),
        uniform=float(rng.random()),
        presence_penalty=float(rng.choice([0.0, 1.5, -0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.3])),
        repetition_penalty=float(rng.choice([1.0, 1.1, 0.8])),
        logit_bias={i: float(rng.normal() * 5) for i in ids[:3]} if rng.random() < 0.5 else {},
        banned_ids=ids[3:6] if rng.random() < 0.5 else [],
        prompt_ids=ids[6:15],
        output_ids=ids[10:],
    )


class TestSample:
    @pytest.mark.parametrize("vocab", [12, 300, 20000])
    def test_token_for_token_as_reference(self, cpu: CpuBackend, vocab: int) -> None:
        rng = np.random.default_rng(vocab)
        args = [random_args(rng, vocab) for _ in range(40 if vocab > 1000 else 150)]
        logits = (rng.standard_normal((len(args), vocab)) * rng.choice([0.2, 3, 10], (len(args), 1))).astype(
            np.float32
        )
        logits[::5] = np.round(logits[::5])  # many ties
        logits[1::7, ::2] = -np.inf
        valid = vocab - 1
        wanted = [sample_row(row[:valid], a) for row, a in zip(logits, args, strict=True)]
        assert cpu.sample(logits, args, valid) == wanted

    def test_order_and_ends_of_the_distribution(self, cpu: CpuBackend) -> None:
        logits = np.log(np.array([[0.2, 0.5, 0.2, 0.1, 0.0]], np.float32) + np.float32(1e-38))
        logits[0, 4] = -np.inf
        for uniform, token in ((0.0, 1), (0.49, 1), (0.51, 0), (0.71, 2), (0.95, 3), (1 - 1e-16, 3)):
            assert cpu.sample(logits, [sample_args(uniform=uniform)], 5) == [token]

    def test_padding_is_never_drawn(self, cpu: CpuBackend) -> None:
        logits = np.zeros((50, 40), np.float32)
        logits[:, 30:] = 50.0
        args = [sample_args(uniform=i / 50) for i in range(49)] + [sample_args(temperature=0.0)]
        assert max(cpu.sample(logits, args, 30)) < 30

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_damaged_row_is_an_error(self, cpu: CpuBackend, value: float) -> None:
        logits = numbers(2, 100)
        logits[1, 50] = value
        with pytest.raises(EngineError, match="NaN or infinity"):
            cpu.sample(logits, [sample_args(), sample_args()], 100)
        with pytest.raises(EngineError, match="no token is left"):
            cpu.sample(logits[:1], [sample_args(banned_ids=range(100))], 100)


def bad_calls(cpu: CpuBackend) -> dict[str, Any]:
    """Calls that must be refused at the border, by what is wrong with them."""
    core, x = cpu._core, numbers(2, 32)
    w = cpu.pack([ArrayMatrix(numbers(16, 32))], "q8")
    y, none = np.empty((2, 16), np.float32), None
    frozen = y.copy()
    frozen.setflags(write=False)
    cache = cpu.new_cache(1, 2, 1, 16, "f16")
    rope = cpu.rope_table([1.0] * 8, 1.0, 16)
    i32 = np.int32

    def batch(positions: list[int], starts: list[int], lens: list[int], tables: list[list[int]]) -> _C.Batch:
        arrays = (np.array(a, i32) for a in (positions, starts, lens))
        return _C.Batch(*arrays, np.array(tables, i32))

    one, far = batch([0], [0, 1], [1], [[0]]), batch([16], [0, 1], [17], [[0, 1]])
    q, qkv = np.empty((1, 16), np.float32), numbers(1, 48)
    return {
        "float64 input": lambda: core.linear(x.astype(np.float64), w.native, none, y),
        "one dimension": lambda: core.linear(x[0], w.native, none, y),
        "not contiguous": lambda: core.linear(numbers(2, 64)[:, ::2], w.native, none, y),
        "too narrow": lambda: core.linear(numbers(2, 31), w.native, none, y),
        "output too small": lambda: core.linear(x, w.native, none, y[:1]),
        "read-only output": lambda: core.linear(x, w.native, none, frozen),
        "bias too short": lambda: core.linear(x, w.native, numbers(15), y),
        "no weight": lambda: core.linear(x, none, none, y),
        "id below zero": lambda: cpu.embed(np.array([-1], i32), w),
        "id beyond the table": lambda: cpu.embed(np.array([16], i32), w),
        "norm too short": lambda: cpu.rms_norm(x, numbers(31), 1e-6),
        "odd swiglu": lambda: cpu.swiglu(numbers(2, 33)),
        "buffer too small": lambda: _C.Matrix(aligned_empty(64), "q4", 1, 16, 32),
        "buffer not aligned": lambda: _C.Matrix(aligned_empty(577)[1:], "q8", 1, 16, 32),
        "unknown format": lambda: _C.packed_bytes("q3", 1, 16, 32),
        "no rows": lambda: _C.packed_bytes("q4", 1, 0, 32),
        "part of a panel": lambda: core.pack(w.native, w.buffer, 0, 8, numbers(8, 32)),
        "too many rows": lambda: core.pack(w.native, w.buffer, 0, 0, numbers(32, 32)),
        "no such expert": lambda: core.pack(w.native, w.buffer, 1, 0, numbers(16, 32)),
        "another buffer": lambda: core.pack(w.native, aligned_empty(w.buffer.size), 0, 0, numbers(16, 32)),
        "starts beyond rows": lambda: batch([0], [0, 9], [1], [[0]]),
        "starts not rising": lambda: batch([0, 0, 1], [0, 5, 3], [1, 2], [[0], [1]]),
        "position off": lambda: batch([3], [0, 1], [1], [[0]]),
        "table too narrow": lambda: batch([16], [0, 1], [17], [[0]]),
        "negative block": lambda: batch([0], [0, 1], [1], [[-1]]),
        "empty batch": lambda: batch([], [0], [], []),
        "block beyond the cache": lambda: core.attention(
            q, cache, 0, batch([0], [0, 1], [1], [[2]]), q.copy()
        ),
        "no such layer": lambda: core.attention(q, cache, 1, one, q.copy()),
        "heads in part": lambda: core.attention(numbers(1, 17), cache, 0, one, numbers(1, 17)),
        "rows not the batch's": lambda: core.attention(numbers(2, 16), cache, 0, one, numbers(2, 16)),
        "position beyond rope": lambda: core.store_kv(qkv, none, none, rope, 1e-6, cache, 0, far, q),
        "rope too narrow": lambda: core.store_kv(
            qkv, none, none, rope[:, :, :4].copy(), 1e-6, cache, 0, one, q
        ),
        "one norm of two": lambda: core.store_kv(qkv, numbers(16), none, rope, 1e-6, cache, 0, one, q),
        "odd head_dim": lambda: cpu.new_cache(1, 1, 1, 15, "f16"),
        "no blocks": lambda: cpu.new_cache(1, 0, 1, 16, "f16"),
        "top_k beyond experts": lambda: cpu.moe(x, numbers(2, 1), w, w, 2, True),
        "num_valid beyond V": lambda: cpu.sample(y, [sample_args()] * 2, 17),
        "arguments missing": lambda: cpu.sample(y, [sample_args()], 16),
        "negative temperature": lambda: cpu.sample(y[:1], [sample_args(temperature=-1.0)], 16),
        "no threads": lambda: _C.Core(0),
        "unknown isa": lambda: _C.Core(1, "mmx"),
    }


class TestBorder:
    def test_bad_arguments_raise(self, cpu: CpuBackend) -> None:
        for name, call in bad_calls(cpu).items():
            with pytest.raises((TypeError, ValueError)):
                call()
                pytest.fail(f"{name} was accepted")

    def test_a_cache_beyond_memory_is_a_usage_error(self, cpu: CpuBackend) -> None:
        with pytest.raises(UsageError, match="max_kv_tokens"):
            cpu.new_cache(1000, 10**8, 64, 512, "f32")

    def test_an_unknown_isa_names_those_that_run(self) -> None:
        with pytest.raises(UsageError, match="scalar"):
            CpuBackend(threads=1, isa="mmx")

    @pytest.mark.parametrize("isa", _C.supported_isas())
    def test_the_environment_forces_an_isa(self, isa: str) -> None:
        code = "from deepfast.backend.cpu import CpuBackend; print(CpuBackend(1).isa)"
        environment = os.environ | {ENV_ISA: isa}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.stdout.strip() == isa, run.stderr


class TestThreads:
    def test_results_do_not_depend_on_the_number_of_threads(self) -> None:
        w, x = ArrayMatrix(numbers(500, 256)), numbers(40, 256, seed=1)
        results = [b.linear(x, b.pack([w], "q4")) for b in (CpuBackend(1), CpuBackend(2), CpuBackend(5))]
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])

    def test_many_short_jobs(self) -> None:
        cpu = CpuBackend(4)
        x, weight = numbers(64, 1024), numbers(1024, seed=1)
        wanted = cpu.rms_norm(x, weight, 1e-6)
        for _ in range(300):
            assert np.array_equal(cpu.rms_norm(x, weight, 1e-6), wanted)

    def test_available_cpus(self) -> None:
        assert 1 <= available_cpus() <= (os.cpu_count() or 1)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_works_alone(self) -> None:
        cpu = CpuBackend(3)
        x, weight = numbers(64, 1024), numbers(1024, seed=1)
        wanted = cpu.rms_norm(x, weight, 1e-6)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(cpu.rms_norm(x, weight, 1e-6), wanted) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_q4_rule_and_error_are_as_stated() -> None:
    """Rounding to q4 moves a normal matrix by about 9 % of its norm, q8 by about 0.6 %."""
    w = numbers(64, 512)
    assert quantise_q4(w)[0].max() == 15
    assert_near(rounded(w, "q4"), w, 0.10)
    assert_near(rounded(w, "q8"), w, 0.007)
