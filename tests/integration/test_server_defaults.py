"""PostgreSQL whose administrator has other defaults than its own: nobody is to notice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from captioner.domain import CaptionRequest, JobState
from captioner.source import Source
from captioner.store import Store, create_store_engine, upgrade
from servers import PostgresServer

DEFAULTS = (
    "timezone=Pacific/Kiritimati",  # 14 hours ahead
    "datestyle=German",
    "default_transaction_isolation=serializable",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with PostgresServer(options=DEFAULTS) as server:
        upgrade(server.url)
        yield server.url


def test_times_are_read_as_they_were_written(url: str) -> None:
    deadline = datetime(9998, 12, 31, 23, 59, 59, tzinfo=UTC)
    with Store(create_store_engine(url)) as store:
        request = CaptionRequest(source=Source("https://cms.example/a.jpg"), deadline_at=deadline)
        store.add([request])
        owner = store.register_worker("gpu0@host")
        (job,) = store.claim([request.id], owner)
        assert job.request.deadline_at == deadline
        assert store.get(request.id).state is JobState.PROCESSING


def test_transactions_see_what_they_waited_for(url: str) -> None:
    engine = create_store_engine(url)
    try:
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        single = engine.execution_options(isolation_level="AUTOCOMMIT")
        with single.connect() as connection:
            assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    finally:
        engine.dispose()
