"""Attention alone, in the shapes of Qwen3-0.6B (28 layers, 16 query heads, 8 KV heads, head_dim 128):
`python benchmarks/attention.py`.

In: nothing; keys and values are random. Out: for each KV format and depth the milliseconds that one new
token spends in the attention of all layers, and the bytes of keys and values read per second; for chunks of
512 tokens the rows per second and float operations per second. Formats take turns in every round; each
figure is the best and the median of the rounds. Does not know: the rest of the model.
"""

import argparse
import statistics
import time
from typing import Any, get_args

import numpy as np
from clock import Clock, wait_for_quiet

from deepfast.backend.base import Batch
from deepfast.backend.cpu import CpuBackend
from deepfast.config import BLOCK_SIZE, KVFormat, kv_head_bytes

LAYERS, HEADS, GROUPS, DIM = 28, 16, 8, 128
CHUNK = 512
CHUNK_LAYERS = 2  # layers that a chunk is timed on; the keys and values of one are many times any cache


class Context:
    """A cache filled to some depth, and the batch of the tokens that follow."""

    def __init__(self, core: CpuBackend, kv: KVFormat, layers: int, depth: int, rows: int) -> None:
        random, total = np.random.default_rng(0), depth + rows
        table = list(range(-(-total // BLOCK_SIZE)))
        self.core, self.layers = core, layers
        self.cache = core.new_cache(layers, len(table), GROUPS, DIM, kv)
        rope = core.rope_table(list(1e6 ** -(np.arange(0, DIM, 2) / DIM)), 1.0, total)
        for at in range(0, total, CHUNK):
            count = min(CHUNK, total - at)
            qkv = random.standard_normal((count, (HEADS + 2 * GROUPS) * DIM), np.float32)
            for layer in range(layers):
                core.store_kv(
                    qkv, None, rope, 1e-6, self.cache, layer, Batch.build([([1] * count, at, table)], [0])
                )
        self.batch = Batch.build([([1] * rows, depth, table)], [1])
        self.q = random.standard_normal((rows, HEADS * DIM), np.float32)

    def run(self) -> float:
        """Seconds for all layers, as if there were 28."""
        start = time.perf_counter()
        for layer in range(self.layers):
            self.core.attention(self.q, self.cache, layer, self.batch)
        return (time.perf_counter() - start) * LAYERS / self.layers


def rounds(contexts: dict[Any, Context], count: int) -> tuple[dict[Any, list[float]], float]:
    """The seconds of every context in every round, and the share of the machine that others used."""
    for context in contexts.values():
        context.run()
    wait_for_quiet(60)
    clock = Clock()
    times: dict[Any, list[float]] = {key: [] for key in contexts}
    for _ in range(count):
        for key, context in contexts.items():
            times[key].append(context.run())
    return times, clock.read()[1]


def main() -> None:
    """Print one line for each format, depth and number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kv", nargs="+", choices=get_args(KVFormat), default=["f16", "q8"])
    parser.add_argument("--depths", nargs="*", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--chunk-depths", nargs="*", type=int, default=[0, 512, 3584])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    core = CpuBackend(args.threads)
    print(f"{core.isa}, {core.threads} threads")
    for depth in args.depths:
        times, others = rounds({kv: Context(core, kv, LAYERS, depth, 1) for kv in args.kv}, args.rounds)
        for kv, seconds in times.items():
            size = LAYERS * GROUPS * (depth + 1) * kv_head_bytes(DIM, kv)
            best, middle = min(seconds), statistics.median(seconds)
            print(
                f"1 row at {depth:6,}  {kv}  {1e3 * best:7.2f} ms (median {1e3 * middle:.2f})"
                f"  {size / best / 1e9:5.1f} GB/s (others used {others:.0%})",
                flush=True,
            )
    for depth in args.chunk_depths:
        times, others = rounds(
            {kv: Context(core, kv, CHUNK_LAYERS, depth, CHUNK) for kv in args.kv}, max(args.rounds // 3, 1)
        )
        for kv, seconds in times.items():
            work = 4 * DIM * HEADS * LAYERS * CHUNK * (depth + CHUNK / 2)
            best, middle = min(seconds), statistics.median(seconds)
            print(
                f"{CHUNK} rows at {depth:5,}  {kv}  {CHUNK / best:7.0f} rows/s (median {CHUNK / middle:.0f})"
                f"  {work / best / 1e9:5.1f} GFLOP/s (others used {others:.0%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
