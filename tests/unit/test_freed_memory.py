"""Freed memory stays with the process: by what malloc is told, and by what the kernel counts."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from captioner.inference.freed_memory import keep_freed_memory

MIB = 2**20
TRIM, MMAP = -1, -3


class Malloc:
    """What `mallopt` does of a C library that takes no greater threshold of mapping than this."""

    def __init__(self, greatest_bytes: int) -> None:
        self.greatest_bytes = greatest_bytes
        self.taken: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == MMAP and value > self.greatest_bytes:
            return 0
        self.taken[parameter] = value
        return 1


@pytest.fixture
def usual() -> Iterator[None]:
    yield
    keep_freed_memory(keep=False)


@pytest.mark.parametrize(
    ("greatest", "keep", "taken"),
    [
        (2**40, True, {MMAP: 1024 * MIB, TRIM: 1024 * MIB}),
        (2**40, False, {MMAP: 32 * MIB, TRIM: 64 * MIB}),
        (32 * MIB, True, {MMAP: 32 * MIB, TRIM: 1024 * MIB}),
    ],
)
def test_what_malloc_is_told(
    monkeypatch: pytest.MonkeyPatch, greatest: int, keep: bool, taken: dict[int, int]
) -> None:
    malloc = Malloc(greatest)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: malloc)
    keep_freed_memory(keep=keep)
    assert malloc.taken == taken


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    library = SimpleNamespace()  # musl has no mallopt
    if platform == "darwin":
        library.mallopt = lambda *_: pytest.fail("it means something else there")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's malloc that is told")
def test_what_was_freed_is_not_cleared_again_by_the_kernel(usual: None) -> None:
    """96 MiB are 24,576 pages; where pages are huge ones, there are few faults in any case."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(96 * MIB // 4)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert faults() < 1000
