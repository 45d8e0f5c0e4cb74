"""Many threads on one database: every job exactly once, every event exactly once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import text

from captioner.domain import Caption, CaptionRequest, ClaimedJob, JobState, Outcome
from captioner.errors import DuplicateClientKeyError
from captioner.options import GenerationOptions
from captioner.source import Source
from captioner.store import Lost, Store, create_store_engine, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = 16
T = TypeVar("T")


@pytest.fixture
def stores(database_url: str) -> Iterator[list[Store]]:
    """Two on one database, as two processes would have."""
    upgrade(database_url)
    with (
        Store(create_store_engine(database_url)) as one,
        Store(create_store_engine(database_url)) as two,
    ):
        yield [one, two]


def at_once(call: Callable[[int], T], threads: int = THREADS) -> list[T]:
    """`call(0)`, `call(1)`, … in threads that begin together."""
    barrier = Barrier(threads, timeout=60)

    def begin(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def requests(count: int, key: str = "") -> list[CaptionRequest]:
    return [
        CaptionRequest(
            source=Source(f"https://example.org/{number}.jpg"),
            client_key=f"{key}{number}" if key else None,
        )
        for number in range(count)
    ]


def submit(store: Store, count: int) -> list[UUID]:
    return [submission.job.id for submission in store.add(requests(count))]


def shuffled(ids: list[UUID], seed: int) -> list[UUID]:
    return random.Random(seed).sample(ids, len(ids))


def success(job_id: UUID, attempt: int = 1) -> Outcome:
    caption = Caption(text="a red circle", continuation="a red circle", score=-0.5)
    return Outcome(job_id=job_id, attempt=attempt, state=JobState.SUCCEEDED, captions=(caption,))


def events_by_job(store: Store) -> dict[UUID, int]:
    with store._database.reading() as connection:
        rows = connection.execute(text("SELECT job_id, count(*) FROM events GROUP BY job_id"))
        return {UUID(str(job_id)): count for job_id, count in rows}


def test_threads_that_claim_the_same_jobs_get_each_once(stores: list[Store]) -> None:
    ids = submit(stores[0], 200)

    def claim(number: int) -> list[tuple[str, ClaimedJob]]:
        mine = shuffled(ids, number)
        store = stores[number % 2]
        return [
            (f"w{number}", job)
            for start in range(0, len(mine), 20)
            for job in store.claim(mine[start : start + 20], f"w{number}")
        ]

    claimed = [job for jobs in at_once(claim) for job in jobs]
    assert sorted(job.id for _, job in claimed) == sorted(ids)
    assert {job.attempt for _, job in claimed} == {1}
    owners = {job.id: job.owner for job in stores[0].get_many(ids)}
    assert owners == {job.id: owner for owner, job in claimed}


def test_the_same_keys_submitted_at_once_make_each_job_once(stores: list[Store]) -> None:
    def add(number: int) -> list[tuple[UUID, bool]]:
        asked = random.Random(number).sample(requests(50, "key"), 50)
        added = stores[number % 2].add(asked)
        assert [one.job.client_key for one in added] == [one.client_key for one in asked]
        return [(one.job.id, one.created) for one in added]

    results = [result for results in at_once(add) for result in results]
    assert sum(created for _, created in results) == 50
    assert len({job_id for job_id, _ in results}) == 50
    assert stores[0].count_by_state()[JobState.QUEUED] == 50


def test_the_same_request_submitted_a_hundred_times_at_once_is_one_job(stores: list[Store]) -> None:
    (request,) = requests(1)
    added = at_once(lambda number: [stores[number % 2].add([request]) for _ in range(7)])
    submissions = [one for calls in added for (one,) in calls]
    assert sum(one.created for one in submissions) == 1
    assert {one.job.id for one in submissions} == {request.id}


def test_of_two_requests_for_one_key_at_once_one_wins_and_the_other_is_told(
    stores: list[Store],
) -> None:
    def add(number: int) -> str:
        options = GenerationOptions(max_new_tokens=10 + number % 2)
        request = CaptionRequest(source=Source("/a.png"), client_key="k", options=options)
        try:
            stores[number % 2].add([request, *requests(1)])
        except DuplicateClientKeyError:
            return "refused"
        return "accepted"

    assert sorted(at_once(add)) == ["accepted"] * (THREADS // 2) + ["refused"] * (THREADS // 2)
    assert stores[0].count_by_state()[JobState.QUEUED] == 1 + THREADS // 2


def test_cancel_and_record_at_once_leave_one_state_and_one_event(stores: list[Store]) -> None:
    ids = submit(stores[0], 120)
    stores[0].claim(ids, "w")

    def act(number: int) -> list[UUID]:
        done: list[UUID] = []
        mine = shuffled(ids, number)
        store = stores[number % 2]
        for start in range(0, len(mine), 10):
            some = mine[start : start + 10]
            done += store.cancel(some) if number % 4 < 2 else store.record(list(map(success, some)))
        return done

    results = at_once(act)
    assert sorted(one for done in results for one in done) == sorted(ids)
    canceled = {one for number, done in enumerate(results) if number % 4 < 2 for one in done}
    for job in stores[0].get_many(ids):
        assert job.state is (JobState.CANCELED if job.id in canceled else JobState.SUCCEEDED)
        assert len(job.captions) == (0 if job.id in canceled else 1)
    assert events_by_job(stores[0]) == dict.fromkeys(ids, 1)


def test_stamps_claims_records_and_cancels_never_wait_for_each_other_in_a_circle(
    stores: list[Store],
) -> None:
    """All touch the same rows in different orders; PostgreSQL ends one of a deadlocked pair."""
    ids = submit(stores[0], 64)

    def act(number: int) -> None:
        for turn in range(6):
            mine = shuffled(ids, number * 100 + turn)
            store = stores[number % 2]
            if number % 4 == 0:
                store.mark_dispatched([mine[:40], mine[40:]])
            elif number % 4 == 1:
                store.claim(mine, "w")
            elif number % 4 == 2:
                store.record([success(one) for one in mine[:40]])
            else:
                store.cancel(mine[:2])

    at_once(act)
    counts = stores[0].count_by_state()
    assert sum(counts.values()) == 64
    ended = counts[JobState.SUCCEEDED] + counts[JobState.CANCELED]
    assert sum(events_by_job(stores[0]).values()) == len(events_by_job(stores[0])) == ended


def test_one_lease_has_one_holder(stores: list[Store]) -> None:
    ttl = timedelta(minutes=1)
    held = at_once(lambda number: stores[number % 2].try_acquire("sweeper", f"w{number}", ttl))
    assert held.count(True) == 1


def test_one_bad_row_among_threads_harms_nobody(stores: list[Store]) -> None:
    ids = submit(stores[0], THREADS * 4)
    stores[0].claim(ids, "w")

    def record(number: int) -> set[UUID]:
        outcomes = [success(one) for one in ids[number * 4 : number * 4 + 4]]
        first = outcomes[0].captions[0]
        twice = Outcome(
            job_id=outcomes[0].job_id,
            attempt=1,
            state=JobState.SUCCEEDED,
            captions=(first, first),
        )
        return stores[number % 2].record([twice, *outcomes[1:]])

    assert set().union(*at_once(record)) == set(ids)
    counts = stores[0].count_by_state()
    assert counts[JobState.FAILED] == THREADS
    assert counts[JobState.SUCCEEDED] == THREADS * 3
    assert events_by_job(stores[0]) == dict.fromkeys(ids, 1)


def test_a_lost_job_that_a_living_worker_just_took_stays_its_own(postgres_url: str) -> None:
    """The sweeper finds it while it is being taken, and does not wait for it."""
    upgrade(postgres_url)
    with Store(create_store_engine(postgres_url)) as store:
        alive = store.register_worker("alive")
        (job_id,) = submit(store, 1)
        store.claim([job_id], "dead")
        with store._database.transaction() as connection:
            # What somebody else's sweep and the living worker's claim have made of it.
            taken = text("UPDATE jobs SET owner = :owner, attempt = 2 WHERE id = :id")
            connection.execute(taken, {"owner": alive, "id": job_id})
            for max_losses in (20, 1):
                lost = store.expire_workers(timedelta(minutes=1), 10, max_losses=max_losses)
                assert lost == Lost(workers=0, requeued=0, failed=0)
        assert store.record([success(job_id, attempt=2)]) == {job_id}
