"""Freed memory stays with the process: by what malloc is told, and by what the kernel counts."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from captioner.engine import InlineEngine
from captioner.inference.freed_memory import keep_freed_memory
from captioner.testing import FakeCaptionModel

MIB = 2**20
TRIM, MMAP, ARENAS = -1, -3, -8


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


FAULTS = """
import ctypes, resource, threading

libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would be one fault for 512
if not libc.mallopt(-3, 2**30):
    raise SystemExit("older")

import torch
from captioner.inference.freed_memory import keep_freed_memory, share_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(80 * 2**20 // 4)  # 20,480 pages, and more than the heap of a thread holds
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    {keep}
    # Until freed blocks have become one that is large enough, some are new.
    print(min(faults() for _ in range(30)))

{share}
thread = threading.Thread(target=work)
thread.start() if {thread} else thread.run()
if {thread}:
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's malloc that is told")
@pytest.mark.parametrize(
    ("keep", "share", "thread", "kept"),
    [
        ("keep_freed_memory()", "", False, True),
        ("keep_freed_memory()", "share_heap()", True, True),
        ("keep_freed_memory()", "", True, False),
        ("keep_freed_memory(keep=False)", "share_heap()", True, False),
    ],
)
def test_what_was_freed_is_not_cleared_again_by_the_kernel(
    keep: str, share: str, thread: bool, kept: bool
) -> None:
    """As the kernel counts it, in a process that has had no threads before."""
    code = FAULTS.format(keep=keep, share=share, thread=thread)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (int(result.stdout) < 1000) is kept


def test_an_engine_in_this_process_shares_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    malloc = Malloc(2**40)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: malloc)
    monkeypatch.setattr(sys, "platform", "linux")
    engine = InlineEngine(FakeCaptionModel, max_batch=1)
    engine.start()
    engine.close()
    assert malloc.taken == {ARENAS: 1}
