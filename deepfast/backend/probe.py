"""What the machine allows a model: bytes read from memory and int8 products, each in a second.

The first bounds generation, the second prompts and batches. In: the native backend, which does the work with
its own instructions on its own threads. Out: numbers per second, the best of several passes, because a busy
neighbour takes away and nothing adds. Does not know: models, what the numbers are compared with.
"""

from __future__ import annotations

import time

import numpy as np

from .cpu import CpuBackend

ARRAY_BYTES = 512 << 20  # far beyond the caches
PASSES = 9
PASS_S = 0.02  # of int8 products


def read_bandwidth(backend: CpuBackend, size: int = ARRAY_BYTES, passes: int = PASSES) -> float:
    """Bytes read per second by all threads together."""
    array = np.ones(size // 4, np.float32)
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        backend.probe_read(array)
        seconds.append(time.perf_counter() - start)
    return size / min(seconds)


def int8_peak(backend: CpuBackend, passes: int = PASSES, pass_s: float = PASS_S) -> float:
    """Int8 products (multiplied and added) per second by all threads together."""

    def rate(chunks: int) -> tuple[float, float]:
        start = time.perf_counter()
        products = backend.probe_dots(chunks)
        seconds = time.perf_counter() - start
        return products / seconds, seconds

    chunks = 2 * backend.threads
    while rate(chunks)[1] < pass_s / 2:
        chunks *= 2
    return max(rate(chunks)[0] for _ in range(passes))
