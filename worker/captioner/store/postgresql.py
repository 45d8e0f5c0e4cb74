"""What a new connection to PostgreSQL is told, whatever its administrator has made the default.

A pooler, such as PgBouncer, may stand between and lend out connections by the transaction: what a
session keeps is lost there, but for the settings that the server reports. Statements that psycopg
has prepared are unknown to the connection that comes next or, worse, are another client's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

if TYPE_CHECKING:
    import psycopg

#: What a statement ends with that has waited too long for a lock.
LOCK_NOT_AVAILABLE = "55P03"
#: Of every transaction: each statement sees what is committed, and what it waited for.
ISOLATION = "READ COMMITTED"
#: Python has no year 10000, which a far time has in zones east of UTC, and psycopg reads ISO alone.
#: Poolers keep both.
_BEGINNING = """
SELECT pg_backend_pid(), set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false)
"""
#: The first is for statements that are transactions of their own.
_SERVERS_OWN = """
SELECT set_config('default_transaction_isolation', 'read committed', false),
    set_config('lock_timeout', %s, false)
"""
#: In the `info` of a connection from a pooler: what each of its transactions begins with.
_BEGINS_WITH = "captioner_begins_with"


def settle_connections(engine: Engine, lock_timeout_seconds: float) -> None:
    """Tell each new connection of psycopg's, in one round trip or two.

    Args:
        engine: from whose pool they are.
        lock_timeout_seconds: how long a statement waits for a lock; see `bound_waits`.
    """
    milliseconds = f"{lock_timeout_seconds * 1000:.0f}"

    @event.listens_for(engine, "connect")
    def settle(connection: psycopg.Connection, record: ConnectionPoolEntry) -> None:
        row = connection.execute(_BEGINNING, prepare=False).fetchone()
        # A pooler cannot tell, when a client connects, which of the server's processes will serve
        # it: the number it gives, by which statements are canceled, is one of its own.
        if row and row[0] == connection.info.backend_pid:
            connection.execute(_SERVERS_OWN, [milliseconds], prepare=False)
        else:
            connection.prepare_threshold = None
            record.info[_BEGINS_WITH] = f"SET LOCAL lock_timeout = {milliseconds}"
        connection.commit()


def waits_are_bounded(connection: Connection) -> bool:
    """Whether statements of a connection wait for locks as long as they may, and no longer."""
    return _BEGINS_WITH not in connection.info


def bound_waits(connection: Connection) -> None:
    """The same for a transaction that has just begun, whatever connection it has."""
    if beginning := connection.info.get(_BEGINS_WITH):
        connection.exec_driver_sql(beginning)


@contextlib.contextmanager
def waiting_for_locks(connection: Connection) -> Iterator[None]:
    """Have a connection wait however long a lock is held; it does not go back to its pool."""
    if not waits_are_bounded(connection):
        yield
        return
    connection.exec_driver_sql("SET lock_timeout = 0")
    connection.commit()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.invalidate()
