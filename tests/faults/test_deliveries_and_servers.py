"""Redis or PostgreSQL is away while events are delivered: they arrive all the same, each once."""

from __future__ import annotations

import time
from pathlib import Path

from captioner.events import DeliveryState
from deliverers import recorded
from faults.deliveries import check, events_worker, happen, recording_store, states
from faults.house import House, open_house
from processes import wait_until
from servers import PostgresServer, RedisServer

#: Longer than the leases of `events_worker`, so that those end while the database is away.
AWAY_SECONDS = 4


def test_redis_is_away_while_events_are_delivered(breakable: House) -> None:
    with recording_store(breakable) as store, events_worker(breakable) as worker:
        happen(store, 20)
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 60})
        breakable.redis.kill()
        events = happen(store, 40)
        # Not a message needs to come: what is due is looked for in SQL.
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 180})
        assert not breakable.redis.running
        breakable.redis.start()
        events = happen(store, 40)
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 300})
        assert worker.stop() == 0, worker.log
        begun = check(store, breakable, events, "kill -9 of Redis while events are delivered")
    assert max(begun.values()) == 1


def test_postgresql_is_away_while_events_are_delivered(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with (
        PostgresServer(durable=True) as postgres,
        open_house(tmp_path, redis_server, postgres.url) as house,
        recording_store(house) as store,
        events_worker(house, RECORDER_SECONDS="0.05") as worker,
    ):
        events = happen(store, 150)
        for end in (postgres.kill, postgres.stop):
            wait_for_more(house)
            end()
            time.sleep(AWAY_SECONDS)  # what was begun comes to its end, and waits to be recorded
            assert len(recorded(house.folder)) < 450, "nothing was left to lose"
            postgres.start()
        wait_until(lambda: states(store) == {DeliveryState.DELIVERED: 450}, 120)
        assert worker.stop() == 0, worker.log
        times = check(store, house, events, "PostgreSQL killed and stopped under deliveries")
    # The leases ended meanwhile, but there was nobody else to take them.
    assert max(times.values()) == 1


def wait_for_more(house: House) -> None:
    """Until some more deliveries have ended."""
    before = len(recorded(house.folder))
    wait_until(lambda: len(recorded(house.folder)) > before + 20)
