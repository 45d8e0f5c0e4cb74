"""Pieces of SQL that several subjects share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    String,
    TableValuedAlias,
    Text,
    UpdateBase,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
    type_coerce,
)
from sqlalchemy import column as sql_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import TypeEngine, UserDefinedType

from captioner.domain import JobState, Lane
from captioner.store.columns import Json
from captioner.store.models import Base, JobRow


def among(
    connection: Connection, column: InstrumentedAttribute[UUID], ids: Collection[UUID]
) -> ColumnElement[bool]:
    """`column` is one of `ids`.

    One parameter however many there are: no limit on their number, and one statement for the
    database to prepare instead of one for every count.
    """
    dialect = connection.dialect.name
    return among_parameter(dialect, column, literal(id_list(dialect, ids), _id_list_type(dialect)))


def among_parameter(
    dialect: str, column: InstrumentedAttribute[UUID], ids: BindParameter[Any] | str
) -> ColumnElement[bool]:
    """`column` is one of a parameter's ids; a name stands for an `id_list` given when executed."""
    if isinstance(ids, str):
        ids = bindparam(ids, type_=_id_list_type(dialect))
    if dialect == "postgresql":
        return column == any_(ids)
    return column.in_(select(func.json_each(ids).table_valued("value").c.value))


def id_list(dialect: str, ids: Collection[UUID]) -> Any:
    """Ids as the value of one parameter."""
    if dialect == "postgresql":
        # An array as PostgreSQL reads it: the driver takes twice as long to write one.
        return f"{{{','.join(map(str, ids))}}}"
    return [one.hex for one in ids]


class _WrittenIds(UserDefinedType[str]):
    """An array of ids, given as PostgreSQL reads it.

    The parameter itself is the array. A text that the statement casts would be read again for each
    row that is looked at: a minute for 5,000 ids in 10,000 rows.
    """

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        """The type that the database is told."""
        return "UUID[]"


def _id_list_type(dialect: str) -> TypeEngine[Any]:
    return _WrittenIds() if dialect == "postgresql" else Json


def recordset(parameter: str, **columns: ColumnElement[Any]) -> TableValuedAlias:
    """A JSON array in a text as rows: `job_id`, and columns typed like those they are written to.

    For PostgreSQL, where one statement writes many rows and more than one table.
    """
    typed = (sql_column(name, like.type) for name, like in columns.items())
    rows = func.jsonb_to_recordset(cast(bindparam(parameter, type_=Text()), postgresql.JSONB()))
    return rows.table_valued(sql_column("job_id", Uuid()), *typed).render_derived(
        name=parameter, with_types=True
    )


def among_texts(
    connection: Connection, column: InstrumentedAttribute[str | None], texts: Collection[str]
) -> ColumnElement[bool]:
    """`column` is one of `texts`."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(texts), postgresql.ARRAY(String())))
    members = func.json_each(literal(list(texts), Json)).table_valued("value")
    return column.in_(select(members.c.value))


def event_type_of(state: ColumnElement[JobState], lane: ColumnElement[Lane]) -> ColumnElement[str]:
    """`captioner.events.event_type`, in SQL."""
    kind = case((lane == Lane.VIDEO, "video."), else_="caption.")
    return kind.concat(type_coerce(state, String()))


def among_numbers(
    connection: Connection, column: InstrumentedAttribute[int], numbers: Collection[int]
) -> ColumnElement[bool]:
    """`column` is one of `numbers`."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(numbers), postgresql.ARRAY(BigInteger())))
    members = func.json_each(literal(list(numbers), Json)).table_valued("value")
    return column.in_(select(members.c.value))


def locked(members: ColumnElement[bool], *, skip: bool = False) -> CTE:
    """What guards ask of jobs, locked in the order of their ids.

    Every statement that changes several jobs begins with this: two that took the same rows in
    different orders would wait for each other. A lock that had to be waited for yields the row as
    it is by then, so the guard of a transition asks these columns. It must not ask those of `jobs`
    itself: PostgreSQL would then look for `state = 'processing'` in an index that is full of dead
    entries of exactly that state (measured: 12 times slower after 40,000 jobs).

    SQLite has one writer and leaves the lock out, and has to be told not to merge the query into
    the statement: it would then look at every job in that state, and not first at the ids.

    Args:
        members: which jobs, by id only.
        skip: leave out those that another connection has locked, instead of waiting for them.

    Returns:
        Their `id`, `state`, `attempt`, `owner`, `not_before` and `deadline_at`.
    """
    columns = (
        JobRow.id,
        JobRow.state,
        JobRow.attempt,
        JobRow.owner,
        JobRow.not_before,
        JobRow.deadline_at,
    )
    query = select(*columns).where(members).order_by(JobRow.id).with_for_update(skip_locked=skip)
    return query.cte("locked").prefix_with("MATERIALIZED", dialect="sqlite")


def changed(connection: Connection, statement: UpdateBase) -> int:
    """Run a statement on `jobs`; how many rows it changed.

    Counted by hand: of a statement that begins with WITH, SQLite's driver knows no row count.
    """
    return len(connection.scalars(statement.returning(JobRow.id)).all())


def insert_into(connection: Connection, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT; both databases spell it alike."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
