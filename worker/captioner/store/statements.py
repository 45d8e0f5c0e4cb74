"""Pieces of SQL that several subjects share."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    String,
    Uuid,
    any_,
    func,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute

from captioner.store.columns import Json
from captioner.store.models import Base, JobRow


def among(
    connection: Connection, column: InstrumentedAttribute[UUID], ids: Collection[UUID]
) -> ColumnElement[bool]:
    """`column` is one of `ids`.

    One parameter however many there are: no limit on their number, and one statement for the
    database to prepare instead of one for every count.
    """
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(ids), postgresql.ARRAY(Uuid())))
    members = func.json_each(literal([one.hex for one in ids], Json)).table_valued("value")
    return column.in_(select(members.c.value))


def among_texts(
    connection: Connection, column: InstrumentedAttribute[str | None], texts: Collection[str]
) -> ColumnElement[bool]:
    """`column` is one of `texts`."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(texts), postgresql.ARRAY(String())))
    members = func.json_each(literal(list(texts), Json)).table_valued("value")
    return column.in_(select(members.c.value))


def locked(members: ColumnElement[bool]) -> CTE:
    """`id`, `state`, `attempt` and `not_before` of jobs, locked in the order of their ids.

    Every statement that changes several jobs begins with this: two that took the same rows in
    different orders would wait for each other. A lock that had to be waited for yields the row as
    it is by then, so the guard of a transition asks these columns. It must not ask those of `jobs`
    itself: PostgreSQL would then look for `state = 'processing'` in an index that is full of dead
    entries of exactly that state (measured: 12 times slower after 40,000 jobs).

    SQLite has one writer and leaves the lock out.

    Args:
        members: which jobs, by id only.
    """
    columns = (JobRow.id, JobRow.state, JobRow.attempt, JobRow.not_before)
    query = select(*columns).where(members).order_by(JobRow.id).with_for_update()
    return query.cte("locked")


def insert_into(connection: Connection, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT; both databases spell it alike."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
