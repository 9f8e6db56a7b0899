"""What this machine has: processors and free memory.

In: nothing. Out: counts, bytes. Does not know: models, kernels, what the numbers are compared with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Processors that this process may use: its affinity, limited by the quotas of its control groups, which
    round to the nearest (half of a processor more is worth a thread), but never to none."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    quotas = [quota for group in control_groups("cpu", groups, membership) if (quota := _quota(group))]
    return max(1, min(count, int(min(quotas) + 0.5)) if quotas else count)


def control_groups(controller: str, root: Path = GROUPS, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Directories of the groups that may limit this process: its own and all above, of version 2 and 1.

    A container often sees its own group as the root, under a path that does not exist inside: then the root
    alone says anything.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for top in [root / controller] if controllers else [root, root / "unified"]:
            names = [name for name in path.split("/") if name]
            if ".." in names:  # it lies outside of what is mounted
                names = []
            yield from (top.joinpath(*names[:depth]) for depth in range(len(names), -1, -1))


def _quota(group: Path) -> float | None:
    """Processors that one control group grants, None when unlimited or unknown."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such group; "max"
        return None


def free_memory(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that can be had without swapping, within the limits of the control groups. Files that are only
    cached count as free: the system gives their memory away."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux: half of what is installed is a careful guess
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    left = (_left(group) for group in control_groups("memory", groups, membership))
    return min([free, *(room for room in left if room is not None)])


def _left(group: Path) -> int | None:
    """Bytes that one control group still grants, None when unlimited or unknown."""
    second = (group / "memory.max").exists()
    names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit, used = (int((group / name).read_text()) for name in names)
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        stat = {row[0].removeprefix("total_"): int(row[1]) for row in rows if len(row) == 2}
    except (OSError, ValueError):  # no such group; "max"
        return None
    cached = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    return max(limit - max(used - cached, 0), 0)
