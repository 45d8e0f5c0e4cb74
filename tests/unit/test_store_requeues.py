"""Jobs put back, not wanted any more, and past their deadline, on both databases."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from captioner.domain import CaptionRequest, JobFailure, JobState, Lane
from captioner.errors import ErrorCode, InvalidRequestError
from captioner.source import Source
from captioner.store import Store, create_store_engine, upgrade
from stored import BROKEN, NOON, again, claimed, events, submit, success

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


# Putting back


def test_a_failed_attempt_waits_for_its_time_and_keeps_its_error(store: Store) -> None:
    (job,) = claimed(store)
    store.mark_dispatched([[job.id]], now=NOON)
    due = NOON + MINUTE
    assert store.requeue([again(job, not_before=due, failure=BROKEN)]) == {job.id}
    waiting = store.get(job.id)
    assert (waiting.state, waiting.attempt, waiting.retries, waiting.crashes) == (
        JobState.QUEUED,
        1,
        1,
        0,
    )
    assert (waiting.owner, waiting.dispatched_at, waiting.started_at) == (None, None, None)
    assert (waiting.not_before, waiting.failure) == (due, BROKEN)
    assert store.claim([job.id], "v", now=due - timedelta(seconds=1)) == []
    (second,) = store.claim([job.id], "v", now=due)
    running = store.get(job.id)
    assert (second.attempt, running.not_before, running.failure) == (2, None, BROKEN)
    assert store.record([success(second)]) == {job.id}
    assert store.get(job.id).failure is None
    assert events(store) == [(job.id, "caption.succeeded")]


def test_a_job_handed_back_untried_is_due_at_once_and_counts_nothing(store: Store) -> None:
    (job,) = claimed(store)
    store.requeue([again(job, failure=BROKEN)])
    (second,) = store.claim([job.id], "w", now=NOON)
    assert store.requeue([again(second)]) == {job.id}
    back = store.get(job.id)
    assert (back.state, back.attempt, back.retries, back.crashes) == (JobState.QUEUED, 2, 1, 0)
    assert back.failure == BROKEN  # the last one that failed
    assert store.undispatched(NOON + MINUTE, 10) == [(job.id, Lane.INTERACTIVE)]


def test_a_crash_counts_as_a_crash(store: Store) -> None:
    (job,) = claimed(store)
    lost = JobFailure(ErrorCode.WORKER_LOST, "the decoder died \x00" + "x" * 9_000, retryable=True)
    store.requeue([again(job, failure=lost, crashed=True)])
    back = store.get(job.id)
    assert (back.retries, back.crashes) == (1, 1)
    assert back.failure is not None
    assert back.failure.message.startswith("the decoder died \N{REPLACEMENT CHARACTER}xx")


def test_many_are_put_back_at_once_and_only_this_attempt(store: Store) -> None:
    jobs = claimed(store, 6)
    ended, canceled, _, queued = jobs[:4]
    store.record([success(ended)])
    store.cancel([canceled.id])
    store.requeue([again(queued)])
    asked = [again(job) for job in jobs]
    asked[2] = dataclasses.replace(asked[2], attempt=0)
    asked[5] = again(jobs[5], not_before=NOON + MINUTE, failure=BROKEN)
    assert store.requeue([*asked, dataclasses.replace(asked[4], job_id=uuid4())]) == {
        jobs[4].id,
        jobs[5].id,
    }
    assert store.requeue([]) == set()
    found = {job.id: job for job in store.get_many([job.id for job in jobs])}
    assert [found[job.id].state for job in jobs] == [
        JobState.SUCCEEDED,
        JobState.CANCELED,
        JobState.PROCESSING,
        *[JobState.QUEUED] * 3,
    ]
    assert [found[job.id].retries for job in jobs[3:]] == [0, 0, 1]
    assert [found[job.id].not_before for job in jobs[4:]] == [None, NOON + MINUTE]
    assert [kind for _, kind in events(store)] == ["caption.succeeded", "caption.canceled"]


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    (job,) = claimed(store)
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # what is refused
    with pytest.raises(Exception, match="must have a time zone"):
        store.requeue([again(job, not_before=naive)])
    assert store.get(job.id).state is JobState.PROCESSING


def test_an_owner_is_told_what_is_its_own_at_which_attempt(store: Store) -> None:
    mine, canceled, taken, back = claimed(store, 4)
    store.cancel([canceled.id])
    store.requeue([again(taken), again(back)])
    store.claim([taken.id], "v", now=NOON)
    assert store.claimed_by("w") == {(mine.id, 1)}
    assert store.claimed_by("v") == {(taken.id, 2)}
    assert store.claimed_by("nobody") == set()


# Deadlines


def test_a_job_past_its_deadline_is_not_claimed(store: Store) -> None:
    late, early = submit(store, deadline_at=NOON + MINUTE) + submit(store)
    assert [job.id for job in store.claim([late, early], "w", now=NOON + MINUTE)] == [early]
    (job,) = store.claim([late], "w", now=NOON + MINUTE - timedelta(microseconds=1))
    assert job.request.deadline_at == NOON + MINUTE


def test_queued_jobs_past_their_deadline_expire_oldest_first_with_one_event(store: Store) -> None:
    (running,) = claimed(store, deadline_at=NOON + MINUTE)
    second = submit(store, deadline_at=NOON + 2 * MINUTE)
    first = submit(store, 2, deadline_at=NOON + MINUTE)
    submit(store)
    assert store.expire_overdue(10, now=NOON + timedelta(seconds=59)) == []
    assert set(store.expire_overdue(2, now=NOON + 2 * MINUTE)) == set(first)
    assert store.expire_overdue(2, now=NOON + 2 * MINUTE) == second
    assert store.expire_overdue(2, now=NOON + 2 * MINUTE) == []
    job = store.get(first[0])
    assert (job.state, job.finished_at) == (JobState.EXPIRED, NOON + 2 * MINUTE)
    assert job.failure is not None
    assert job.failure.code is ErrorCode.DEADLINE_EXCEEDED
    assert sorted(events(store)) == sorted((one, "caption.expired") for one in first + second)
    assert store.get(running.id).state is JobState.PROCESSING  # its worker's business


def test_a_retry_that_comes_too_late_expires(store: Store) -> None:
    (job,) = claimed(store, deadline_at=NOON + MINUTE)
    store.requeue([again(job, not_before=NOON + 2 * MINUTE, failure=BROKEN)])
    assert store.expire_overdue(10, now=NOON + MINUTE) == [job.id]
    assert store.get(job.id).not_before is None
    assert store.record([success(job)]) == set()


def test_the_deadline_of_the_first_submission_holds(store: Store) -> None:
    first = CaptionRequest(source=Source("/a"), client_key="k", deadline_at=NOON)
    again_ = CaptionRequest(source=Source("/a"), client_key="k", deadline_at=NOON + MINUTE)
    store.add([first])
    (submission,) = store.add([again_])
    assert not submission.created
    assert submission.job.deadline_at == NOON


def test_a_deadline_is_a_moment_in_any_zone() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    request = CaptionRequest(source=Source("/a"), deadline_at=NOON.astimezone(zone))
    assert request.deadline_at == NOON
    assert request.deadline_at is not None
    assert request.deadline_at.isoformat() == "2026-01-02T12:00:00+00:00"


@pytest.mark.parametrize(
    ("deadline", "problem"),
    [
        (datetime(2026, 1, 1), "must be a time with a time zone"),  # noqa: DTZ001  # refused
        ("2026-01-01T00:00:00Z", "must be a time with a time zone"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))), "beyond the calendar"),
        (datetime.max.replace(tzinfo=UTC), "beyond the calendar"),
        (datetime.min.replace(tzinfo=UTC), "beyond the calendar"),
    ],
)
def test_an_unusable_deadline_is_refused(deadline: datetime, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        CaptionRequest(source=Source("/a"), deadline_at=deadline)


def test_programs_see_deadline_and_retries(store: Store) -> None:
    (job,) = claimed(store, deadline_at=NOON + 2 * MINUTE)
    store.requeue([again(job, not_before=NOON + MINUTE, failure=BROKEN, crashed=True)])
    shown = store.get(job.id).as_mapping()
    assert {name: shown[name] for name in ("deadline_at", "not_before", "retries", "crashes")} == {
        "deadline_at": "2026-01-02T12:02:00+00:00",
        "not_before": "2026-01-02T12:01:00+00:00",
        "retries": 1,
        "crashes": 1,
    }
    assert store.get(job.id).request.deadline_at == NOON + 2 * MINUTE
