"""The house that the fault tests break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.house import House, open_house
from servers import RedisServer


@pytest.fixture
def house(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[House]:
    """On the run's own Redis, and each database in turn."""
    with open_house(tmp_path, redis_server, database_url) as house:
        yield house


@pytest.fixture
def breakable(tmp_path: Path, database_url: str) -> Iterator[House]:
    """On a Redis of its own, which may be stopped, killed and emptied; each database in turn."""
    with (
        RedisServer(aof=True) as redis,
        open_house(tmp_path, redis, database_url) as house,
    ):
        yield house
