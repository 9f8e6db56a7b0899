"""The many-row kernel beside the int8 peak: one thread, all threads, as many processes with one thread each.

    python benchmarks/linear.py            rows 16, 128 and 512 of one matrix of Qwen3-0.6B in q4

In: nothing; weights and inputs are random. Out: billions of products per second, medians and bests of the
rounds; in each round everything takes its turn for some milliseconds, because a shared machine gives other
speeds from minute to minute. Processes that reach together what one process does with its threads show that
nothing in the thread pool is in the way. Does not know: the rest of the model.
"""

import argparse
import multiprocessing as mp
import statistics
import time
from multiprocessing.synchronize import Barrier as BarrierType
from typing import Any

import numpy as np
from clock import Clock

from deepfast.backend.cpu import CpuBackend
from deepfast.backend.quant import ArrayMatrix

ROWS, COLUMNS = 6144, 1024  # gate and up
SLICE_S = 0.02


class Job:
    """One matrix and `count` rows of inputs on so many threads."""

    def __init__(self, count: int, threads: int) -> None:
        random = np.random.default_rng(0)
        self.core, self.count = CpuBackend(threads), count
        w = ArrayMatrix(random.standard_normal((ROWS, COLUMNS)).astype(np.float32))
        self.w = self.core.pack([w], "q4")
        self.x: Any = random.standard_normal((count, COLUMNS)).astype(np.float32)
        self.x = self.core.linear(self.x, self.core.pack([ArrayMatrix(np.eye(COLUMNS, dtype="f4"))], "f32"))
        self.repeats = max(1, round(SLICE_S / self.seconds(3)))

    def seconds(self, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            self.core.linear(self.x, self.w)
        return (time.perf_counter() - start) / repeats

    def rate(self) -> float:
        """Billions of products per second."""
        return ROWS * COLUMNS * self.count / self.seconds(self.repeats) / 1e9

    def peak(self) -> float:
        """The same of the probe, which keeps everything in registers."""
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < SLICE_S:
            products += self.core.probe_dots(4 * self.core.threads)
        return products / (time.perf_counter() - start) / 1e9


def child(count: int, start: BarrierType, end: BarrierType, stop: Any, rates: Any, place: int) -> None:
    """One of the processes: a slice whenever the barrier opens."""
    job = Job(count, 1)
    while True:
        start.wait()
        if stop.value:
            return
        rates[place] = job.rate()
        end.wait()


def measure(count: int, rounds: int, processes: int) -> dict[str, list[float]]:
    """Every figure of every round, by name."""
    start, end, stop = mp.Barrier(processes + 1), mp.Barrier(processes + 1), mp.Value("i", 0)
    rates = mp.Array("d", processes)
    children = [mp.Process(target=child, args=(count, start, end, stop, rates, i)) for i in range(processes)]
    for process in children:
        process.start()
    one, several = Job(count, 1), Job(count, processes)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        found.setdefault("one thread", []).append(one.rate())
        found.setdefault("int8 peak of one thread", []).append(one.peak())
        found.setdefault(f"{processes} threads", []).append(several.rate())
        found.setdefault(f"int8 peak of {processes} threads", []).append(several.peak())
        start.wait()
        end.wait()
        found.setdefault(f"{processes} processes, together", []).append(sum(rates))
    stop.value = 1
    start.wait()
    for process in children:
        process.join()
    return found


def main() -> None:
    """A table for each number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 128, 512])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--processes", type=int, default=CpuBackend().threads)
    args = parser.parse_args()
    for count in args.rows:
        clock = Clock()
        found = measure(count, args.rounds, args.processes)
        print(f"{count} rows, {args.rounds} rounds, {clock.read()[1]:.0%} used by others and the processes")
        for name, values in found.items():
            print(f"  {name:28} median {statistics.median(values):6.0f}   best {max(values):6.0f}")


if __name__ == "__main__":
    mp.set_start_method("spawn")
    main()
