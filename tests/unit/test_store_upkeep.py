"""What housekeeping does in SQL: silent workers, messages, and what is over, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from captioner.domain import JobState, Lane
from captioner.errors import ErrorCode
from captioner.store import Lost, Store, create_store_engine, upgrade
from stored import (
    BROKEN,
    NOON,
    again,
    claimed,
    delete_old,
    events,
    nobody_listens,
    submit,
    success,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
LEASE = 45 * SECOND


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


def sweep(store: Store, seconds: int, limit: int = 10, max_losses: int = 20) -> Lost:
    return store.expire_workers(LEASE, limit, max_losses=max_losses, now=NOON + seconds * SECOND)


# Silent workers


def test_the_jobs_of_a_silent_worker_go_back_and_those_of_the_living_stay(store: Store) -> None:
    dead, alive = (store.register_worker(name, now=NOON) for name in ("dead", "alive"))
    (lost,), (taken,) = claimed(store, owner=dead), claimed(store, owner=alive)
    kept = store.get(taken.id)
    store.heartbeat(alive, now=NOON + 30 * SECOND)
    assert sweep(store, 45) == Lost(0, 0, 0)
    assert sweep(store, 46) == Lost(workers=1, requeued=1, failed=0)
    assert sweep(store, 46) == Lost(0, 0, 0)
    job = store.get(lost.id)
    assert (job.state, job.owner, job.attempt, job.retries) == (JobState.QUEUED, None, 1, 0)
    assert job.failure is not None
    assert job.failure.code is ErrorCode.WORKER_LOST
    assert store.get(kept.id) == kept
    assert store.undispatched(NOON + MINUTE, 10) == [(lost.id, Lane.INTERACTIVE)]


def test_a_worker_back_from_the_dead_is_told_and_records_nothing_twice(store: Store) -> None:
    owner = store.register_worker("gpu0@host", now=NOON)
    waiting, taken, late = claimed(store, 3, owner=owner)
    assert sweep(store, 60, limit=2).requeued == 2
    back = [job for job in (waiting, taken, late) if store.get(job.id).state is JobState.QUEUED]
    (kept,) = {job.id for job in (waiting, taken, late)} - {job.id for job in back}
    # Awake: it no longer exists, and goes on under its old name.
    assert not store.heartbeat(owner, now=NOON + 61 * SECOND)
    assert store.register_worker("gpu0@host", worker_id=owner, now=NOON + 61 * SECOND) == owner
    assert store.register_worker("gpu0@host", worker_id=owner, now=NOON + 61 * SECOND) == owner
    assert store.heartbeat(owner, now=NOON + 62 * SECOND)
    # What it still held when it came back is its own; what was put back is nobody's...
    assert sweep(store, 63) == Lost(0, 0, 0)
    assert store.claimed_by(owner) == {(kept, 1)}
    assert store.record([success(job) for job in back]) == set()
    # ... or another's, and its attempt is over for good.
    (second,) = store.claim([back[0].id], "other", now=NOON + 63 * SECOND)
    assert store.record([success(back[0])]) == set()
    assert store.requeue([again(back[0])]) == set()
    assert store.record([success(second)]) == {second.id}
    assert store.record([success(store.get(kept))]) == {kept}
    assert sorted(events(store)) == sorted((one, "caption.succeeded") for one in (second.id, kept))


def test_jobs_of_an_owner_without_a_row_count_as_lost(store: Store) -> None:
    owner = store.register_worker("w", now=NOON)
    (job,) = claimed(store, owner=owner)
    store.unregister_worker(owner)
    assert sweep(store, 0) == Lost(workers=0, requeued=1, failed=0)
    assert store.get(job.id).state is JobState.QUEUED


def test_a_job_that_kills_every_worker_ends(store: Store) -> None:
    (job_id,) = submit(store)
    for attempt in (1, 2, 3):
        (job,) = store.claim([job_id], f"w{attempt}", now=NOON)
        assert job.attempt == attempt
        lost = sweep(store, 0, max_losses=3)
        assert lost == (Lost(0, 1, 0) if attempt < 3 else Lost(0, 0, 1))
    ended = store.get(job_id)
    assert (ended.state, ended.failure and ended.failure.code) == (
        JobState.FAILED,
        ErrorCode.WORKER_LOST,
    )
    assert events(store) == [(job_id, "caption.failed")]
    assert store.record([success(job)]) == set()


def test_handing_a_job_back_however_often_says_nothing_against_it(store: Store) -> None:
    (job_id,) = submit(store)
    for _ in range(5):
        (job,) = store.claim([job_id], "w", now=NOON)
        store.requeue([again(job)])
    (job,) = store.claim([job_id], "w", now=NOON)
    assert job.attempt == 6
    assert sweep(store, 0, max_losses=2) == Lost(0, 1, 0)


def test_lost_jobs_go_back_in_bounded_batches(store: Store) -> None:
    claimed(store, 25)
    assert [sweep(store, 0).requeued for _ in range(4)] == [10, 10, 5, 0]


# Messages


def test_jobs_of_one_message_are_one_dispatch(store: Store) -> None:
    ids = submit(store, 10)
    other = submit(store, 2, lane=Lane.BULK)
    store.mark_dispatched([ids[:4], ids[4:5]], now=NOON)
    store.mark_dispatched([ids[5:], other], now=NOON + SECOND)
    assert store.count_dispatches(Lane.INTERACTIVE, NOON) == 0
    assert store.count_dispatches(Lane.INTERACTIVE, NOON + SECOND) == 2
    assert store.count_dispatches(Lane.INTERACTIVE, NOON + MINUTE) == 3
    assert store.count_dispatches(Lane.BULK, NOON + MINUTE) == 1
    assert store.count_dispatches(Lane.VIDEO, NOON + MINUTE) == 0
    oldest = store.oldest_dispatches(Lane.INTERACTIVE, NOON + MINUTE, 100)
    assert {frozenset(message) for message in list(oldest.values())[:2]} == {
        frozenset(ids[:4]),
        frozenset(ids[4:5]),
    }
    assert set(list(oldest.values())[2]) == set(ids[5:])
    assert len(store.oldest_dispatches(Lane.INTERACTIVE, NOON + SECOND, 100)) == 2
    few = store.oldest_dispatches(Lane.INTERACTIVE, NOON + MINUTE, 3)
    assert sum(map(len, few.values())) == 3
    # A message that was claimed in part is one still; claimed as a whole it is none.
    store.claim(ids[:2], "w", now=NOON)
    assert store.count_dispatches(Lane.INTERACTIVE, NOON + MINUTE) == 3
    store.claim(ids[:4], "w", now=NOON)
    assert store.count_dispatches(Lane.INTERACTIVE, NOON + MINUTE) == 2


def test_a_stamp_that_comes_late_does_not_hide_a_retry(store: Store) -> None:
    (job,) = claimed(store)
    store.requeue([again(job, not_before=NOON + MINUTE, failure=BROKEN)])
    store.mark_dispatched([[job.id]], now=NOON)
    assert store.get(job.id).dispatched_at is None
    store.mark_dispatched([])
    store.mark_dispatched([[]])


def test_a_retry_is_undispatched_once_its_time_has_come(store: Store) -> None:
    first, second = claimed(store, 2)
    store.requeue([again(first, not_before=NOON + MINUTE), again(second, not_before=NOON + SECOND)])
    assert store.undispatched(NOON + MINUTE, 10) == []
    assert store.release_due(10, now=NOON) == 0
    assert store.release_due(1, now=NOON + MINUTE) == 1
    assert store.undispatched(NOON + MINUTE, 10) == [(second.id, Lane.INTERACTIVE)]
    assert store.get(second.id).not_before is None
    assert store.release_due(10, now=NOON + MINUTE) == 1
    assert store.release_due(10, now=NOON + MINUTE) == 0


# Retention


def test_only_what_ended_before_then_is_deleted_with_all_that_hangs_on_it(store: Store) -> None:
    jobs = claimed(store, 5)
    waiting = submit(store)
    for minute, job in enumerate(jobs[:4]):
        store.record([success(job)], now=NOON + minute * MINUTE)
    nobody_listens(store)
    assert delete_old(store, NOON + 2 * MINUTE, 1) == 1
    assert store.get_many([job.id for job in jobs])[0].id == jobs[1].id
    assert delete_old(store, NOON + 2 * MINUTE, 10) == 1
    assert delete_old(store, NOON + 2 * MINUTE, 10) == 0
    left = [*[job.id for job in jobs[2:]], *waiting]
    assert {job.id for job in store.get_many([job.id for job in jobs] + waiting)} == set(left)
    with store._database.reading() as connection:
        for table in ("captions", "events"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 2
