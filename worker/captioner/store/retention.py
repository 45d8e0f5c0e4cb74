"""Deleting what ended long ago."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    delete,
    exists,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
)

from captioner.events import DeliveryState
from captioner.store.models import DeliveryRow, EventRow, JobRow
from captioner.store.statements import among, changed, locked


class Ended(NamedTuple):
    """A job that has ended, and its place in the list of those, oldest first."""

    finished_at: datetime
    id: UUID


def ended(
    connection: Connection, finished_before: datetime, limit: int, after: Ended | None
) -> list[Ended]:
    """One page of the jobs that ended before then, oldest first."""
    query = select(JobRow.finished_at, JobRow.id).where(JobRow.finished_at < finished_before)
    if after is not None:
        moment = literal(after.finished_at, JobRow.finished_at.type)
        place = tuple_(moment, literal(after.id, JobRow.id.type))
        # The first condition is what the index knows.
        query = query.where(
            JobRow.finished_at >= moment, tuple_(JobRow.finished_at, JobRow.id) > place
        )
    query = query.order_by(JobRow.finished_at, JobRow.id).limit(limit)
    return [Ended(row.finished_at, row.id) for row in connection.execute(query)]


def delete_over(connection: Connection, ids: Collection[UUID]) -> int:
    """Delete those of these jobs that are needed no more, with captions and events; how many.

    A job that has ended is needed until its event is expanded, and until all its deliveries are
    made or given up. That is asked again once the jobs are locked, as `redeliver` locks them: what
    somebody has just asked to be delivered again is not deleted.
    """
    query = select(JobRow.id).where(among(connection, JobRow.id, ids), ~_needed())
    rows = locked(among(connection, JobRow.id, connection.scalars(query).all()), skip=True)
    over = connection.scalars(select(rows.c.id)).all()
    if not over:
        return 0
    # A statement of its own: one that had to wait for a lock would judge by what it saw before.
    return changed(connection, delete(JobRow).where(among(connection, JobRow.id, over), ~_needed()))


def _needed() -> ColumnElement[bool]:
    # The state is compared in a way that no index knows: SQLite would look, for each job, through
    # all deliveries that are pending, and not through the few of its event.
    state = type_coerce(DeliveryRow.state, String()).concat("")
    pending = exists().where(
        DeliveryRow.event_id == EventRow.id, state == DeliveryState.PENDING.value
    )
    unexpanded = EventRow.expanded_at.is_(None)
    unfinished = JobRow.finished_at.is_(None)
    return or_(unfinished, exists().where(EventRow.job_id == JobRow.id, or_(unexpanded, pending)))
