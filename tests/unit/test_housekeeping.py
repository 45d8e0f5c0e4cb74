"""Beside its jobs: a worker lives, looks after them and sweeps, each in a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from captioner.celery import create_app
from captioner.domain import JobState
from captioner.errors import StoreUnavailableError
from captioner.housekeeping import Housekeeping
from captioner.settings import Settings, WorkerSettings
from captioner.store import Store, open_store
from captioner.sweeper import LEASE
from stored import claimed, submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

PATIENCE_SECONDS = 30


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, worker=WorkerSettings(heartbeat_seconds=0.02))


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with open_store(settings) as store:
        yield store


@pytest.fixture
def owner(store: Store) -> str:
    return store.register_worker("gpu0@host")


@pytest.fixture
def looked_after() -> threading.Event:
    """Set when the service was asked to look after its jobs."""
    return threading.Event()


@pytest.fixture
def housekeeping(
    settings: Settings, store: Store, owner: str, looked_after: threading.Event
) -> Housekeeping:
    return Housekeeping(create_app(settings), store, owner, looked_after.set)


def until(condition: Callable[[], object]) -> None:
    """A row changes without an event, so it is looked at now and then."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def heard_of(store: Store) -> dict[str, datetime]:
    from captioner.store.models import WorkerRow

    with store._database.reading() as connection:
        return {
            row.id: row.heartbeat_at for row in connection.execute(WorkerRow.__table__.select())
        }


def test_it_lives_and_sweeps_until_it_is_stopped(
    housekeeping: Housekeeping, store: Store, owner: str, looked_after: threading.Event
) -> None:
    first = heard_of(store)[owner]
    (job_id,) = submit(store)
    housekeeping.start()
    assert looked_after.wait(PATIENCE_SECONDS)
    until(lambda: store.get(job_id).dispatched_at)
    until(lambda: heard_of(store)[owner] > first)
    housekeeping.stop()
    last = heard_of(store)
    assert not {"heartbeat", "jobs in hand", LEASE} & {one.name for one in threading.enumerate()}
    assert heard_of(store) == last
    # Another may sweep at once.
    assert store.try_acquire(LEASE, "other", housekeeping._sweeper._lease)


def test_a_worker_that_was_given_up_goes_on_under_its_id(
    housekeeping: Housekeeping, store: Store, owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.unregister_worker(owner)
    (job,) = claimed(store, owner=owner)
    housekeeping.start()
    until(lambda: owner in heard_of(store))
    housekeeping.stop()
    assert "silent for too long" in caplog.text
    assert store.get(job.id).state is JobState.PROCESSING


def test_what_hangs_does_not_silence_the_worker(
    settings: Settings, store: Store, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, leave = threading.Semaphore(0), threading.Event()

    def hang() -> None:
        hanging.release()
        assert leave.wait(PATIENCE_SECONDS)

    housekeeping = Housekeeping(create_app(settings), store, owner, look_after=hang)
    monkeypatch.setattr(housekeeping._sweeper, "sweep", hang)
    housekeeping.start()
    for _ in range(2):
        assert hanging.acquire(timeout=PATIENCE_SECONDS)
    before = heard_of(store)[owner]
    until(lambda: heard_of(store)[owner] > before)
    leave.set()
    housekeeping.stop()


def test_a_database_that_is_away_ends_no_thread(
    housekeeping: Housekeeping,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = 0
    heartbeat = store.heartbeat

    def away(worker_id: str) -> bool:
        nonlocal calls
        calls += 1
        if calls < 6:
            raise StoreUnavailableError("database … cannot be used: away")
        return heartbeat(worker_id)

    monkeypatch.setattr(store, "heartbeat", away)
    (job_id,) = submit(store)
    housekeeping.start()
    until(lambda: store.get(job_id).dispatched_at)
    housekeeping.stop()
    assert "housekeeping will try again: database … cannot be used: away" in caplog.text
    assert "Traceback" not in caplog.text
