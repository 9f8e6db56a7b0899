"""Time, and how much of the machine others used meanwhile: figures of a busy machine must be seen as such.

In: nothing. Out: seconds, and the share of all processors that others used (Linux; elsewhere 0).
Does not know: what is timed.
"""

import os
import time
from pathlib import Path

QUIET = 0.08  # a larger share of others spoils a figure
STAT = Path(
    "/proc/stat"
)  # first line: cpu, then ticks in user, nice, system, idle, iowait, irq, softirq, steal


def _busy_seconds() -> float:
    """Processor seconds that the whole machine has worked, stolen ones included."""
    if not STAT.exists():
        return time.process_time()
    ticks = [int(n) for n in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(seconds: float) -> None:
    """Until others leave the machine alone for a moment, or so many seconds have passed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        clock = Clock()
        time.sleep(0.4)
        if clock.read()[1] < QUIET:
            return


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._began, self._own, self._busy = time.perf_counter(), time.process_time(), _busy_seconds()

    def read(self) -> tuple[float, float]:
        """Seconds so far, and the share of the machine that others used."""
        seconds, own = time.perf_counter() - self._began, time.process_time() - self._own
        others = (_busy_seconds() - self._busy - own) / (seconds * (os.cpu_count() or 1))
        return seconds, round(min(max(others, 0.0), 1.0), 3)
