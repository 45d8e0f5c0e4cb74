"""PostgreSQL behind a pooler, such as PgBouncer, that lends out its connections by the transaction.

What a session keeps is lost there from one transaction to the next. Statements that psycopg has
prepared are unknown to the connection that comes next or, worse, are another client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    import psycopg


def prepare_nothing_behind_poolers(engine: Engine) -> None:
    """Let psycopg prepare statements only on connections that are the server's own."""

    @event.listens_for(engine, "connect")
    def ask(connection: psycopg.Connection, _record: object) -> None:
        if is_pooled(connection):
            connection.prepare_threshold = None


def is_pooled(connection: psycopg.Connection) -> bool:
    """True where somebody stands between; costs a round trip.

    A pooler cannot tell, when a client connects, which of the server's processes will serve it: the
    number it gives, by which statements are canceled, is one of its own.
    """
    serving = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    connection.rollback()
    return serving != (connection.info.backend_pid,)
