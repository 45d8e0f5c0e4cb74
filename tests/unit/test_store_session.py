"""Opening a database, and what is said when that fails."""

from __future__ import annotations

import sqlite3
import sys
from datetime import datetime
from pathlib import Path
from subprocess import run
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url, text

from captioner.domain import CaptionRequest
from captioner.errors import SchemaError, SettingsError, StoreUnavailableError
from captioner.settings import Settings
from captioner.source import Source
from captioner.store import (
    Store,
    create_store_engine,
    open_store,
    schema_status,
    upgrade,
    upgrade_schema,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = create_store_engine(sqlite_url)
    yield engine
    engine.dispose()


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def test_sqlite_is_set_up_on_every_connection(engine: Engine) -> None:
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            pragmas = {
                name: connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            }
            assert pragmas == {
                "journal_mode": "wal",
                "foreign_keys": 1,
                "synchronous": 1,
                "busy_timeout": 10_000,
            }


def test_a_reader_is_not_disturbed_by_a_writer(engine: Engine) -> None:
    upgrade(engine)
    with Store(engine) as store, store._database.transaction():
        assert store.list_jobs() == []


def test_a_second_writer_waits_no_longer_than_allowed(sqlite_url: str) -> None:
    upgrade(sqlite_url)
    first, second = (create_store_engine(sqlite_url, busy_timeout_seconds=0.05) for _ in range(2))
    with Store(first) as one, Store(second) as two:
        with (
            one._database.transaction(),
            pytest.raises(StoreUnavailableError, match="database is locked"),
        ):
            two.add([CaptionRequest(source=Source("/a.png"))])
        two.add([CaptionRequest(source=Source("/a.png"))])


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    upgrade(engine)
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with Store(engine) as store, pytest.raises(Exception, match="must have a time zone"):
        store.add([CaptionRequest(source=Source("/a.png"))], now=naive)


def test_the_embedded_database_is_made_with_its_folder_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    for _ in range(2):
        with open_store(settings(data_dir=folder)) as store:
            assert store.list_jobs() == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_named_database_is_upgraded_only_on_command(database_url: str) -> None:
    configured = settings(database={"url": database_url})
    with pytest.raises(SchemaError, match="run: captioner db upgrade"):
        open_store(configured)
    before, after = upgrade_schema(configured)
    assert (before.current, after.current) == (None, after.needed)
    assert schema_status(configured) == after
    with open_store(configured) as store:
        assert store.list_jobs() == []


def test_a_data_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="check CAPTIONER_DATA_DIR"):
        open_store(settings(data_dir=tmp_path / "file" / "data"))


@pytest.mark.parametrize("kind", ["folder", "no-folder", "no-database"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "no-folder":
        path = path / "nowhere" / "it"
    else:
        path.write_text("no database, but long enough to look like one" * 100)
    with pytest.raises(StoreUnavailableError, match="check CAPTIONER_DATABASE__URL") as caught:
        open_store(settings(database={"url": f"sqlite:///{path}"}))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cret@127.0.0.1:1/captions",
        "postgresql://user@127.0.0.1:1/captions?password=s3cret",
        "postgresql+psycopg://user:s3cret@no-such-host.invalid/captions",
    ],
)
def test_an_unreachable_server_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(settings(database={"url": url}))
    said = str(caught.value)
    assert "s3cret" not in said
    assert "\n" not in said
    assert "/captions cannot be used: " in said
    assert said.endswith("check CAPTIONER_DATABASE__URL")


@pytest.mark.integration
def test_a_wrong_password_is_not_printed(postgres_url: str) -> None:
    url = make_url(postgres_url).set(username="nobody", password="s3cret")
    configured = settings(database={"url": url.render_as_string(hide_password=False)})
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(configured)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://user:s3@cret@host/db", "write it as %40"),
        ("sqlite://", "a database in memory"),
        ("sqlite:///:memory:", "a database in memory"),
        ("mysql://host/db", "SQLite or PostgreSQL, not mysql"),
        ("s3cret", "is not a database URL"),
        ("postgresql+nonsense://host/db", "which is unknown"),
        ("postgresql+psycopg://host/db?prepare_threshold=0&autocommit=1", "sets autocommit, prep"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        create_store_engine(url)
    assert "cret" not in str(caught.value)
    assert "CAPTIONER_DATABASE__URL" in str(caught.value)


def test_a_missing_driver_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"pip install 'captioner\[postgresql\]'"):
        create_store_engine("postgresql+psycopg://host/db")


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(SettingsError, match=r"3\.35\.0 or newer is needed"):
        create_store_engine(sqlite_url)


def test_missing_tables_are_a_matter_of_the_schema(database_url: str) -> None:
    with (
        Store(create_store_engine(database_url)) as store,
        pytest.raises(SchemaError, match="run: captioner db upgrade"),
    ):
        store.list_jobs()


def test_the_store_needs_no_model_and_no_pictures() -> None:
    program = (
        "import sys, captioner.store\n"
        "found = {'torch', 'numpy', 'PIL', 'celery', 'alembic'} & set(sys.modules)\n"
        "assert not found, found"
    )
    ended = run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
