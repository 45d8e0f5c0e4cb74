"""Jobs that another connection has locked, for longer than anybody waits: only they wait."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text

from captioner import recording
from captioner.domain import JobState
from captioner.errors import StoreLockedError
from captioner.store import CombinedStore, Store, create_store_engine, upgrade
from captioner.store.models import JobRow
from captioner.store.schema import migrating
from processes import wait_until
from stored import NOON, again, claimed, submit, success

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

LATER = NOON + timedelta(hours=1)


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    upgrade(postgres_url)
    with Store(create_store_engine(postgres_url, busy_timeout_seconds=0.2)) as store:
        yield store


@contextlib.contextmanager
def locked(store: Store, *job_ids: UUID) -> Iterator[None]:
    """As somebody with psql may leave them."""
    with store._database.engine.begin() as connection:
        connection.execute(select(JobRow).where(JobRow.id.in_(job_ids)).with_for_update())
        yield


def test_a_claim_takes_the_others_and_comes_back(store: Store) -> None:
    ids = submit(store, 3)
    combined = CombinedStore(store, "w")
    with locked(store, ids[1]):
        assert {job.id for job in combined.claim(ids)} == {ids[0], ids[2]}
        with pytest.raises(StoreLockedError, match="BUSY_TIMEOUT_SECONDS"):
            combined.claim_locked([ids[1]])
    assert [job.id for job in combined.claim_locked([ids[1]])] == [ids[1]]


def test_results_of_the_others_are_recorded(store: Store) -> None:
    one, two = claimed(store, 2)
    combined = CombinedStore(store, "w")
    with locked(store, one.id):
        assert combined.record([success(one), success(two)]) == [False, True]
        with pytest.raises(StoreLockedError):
            combined.record_locked([success(one)])
    assert combined.record_locked([success(one)]) == [True]
    assert store.count_by_state()[JobState.SUCCEEDED] == 2


def test_the_others_are_put_back(store: Store) -> None:
    one, two = claimed(store, 2)
    combined = CombinedStore(store, "w")
    with locked(store, one.id):
        assert combined.requeue([again(one), again(two)]) == [False, True]
        with pytest.raises(StoreLockedError):
            combined.requeue_locked([again(one)])
    assert combined.requeue_locked([again(one)]) == [True]


def test_a_sweep_takes_the_others(store: Store) -> None:
    overdue = submit(store, 2, deadline_at=NOON)
    due = claimed(store, 2, "living")
    store.requeue([again(job, not_before=NOON) for job in due])
    lost = [job.id for job in claimed(store, 2, "gone")]
    done = claimed(store, 2)
    store.record([success(job) for job in done], now=NOON)
    with store._database.transaction() as connection:
        connection.execute(text("UPDATE events SET expanded_at = occurred_at"))
    unsent = submit(store, 2)

    def sweep() -> list[int]:
        store.mark_dispatched([unsent], now=NOON)
        unstamped = {one for one, _ in store.undispatched(LATER, 100)} & set(unsent)
        return [
            len(store.expire_overdue(100, now=LATER)),
            store.release_due(100, now=LATER),
            store.expire_workers(timedelta(minutes=1), 100, max_losses=20, now=LATER).requeued,
            store.delete_over([job.id for job in done]),
            len(unstamped),
        ]

    with locked(store, overdue[0], due[0].id, lost[0], done[0].id, unsent[0]):
        assert sweep() == [1, 1, 1, 1, 1]
    assert sweep() == [1, 1, 1, 1, 0]


def test_an_index_is_built_concurrently_however_long_it_waits(store: Store) -> None:
    def limits() -> str:
        with store._database.engine.connect() as connection:
            return str(connection.scalar(text("SHOW lock_timeout")))

    assert limits() == "200ms"
    with migrating(store._database.engine) as connection:
        assert connection.scalar(text("SHOW lock_timeout")) == "5s"
        connection.commit()
        apart = connection.execution_options(isolation_level="AUTOCOMMIT")
        assert apart.scalar(text("SHOW lock_timeout")) == "0"
    assert limits() == "200ms"


def test_a_result_waits_for_its_lock_however_long_it_takes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results beside it do not."""
    monkeypatch.setattr(recording, "STORE_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(recording, "STORE_RETRY_SECONDS", 0.01)
    one, two = claimed(store, 2)
    combined = CombinedStore(store, "w")
    told: list[str] = []
    monkeypatch.setattr(recording.logger, "warning", lambda text, _: told.append(text))
    with ThreadPoolExecutor(1) as pool:
        with locked(store, one.id):
            written = pool.submit(
                recording._written,
                [success(one), success(two)],
                combined.record,
                combined.record_locked,
            )
            wait_until(lambda: len(told) >= 2 or written.done())  # it asks again and again
            assert store.get(two.id).state is JobState.SUCCEEDED
        assert written.result(30) == [True, True]
    assert store.count_by_state()[JobState.SUCCEEDED] == 2
