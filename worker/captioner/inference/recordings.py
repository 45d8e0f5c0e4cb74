"""CUDA graphs: work recorded once and replayed, on the memory that it was recorded with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Runs a function and records it. Returns what runs it again, and the tensor with its result.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

#: Between a recording and the eager path, which run the same kernels.
_TOLERANCE = 1e-2


class RecordOnCuda:
    """Records functions as CUDA graphs; see `Record`."""

    def __init__(self) -> None:
        """They share memory for what they compute in between: one runs at a time."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run it once, and record it."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # has no types
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()  # libraries set up their work space at the first run, which cannot be recorded
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The other threads' business with the device is not to end the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result


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
