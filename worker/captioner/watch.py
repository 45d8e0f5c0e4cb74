"""Whether a job may go on, and where its time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime

from captioner.domain import Caption
from captioner.errors import CanceledError, ErrorCode, JobError

#: How often who waits for the engine looks whether the job is still wanted.
CHECK_SECONDS = 0.25


class Watch:
    """Whether a job may go on, and where its time goes."""

    def __init__(
        self,
        canceled: Callable[[], bool] | None,
        deadline_at: datetime | None,
        now: Callable[[], datetime],
    ) -> None:
        """`canceled` tells whether nobody wants the result any more, `deadline_at` from when on.

        `now` is the clock that the deadline goes by.
        """
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._canceled = canceled
        self._deadline_at = deadline_at
        self._now = now

    def check(self) -> None:
        """Raise if the job is canceled or late."""
        if self._canceled and self._canceled():
            raise CanceledError("the job was canceled")
        if self._deadline_at and self._now() > self._deadline_at:
            raise JobError(ErrorCode.DEADLINE_EXCEEDED, f"not done by {self._deadline_at}")

    def result(self, future: Future[list[Caption]]) -> list[Caption]:
        """Wait for the engine no longer than the job is wanted."""
        while True:
            self.check()
            try:
                return future.result(timeout=CHECK_SECONDS)
            except TimeoutError:
                if future.done():
                    return future.result()

    def count(self, stage: str, since: float) -> None:
        """Add the time that has passed since then, on the monotonic clock, to a stage's."""
        self.seconds[stage] += time.monotonic() - since
