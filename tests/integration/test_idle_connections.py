"""Connections that the server has closed while they lay in the pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from captioner.domain import JobState
from captioner.errors import StoreUnavailableError
from captioner.store import Store, create_store_engine, session, upgrade


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    upgrade(postgres_url)
    engine = create_store_engine(postgres_url)
    yield engine
    engine.dispose()


def cut_off(engine: Engine) -> None:
    """End all other connections to this database, as a restart or an operator does."""
    other = create_store_engine(engine.url)
    with other.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    other.dispose()


def test_one_that_lay_idle_is_replaced_unnoticed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FRESH_SECONDS", 0.0)
    store = Store(engine)
    assert store.count_by_state()[JobState.QUEUED] == 0
    cut_off(engine)
    assert store.count_by_state()[JobState.QUEUED] == 0


def test_one_that_was_just_used_fails_once_and_in_our_own_terms(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FRESH_SECONDS", 3600.0)
    store = Store(engine)
    assert store.count_by_state()[JobState.QUEUED] == 0
    cut_off(engine)
    with pytest.raises(StoreUnavailableError):
        store.count_by_state()
    assert store.count_by_state()[JobState.QUEUED] == 0


def test_one_that_was_just_used_is_not_asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    ask = engine.dialect.do_ping

    def count(connection: object) -> bool:
        asked.append(connection)
        return ask(connection)  # type: ignore[arg-type]  # the driver's own

    monkeypatch.setattr(engine.dialect, "do_ping", count)
    store = Store(engine)
    for _ in range(5):
        store.count_by_state()
    assert not asked
    monkeypatch.setattr(session, "FRESH_SECONDS", 0.0)
    store.count_by_state()
    assert len(asked) == 1
