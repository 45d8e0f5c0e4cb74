"""The jobs that one worker has claimed and not yet put away."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from uuid import UUID

from captioner.domain import Job

#: A job at one attempt: the same job may be claimed again while an old attempt still ends.
Claim = tuple[UUID, int]


class InHand:
    """Who is at work, and whom to tell when it is in vain. Thread-safe."""

    def __init__(self) -> None:
        """Nothing is in hand."""
        self._lock = threading.Lock()
        self._canceled: dict[Claim, threading.Event] = {}

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs that were just claimed."""
        with self._lock:
            self._canceled.update({_claim(job): threading.Event() for job in jobs})

    def remove(self, job: Job) -> None:
        """Put a job away: its attempt has ended."""
        with self._lock:
            del self._canceled[_claim(job)]

    def canceled(self, job: Job) -> threading.Event:
        """Set when nobody wants this attempt's result any more."""
        return self._canceled[_claim(job)]

    def claims(self) -> set[Claim]:
        """All that is in hand now."""
        with self._lock:
            return set(self._canceled)

    def cancel(self, claims: Collection[Claim]) -> None:
        """Tell those of these that are in hand."""
        with self._lock:
            for claim in claims:
                if event := self._canceled.get(claim):
                    event.set()


def _claim(job: Job) -> Claim:
    return job.id, job.attempt
