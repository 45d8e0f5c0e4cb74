"""Transactions: how each database is read, written and locked, and how its errors are told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import URL, Connection, Engine, func, select
from sqlalchemy import exc as sa_exc

from captioner.errors import SchemaError, StoreLockedError, StoreUnavailableError
from captioner.store.clock import Clock, HostClock, ServerClock
from captioner.store.postgresql import LOCK_NOT_AVAILABLE, bound_waits, waits_are_bounded
from captioner.store.session import UPGRADE_COMMAND, URL_SETTING, display_url

#: PostgreSQL's undefined_table and undefined_column.
_NO_SUCH_TABLE = ("42P01", "42703")


class Database:
    """Connections for reading and for writing, with errors in captioner's own terms.

    Thread-safe. Each context manager is one transaction, committed at its end and rolled back by
    an exception; keep them short, and never wait for anything else inside.
    """

    def __init__(self, engine: Engine) -> None:
        """`engine` is from `create_store_engine`; `close` disposes of it."""
        self.engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self.clock: Clock
        if self._sqlite:
            self.clock = HostClock()
            self._writing: Engine = engine.execution_options(captioner_writes=True)
            # SQLite has one writer, and its waiters poll; threads queue up here instead.
            self._writer: contextlib.AbstractContextManager[Any] = threading.Lock()
        else:
            self._writing = engine
            self._writer = contextlib.nullcontext()
            # A single statement is its own transaction: two round trips fewer.
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
            self.clock = ServerClock(self._time)

    @property
    def combines(self) -> bool:
        """True when one statement can write to several tables."""
        return not self._sqlite

    @property
    def locks_rows(self) -> bool:
        """True when somebody may have locked one job and not another."""
        return not self._sqlite

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """For SELECTs: one snapshot on SQLite, one per statement on PostgreSQL."""
        engine = self.engine if self._sqlite else self._single
        with translated(self.engine.url), engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """For several statements that belong together."""
        with self._writer, translated(self.engine.url), self._writing.begin() as connection:
            bound_waits(connection)
            yield connection

    @contextlib.contextmanager
    def statement(self, *, skips_locked: bool = False) -> Iterator[Connection]:
        """For exactly one writing statement, which may skip rows that are locked."""
        if not self._sqlite:
            with translated(self.engine.url), self._single.connect() as connection:
                if skips_locked or waits_are_bounded(connection):
                    yield connection
                    return
        with self.transaction() as connection:
            yield connection

    def moment(self, now: datetime | None = None) -> datetime:
        """The time to work with: the database's unless another is given. Not for a transaction."""
        return self.clock.asked_now() if now is None else now

    def _time(self) -> datetime:
        with self.reading() as connection:
            said: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return said

    def close(self) -> None:
        """Close all connections; the database can be used again after it."""
        self.engine.dispose()


@contextlib.contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn a database's errors into one clear line without a password.

    What a single row's values caused (`is_row_problem`) passes unchanged.

    Raises:
        StoreUnavailableError: the database cannot be reached, opened or written.
        StoreLockedError: another connection has held a lock for too long.
        SchemaError: a table or column is missing.
    """
    try:
        yield
    except sa_exc.TimeoutError as error:
        raise StoreUnavailableError(
            f"database {display_url(url)}: no connection became free; "
            "raise CAPTIONER_DATABASE__POOL_SIZE"
        ) from error
    except sa_exc.DBAPIError as error:
        if is_row_problem(error):
            raise
        reason = str(error.orig).strip().partition("\n")[0]
        code = getattr(error.orig, "sqlstate", None)
        if code in _NO_SUCH_TABLE or reason.startswith(("no such table", "no such column")):
            raise SchemaError(
                f"database {display_url(url)} lacks a table or column of this version; "
                f"run: {UPGRADE_COMMAND}"
            ) from error
        if code == LOCK_NOT_AVAILABLE or reason == "database is locked":
            raise StoreLockedError(
                f"database {display_url(url)}: another connection has held a lock for longer than "
                f"CAPTIONER_DATABASE__BUSY_TIMEOUT_SECONDS: {reason}"
            ) from error
        raise StoreUnavailableError(
            f"database {display_url(url)} cannot be used: {reason}; check {URL_SETTING}"
        ) from error


def is_row_problem(error: BaseException) -> bool:
    """True when the values to be written are at fault, not the database."""
    if isinstance(error, sa_exc.DBAPIError):
        return isinstance(error, sa_exc.DataError | sa_exc.IntegrityError)
    # Raised before the database was asked: by a column's type, JSON, or the driver.
    return isinstance(error, sa_exc.StatementError | ValueError | TypeError | OverflowError)
