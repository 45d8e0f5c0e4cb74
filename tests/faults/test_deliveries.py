"""Workers of the queue `events` die in the middle of deliveries: none is lost."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from captioner.events import DeliveryState
from captioner.store import Store
from deliverers import recorded, recorded_by
from distributions import install
from faults.deliveries import check, events_worker, happen, recording_store, states
from faults.house import House
from processes import Worker, wait_until


@pytest.fixture
def store(house: House) -> Iterator[Store]:
    with recording_store(house) as store:
        yield store


def hold(house: House) -> Path:
    path = house.folder / "hold"
    path.touch()
    return path


def hold_twelve(house: House, store: Store, count: int) -> tuple[Path, set[int]]:
    """Have a worker that runs stand still in the middle of twelve deliveries of so many events.

    Four to each target: each has taken something before, and is known to be well.
    """
    events = happen(store, 5)
    wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 15})
    held = hold(house)
    events |= happen(store, count)
    wait_until(lambda: len(recorded(house.folder, "begin")) >= 15 + 12)
    return held, events


def wait_for_more(house: House, begun: int) -> None:
    """Until some more have begun than had before."""
    wait_until(lambda: len(recorded(house.folder, "begin")) > begun + 14)


def put_to_sleep(worker: Worker, house: House) -> None:
    """Stop a process, and not while it keeps the whole database locked.

    Under load its threads run on for a while after the signal was sent.
    """
    tasks = Path(f"/proc/{worker.process.pid}/task")

    def stopped() -> bool:
        try:
            stats = [one.read_text() for one in tasks.glob("*/stat")]
        except OSError:  # a thread has ended just now
            return False
        return {one.rpartition(")")[2].split()[0] for one in stats} == {"T"}

    def stopped_outside_of_transactions() -> bool:
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(stopped)
        if not in_transaction(house.database):
            return True
        worker.process.send_signal(signal.SIGCONT)
        return False

    wait_until(stopped_outside_of_transactions)


def in_transaction(database: Engine) -> bool:
    """Whether any process has begun to write, and not ended that."""
    if database.dialect.name == "sqlite":
        with closing(sqlite3.connect(str(database.url.database), timeout=0.1)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    with database.connect() as connection:
        return bool(connection.scalar(text(others)))


def test_an_events_worker_is_killed_in_the_middle_of_deliveries(house: House, store: Store) -> None:
    with events_worker(house) as first:
        held, events = hold_twelve(house, store, 95)
        first.process.kill()
        first.process.wait()
    assert len(recorded(house.folder)) == 15
    held.unlink()
    with events_worker(house) as second:
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 300}, 120)
        assert second.stop() == 0
    begun = check(store, house, events, "kill -9 of the events worker")
    # Twice at most: those that were being made.
    assert Counter(begun.values()) == {1: 300 - 12, 2: 12}


def test_events_workers_are_killed_again_and_again(house: House, store: Store) -> None:
    events = happen(store, 60)
    settings = {"CAPTIONER_EVENTS__LEASE_SECONDS": "1", "RECORDER_SECONDS": "0.3"}
    for _ in range(4):
        begun, ended = len(recorded(house.folder, "begin")), len(recorded(house.folder))
        with events_worker(house, **settings) as victim:
            wait_for_more(house, begun)
            victim.process.kill()
            victim.process.wait()
        lost = len(recorded(house.folder, "begin")) - len(recorded(house.folder))
        assert lost > begun - ended, "it was not in the middle of any"
    with events_worker(house, **settings):
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 180}, 120)
    assert check(store, house, events, "four kills of events workers").total() >= 180 + 4


def test_an_events_worker_sleeps_longer_than_its_leases(house: House, store: Store) -> None:
    with events_worker(house) as sleeper:
        held, events = hold_twelve(house, store, 45)
        put_to_sleep(sleeper, house)
        held.unlink()
        with events_worker(house) as other:
            wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 150}, 120)
            sleeper.process.send_signal(signal.SIGCONT)
            # Awake it ends what it was at, and may not record that.
            wait_until(lambda: len(recorded(house.folder)) >= 150 + 12)
            assert other.stop() == 0
        assert sleeper.stop() == 0
    begun = Counter(check(store, house, events, "SIGSTOP of the events worker").values())
    # The twelve come twice, and each time from another process.
    assert begun == {1: 150 - 12, 2: 12}
    assert len(set(recorded_by(house.folder, "begin"))) == 150 + 12


#: A plugin whose target `poison` ends the process that delivers to it, as a crash in C would, and
#: whose target `tar` holds one for ever that delivers again what a worker was lost with.
POISON = """
import os, sys, time
from captioner import hookimpl

