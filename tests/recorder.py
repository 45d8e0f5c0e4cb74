"""What records and replays without CUDA.

A graph runs again on the memory it was recorded with and writes its result to the same place. So
does the stand-in.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class StandIn:
    """Records without CUDA, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        result = run().clone()

        def run_again() -> None:
            self.replayed += 1
            result.copy_(run())

        return run_again, result
