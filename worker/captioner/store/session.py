"""Engines: how each database is opened, and what is said when its URL cannot be used."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import ConnectionPoolEntry

from captioner.errors import SettingsError, StoreUnavailableError
from captioner.private_files import make_private_file, make_private_folder
from captioner.store.postgresql import ISOLATION, settle_connections

if TYPE_CHECKING:
    from captioner.settings import Settings

URL_SETTING = "CAPTIONER_DATABASE__URL"
UPGRADE_COMMAND = "captioner db upgrade"
#: RETURNING came with this one.
_OLDEST_SQLITE = (3, 35, 0)
#: Unless the URL's query says otherwise; a host that does not answer is given up after 10 s.
#: One that falls silent is given up after a minute, not after the system's two hours.
_POSTGRESQL_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "captioner",
}
#: psycopg's own, which a URL could only give as texts; the first would be the end of transactions.
_NOT_OF_A_URL = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")
#: A connection that answered so recently is taken for alive: to ask it takes as long as a claim.
FRESH_SECONDS = 1.0


def engine_from_settings(settings: Settings, *, pool_size: int | None = None) -> Engine:
    """The engine of the configured database; creates the embedded database's folder.

    Nothing is opened yet. `pool_size` overrides the settings'.

    Raises:
        SettingsError: the URL cannot be used, or its driver is not installed.
        StoreUnavailableError: the data folder cannot be created.
    """
    if settings.embedded_database:
        try:
            make_private_folder(settings.data_dir)
        except OSError as error:
            raise StoreUnavailableError(
                f"folder {settings.data_dir} cannot be created: {error.strerror}; "
                "check CAPTIONER_DATA_DIR"
            ) from error
    return create_store_engine(
        settings.database_url,
        pool_size=pool_size or settings.database.pool_size,
        busy_timeout_seconds=settings.database.busy_timeout_seconds,
    )


def create_store_engine(
    url: str | URL, *, pool_size: int = 8, busy_timeout_seconds: float = 10.0
) -> Engine:
    """An engine as the store needs it, for SQLite or PostgreSQL. Nothing is opened yet.

    Args:
        url: SQLAlchemy URL, `sqlite:///…` or `postgresql+psycopg://…`.
        pool_size: most connections to PostgreSQL at a time.
        busy_timeout_seconds: how long SQLite waits for another process's write, and PostgreSQL
            for another connection's lock.

    Raises:
        SettingsError: the URL cannot be used, or its driver is not installed.
    """
    parsed = _parse(url)
    common: dict[str, Any] = {
        # Parameters hold sources with their secrets: they appear in no error and no log.
        "hide_parameters": True,
        # NaN is no JSON: PostgreSQL refuses it, SQLite would store what others cannot read.
        "json_serializer": partial(json.dumps, allow_nan=False, ensure_ascii=False),
        "json_deserializer": _loads,
    }
    try:
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(
                parsed,
                connect_args={"timeout": busy_timeout_seconds},
                pool_size=pool_size,
                **common,
            )
            _configure_sqlite(engine, busy_timeout_seconds)
            return engine
        engine = create_engine(
            parsed,
            pool_size=pool_size,
            pool_use_lifo=True,
            # Threads wait for one another: an operator can count on the number of connections.
            max_overflow=0,
            isolation_level=ISOLATION,
            connect_args={
                name: value
                for name, value in _POSTGRESQL_ARGUMENTS.items()
                if name not in parsed.query
            },
            **common,
        )
    except ImportError as error:
        raise SettingsError(
            f"{URL_SETTING} names {parsed.drivername}, whose driver is not installed; "
            "run: pip install 'captioner[postgresql]'"
        ) from error
    except sa_exc.ArgumentError as error:
        raise SettingsError(f"{URL_SETTING} names {parsed.drivername}, which is unknown") from error
    _ask_idle_connections(engine)
    if engine.driver == "psycopg":
        settle_connections(engine, busy_timeout_seconds)
    return engine


_decode = json.JSONDecoder().decode


def _loads(text: str | bytes) -> Any:
    """`json.loads`, without its search for the encoding: several of each row pass here."""
    if text in (b"{}", "{}"):
        return {}
    return _decode(text if isinstance(text, str) else str(text, "utf-8"))


def display_url(url: URL) -> str:
    """The URL as it may be shown: no password, and no query, which can hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _parse(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except (sa_exc.ArgumentError, ValueError):
        # The library's own message may hold the text, and the text a password.
        raise SettingsError(f"{URL_SETTING} is not a database URL") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise SettingsError(f"{URL_SETTING} must name SQLite or PostgreSQL, not {backend}")
    if "@" in (parsed.host or ""):
        raise SettingsError(f"{URL_SETTING} has an @ in its password: write it as %40")
    if mistaken := parsed.query.keys() & _NOT_OF_A_URL:
        raise SettingsError(
            f"{URL_SETTING} sets {', '.join(sorted(mistaken))}, which captioner sets by itself: "
            "leave it out"
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise SettingsError(
            f"{URL_SETTING} names a database in memory, which processes cannot share: name a file"
        )
    if backend == "sqlite" and sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise SettingsError(
            f"{URL_SETTING} names SQLite, but this Python has SQLite {sqlite3.sqlite_version}; "
            f"{'.'.join(map(str, _OLDEST_SQLITE))} or newer is needed"
        )
    return parsed


def _ask_idle_connections(engine: Engine) -> None:
    """Replace connections that a server or a firewall has closed while nobody used them.

    SQLAlchemy's own `pool_pre_ping` asks before every use.
    """

    @event.listens_for(engine, "checkin")
    def note(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        used_at = record.info.get("used_at")
        if used_at is None or time.monotonic() - used_at < FRESH_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise sa_exc.DisconnectionError(str(error)) from error


def _configure_sqlite(engine: Engine, busy_timeout_seconds: float) -> None:
    @event.listens_for(engine, "do_connect")
    def create(_dialect: object, _record: object, arguments: Any, parameters: Any) -> None:
        """SQLite would let everybody read it; its other files have the mode of this one."""
        if not parameters.get("uri"):
            with contextlib.suppress(OSError):  # SQLite says what is wrong
                make_private_file(Path(arguments[0]))

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # Transactions are begun below; the driver would begin them too late, and never for DDL.
        connection.isolation_level = None
        _switch_to_wal(connection, busy_timeout_seconds)
        connection.execute("PRAGMA foreign_keys=ON")
        # In WAL this survives a killed process; only a power cut may take the last commits.
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("captioner_writes", False)
        # A write lock taken at once waits its turn; a read lock that is upgraded later fails
        # without waiting as soon as somebody else has written in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _switch_to_wal(connection: Any, busy_timeout_seconds: float) -> None:
    """Once per file; SQLite does not wait for the lock that the first switch needs."""
    deadline = time.monotonic() + busy_timeout_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
