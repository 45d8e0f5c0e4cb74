"""Redis with a replica and a sentinel: another becomes the master, and workers find it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from faults.house import Ledger, open_house
from processes import wait_until
from sentinels import RedisSentinel
from servers import RedisServer


@dataclass(frozen=True)
class Pair:
    """A master, its replica, and who decides which of them is which."""

    master: RedisServer
    replica: RedisServer
    sentinel: RedisSentinel

    def replicated(self) -> bool:
        """Whether the replica has what the master has, and the sentinel knows it."""
        with Redis.from_url(self.master.url) as master, Redis(port=self.sentinel.port) as sentinel:
            state = master.info("replication").get("slave0", {}).get("state")
            return state == "online" and len(sentinel.sentinel_slaves("mymaster")) == 1

    def switched(self) -> bool:
        """Whether the replica is the master by now."""
        with Redis(port=self.sentinel.port) as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name("mymaster")
        return bool(port == self.replica.port)

    def hand_over(self) -> None:
        """Make the replica the master, and the master a replica."""
        with Redis(port=self.sentinel.port) as sentinel:
            sentinel.sentinel_failover("mymaster")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        RedisServer() as master,
        RedisServer(options=("--replicaof", "127.0.0.1", str(master.port))) as replica,
        RedisSentinel(master) as sentinel,
    ):
        pair = Pair(master, replica, sentinel)
        wait_until(pair.replicated, 60)  # a sentinel asks a master for its replicas every 10 s
        yield pair


@pytest.mark.parametrize("how", ["handed over", "killed"])
def test_another_redis_becomes_the_master(
    pair: Pair, tmp_path: Path, database_url: str, how: str
) -> None:
    with open_house(tmp_path, pair.sentinel, database_url) as house:
        requests, started = house.innocents(80), time.monotonic()
        with house.worker(FAULTY_SECONDS="0.2") as worker:
            house.jobs.submit_all(requests[:60])
            house.wait_until_busy()
            if how == "killed":
                pair.master.kill()
            else:
                pair.hand_over()
            wait_until(pair.switched, 60)
            house.jobs.submit_all(requests[60:])
            house.let_pass(minutes=11)  # what was not copied yet is lost
            house.wait_until_done()
            assert worker.stop() == 0
        ledger = Ledger.read(house.database)
        ledger.check(requests, f"a master that is {how}", started)
        assert ledger.succeeded() == 80
        assert set(ledger.attempts.values()) == {1}
