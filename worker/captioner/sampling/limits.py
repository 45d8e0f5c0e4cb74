"""The limits a decoder sets itself: what it then does to the machine, it does to itself alone."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()


def limit_process(memory_bytes: int, file_bytes: int) -> None:
    """Bound what this process may take from now on.

    Args:
        memory_bytes: address space beyond what it has now, which differs by machine: libraries
            reserve some for every core.
        file_bytes: size of any file it writes.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    if sys.platform == "linux":  # others do not enforce it, or count otherwise
        _lower(resource.RLIMIT_AS, _pages()[0] * _PAGE_BYTES + memory_bytes)


def allow_cpu(seconds: float) -> None:
    """Let the kernel end this process after so many more seconds on a processor, in all threads."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + seconds)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def resident_bytes() -> int:
    """Memory this process has now; 0 where the system does not tell."""
    return _pages()[1] * _PAGE_BYTES if sys.platform == "linux" else 0


def _lower(kind: int, value: int) -> None:
    """Both limits, so that the code of a plugin cannot raise them again by accident."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _pages() -> list[int]:
    return [int(number) for number in Path("/proc/self/statm").read_text().split()]
