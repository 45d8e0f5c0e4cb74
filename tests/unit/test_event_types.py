"""What an event is called in the outbox, whatever wrote it, is what `event_type` says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from captioner.domain import JobState, Lane, Outcome
from captioner.events import event_type
from captioner.store import Store, create_store_engine, upgrade
from stored import NOON, claimed, events, submit, success


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


@pytest.mark.parametrize("lane", list(Lane))
def test_of_what_a_worker_records(store: Store, lane: Lane) -> None:
    states = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED]
    jobs = claimed(store, len(states), lane=lane)
    outcomes = [
        success(job)
        if state is JobState.SUCCEEDED
        else Outcome(job_id=job.id, attempt=job.attempt, state=state)
        for job, state in zip(jobs, states, strict=True)
    ]
    assert len(store.record(outcomes)) == len(states)
    expected = {(job.id, event_type(state, lane)) for job, state in zip(jobs, states, strict=True)}
    assert set(events(store)) == expected


@pytest.mark.parametrize("lane", list(Lane))
def test_of_what_ends_without_a_worker(store: Store, lane: Lane) -> None:
    (canceled,) = submit(store, lane=lane)
    store.cancel([canceled])
    (late,) = submit(store, lane=lane, deadline_at=NOON)
    store.expire_overdue(10, now=NOON + timedelta(seconds=1))
    assert set(events(store)) == {
        (canceled, event_type(JobState.CANCELED, lane)),
        (late, event_type(JobState.EXPIRED, lane)),
    }


def test_lanes_together_in_one_statement(store: Store) -> None:
    jobs = [job for lane in Lane for job in claimed(store, lane=lane)]
    store.record([success(job) for job in jobs])
    assert set(events(store)) == {
        (job.id, "video.succeeded" if job.request.lane is Lane.VIDEO else "caption.succeeded")
        for job in jobs
    }
