"""Every native op, in every instruction set that runs here, against backend/reference.py within bounds.

Bounds: float weights 1e-5 of the largest output (float32 sums against float64); q8 and q4 against their own
dequantised weights at most 1 % of the output's norm (activations are int8 per group of 32); float16 keys and
values as both store them. Needs numpy alone: this file also runs under the sanitizers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import ISAS, NumpyBackend, assert_close, assert_near, backend_of, numbers

from deepfast.backend.base import Batch, FloatArray
from deepfast.backend.cpu import CpuBackend
from deepfast.backend.grouped import Grouped, Layout
from deepfast.backend.quant import ArrayMatrix, quantise_q4, quantise_q8, rounded
from deepfast.backend.reference import ReferenceBackend
from deepfast.config import WeightFormat

REFERENCE = ReferenceBackend()
FORMATS: tuple[WeightFormat, ...] = ("f32", "bf16", "q8", "q4")


@pytest.fixture(scope="module", params=ISAS)
def cpu(request: pytest.FixtureRequest) -> CpuBackend:
    return backend_of(request.param)


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
            part = ArrayMatrix.of(Grouped(Layout("q8"), kept, scales))
            packed = cpu.unpack(cpu.pack([part, part], "q8"))[20:]
            assert np.array_equal(packed, wanted[:, : kept.shape[1]])

    def test_a_damaged_weight_stays_visible(self, cpu: CpuBackend) -> None:
        w = numbers(16, 64)
        w[2, 3], w[5, 40] = np.nan, np.inf
        for format in FORMATS:
            y = cpu.linear(numbers(3, 64), cpu.pack([ArrayMatrix(w)], format))
            bad = np.logical_not(np.isfinite(y).any(axis=0))
            assert bad[2] and bad[5] and bad.sum() == 2


class TestLinear:
    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33, 75])
    @pytest.mark.parametrize("shape", [(16, 32), (70, 45), (200, 160), (40, 1100)])
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
        packed, x = cpu.pack([ArrayMatrix(numbers(70, 600))], format), numbers(300, 600, seed=1)
        together = cpu.linear(x, packed)
        for first, last in ((0, 1), (7, 9), (10, 13), (20, 33), (5, 75), (100, 299)):
            assert np.array_equal(cpu.linear(x[first:last], packed), together[first:last])

    @pytest.mark.parametrize("format", ["q8", "q4"])
    def test_the_largest_products_do_not_saturate(self, cpu: CpuBackend, format: WeightFormat) -> None:
        for sign in (1, -1):
            w, x = np.ones((16, 1024), np.float32) * sign, np.ones((2, 1024), np.float32)
            y = cpu.linear(x, cpu.pack([ArrayMatrix(w)], format))
            assert_close(y, np.full((2, 16), 1024.0 * sign, np.float32), 1e-3)
        ends = np.array([-8.0, 7.0], np.float32)[np.random.default_rng(0).integers(0, 2, (64, 256))]
        ends[:, ::32] = -8.0  # every group has its scale 1, so that its codes are 0 and 15
        ones = np.repeat(np.random.default_rng(1).choice([-1.0, 0.0, 1.0], (40, 64)), 4, axis=1)
        y = cpu.linear(ones.astype(np.float32), cpu.pack([ArrayMatrix(ends)], format))
        assert_close(y, (ones @ ends.T).astype(np.float32), 1e-5 if format == "q4" else 0.02)
        codes = np.full((16, 64), -128, np.int8)
        part = ArrayMatrix.of(Grouped(Layout("q8"), codes, np.ones((16, 2), np.float16)))
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

    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("biased", [False, True])
    @pytest.mark.parametrize(("rows", "d", "f"), [(1, 32, 6), (3, 48, 64), (40, 20, 78)])
    def test_mlp(
        self, cpu: CpuBackend, format: WeightFormat, biased: bool, rows: int, d: int, f: int
    ) -> None:
        up = [ArrayMatrix(numbers(f, d, seed=i, scale=2)) for i in (0, 1)]
        x, down = numbers(rows, d, seed=2, scale=4), ArrayMatrix(numbers(d, f, seed=3))  # gates far from 0
        biases = (numbers(2 * f, seed=4), numbers(d, seed=5)) if biased else (None, None)
        backends: list[Any] = [cpu, REFERENCE]
        got, wanted = (
            b.mlp(x, b.pack(up, format), biases[0], b.pack([down], format), biases[1]) for b in backends
        )
        if format in ("f32", "bf16"):
            assert_close(got, wanted, 2e-5)
        else:
            assert_near(got, wanted, 0.03)
        alone = cpu.mlp(x[-1:], cpu.pack(up, format), biases[0], cpu.pack([down], format), biases[1])
        assert np.array_equal(alone[0], got[-1])

    @pytest.mark.parametrize("shape", [(1, 1), (1, 1024), (3, 48), (70, 33)])
    def test_add_rms_norm(self, cpu: CpuBackend, shape: tuple[int, int]) -> None:
        x, y, weight = numbers(*shape), numbers(*shape, seed=2), numbers(shape[1], seed=1)
        total, normed = cpu.add_rms_norm(x, y, weight, 1e-6)
        assert np.array_equal(total, x + y)
        assert np.array_equal(normed, cpu.rms_norm(x + y, weight, 1e-6))
        for got, truth in zip((total, normed), REFERENCE.add_rms_norm(x, y, weight, 1e-6), strict=True):
            assert_close(got, truth, 1e-6)

    def test_take_vector(self, cpu: CpuBackend) -> None:
        wanted = numbers(4, 8)
        assert np.array_equal(cpu.take(wanted, np.array([3, 0], np.int32)), wanted[[3, 0]])
        for backend in (cpu, REFERENCE):
            assert np.array_equal(backend.take(wanted, (2, 2)), wanted[[2, 2]])
            assert backend.take(wanted, []).shape == (0, 8)
        assert np.array_equal(cpu.to_numpy(cpu.vector(wanted[0])), wanted[0])

    def test_rope_table(self, cpu: CpuBackend) -> None:
        table = cpu.rope_table([1.0, 0.1, 0.01], 1.25, 40)
        assert np.array_equal(table, REFERENCE.rope_table([1.0, 0.1, 0.01], 1.25, 40))


def make_batch(lengths: list[tuple[int, int]], seed: int = 0) -> tuple[Batch, int]:
    """Per sequence (computed before, new): a batch over shuffled blocks, and the blocks the cache needs."""
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
    """Stores each sequence's past, then the new rows, in layer 1 of 2; returns q and the output."""
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
    @pytest.mark.parametrize("format", ["f32", "f16", "q8"])
    @pytest.mark.parametrize(
        "lengths",
        [[(0, 1)], [(15, 1), (16, 1)], [(0, 40)], [(130, 3), (0, 70), (63, 1)], [(1200, 1), (511, 9)]],
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
        # A key that rounds to the other neighbouring float16 moves the result by about 1e-4, to the other
        # neighbouring int8 by up to 1e-2.
        assert_close(y, y_truth, {"f32": 1e-5, "f16": 1e-3, "q8": 2e-2}[format])

    @pytest.mark.parametrize("dim", [32, 38])
    def test_q8_keys_and_values_are_those_of_the_rule(self, cpu: CpuBackend, dim: int) -> None:
        """Without a rotation both sides round the same numbers: only the order of float sums differs."""
        results: list[FloatArray] = []
        batch = Batch.build([([1] * 600, 0, list(range(38)))], [True])
        backends: list[Any] = [cpu, REFERENCE]
        for backend in backends:
            cache = backend.new_cache(1, 38, 2, dim, "q8")
            qkv = numbers(600, 8 * dim)
            qkv[:, 4 * dim + 3] *= 10  # one channel of the keys far beyond the others
            qkv[5], qkv[6] = 0.0, 1e-7
            q = backend.store_kv(
                qkv, None, backend.rope_table([0.0] * (dim // 2), 1.0, 600), 1e-6, cache, 0, batch
            )
            results.append(backend.attention(q, cache, 0, batch))
        assert_close(*results, 2e-4)

    @pytest.mark.parametrize("format", ["f32", "f16", "q8"])
    def test_a_row_does_not_depend_on_chunks_neighbours_or_threads(
        self, cpu: CpuBackend, format: Any
    ) -> None:
        heads, groups, dim, total = 4, 2, 32, 1100
        qkv = numbers(total, (heads + 2 * groups) * dim)
        rope = cpu.rope_table(list(1e4 ** -(np.arange(0, dim, 2) / dim)), 1.0, total)
        outputs = []
        for threads, sizes in (
            (3, [total]),
            (1, [1, 499, 10, 3, 1, 586]),
            (5, [470] + [1] * 60 + [70, 485, 7, 8]),
        ):
            backend = NumpyBackend(CpuBackend(threads, cpu.isa))
            cache, at, rows = backend.new_cache(1, 70, groups, dim, format), 0, []
            for size in sizes:
                other = ([1] * 3, 0, [69])
                batch = Batch.build([([1] * size, at, list(range(69))), other], [True, True])
                part = np.concatenate([qkv[at : at + size], qkv[:3]])
                q = backend.store_kv(part, None, rope, 1e-6, cache, 0, batch)
                rows.append(backend.attention(q, cache, 0, batch)[:size])
                at += size
            outputs.append(np.concatenate(rows))
        assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])

    @pytest.mark.parametrize("format", ["f32", "f16", "q8"])
    def test_a_damaged_key_or_value_stays_visible(self, cpu: CpuBackend, format: Any) -> None:
        rope, batch = cpu.rope_table([0.0] * 8, 1.0, 20), Batch.build([([1] * 20, 0, [0, 1])], [True])
        for part in (0, 1, 2):  # query, key, value
            qkv = numbers(20, 48)
            qkv[17, 16 * part + 3] = np.nan
            cache = cpu.new_cache(1, 2, 1, 16, format)
            y = cpu.attention(cpu.store_kv(qkv, None, rope, 1e-6, cache, 0, batch), cache, 0, batch)
            assert np.isnan(y[17]).any() and np.isnan(y[18:]).any() == (part > 0)

    def test_large_scores(self, cpu: CpuBackend) -> None:
        qkv = numbers(20, 3 * 16, scale=60)
        rope = cpu.rope_table([0.0] * 8, 1.0, 20)
        batch = Batch.build([([1] * 20, 0, [0, 1])], [True])
        backends: list[Any] = [cpu, REFERENCE]
        got, wanted = (
            b.attention(b.store_kv(qkv, None, rope, 1e-6, cache, 0, batch), cache, 0, batch)
            for b, cache in ((b, b.new_cache(1, 2, 1, 16, "f32")) for b in backends)
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
        results: list[list[FloatArray]] = []
        backends: list[Any] = [cpu, REFERENCE]
        for backend in backends:
            a, b = backend.pack_experts(up, format), backend.pack_experts(down, format)
            results.append([backend.moe(x, router, a, b, top_k, n) for n in (False, True)])
        for got, wanted in zip(*results, strict=True):
            if format in ("f32", "bf16"):
                assert_close(got, wanted, 2e-5)
            else:
                assert_near(got, wanted, 0.015)


def test_q4_rule_and_error_are_as_stated() -> None:
    """Rounding to q4 moves a normal matrix by about 9 % of its norm, q8 by about 0.6 %."""
    w = numbers(64, 512)
    assert quantise_q4(w)[0].max() == 15
    assert_near(rounded(w, "q4"), w, 0.10)
    assert_near(rounded(w, "q8"), w, 0.007)