@hookimpl
def event_targets(event):
    return ["well", *(["poison", "tar"] if event.id <= 3 else [])]

@hookimpl
def deliver_event(event, target):
    if target == "poison":
        os._exit(3)
    while target == "tar" and sys.argv[-1] == "captioner delivery":
        time.sleep(1)
"""


def test_deliveries_that_end_or_stop_their_process_are_given_up(house: House, store: Store) -> None:
    install(house.folder / "plugins", "poison", POISON)
    settings = {
        "CAPTIONER_PLUGINS__ENABLED": "poison",
        "CAPTIONER_EVENTS__LEASE_SECONDS": "1",
        "CAPTIONER_EVENTS__ATTEMPT_TIMEOUT_SECONDS": "2",
        "CAPTIONER_EVENTS__DELAYS_SECONDS": "0,0",
        "CAPTIONER_WORKER__HEARTBEAT_SECONDS": "0.2",
    }
    assert happen(store, 20) >= {1, 2, 3}
    with events_worker(house, False, **settings) as victim:
        assert victim.process.wait(60) == 3
    with events_worker(house, False, **settings) as worker:
        over = {DeliveryState.DELIVERED: 20, DeliveryState.DEAD: 6}
        wait_until(lambda: states(store) == over or worker.process.poll() is not None, 120)
        assert worker.stop() == 0, worker.log
    dead = store.list_deliveries(DeliveryState.DEAD)
    assert {(one.target, one.last_error) for one in dead} == {
        ("poison", "the plugin ended its process: exit code 3"),
        ("tar", "the plugin did not return within 2 s"),
    }
    for delivery in dead:
        assert [one.number for one in store.get_delivery(delivery.id)[1]] == [1, 2, 3]
    # One line a minute for each hook of a plugin: it tells of the target whose turn came first.
    ended, slow = "ended its process: exit code 3", "did not return within 2 s"
    failed = "plugin 'poison' failed in deliver_event: "
    assert worker.log.count(failed) == 1
    assert f"{failed}{ended}" in worker.log or f"{failed}{slow}" in worker.log
    (counted,) = store.plugin_errors()
    assert (counted.hook, counted.errors) == ("deliver_event", 18)


def test_sigterm_under_load_leaves_nothing_leased(house: House, store: Store) -> None:
    events = happen(store, 100)
    with events_worker(house, RECORDER_SECONDS="0.1") as first:
        wait_until(lambda: len(recorded(house.folder)) >= 20)
        started = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - started < 15
    # What was begun has ended and is recorded; nothing has to wait for a lease.
    begun, ended = recorded(house.folder, "begin"), recorded(house.folder)
    assert sorted(begun) == sorted(ended)
    assert states(store)[DeliveryState.DELIVERED] == len(ended) < 300
    pending = states(store)[DeliveryState.PENDING]
    assert len(store.claim_deliveries("next", 1000, 0.001, default_room=1000)) == pending
    with events_worker(house):
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 300}, 120)
    assert max(check(store, house, events, "SIGTERM of the events worker").values()) == 1


#: A plugin that ends whoever asks it whom an event is for, beside one that does not.
POISONED_QUESTION = """
import os
from captioner import hookimpl

@hookimpl
def event_targets(event):
    os._exit(3)

@hookimpl
def deliver_event(event, target):
    pass
"""


def test_a_question_that_ends_its_process_ends_one_worker(house: House, store: Store) -> None:
    install(house.folder / "plugins", "poison", POISONED_QUESTION)
    settings = {
        "CAPTIONER_PLUGINS__ENABLED": "poison,recorder",
        "CAPTIONER_EVENTS__DELAYS_SECONDS": "0,0",
        "CAPTIONER_WORKER__HEARTBEAT_SECONDS": "0.2",
    }
    happen(store, 5)
    with events_worker(house, False, **settings) as victim:
        assert victim.process.wait(60) == 3
    with events_worker(house, **settings) as worker:
        over = {DeliveryState.DELIVERED: 15, DeliveryState.DEAD: 5}
        wait_until(lambda: states(store) == over or worker.process.poll() is not None, 120)
        # Nor does it ask itself from then on.
        happen(store, 5)
        over = {DeliveryState.DELIVERED: 30, DeliveryState.DEAD: 10}
        wait_until(lambda: states(store) == over or worker.process.poll() is not None, 120)
        assert worker.stop() == 0, worker.log
    dead = store.list_deliveries(DeliveryState.DEAD)
    assert {(one.plugin, one.target, one.last_error) for one in dead} == {
        ("poison", None, "the plugin ended its process: exit code 3")
    }
    assert "the worker that expanded events was lost: plugins are asked apart" in worker.log
    assert max(Counter(recorded(house.folder, "begin")).values()) == 1
