"""What a new connection to PostgreSQL is told, whatever its administrator has made the default.

A pooler, such as PgBouncer, may stand between and lend out connections by the transaction: what a
session keeps is lost there, but for the settings that the server reports. Statements that psycopg
has prepared are unknown to the connection that comes next or, worse, are another client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    import psycopg

#: Of every transaction: each statement sees what is committed, and what it waited for.
ISOLATION = "READ COMMITTED"
#: Python has no year 10000, which a far time has in zones east of UTC, and psycopg reads ISO alone.
#: Poolers keep both.
_BEGINNING = """
SELECT pg_backend_pid(), set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false)
"""
#: For statements that are transactions of their own.
_SERVERS_OWN = "SELECT set_config('default_transaction_isolation', 'read committed', false)"


def settle_connections(engine: Engine) -> None:
    """Tell each new connection of psycopg's, in one round trip or two."""

    @event.listens_for(engine, "connect")
    def settle(connection: psycopg.Connection, _record: object) -> None:
        row = connection.execute(_BEGINNING, prepare=False).fetchone()
        # A pooler cannot tell, when a client connects, which of the server's processes will serve
        # it: the number it gives, by which statements are canceled, is one of its own.
        if row and row[0] == connection.info.backend_pid:
            connection.execute(_SERVERS_OWN, prepare=False)
        else:
            connection.prepare_threshold = None
        connection.commit()
