"""CUDA graphs: work recorded once and replayed, on the memory that it was recorded with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from weakref import WeakSet

import torch
from torch import Tensor

#: Runs a function and records it. Returns what runs it again, and the tensor with its result.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

_one_at_a_time = Lock()
#: Between a recording and the eager path, which run the same kernels.
_TOLERANCE = 1e-2


class RecordOnCuda:
    """Records functions as CUDA graphs; see `Record`."""

    def __init__(self, device: torch.device) -> None:
        """They share memory for what they compute in between: one runs at a time."""
        self._device = device
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run it once, and record it."""
        # What another thread runs on the same stream would be recorded, too.
        with _one_at_a_time, torch.cuda.device(self._device):
            aside, current = _aside(self._device), torch.cuda.current_stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                run()  # libraries set up their work space at the first run, which is not recorded
            current.wait_stream(aside)
            if not self._graphs:
                # PyTorch refuses memory whose graphs are all gone while a tensor still lies there.
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            self._graphs.add(graph)
            # The other threads' business with the device is not to end the recording.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"
            ):
                result = run()
        return graph.replay, result


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Always the same: for each stream cuBLAS keeps a work space of its own, 32 MiB on an H200."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # has no types


def checked(
    record: Record,
    work: Callable[[], Tensor],
    images: int,
    undo: Callable[[], None] = lambda: None,
) -> tuple[Callable[[], None], Tensor]:
    """Record some work, check the recording, and leave the work done once.

    Args:
        record: how.
        work: gives rows, the images first.
        images: rows that count.
        undo: brings back what work has changed.

    Raises:
        RuntimeError: it cannot be recorded, or gives something else; then nothing is done.
    """
    try:
        expected = work()[:images].clone()
        undo()  # to record is to do it again, and after the last token there is no room for one
        run_again, result = record(work)
        result.zero_()
        undo()
        run_again()
        _require_equal(result[:images], expected)
    except RuntimeError:
        undo()
        raise
    return run_again, result


def _require_equal(found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        raise RuntimeError("the recording does not give what it is a recording of")


def next_power_of_two(images: int) -> int:
    """Rows that are recorded for so many images."""
    return 1 << (images - 1).bit_length()
