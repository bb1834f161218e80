"""Tell what this process may use: processors, and memory, of the machine or of the container's share of it.

machine.processors()     # 16, those that this process may run on
machine.quota()          # 2, in a container started with --cpus=1.5; None without a limit
machine.share()          # 2, the smaller of the two
machine.memory_left()    # bytes that can still be taken; None where that is not known
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")
NO_LIMIT = 1 << 60  # version 1 of control groups writes a number near 2^63 where there is none


def processors() -> int:
    """Return how many processors this process may run on, as TensorFlow Serving counts them; macOS only knows how many
    there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Return how many processors' time this process's control group may use, rounded up; None if it has no limit.

    A limit may stand in any of the groups above as well: the smallest counts."""
    smallest = _smallest(_cpu_share, ("cpu", "cpu,cpuacct"), root, membership)
    return None if smallest is None else max(1, math.ceil(smallest))


def share() -> int:
    """Return how many processors' time this process may use."""
    return min(processors(), quota() or processors())


def memory_left(root: Path = CGROUPS, membership: Path = MEMBERSHIP, memory: Path = MEMORY) -> int | None:
    """Return how many bytes this process can still take before the machine or its control group has no more."""
    left = [_smallest(_group_memory, ("memory",), root, membership)]
    try:
        line = next(line for line in memory.read_text().splitlines() if line.startswith("MemAvailable:"))
        left.append(int(line.split()[1]) << 10)
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    known = [int(size) for size in left if size is not None]
    return min(known) if known else None


def _smallest(
    read: Callable[[Path], float], controllers: tuple[str, ...], root: Path, membership: Path
) -> float | None:
    """Return the smallest of what the folders of this process's control group, and of those above, say."""
    found = []
    for folder in _folders(controllers, root, membership):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            found.append(read(folder))
    limits = [value for value in found if value < NO_LIMIT]
    return min(limits) if limits else None


def _folders(controllers: tuple[str, ...], root: Path, membership: Path) -> list[Path]:
    """Return the folders in either version of Linux's control groups."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders = [root, *(root / name for name in controllers)]  # inside of a container its own group is the root
    for line in lines:
        _, names, path = line.split(":", 2)
        top = root / names if names else root
        group = top / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return folders


def _cpu_share(folder: Path) -> float:
    if (folder / "cpu.max").exists():
        time, period = (folder / "cpu.max").read_text().split()
    else:
        time, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return math.inf if time in ("max", "-1") else int(time) / int(period)


def _group_memory(folder: Path) -> float:
    """Return what is left of a group's memory. What the system only keeps of files counts as left."""
    if (folder / "memory.max").exists():
        names, cache = ("memory.max", "memory.current"), "inactive_file"
    else:
        names, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    limit, used = ((folder / name).read_text().strip() for name in names)
    if limit == "max" or int(limit) >= NO_LIMIT:
        return math.inf
    kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines()).get(cache, "0")
    return max(0, int(limit) - int(used) + int(kept))
