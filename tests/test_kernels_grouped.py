"""The packed forms of quantised weights, in every instruction set that runs here: each holds just the values
that backend/grouped.py states, and multiplies them.

Bound: activations are rounded to int8 per row and group of 32 here as the kernels do it; then a product may
differ from float64 by 2e-6 of the sum of its terms' magnitudes. Needs numpy alone: this file also runs under
the sanitizers.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from kernel_support import ISAS, assert_near, backend_of, numbers, random_rows

from deepfast.backend.base import FloatArray
from deepfast.backend.cpu import CpuBackend, Weight
from deepfast.backend.grouped import Grouped, Layout, PackedFormat, join
from deepfast.backend.quant import ArrayMatrix, rounded
from deepfast.backend.reference import ReferenceBackend
from deepfast.config import WeightFormat
from deepfast.types import ModelError

REFERENCE = ReferenceBackend()
FORMATS: list[PackedFormat] = [f for f in get_args(PackedFormat) if f not in ("f32", "bf16")]
LAYOUTS = [Layout(f, span) for f in FORMATS for span in ((1, 3, 8) if "_k" in f else (1,))]
TWO_LEVEL = [layout for layout in LAYOUTS if layout.span == 3]


@pytest.fixture(scope="module", params=ISAS)
def cpu(request: pytest.FixtureRequest) -> CpuBackend:
    return backend_of(request.param)


def packed(cpu: CpuBackend, *parts: Grouped) -> Weight:
    """Kept as they are."""
    bits: WeightFormat = "q4" if all(part.layout.bits == 4 for part in parts) else "q8"
    return cpu.pack([ArrayMatrix.of(part) for part in parts], bits)


def rounded_inputs(x: FloatArray) -> npt.NDArray[np.float64]:
    """What the kernels take for x [N, K]: int8 codes times a scale, per group of 32."""
    n, k = x.shape
    groups = np.zeros((n, -(-k // 32) * 32), np.float32)
    groups[:, :k] = x
    groups = groups.reshape(n, -1, 32)
    top = np.abs(groups).max(axis=2, keepdims=True)
    there = top > 1e-30
    inverse = np.divide(np.float32(127), top, where=there, out=np.zeros_like(top))
    scale = np.where(there, top / np.float32(127), np.float32(0)).astype(np.float64)
    return np.asarray((np.rint(groups * inverse) * scale).reshape(n, -1)[:, :k])


def assert_product(got: FloatArray, x: FloatArray, w: FloatArray) -> None:
    """got is x w^T within the bound."""
    inputs, wide = rounded_inputs(x), w.astype(np.float64)
    size = np.abs(inputs) @ np.abs(wide).T
    assert got.shape == size.shape and (np.abs(got - inputs @ wide.T) <= 2e-6 * size + 1e-30).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (33, 100), (1030, 48)])
def test_packed_rows_are_bit_for_bit_what_the_layout_says(
    cpu: CpuBackend, layout: Layout, shape: tuple[int, int]
) -> None:
    rows = random_rows(layout, *shape)
    weight = packed(cpu, rows)
    assert weight.layout == layout and weight.native is not None
    assert np.array_equal(cpu.unpack(weight).view(np.uint32), rows.floats().view(np.uint32))
    ids = np.array([0, shape[0] - 1, 3, 3], np.int32)
    assert np.array_equal(cpu.embed(ids, weight), rows.floats()[ids])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(70, 45), (200, 160), (40, 1100)])
def test_linear_is_the_product(cpu: CpuBackend, layout: Layout, shape: tuple[int, int]) -> None:
    rows, bias = random_rows(layout, *shape), numbers(shape[0], seed=2)
    weight = packed(cpu, rows)
    for n in (1, 3, 16, 75):
        x = numbers(n, shape[1], seed=1)
        y = cpu.linear(x, weight)
        assert_product(y, x, rows.floats())
        assert np.array_equal(cpu.linear(x, weight, bias), y + bias)


@pytest.mark.parametrize("layout", TWO_LEVEL, ids=str)
def test_a_row_does_not_depend_on_the_rows_beside_it(cpu: CpuBackend, layout: Layout) -> None:
    weight, x = packed(cpu, random_rows(layout, 70, 624)), numbers(300, 624, seed=1)
    together = cpu.linear(x, weight)
    for first, last in ((0, 1), (7, 9), (10, 13), (20, 33), (5, 75), (100, 299)):
        assert np.array_equal(cpu.linear(x[first:last], weight), together[first:last])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n", [1, 70])
def test_the_largest_codes_steps_and_inputs_are_exact(cpu: CpuBackend, format: PackedFormat, n: int) -> None:
    """Every product has the same sign: the integer sums are as large as they get."""
    layout = Layout(format, 2 if "_k" in format else 1)
    rows = random_rows(layout, 32, 256)
    ends = (-128, 127) if layout.bits == 8 else (0, 15)
    for step in (-128, 127):
        for code in ends:
            rows.codes[:], rows.scales[:] = code, 1.0
            for numbers_, value in ((rows.steps, step), (rows.lows, step), (rows.minimums, -0.5)):
                if numbers_ is not None:
                    numbers_[:] = value  # type: ignore[call-overload]
            for sign in (1.0, -1.0):
                x = np.full((n, 256), sign, np.float32)
                got, wanted = cpu.linear(x, packed(cpu, rows)), x @ rows.floats().T
                assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("layouts", [("q4", "q4_k"), ("q4_min", "q4_k16"), ("q4", "q8"), ("q4_k", "q8_k16"),
                                     ("q8", "q8_k16"), ("q4", "q4_min", "q8"), ("q4", "q4")])  # fmt: skip
def test_a_stack_of_several_layouts_keeps_all_values(
    cpu: CpuBackend, layouts: tuple[PackedFormat, ...]
) -> None:
    parts = [
        random_rows(Layout(f, 4 if "_k" in f else 1), m, 144, seed=m)
        for f, m in zip(layouts, (20, 1015, 7), strict=False)
    ]
    weight, x = packed(cpu, *parts), numbers(5, 144, seed=9)
    wanted = np.concatenate([part.floats() for part in parts])
    assert weight.layout == join(part.layout for part in parts)
    assert np.array_equal(cpu.unpack(weight), wanted)
    assert_product(cpu.linear(x, weight), x, wanted)


def test_what_does_not_fit_the_wanted_bits_is_rounded_and_what_fits_is_kept(cpu: CpuBackend) -> None:
    four, eight, floats = (
        ArrayMatrix.of(random_rows(Layout("q4_k", 2), 20, 96)),
        ArrayMatrix.of(random_rows(Layout("q8_k16", 2), 20, 96)),
        ArrayMatrix(numbers(20, 96)),
    )
    cases: list[tuple[list[ArrayMatrix], WeightFormat, Layout]] = [
        ([four], "q4", Layout("q4_k", 2)),
        ([four], "q8", Layout("q4_k", 2)),  # nothing is gained by wider codes
        ([four, eight], "q8", Layout("q8_k16_min", 2)),
        ([four, eight], "q4", Layout("q4")),
        ([four, floats], "q8", Layout("q8")),
        ([four], "bf16", Layout("bf16")),
        ([eight], "f32", Layout("f32")),
    ]
    for parts, format, layout in cases:
        values = np.concatenate([part.values for part in parts])
        weight = cpu.pack(parts, format)
        assert weight.layout == layout == cpu.layout_of([parts], format)
        kept = values if "_k" in layout.format else rounded(values, format)
        assert np.array_equal(cpu.unpack(weight), kept)
        assert np.array_equal(REFERENCE.pack(parts, format).values, kept)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n", [1, 40])
def test_mlp_and_experts_are_made_of_these_products(cpu: CpuBackend, format: PackedFormat, n: int) -> None:
    """The gate and up matrices in one layout, down in another."""
    d, f, experts, top_k = 80, 48, 5, 3
    layout, other = Layout(format, 2 if "_k" in format else 1), Layout("q8_k16_min", 4)
    up = [[ArrayMatrix.of(random_rows(layout, f, d, seed=9 * e + i)) for i in (0, 1)] for e in range(experts)]
    down = [[ArrayMatrix.of(random_rows(other, d, f, seed=9 * e + 2))] for e in range(experts)]
    bits: WeightFormat = "q4" if layout.bits == 4 else "q8"
    x, router = numbers(n, d, seed=3), numbers(n, experts, seed=4)
    packed_up, packed_down = cpu.pack_experts(up, bits), cpu.pack_experts(down, "q8")
    assert (packed_up.layout, packed_down.layout) == (layout, other)
    alone = [
        cpu.mlp(x, cpu.pack(u, bits), None, cpu.pack(v, "q8"), None) for u, v in zip(up, down, strict=True)
    ]
    gate, value = np.split(cpu.linear(x, cpu.pack(up[2], bits)).astype(np.float64), 2, axis=1)
    inner = (gate / (1 + np.exp(-np.clip(gate, -80, 80))) * value).astype(np.float32)
    assert_near(alone[2], (rounded_inputs(inner) @ down[2][0].values.T).astype(np.float32), 2e-3)
    shares = np.exp(router) / np.exp(router).sum(axis=1, keepdims=True)
    chosen = np.argsort(-shares, axis=1)[:, :top_k]
    wanted = sum(
        np.take_along_axis(shares, chosen, 1)[:, i, None] * np.stack(alone)[chosen[:, i], np.arange(n)]
        for i in range(top_k)
    )
    got = cpu.moe(x, router, packed_up, packed_down, top_k, False)
    assert_near(got, np.asarray(wanted, np.float32), 1e-5)


def test_experts_of_several_layouts_share_one(cpu: CpuBackend) -> None:
    experts = [[ArrayMatrix.of(random_rows(Layout(f), 16, 64))] for f in ("q4", "q4_min", "q8")]  # type: ignore[arg-type]
    weight = cpu.pack_experts(experts, "q8")
    assert weight.layout == Layout("q8_k")
    for expert, (part,) in enumerate(experts):
        assert np.array_equal(cpu.unpack(weight, expert), part.values)


@pytest.mark.parametrize("name", ["scales", "minimums"])
def test_a_scale_that_is_not_finite_is_damage(cpu: CpuBackend, name: str) -> None:
    rows = random_rows(Layout("q4_k", 2), 16, 96)
    part = ArrayMatrix(rows.floats(), rows, "blk.0")
    getattr(rows, name)[3, 1] = np.inf
    with pytest.raises(ModelError, match="blk.0 holds a scale that is not finite"):
        cpu.pack([part], "q4")


@pytest.mark.parametrize("layout", TWO_LEVEL, ids=str)
def test_a_damaged_activation_stays_visible(cpu: CpuBackend, layout: Layout) -> None:
    weight = packed(cpu, random_rows(layout, 20, 96))
    for n in (3, 70):
        for value in (np.nan, np.inf):
            x = numbers(n, 96)
            x[1, 50] = value
            y = cpu.linear(x, weight)
            assert not np.isfinite(y[1]).any() and np.isfinite(y[[0, 2]]).all()
