"""Machines whose clocks are wrong, clocks that are set, and hours that nobody has seen pass."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from libfaketime import get_reload_information

from captioner.events import DeliveryState
from captioner.store import Store, create_store_engine
from captioner.webhooks.endpoints import add_endpoint
from faults.house import House, Ledger, children, open_house
from processes import settings_of, wait_until
from receivers import Answer, Receiver, in_turn
from servers import RedisServer
from stored import succeeded

HOURS = ("+26h", "-26h")


def with_clock(house: House, **faketime: str) -> House:
    """The same house, whose workers from now on are on a machine with another clock."""
    _, preloaded = get_reload_information()
    return replace(house, env={**house.env, **preloaded, **faketime})


def test_clocks_of_machines_differ_by_days(
    tmp_path: Path, redis_server: RedisServer, postgres_url: str
) -> None:
    with open_house(tmp_path, redis_server, postgres_url) as house:
        by_noon = datetime.now(UTC) + timedelta(hours=12)
        requests = [replace(one, deadline_at=by_noon) for one in house.innocents(120)]
        started = time.monotonic()
        ahead, behind = (with_clock(house, FAKETIME=hours) for hours in HOURS)
        # The first one sweeps.
        with ahead.worker() as first, house.worker() as second, behind.worker() as third:
            house.jobs.submit_all(requests)
            house.wait_until_done()
            assert [worker.stop() for worker in (first, second, third)] == [0, 0, 0]
        ledger = Ledger.read(house.database)
        ledger.check(requests, "clocks that differ by days", started)
        assert ledger.succeeded() == 120
        assert set(ledger.attempts.values()) == {1}


def test_a_clock_is_set_while_two_workers_go_by_it(house: House) -> None:
    requests, started = house.innocents(160), time.monotonic()
    clock = house.folder / "clock"
    clock.write_text(HOURS[-1])
    there = with_clock(house, FAKETIME_TIMESTAMP_FILE=str(clock))
    with there.worker(FAULTY_SECONDS="0.6") as first, there.worker(FAULTY_SECONDS="0.6") as second:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        for hours in HOURS * 4:
            clock.write_text(hours)
            time.sleep(0.7)
        house.wait_until_done()
        assert [worker.stop() for worker in (first, second)] == [0, 0]
    ledger = Ledger.read(house.database)
    ledger.check(requests, "a clock that is set", started)
    assert ledger.succeeded() == 160
    assert set(ledger.attempts.values()) == {1}


def test_all_workers_are_paused_for_longer_than_their_leases(house: House) -> None:
    """As when their machine sleeps: who wakes first has heard nobody, and must not judge."""
    requests, started = house.innocents(120), time.monotonic()
    with house.worker(FAULTY_SECONDS="0.2") as first, house.worker(FAULTY_SECONDS="0.2") as second:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        workers = [first.process.pid, second.process.pid]
        stopped = [child for worker in workers for child in children(worker)]
        for worker in (first, second):
            house.freeze(worker)
        for child in stopped:
            os.kill(child, signal.SIGSTOP)
        time.sleep(5)
        for one in [*stopped, *workers]:
            os.kill(one, signal.SIGCONT)
        house.wait_until_done()
        assert [worker.stop() for worker in (first, second)] == [0, 0]
    ledger = Ledger.read(house.database)
    ledger.check(requests, "a pause of all workers", started)
    assert ledger.succeeded() == 120
    assert set(ledger.attempts.values()) == {1}


def test_webhooks_of_machines_whose_clocks_differ(
    tmp_path: Path, redis_server: RedisServer, postgres_url: str
) -> None:
    """Receivers refuse what was signed five minutes ago, or will be; what they refuse waits."""
    with (
        open_house(tmp_path, redis_server, postgres_url) as house,
        Receiver(in_turn(Answer(503), Answer(503)), by_id=True) as receiver,
        Store(create_store_engine(postgres_url)) as store,
    ):
        house.env |= {
            "CAPTIONER_WORKER__QUEUES": "events",
            "CAPTIONER_EVENTS__DELAYS_SECONDS": "0.5,0.5",
        }
        _, secret = add_endpoint(store, settings_of(house.env), receiver.url)
        ahead, behind = (with_clock(house, FAKETIME=hours) for hours in HOURS)
        with ahead.worker() as first, behind.worker() as second:
            succeeded(store, 40)
            receiver.wait_for(3 * 40)
            # What neither could verify, nor wait for by its own clock, would be here.
            wait_until(lambda: store.count_deliveries()[DeliveryState.DELIVERED] == 40)
            assert [worker.stop() for worker in (first, second)] == [0, 0]
        assert all(one.verified_by(secret) for one in receiver.received)
        assert store.endpoints()[0].failing_since is None
