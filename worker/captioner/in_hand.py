"""The jobs that one worker has claimed and not yet put away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from uuid import UUID

from captioner.domain import ClaimedJob

#: A job at one attempt: the same job may be claimed again while an old attempt still ends.
Claim = tuple[UUID, int]


class InHand:
    """Who is at work, and whom to tell when it is in vain. Thread-safe."""

    def __init__(self) -> None:
        """Nothing is in hand."""
        self._lock = threading.Lock()
        self._claims: set[Claim] = set()
        self._canceled: set[Claim] = set()

    def add(self, jobs: Iterable[ClaimedJob]) -> None:
        """Take jobs that were just claimed."""
        with self._lock:
            self._claims.update(map(_claim, jobs))

    def remove(self, jobs: Iterable[ClaimedJob]) -> None:
        """Put jobs away: their attempts have ended. Twice does nothing."""
        with self._lock:
            claims = list(map(_claim, jobs))
            self._claims.difference_update(claims)
            if self._canceled:
                self._canceled.difference_update(claims)

    def canceled(self, job: ClaimedJob) -> Callable[[], bool]:
        """Tells whether nobody wants this attempt's result any more."""
        claim, canceled = _claim(job), self._canceled
        # Asked several times a job, and mostly of nothing: a look costs less than a hash.
        return lambda: bool(canceled) and claim in canceled

    def __len__(self) -> int:
        return len(self._claims)

    def claims(self) -> set[Claim]:
        """All that is in hand now."""
        with self._lock:
            return set(self._claims)

    def cancel(self, claims: Collection[Claim]) -> None:
        """Tell those of these that are in hand."""
        with self._lock:
            self._canceled.update(self._claims.intersection(claims))


def _claim(job: ClaimedJob) -> Claim:
    return job.id, job.attempt
