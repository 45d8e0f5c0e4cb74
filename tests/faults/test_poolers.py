"""Workers behind PgBouncer, whose connections are another's after each transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, text

from captioner.errors import StoreLockedError
from captioner.store import Store, create_store_engine, upgrade
from captioner.store.schema import migrating
from faults.house import Ledger, open_house
from pooler import PgBouncer
from servers import PostgresServer, RedisServer, connect
from stored import submit


@pytest.fixture
def pooler() -> Iterator[PgBouncer]:
    """Of two connections to a server of its own."""
    with PostgresServer() as postgres, PgBouncer(postgres, size=2) as pooler:
        yield pooler


@pytest.fixture
def engine(pooler: PgBouncer) -> Iterator[Engine]:
    """Connections to the pooler."""
    engine = create_store_engine(pooler.url)
    yield engine
    engine.dispose()


def test_workers_share_few_connections(
    pooler: PgBouncer, tmp_path: Path, redis_server: RedisServer
) -> None:
    """And lose them all once."""
    with open_house(tmp_path, redis_server, pooler.url) as house:
        requests, started = house.innocents(120), time.monotonic()
        with house.worker() as worker, house.worker() as other:
            house.jobs.submit_all(requests)
            house.wait_until_busy()
            pooler.kill()
            time.sleep(1)
            pooler.start()
            house.let_pass(minutes=11)
            house.wait_until_done()
            assert (worker.stop(), other.stop()) == (0, 0)
        ledger = Ledger.read(house.database)
        ledger.check(requests, "a pooler that is killed", started)
        assert ledger.succeeded() == 120
        assert "prepared statement" not in worker.log + other.log


def test_who_migrates_leaves_no_lock_to_others(pooler: PgBouncer, engine: Engine) -> None:
    """Which would keep everybody from migrating for as long as the pooler keeps the connection."""
    upgrade(pooler.url)
    with engine.connect() as another:
        with migrating(engine):
            # On the connection that was used last.
            another.execute(text("SELECT 1"))
        another.rollback()
    with connect(pooler.behind.url) as server:
        left = server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert left.fetchone() == (0,)


def test_others_wait_while_somebody_migrates(pooler: PgBouncer, engine: Engine) -> None:
    with migrating(engine), connect(pooler.behind.url) as server:
        locked = server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert locked.fetchone() == (1,)


def test_a_connection_is_told_the_zone_for_all_its_transactions(engine: Engine) -> None:
    """The server's is Kathmandu's; what else runs meanwhile is on the same few connections."""
    with engine.connect() as one, engine.connect() as other:
        zones = set()
        for connection in [one, other] * 3:
            zones.add(connection.scalar(text("SHOW timezone")))
            connection.rollback()
    assert zones == {"UTC"}


def test_waiting_for_locks_has_an_end_there_too(pooler: PgBouncer) -> None:
    upgrade(pooler.url)
    engines = [create_store_engine(pooler.url, busy_timeout_seconds=0.2) for _ in range(2)]
    with Store(engines[0]) as store, engines[1].begin() as connection:
        (job_id,) = submit(store)
        connection.execute(text("SELECT * FROM jobs FOR UPDATE"))
        assert store.claim([job_id], "w", skip_locked=True) == []
        for wait in (
            lambda: store.claim([job_id], "w"),
            lambda: store.cancel([job_id]),
        ):
            with pytest.raises(StoreLockedError):
                wait()
        connection.rollback()
        assert len(store.claim([job_id], "w")) == 1
    engines[1].dispose()


def test_statements_are_prepared_where_nobody_stands_between(
    pooler: PgBouncer, engine: Engine
) -> None:
    direct = create_store_engine(pooler.behind.url)
    thresholds = []
    for one in (direct, engine):
        with one.connect() as connection:
            driver = cast(psycopg.Connection, connection.connection.driver_connection)
            assert driver.info.transaction_status is TransactionStatus.IDLE
            thresholds.append(driver.prepare_threshold)
    direct.dispose()
    assert thresholds == [5, None]
