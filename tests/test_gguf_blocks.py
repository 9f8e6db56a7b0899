"""Block types of GGUF: every value equal, bit for bit, to what the `gguf` package makes of the same bytes.

In: random valid blocks of every type, values quantised by the package, edge cases of scales.
Does not know: files.
"""

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from gguf_files import Kind, random_blocks

from deepfast.backend.grouped import Grouped, join, take_rows, widened
from deepfast.model import gguf_blocks
from deepfast.model.gguf import TYPES

QUANTISED = [kind for kind in gguf_blocks.READ if kind not in gguf_blocks.PLAIN]
HOLDS = {
    "Q4_0": "q4",
    "Q4_1": "q4_min",
    "Q5_0": "q8",
    "Q5_1": "q8_k",
    "Q8_0": "q8",
    "Q2_K": "q4_k16",
    "Q3_K": "q4_k16",
    "Q4_K": "q4_k",
    "Q5_K": "q8_k",
    "Q6_K": "q8_k16",
    "IQ4_NL": "q8",
    "IQ4_XS": "q8_k16",
}


def same(kind: str, raw: np.ndarray) -> None:
    """Our values of these blocks are the package's; 0 and -0 are equal, NaN to NaN."""
    ours = gguf_blocks.floats(kind, raw)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, dequantize(raw, Kind[kind]))


@pytest.mark.parametrize("kind", gguf_blocks.READ)
def test_values_equal_the_packages_bit_for_bit(kind):
    for seed, (rows, columns) in enumerate([(3, 256), (17, 1024), (1, 2816)]):
        same(kind, random_blocks(Kind[kind], rows, columns, seed))


@pytest.mark.parametrize("kind", gguf_blocks.READ)
def test_every_byte_value_in_every_place(kind):
    """A code, a step or a high bit read from the wrong place shows here."""
    nbytes = GGML_QUANT_SIZES[Kind[kind]][1]
    base = random_blocks(Kind[kind], 1, 256)[:, :nbytes]
    raw = np.repeat(base, 64 * nbytes, axis=0)
    places = np.arange(nbytes).repeat(64)
    raw[np.arange(len(raw)), places] = np.tile(np.arange(64) * 4 + 3, nbytes)
    with np.errstate(invalid="ignore", over="ignore"):
        same(kind, raw)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_package_quantises_comes_back(kind):
    values = np.random.RandomState(5).standard_normal((9, 512)).astype(np.float32)
    raw = quantize(values, Kind[kind]).view(np.uint8)
    same(kind, raw)
    assert np.abs(gguf_blocks.floats(kind, raw) - values).max() < {"Q4_0": 0.4, "Q4_1": 0.3}.get(kind, 0.2)


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_layout_is_the_one_that_packing_keeps(kind):
    rows = gguf_blocks.grouped(kind, random_blocks(Kind[kind], 5, 512))
    layout = gguf_blocks.layout_of(kind)
    assert rows.layout == layout and layout.format == HOLDS[kind]
    assert layout.span == (8 if GGML_QUANT_SIZES[Kind[kind]][0] == 256 else 1)
    assert rows.codes.shape == (5, 512) and rows.scales.shape == (5, 512 // (32 * layout.span))
    assert rows.codes.dtype == (np.uint8 if layout.bits == 4 else np.int8)
    assert layout.bits == 8 or rows.codes.max() < 16
    assert (rows.minimums is not None) == layout.has_minimums
    for steps in (rows.steps, rows.lows):
        assert steps is None or (steps.dtype == np.int8 and steps.shape == (5, 512 // layout.part))
    assert (rows.steps is not None) == layout.two_level


def test_plain_types_have_no_layout():
    assert [gguf_blocks.layout_of(kind) for kind in gguf_blocks.PLAIN] == [None] * 3


def test_mixtures_join_without_loss():
    """Q4_K_M stores half of the v and down projections as Q6_K: a stack of both is widened."""
    parts: list[Grouped] = []
    for kind in ("Q4_K", "Q6_K", "Q5_K", "Q3_K"):
        parts.append(gguf_blocks.grouped(kind, random_blocks(Kind[kind], 4, 512)))
    layout = join(part.layout for part in parts)
    for part in parts:
        np.testing.assert_array_equal(widened(part, layout).floats(), part.floats())


def test_rows_are_read_alike_however_many():
    """Also across the border of a run that is unpacked at once."""
    raw = random_blocks(Kind.Q4_K, 9000, 256)
    whole = gguf_blocks.grouped("Q4_K", raw)
    part = gguf_blocks.grouped("Q4_K", raw[8000:8300])
    np.testing.assert_array_equal(part.floats(), take_rows(whole, 8000, 8300).floats())


def test_the_table_of_types_is_the_packages():
    known = {number: (name, weights, nbytes) for number, (name, weights, nbytes) in TYPES.items() if nbytes}
    assert known == {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGML_QUANT_SIZES}
