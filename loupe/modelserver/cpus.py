"""Count the processors that this process may use: those it may run on, and the share of them that its container has.

cpus.count()      # 16, on a machine of 16
cpus.quota()      # 2, in a container started there with --cpus=1.5; None without a limit
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def count() -> int:
    """Return how many processors this process may run on, as TensorFlow Serving counts them; macOS only knows how many
    there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Return how many processors' time this process's control group may use, rounded up; None if it has no limit.

    A limit may stand in any of the groups above as well: the smallest counts."""
    limits = [limit for folder in _folders(root, membership) if (limit := _limit(folder)) is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def _folders(root: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's group and of those above, in either version of Linux's control groups."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders = [root, root / "cpu", root / "cpu,cpuacct"]  # inside of a container its own group is the root
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top = root / controllers if controllers else root
        group = top / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return folders


def _limit(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            time, period = (folder / "cpu.max").read_text().split()
        else:
            time, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(time) / int(period) if time not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
