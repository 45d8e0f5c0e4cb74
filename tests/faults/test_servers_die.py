"""Redis and PostgreSQL freeze, restart, die and forget: nothing is lost, nothing is twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy import false, select, text, update

from captioner.domain import JobState
from captioner.store.models import JobRow
from faults.house import House, Ledger, open_house
from processes import wait_until
from servers import PostgresServer, RedisServer

FROZEN_SECONDS = 30


def test_redis_is_frozen_for_30_seconds(breakable: House) -> None:
    requests, started = breakable.innocents(80), time.monotonic()
    with breakable.worker(FAULTY_SECONDS="0.2") as worker:
        breakable.jobs.submit_all(requests[:60])
        breakable.wait_until_busy()
        os.kill(breakable.redis.pid, signal.SIGSTOP)
        frozen_until = time.monotonic() + FROZEN_SECONDS
        breakable.jobs.submit_all(requests[60:])  # taken all the same, published later
        time.sleep(max(0.0, frozen_until - time.monotonic()))
        os.kill(breakable.redis.pid, signal.SIGCONT)
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, f"Redis frozen for {FROZEN_SECONDS} s", started)
    assert ledger.succeeded() == 80


def test_redis_is_restarted(breakable: House) -> None:
    requests, started = breakable.innocents(80), time.monotonic()
    with breakable.worker(FAULTY_SECONDS="0.2") as worker:
        breakable.jobs.submit_all(requests)
        breakable.wait_until_busy()
        breakable.redis.restart()
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, "a restart of Redis", started)
    assert ledger.succeeded() == 80


def test_redis_is_killed(breakable: House) -> None:
    requests, started = breakable.innocents(80), time.monotonic()
    with breakable.worker(FAULTY_SECONDS="0.2") as worker:
        breakable.jobs.submit_all(requests)
        breakable.wait_until_busy()
        breakable.redis.kill()
        breakable.redis.start()
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, "kill -9 of Redis", started)
    assert ledger.succeeded() == 80


def test_redis_forgets_everything(breakable: House) -> None:
    requests, started = breakable.innocents(80), time.monotonic()
    with breakable.worker(FAULTY_SECONDS="0.2") as worker:
        breakable.jobs.submit_all(requests)
        breakable.wait_until_busy()
        with Redis.from_url(breakable.redis.url) as client:
            client.flushall()
        wait_until(lambda: breakable.count(JobState.PROCESSING) == 0)
        lost = breakable.count(JobState.QUEUED)
        assert lost > 0
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, f"FLUSHALL, {lost} messages lost", started)
    assert ledger.succeeded() == 80
    assert set(ledger.attempts.values()) == {1}


def test_every_connection_to_redis_is_cut(breakable: House) -> None:
    requests, started = breakable.innocents(80), time.monotonic()
    with breakable.worker(FAULTY_SECONDS="0.2") as worker:
        breakable.jobs.submit_all(requests)
        for _ in range(3):
            breakable.wait_until_busy()
            with Redis.from_url(breakable.redis.url) as client:
                for kind in ("normal", "pubsub"):
                    client.client_kill_filter(_type=kind, skipme=True)
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, "every connection cut, three times", started)
    assert ledger.succeeded() == 80
    assert set(ledger.attempts.values()) == {1}  # nothing was captioned twice


def fill_memory(_: RedisServer, client: Redis, *, refuse: bool) -> None:
    client.config_set("maxmemory", int(refuse))


def make_replica(_: RedisServer, client: Redis, *, refuse: bool) -> None:
    client.replicaof(*(("127.0.0.1", "1") if refuse else ("NO", "ONE")))


def break_disk(redis: RedisServer, client: Redis, *, refuse: bool) -> None:
    """Its snapshots cannot be written, upon which it refuses all that would be in the next one."""
    client.config_set("save", "3600 1000000")
    redis.folder.chmod(0o500 if refuse else 0o700)
    client.bgsave()
    status = "err" if refuse else "ok"
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == status)


@pytest.mark.parametrize("fault", [fill_memory, make_replica, break_disk])
def test_redis_refuses_to_write(breakable: House, fault: Callable[..., None]) -> None:
    requests, started = breakable.innocents(80), time.monotonic()
    with (
        breakable.worker(FAULTY_SECONDS="0.2") as worker,
        Redis.from_url(breakable.redis.url) as client,
    ):
        breakable.jobs.submit_all(requests[:60])
        breakable.wait_until_busy()
        fault(breakable.redis, client, refuse=True)
        with pytest.raises(ResponseError):
            client.set("anything", 1)
        breakable.jobs.submit_all(requests[60:])  # taken all the same, published later
        time.sleep(5)
        fault(breakable.redis, client, refuse=False)
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
        assert "CRITICAL" not in worker.log
        assert worker.log.count("the broker refuses") < 10
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, f"Redis that refuses to write ({fault.__name__})", started)
    assert ledger.succeeded() == 80
    assert set(ledger.attempts.values()) == {1}


def test_new_sockets_are_given_a_timeout(house: House) -> None:
    """As Celery has it for a moment after each lost connection; here it stays."""
    requests, started = house.innocents(40), time.monotonic()
    with house.worker(FAULTY_SOCKET_SECONDS="5") as worker:
        house.jobs.submit_all(requests)
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "new sockets with a timeout", started)
    assert ledger.succeeded() == 40
    assert set(ledger.attempts.values()) == {1}


def test_a_job_takes_longer_than_the_visibility_timeout(house: House) -> None:
    requests, started = house.innocents(3), time.monotonic()
    slow = {"BROKER__VISIBILITY_TIMEOUT_SECONDS": "10", "ENGINE__HANG_SECONDS": "60"}
    with house.worker(FAULTY_SECONDS="15", **slow) as worker:
        house.jobs.submit_all(requests)
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "jobs of 15 s, redelivered after 10 s", started)
    assert ledger.succeeded() == 3
    assert set(ledger.attempts.values()) == {1}


def test_postgresql_goes_away_during_commits_and_comes_back(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with (
        PostgresServer(durable=True) as postgres,
        open_house(tmp_path, redis_server, postgres.url) as house,
    ):
        requests, started = house.innocents(120), time.monotonic()
        with house.worker(FAULTY_SECONDS="0.05") as worker:
            house.jobs.submit_all(requests)
            house.wait_until_busy()
            for end in (postgres.kill, postgres.stop):
                end()
                time.sleep(3)  # jobs come to their end meanwhile, and wait to be recorded
                postgres.start()
                house.wait_for_more()
            house.let_pass(minutes=11)
            house.wait_until_done()
            assert worker.stop() == 0
        ledger = Ledger.read(house.database)
        ledger.check(requests, "PostgreSQL killed and stopped during commits", started)
        assert ledger.succeeded() == 120


def test_postgresql_can_only_be_read_for_a_while(tmp_path: Path, redis_server: RedisServer) -> None:
    """As after a failover, or when its disk is nearly full."""
    with (
        PostgresServer() as postgres,
        open_house(tmp_path, redis_server, postgres.url) as house,
    ):
        requests, started = house.innocents(120), time.monotonic()
        with house.worker(FAULTY_SECONDS="0.05") as worker:
            house.jobs.submit_all(requests)
            house.wait_until_busy()
            for only in ("on", "off"):
                with house.database.connect() as connection:
                    commands = connection.execution_options(isolation_level="AUTOCOMMIT")
                    commands.execute(
                        text(f"ALTER SYSTEM SET default_transaction_read_only = {only}")
                    )
                    commands.execute(text("SELECT pg_reload_conf()"))
                time.sleep(5)
            house.let_pass(minutes=11)
            house.wait_until_done()
            assert worker.stop() == 0
        ledger = Ledger.read(house.database)
        ledger.check(requests, "PostgreSQL that can only be read for 5 s", started)
        assert ledger.succeeded() == 120
        assert "read-only transaction" in worker.log


def test_somebody_locks_the_jobs_for_long(house: House) -> None:
    """As building an index may, or a backup; workers live on, and nobody takes them for dead."""
    requests, started = house.innocents(120), time.monotonic()
    # All that one of them has for its jobs is one connection, which waits for the lock. The other
    # gives up waiting again and again.
    impatient = {"DATABASE__BUSY_TIMEOUT_SECONDS": "1"}
    with house.worker(DATABASE__POOL_SIZE="1") as worker, house.worker(**impatient) as other:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        with house.database.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            else:
                connection.execute(update(JobRow).where(false()).values(attempt=0))
            time.sleep(8)  # the lease is 3
        house.let_pass(minutes=11)
        house.wait_until_done()
        assert (worker.stop(), other.stop()) == (0, 0)
    ledger = Ledger.read(house.database)
    ledger.check(requests, "jobs locked for 8 s", started)
    assert ledger.succeeded() == 120
    assert set(ledger.attempts.values()) == {1}
    assert "another connection has held a lock" in other.log


def test_somebody_locks_a_few_jobs_and_leaves(
    tmp_path: Path, redis_server: RedisServer, postgres_url: str
) -> None:
    """Such as with psql, in a transaction that is never ended: the other jobs are not held up."""
    with open_house(tmp_path, redis_server, postgres_url) as house:
        requests, started = house.innocents(100), time.monotonic()
        house.jobs.submit_all(requests)
        locked = select(JobRow.id).order_by(JobRow.id).limit(5).with_for_update()
        with house.worker(DATABASE__BUSY_TIMEOUT_SECONDS="1") as worker:
            with house.database.begin() as connection:
                assert len(connection.scalars(locked).all()) == 5
                wait_until(lambda: house.count(JobState.SUCCEEDED) == 95)
                wait_until(lambda: "wait for another message" in worker.log)
            house.let_pass(minutes=11)
            house.wait_until_done()
            assert worker.stop() == 0
        ledger = Ledger.read(house.database)
        ledger.check(requests, "5 jobs locked until all others are done", started)
        assert ledger.succeeded() == 100


def test_submitting_while_redis_dies_again_and_again(breakable: House) -> None:
    requests, started = breakable.innocents(100), time.monotonic()
    over = threading.Event()

    def restart() -> None:
        while not over.wait(1.0):
            breakable.redis.kill()
            breakable.redis.start()

    with breakable.worker() as worker:
        chaos = threading.Thread(target=restart)
        chaos.start()
        for request in requests:
            breakable.jobs.submit_all([request])
        over.set()
        chaos.join()
        breakable.let_pass(minutes=11)
        breakable.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(breakable.database)
    ledger.check(requests, "submitting while Redis dies every second", started)
    assert ledger.succeeded() == 100
