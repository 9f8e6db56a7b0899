"""One matrix in several weight formats: bytes and products per second, one row and many.

    python benchmarks/linear_formats.py            1, 16 and 128 rows in q4, q4_k, q8 and q8_k16

In: nothing; codes and inputs are random. Out: gigabytes of weights and billions of products per second,
medians of the rounds; in each round every format takes its turn for some milliseconds, because a shared
machine gives other speeds from minute to minute. The matrix is larger than the caches: one row runs at the
speed of memory, which is the last line. Does not know: the rest of the model.
"""

import argparse
import statistics
import time

import numpy as np
from clock import Clock

from deepfast.backend.cpu import CpuBackend, Weight
from deepfast.backend.grouped import Grouped, Layout
from deepfast.backend.quant import ArrayMatrix

COLUMNS = 4096
SLICE_S = 0.1
PIECE = 1 << 24  # floats that are read to see the memory's speed: 64 MiB


class RepeatedMatrix(ArrayMatrix):
    """A few random rows, again and again."""

    def grouped(self, first: int, last: int) -> Grouped | None:
        """Rows first..last-1 of as many as wanted."""
        return super().grouped(0, last - first)


def random_weight(core: CpuBackend, layout: Layout, rows: int) -> Weight:
    """[rows, COLUMNS] with random codes."""
    random, count, groups = np.random.default_rng(0), 1024, COLUMNS // 32
    low, high = (0, 16) if layout.bits == 4 else (-127, 128)
    codes = random.integers(low, high, (count, COLUMNS)).astype(np.uint8 if low == 0 else np.int8)
    scales = random.standard_normal((count, -(-groups // layout.span))).astype(np.float16)
    steps = random.integers(1, 64, (count, COLUMNS // layout.part), dtype=np.int8)
    two, shifted = layout.two_level, layout.has_minimums
    kept = Grouped(
        layout,
        codes,
        scales,
        scales if shifted else None,
        steps if two else None,
        steps if two and shifted else None,
    )
    part = RepeatedMatrix(np.broadcast_to(np.float32(0), (count, COLUMNS)), kept)
    return core.pack([part] * (rows // count), "q4" if layout.bits == 4 else "q8")


def seconds(core: CpuBackend, weight: Weight, x: object) -> float:
    """Of one product, for a slice of time."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SLICE_S:
        core.linear(x, weight)
        count += 1
    return (time.perf_counter() - start) / count


def memory_rate(core: CpuBackend, x: np.ndarray) -> float:
    """Gigabytes per second."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SLICE_S:
        core.probe_read(x)
        count += 1
    return x.nbytes * count / (time.perf_counter() - start) / 1e9


def main() -> None:
    """A table for each number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--formats", nargs="+", default=["q4", "q4_k/8", "q8", "q8_k16/8"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 128])
    parser.add_argument("--outputs", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    core, pool = CpuBackend(args.threads), np.ones(PIECE, np.float32)
    layouts = [Layout(f.partition("/")[0], int(f.partition("/")[2] or 1)) for f in args.formats]
    weights = [random_weight(core, layout, args.outputs) for layout in layouts]
    for rows in args.rows:
        x = core.vector(np.random.default_rng(1).standard_normal((rows, COLUMNS)).astype(np.float32))
        clock, taken, memory = Clock(), [list[float]() for _ in weights], list[float]()
        for _ in range(args.rounds):
            for times, weight in zip(taken, weights, strict=True):
                times.append(seconds(core, weight, x))
            memory.append(memory_rate(core, pool))
        print(f"{rows} rows, {core.isa}, {core.threads} threads, {clock.read()[1]:.0%} used by others")
        for name, times, weight in zip(args.formats, taken, weights, strict=True):
            time_taken = statistics.median(times)
            bits = weight.buffer.size * 8 / args.outputs / COLUMNS
            print(
                f"  {name:14} {bits:5.3f} bits  {weight.buffer.size / time_taken / 1e9:6.1f} GB/s  "
                f"{args.outputs * COLUMNS * rows / time_taken / 1e9:7.1f} G products/s"
            )
        print(f"  {'memory':14}             {statistics.median(memory):6.1f} GB/s")


if __name__ == "__main__":
    main()
