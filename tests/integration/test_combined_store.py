"""Claims, records and requeues of many threads in shared statements, on both databases."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from captioner.domain import ClaimedJob, JobState
from captioner.store import CombinedStore, Store, create_store_engine, upgrade
from stored import BROKEN, again, events, submit, success

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

THREADS = 32


@pytest.fixture
def stores(database_url: str) -> Iterator[list[Store]]:
    """Two on one database, as two workers would have."""
    upgrade(database_url)
    with (
        Store(create_store_engine(database_url)) as one,
        Store(create_store_engine(database_url)) as two,
    ):
        yield [one, two]


@contextlib.contextmanager
def counted(store: Store) -> Iterator[list[str]]:
    """The statements that change jobs."""
    statements: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "UPDATE jobs" in statement:
            statements.append(statement)

    engine = store._database.engine
    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def test_threads_share_statements_and_each_gets_its_own(stores: list[Store]) -> None:
    ids = submit(stores[0], 640)
    combined = CombinedStore(stores[0], "w")

    def run(job_id: UUID) -> None:
        (job,) = combined.claim([job_id])
        assert (job.id, job.attempt) == (job_id, 1)
        assert combined.record([success(job)]) == [True]
        assert combined.record([success(job)]) == [False]

    with counted(stores[0]) as statements, ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(run, ids):
            pass
        if stores[0]._database.combines:
            assert len(statements) < 640  # of 1,920
    assert stores[0].count_by_state()[JobState.SUCCEEDED] == 640
    assert sorted(events(stores[0])) == sorted((one, "caption.succeeded") for one in ids)


def test_nobody_lingers_for_jobs_that_are_forgotten(stores: list[Store]) -> None:
    combined = CombinedStore(stores[0], "w", linger_seconds=600)
    first, second = combined.claim(submit(stores[0], 2))
    with ThreadPoolExecutor(1) as pool:
        recorded = pool.submit(combined.record, [success(first)])  # the other may come, too
        with pytest.raises(TimeoutError):
            recorded.result(timeout=0.3)

        combined.forget([second.id])

        assert recorded.result(timeout=60) == [True]


def test_of_callers_for_one_job_one_gets_it(stores: list[Store]) -> None:
    ids = submit(stores[0], 100)
    workers = [CombinedStore(store, f"w{number}") for number, store in enumerate(stores)]

    def claim(number: int) -> list[ClaimedJob]:
        mine = random.Random(number).sample(ids, len(ids))
        return [
            job
            for first in range(0, 100, 10)
            for job in workers[number % 2].claim(mine[first:][:10])
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        claimed = [job for jobs in pool.map(claim, range(THREADS)) for job in jobs]
    assert sorted(job.id for job in claimed) == sorted(ids)


def test_a_worker_with_one_job_at_a_time_never_waits(stores: list[Store]) -> None:
    combined = CombinedStore(stores[0], "w", linger_seconds=60)
    started = time.monotonic()
    for job_id in submit(stores[0], 3):
        (job,) = combined.claim([job_id])
        assert combined.requeue([again(job)]) == [True]
        (job,) = combined.claim([job_id])
        assert combined.record([success(job)]) == [True]
    (canceled, last) = submit(stores[0], 2)
    combined.claim([canceled])
    combined.forget([canceled])
    combined.claim([last])
    assert time.monotonic() - started < 30


def test_attempts_of_one_job_at_once_are_told_apart(stores: list[Store]) -> None:
    (job_id,) = submit(stores[0])
    combined = CombinedStore(stores[0], "w")
    (first,) = combined.claim([job_id])
    combined.requeue([again(first)])
    (second,) = combined.claim([job_id])
    third = dataclasses.replace(second, attempt=9)
    outcomes = [success(job) for job in (first, second, third, second)]
    assert combined._record_all([outcomes]) == [[False, True, False, False]]
    assert events(stores[0]) == [(job_id, "caption.succeeded")]


def test_one_bad_row_among_threads_is_its_own_failure(stores: list[Store]) -> None:
    ids = submit(stores[0], THREADS)
    combined = CombinedStore(stores[0], "w", linger_seconds=0.05)
    jobs = {job.id: job for job in combined.claim(ids)}

    def record(job_id: UUID) -> bool:
        outcome = success(jobs[job_id])
        if job_id == ids[5]:
            outcome = dataclasses.replace(outcome, captions=outcome.captions * 2)
        return combined.record([outcome])[0]

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(record, ids))
    counts = stores[0].count_by_state()
    assert (counts[JobState.SUCCEEDED], counts[JobState.FAILED]) == (THREADS - 1, 1)
    assert stores[0].get(ids[5]).state is JobState.FAILED


class Turmoil:
    """Workers that record, put back, cancel, forget, fall silent and come back, among sweepers."""

    def __init__(self, stores: list[Store], jobs: int) -> None:
        self.stores = stores
        self.workers = [CombinedStore(store, f"w{number}") for number, store in enumerate(stores)]
        deadline = datetime.now(UTC) + timedelta(seconds=1)
        self.ids = submit(stores[0], jobs) + submit(stores[0], jobs // 10, deadline_at=deadline)
        #: As their threads were told that they ended.
        self.ended: list[UUID] = []
        self.over = threading.Event()

    def work(self, number: int) -> None:
        chance, worker = random.Random(number), self.workers[number % 2]
        while not self.over.is_set():
            for job in worker.claim(chance.sample(self.ids, 8)):
                self.finish(job, worker, chance.randrange(8))

    def finish(self, job: ClaimedJob, worker: CombinedStore, way: int) -> None:
        if way < 2:
            worker.requeue([again(job, failure=BROKEN, not_before=datetime.now(UTC))])
        elif way == 2:
            canceled = self.stores[0].cancel([job.id])
            assert not (canceled and worker.record([success(job)])[0])
            self.ended.extend(canceled)
        elif way > 3 and worker.record([success(job)])[0]:  # and else nothing, as if it had died
            self.ended.append(job.id)

    def sweep(self, number: int) -> None:
        chance, store = random.Random(number), self.stores[number % 2]
        while not self.over.is_set():
            if chance.random() < 0.3:  # else both workers are silent, and their jobs lost
                store.register_worker("w", worker_id=f"w{number % 2}")
            assert store.expire_workers(timedelta(0), 50, max_losses=1_000).failed == 0
            self.ended.extend(store.expire_overdue(50))
            store.release_due(50)
            store.mark_dispatched([[one for one, _ in store.undispatched(datetime.now(UTC), 50)]])

    def run(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            threads = [pool.submit(self.work, number) for number in range(12)]
            threads += [pool.submit(self.sweep, number) for number in range(4)]
            until = time.monotonic() + 120
            while time.monotonic() < until and not any(thread.done() for thread in threads):
                counts = self.stores[0].count_by_state()
                if not counts[JobState.QUEUED] + counts[JobState.PROCESSING]:
                    break
                time.sleep(0.05)
            self.over.set()
            for thread in threads:
                thread.result()


@pytest.mark.long
def test_whatever_happens_at_once_every_job_ends_once(stores: list[Store]) -> None:
    turmoil = Turmoil(stores, 300)
    turmoil.run()
    counts = stores[0].count_by_state()
    assert sum(counts.values()) == 330
    assert counts[JobState.QUEUED] == counts[JobState.PROCESSING] == counts[JobState.FAILED] == 0
    assert counts[JobState.SUCCEEDED] > 0
    assert counts[JobState.CANCELED] > 0
    recorded = [one for one, _ in events(stores[0])]
    assert sorted(turmoil.ended) == sorted(recorded) == sorted(turmoil.ids)
