"""How many cores there are for this process: `os.cpu_count` tells those of the whole machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores() -> int:
    """Cores this process may really use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, math.ceil(_quota() or cores or 1)))


def _quota() -> float | None:
    """In cores, by cgroup v2 or v1, as a container sees its own; None: no limit."""
    try:
        quota, period = _read("cpu.max").split()
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
