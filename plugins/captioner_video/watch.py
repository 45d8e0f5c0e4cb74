"""How long the work on one video takes, without the time in which others have its frames."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from captioner import ErrorCode, JobError

#: What counts at most of the time between two looks. Packets do not take longer: whoever waits for
#: a frame ends this process (CAPTIONER_MEDIA__DECODE_TIMEOUT_SECONDS), unless all was paused.
STEP_SECONDS = 30.0


class Watch:
    """A stopwatch with a limit; it runs from the beginning."""

    def __init__(self, name: str, limit_seconds: float) -> None:
        """`name` is of the media, as it may be shown."""
        self._name = name
        self._limit_seconds = limit_seconds
        self._spent_seconds = 0.0
        self._since = time.monotonic()

    def check(self) -> None:
        """Give the video up when the time is over; called between packets.

        Raises:
            JobError: `decode_failed`.
        """
        self._count()
        if self._spent_seconds > self._limit_seconds:
            raise JobError(
                ErrorCode.DECODE_FAILED,
                f"{self._name}: sampling it took longer than {self._limit_seconds:g} s "
                "(CAPTIONER_MEDIA__VIDEO_TIMEOUT_SECONDS)",
            )

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time inside the block."""
        self._count()
        try:
            yield
        finally:
            self._since = time.monotonic()

    def _count(self) -> None:
        now = time.monotonic()
        self._spent_seconds += min(now - self._since, STEP_SECONDS)
        self._since = now
