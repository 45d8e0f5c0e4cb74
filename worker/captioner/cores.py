"""How many cores there are for this process: `os.cpu_count` tells those of the whole machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cores() -> int:
    """Cores this process may really use: its affinity, and its container's or service's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, math.ceil(_quota() or cores or 1)))


def _quota() -> float | None:
    """In cores, the least that this process's group or one above it has; None: no limit."""
    limits = [limit for group in _groups() if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def _groups() -> Iterator[PurePosixPath]:
    """The uppermost first, which a container sees as its own; what systemd runs is below it."""
    yield PurePosixPath()
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        if line.startswith("0::/"):  # of cgroup v2
            own = PurePosixPath(line.removeprefix("0::/"))
            yield from (own, *own.parents)


def _limit(group: PurePosixPath) -> float | None:
    """By cgroup v2, or v1, of which only containers are looked for."""
    try:
        quota, period = _read(f"{group}/cpu.max").split()
    except (OSError, ValueError):
        try:
            quota, period = _read("cpu/cpu.cfs_quota_us"), _read("cpu/cpu.cfs_period_us")
        except OSError:
            return None
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # v2 says `max`
        return None
    return limit if limit > 0 else None  # v1 says -1


def _read(name: str) -> str:
    return Path(f"/sys/fs/cgroup/{name}").read_text(encoding="ascii")
