"""What the kernel tests share: a backend per instruction set, random numbers and quantised matrices, two
measures of nearness.

Does not know: any op.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from deepfast import _C
from deepfast.backend.base import FloatArray
from deepfast.backend.cpu import CpuBackend
from deepfast.backend.grouped import Grouped, Layout

ISAS = ["avx512", "avx2", "scalar"]


def in_numpy(result: Any) -> Any:
    """Native arrays as numpy arrays over the same memory."""
    if isinstance(result, tuple):
        return tuple(map(in_numpy, result))
    return np.asarray(result) if isinstance(result, _C.Array) else result


class NumpyBackend:
    """A CpuBackend whose ops return numpy arrays (they take them anyway)."""

    def __init__(self, backend: CpuBackend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        """The backend's own, its results turned into numpy arrays."""
        found = getattr(self._backend, name)
        return (lambda *args, **named: in_numpy(found(*args, **named))) if callable(found) else found


def backend_of(isa: str) -> CpuBackend:
    """Three threads in the named instruction set, results in numpy; skips the test where it does not run."""
    if isa not in _C.supported_isas():
        pytest.skip(f"this machine has no {isa}")
    return cast(CpuBackend, NumpyBackend(CpuBackend(threads=3, isa=isa)))


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> FloatArray:
    """Normal numbers, float32."""
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * scale).astype(np.float32)


def random_rows(layout: Layout, m: int, k: int, seed: int = 0) -> Grouped:
    """A quantised matrix [m, k] of normal scale; every code, step and low there is occurs, with its sign."""
    rng = np.random.default_rng((seed, m, k, layout.span, *layout.format.encode()))
    q = -(-k // 32)
    spans, parts = -(-q // layout.span), -(-k // layout.part)
    wide = layout.bits == 8
    codes = rng.integers(-128 if wide else 0, 128 if wide else 16, (m, k))
    size = 2.0 ** (-(7 if wide else 3) - (6 if layout.two_level else 0))
    scales, minimums = ((rng.standard_normal((m, spans)) * s).astype(np.float16) for s in (size, size * 4))
    steps, lows = (rng.integers(-128, 128, (m, parts), dtype=np.int8) for _ in range(2))
    two, shifted = layout.two_level, layout.has_minimums
    return Grouped(
        layout,
        codes.astype(np.int8 if wide else np.uint8),
        scales,
        minimums if shifted else None,
        steps if two else None,
        lows if two and shifted else None,
    )


def assert_close(got: FloatArray, wanted: FloatArray, bound: float) -> None:
    """The largest difference is within `bound` of the largest value."""
    assert got.shape == wanted.shape and got.dtype == np.float32
    assert np.abs(got - wanted).max() <= bound * max(float(np.abs(wanted).max()), 1e-30)


def assert_near(got: FloatArray, wanted: FloatArray, bound: float) -> None:
    """The norm of the difference is within `bound` of the norm."""
    assert got.shape == wanted.shape
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)
