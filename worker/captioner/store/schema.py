"""The schema's version: upgrading, and refusing to run on another one.

Alembic is imported where it is used: it takes a quarter of a second that a submission need not.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import URL, Connection, Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from captioner.errors import SchemaError
from captioner.store.postgresql import LOCK_NOT_AVAILABLE, waiting_for_locks
from captioner.store.session import (
    UPGRADE_COMMAND,
    create_store_engine,
    display_url,
)
from captioner.store.transactions import translated

if TYPE_CHECKING:
    from alembic.config import Config

_PACKAGE = Path(__file__).parents[1]
#: Any number that no other program locks in the same database.
_LOCK = 0x636170_74696F6E
#: How long one process waits for another's migrations.
_WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.1
#: How long a migration waits for a table that somebody holds: whoever comes after waits behind it,
#: and a backup may take an hour.
LOCK_SECONDS = 5.0


def upgrade(target: str | URL | Engine, revision: str = "head") -> None:
    """Bring the schema to `revision`; processes that do so at once take turns.

    Raises:
        StoreUnavailableError: the database cannot be reached or opened.
        SchemaError: the database is at a revision this version does not know, or another process
            has been migrating for too long.
    """
    from alembic import command

    with _engine(target) as engine:
        _require_known(engine)
        with migrating(engine) as connection:
            command.upgrade(alembic_config(connection), revision)


def downgrade(target: str | URL | Engine, revision: str = "base") -> None:
    """Take the schema back to `revision`, and with it what the later tables held. For tests."""
    from alembic import command

    with _engine(target) as engine, migrating(engine) as connection:
        command.downgrade(alembic_config(connection), revision)


def current(target: str | URL | Engine) -> str | None:
    """The revision the database is at; None when it has no tables of ours.

    Raises:
        StoreUnavailableError: the database cannot be reached or opened.
    """
    from alembic.runtime.migration import MigrationContext

    with _engine(target) as engine, translated(engine.url), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The revision that this version needs."""
    return _revisions()[0]


def require_current(target: str | URL | Engine) -> None:
    """Refuse a database whose schema is not this version's.

    Raises:
        StoreUnavailableError: the database cannot be reached or opened.
        SchemaError: the schema is older or newer; the text says what to run.
    """
    with _engine(target) as engine:
        found, needed, name = _require_known(engine), head(), display_url(engine.url)
    if found is None:
        raise SchemaError(f"database {name} has no captioner tables yet; run: {UPGRADE_COMMAND}")
    if found != needed:
        raise SchemaError(
            f"database {name} is at schema {found}, this version needs {needed}; "
            f"run: {UPGRADE_COMMAND}"
        )


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file; env.py uses `connection` when there is one."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextlib.contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """A connection to migrate with, while no other process does.

    Raises:
        StoreUnavailableError: the database cannot be reached or opened.
        SchemaError: another process has been migrating for too long.
    """
    run = _migrating_sqlite if engine.dialect.name == "sqlite" else _migrating_postgresql
    with translated(engine.url), run(engine) as connection:
        yield connection


@contextlib.contextmanager
def _migrating_sqlite(engine: Engine) -> Iterator[Connection]:
    """All migrations in one transaction that holds the write lock from its beginning."""
    with engine.execution_options(captioner_writes=True).connect() as connection:
        # Past SQLAlchemy, which would begin a transaction.
        driver: sqlite3.Connection = cast(Any, connection.connection.driver_connection)
        # Because of the settings below it does not go back to the pool.
        connection.detach()
        driver.execute(f"PRAGMA busy_timeout={_WAIT_SECONDS * 1000:.0f}")
        # Alembic changes a table by copying it and dropping the old one, and that would delete
        # all rows that refer to it. Checked below; cannot be switched inside a transaction.
        driver.execute("PRAGMA foreign_keys=OFF")
        with connection.begin():
            yield connection
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise SchemaError("the migration would leave rows that refer to missing ones")


@contextlib.contextmanager
def _migrating_postgresql(engine: Engine) -> Iterator[Connection]:
    """Under an advisory lock of a second connection, so that migrations may commit in between.

    The lock is its transaction's: behind a pooler no session lasts longer. Read committed, such a
    transaction keeps no snapshot, for whose end an index that is built concurrently would wait.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    with engine.begin() as lock:
        lock.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        # Asked for again and again: waiting inside a statement would hold up an index that the
        # other builds concurrently.
        while not lock.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
            if time.monotonic() > deadline:
                raise SchemaError(
                    f"another process has been migrating {display_url(engine.url)} "
                    f"for {_WAIT_SECONDS:.0f} s"
                )
            time.sleep(_POLL_SECONDS)
        # An index that is built concurrently, in no transaction, may wait: nobody waits behind it.
        with engine.connect() as connection, waiting_for_locks(connection):
            event.listen(connection, "begin", _be_brief)
            try:
                yield connection
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                    raise
                raise SchemaError(
                    f"database {display_url(engine.url)} was not upgraded to the end: somebody, "
                    f"such as a backup, held a table for more than {LOCK_SECONDS:g} s, and all "
                    f"workers would have waited; when that has ended, run: {UPGRADE_COMMAND}"
                ) from error


def _be_brief(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000:.0f}")


def _require_known(engine: Engine) -> str | None:
    found = current(engine)
    if found is not None and found not in _revisions():
        raise SchemaError(
            f"database {display_url(engine.url)} is at schema {found}, which this version does "
            "not know: it was upgraded by a newer captioner; install that one"
        )
    return found


def _revisions() -> list[str]:
    """All revisions, the newest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config())
    return [script.revision for script in scripts.walk_revisions()]


def _scripts() -> Path:
    """The migrations: inside the package in a wheel, beside it in a checkout."""
    packed = _PACKAGE / "_migrations"
    return packed if packed.is_dir() else _PACKAGE.parents[1] / "migrations"


@contextlib.contextmanager
def _engine(target: str | URL | Engine) -> Iterator[Engine]:
    if isinstance(target, Engine):
        yield target
        return
    engine = create_store_engine(target)
    try:
        yield engine
    finally:
        engine.dispose()
