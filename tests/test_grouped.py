"""Layouts of quantised weights: whatever widens them keeps their values, bit for bit.

In: random codes. Out: equal floats. Does not know: packed bytes, kernels.
"""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from kernel_support import random_rows

from deepfast.backend.grouped import Layout, PackedFormat, join, kept_layout, take_rows, widened

LAYOUTS = [
    Layout(f, span)
    for f in get_args(PackedFormat)
    if f not in ("f32", "bf16")
    for span in ((1, 4, 6) if "_k" in f else (1,))
]


@pytest.mark.parametrize("width", [32, 72, 400])
def test_the_join_of_two_layouts_holds_the_values_of_both(width: int):
    for a, b in itertools.product(LAYOUTS, repeat=2):
        together = join([a, b])
        assert together == join([b, a]) and together.bits == max(a.bits, b.bits)
        rows = random_rows(a, 3, width)
        wide = widened(rows, together)
        assert wide.layout == together and wide.codes.shape == rows.codes.shape
        np.testing.assert_array_equal(wide.floats(), rows.floats(), str((a, b)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rows_are_cut_with_all_that_belongs_to_them(layout: Layout):
    rows = random_rows(layout, 9, 100)
    np.testing.assert_array_equal(take_rows(rows, 2, 7).floats(), rows.floats()[2:7])


def test_what_is_kept_follows_the_wanted_bits():
    four, eight = Layout("q4_k", 8), Layout("q8_k16", 8)
    assert kept_layout([four, four], "q4") == kept_layout([four], "q8") == four
    assert kept_layout([four, eight], "q8") == Layout("q8_k16_min", 8)
    assert kept_layout([four, eight], "q4") is None and kept_layout([eight], "q4") is None
    assert kept_layout([four, None], "q8") is None and kept_layout([], "q8") is None
    assert kept_layout([four], "bf16") is None and kept_layout([eight], "f32") is None
