"""What happened to a job, as plugins and the outbox see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from captioner.domain import JobState

#: Event types by the state a job arrives in. `video.*` joins them with the video plugin.
EVENT_TYPES = {
    JobState.SUCCEEDED: "caption.succeeded",
    JobState.FAILED: "caption.failed",
    JobState.CANCELED: "caption.canceled",
    JobState.EXPIRED: "caption.expired",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition of one job; exactly one row of the outbox stands behind it."""

    job_id: UUID
    #: One of `EVENT_TYPES`.
    type: str
    state: JobState
    #: The attempt that made the transition.
    attempt: int
    occurred_at: datetime
    #: The failure's code, when there is one.
    error_code: str | None = None
    #: Seconds by stage, as on the job.
    timings: tuple[tuple[str, float], ...] = ()
