"""Jobs in a store, for the tests of what becomes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from captioner.deliveries import Delivery, Expansion, Target
from captioner.domain import (
    Caption,
    CaptionRequest,
    ClaimedJob,
    Job,
    JobFailure,
    JobState,
    Outcome,
    Requeue,
)
from captioner.errors import ErrorCode
from captioner.events import DeliveryState, Event
from captioner.source import Source
from captioner.store import Store

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
BROKEN = JobFailure(ErrorCode.FETCH_FAILED, "HTTP 503", retryable=True)


def submit(store: Store, count: int = 1, **values: Any) -> list[UUID]:
    """New jobs, created at noon."""
    requests = [CaptionRequest(source=Source(f"/{n}.png"), **values) for n in range(count)]
    return [submission.job.id for submission in store.add(requests, now=NOON)]


def claimed(store: Store, count: int = 1, owner: str = "w", **values: Any) -> list[ClaimedJob]:
    """New jobs, claimed at noon."""
    ids = submit(store, count, **values)
    jobs = {job.id: job for job in store.claim(ids, owner, now=NOON)}
    return [jobs[one] for one in ids]


def success(job: Job | ClaimedJob) -> Outcome:
    caption = Caption(text="a red circle", continuation="a red circle", score=-0.5)
    return Outcome(
        job_id=job.id, attempt=job.attempt, state=JobState.SUCCEEDED, captions=(caption,)
    )


def succeeded(store: Store, count: int = 1, **values: Any) -> list[Job]:
    """New jobs that have ended, beside workers that run: they would take back a stranger's."""
    owner = store.register_worker("test")
    jobs = claimed(store, count, owner, **values)
    assert len(store.record([success(job) for job in jobs])) == count
    store.unregister_worker(owner)
    return store.get_many([job.id for job in jobs])


def delete_old(store: Store, finished_before: datetime, limit: int) -> int:
    """Of the jobs that ended before then, delete the oldest that nobody is to be told of."""
    return store.delete_over([job.id for job in store.ended(finished_before, limit)])


def again(job: Job | ClaimedJob, **values: Any) -> Requeue:
    return Requeue(job_id=job.id, attempt=job.attempt, **values)


def delivery(number: int, key: Target) -> Delivery:
    """One that waits since noon, with a job of its own."""
    event = Event(
        id=number,
        job_id=uuid4(),
        type="caption.succeeded",
        state=JobState.SUCCEEDED,
        attempt=1,
        occurred_at=NOON,
    )
    return Delivery(
        id=number,
        event=event,
        plugin=key[0],
        target=key[1],
        state=DeliveryState.PENDING,
        attempts=0,
        due_at=NOON,
        last_status=None,
        last_error=None,
        created_at=NOON,
        finished_at=None,
    )


def events(store: Store) -> list[tuple[UUID, str]]:
    """Every event's job and type, in the order of the jobs."""
    with store._database.reading() as connection:
        rows = connection.execute(text("SELECT job_id, type FROM events ORDER BY id"))
        return [(UUID(str(job_id)), kind) for job_id, kind in rows]


def nobody_listens(store: Store) -> None:
    """What an events worker does where no plugin wants events: jobs may be deleted from then on."""
    store.expand([Expansion(event_id, ()) for event_id in store.unexpanded(1_000)])
