"""How long the work on one video takes, without the time in which others have its frames."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from captioner import ErrorCode, JobError


class Watch:
    """A stopwatch with a limit; it runs from the beginning."""

    def __init__(self, name: str, limit_seconds: float) -> None:
        """`name` is of the media, as it may be shown."""
        self._name = name
        self._limit_seconds = limit_seconds
        self._ends_at = time.monotonic() + limit_seconds

    def check(self) -> None:
        """Give the video up when the time is over; called between packets.

        Raises:
            JobError: `decode_failed`.
        """
        if time.monotonic() > self._ends_at:
            raise JobError(
                ErrorCode.DECODE_FAILED,
                f"{self._name}: sampling it took longer than {self._limit_seconds:g} s "
                "(CAPTIONER_MEDIA__VIDEO_TIMEOUT_SECONDS)",
            )

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time inside the block."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._ends_at += time.monotonic() - since
