"""What happened to a job, as plugins and the outbox see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from captioner.domain import JobState, Lane

MAX_TARGET_CHARACTERS = 255
#: Of an answer, kept in the delivery log.
MAX_EXCERPT_CHARACTERS = 1_024


def event_type(state: JobState, lane: Lane) -> str:
    """What an event is called: `caption.succeeded`, or `video.succeeded` in the video lane."""
    return f"{'video' if lane is Lane.VIDEO else 'caption'}.{state.value}"


#: Every type there is.
ALL_EVENT_TYPES = tuple(
    event_type(state, lane)
    for lane in (Lane.INTERACTIVE, Lane.VIDEO)
    for state in JobState
    if state.terminal
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition of one job; exactly one row of the outbox stands behind it."""

    job_id: UUID
    #: Its row in the outbox, the same for all who hear of it; None: told in the worker itself.
    id: int | None = None
    #: One of `ALL_EVENT_TYPES`.
    type: str
    state: JobState
    #: The attempt that made the transition.
    attempt: int
    occurred_at: datetime
    #: The failure's code, when there is one.
    error_code: str | None = None
    #: Seconds by stage, as on the job.
    timings: tuple[tuple[str, float], ...] = ()


class DeliveryState(StrEnum):
    """Where a delivery is: `pending → delivered | dead`."""

    PENDING = "pending"
    DELIVERED = "delivered"
    #: Tried for as long as the schedule says, or refused for good.
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a delivery got for an answer; goes to the delivery log."""

    #: Such as the HTTP status.
    status: int | None = None
    #: The beginning of the answer; `MAX_EXCERPT_CHARACTERS` are kept.
    excerpt: str = ""
