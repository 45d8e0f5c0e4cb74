"""The way of queued jobs to the broker: what has a message, what has none, what waits for its time.

A message may carry many jobs, and all of them bear its `dispatch_id`. That is how queued jobs can
be compared with the length of the broker's list, which counts messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import (
    Connection,
    Uuid,
    bindparam,
    column,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from captioner.domain import JobState, Lane
from captioner.store.models import JobRow, in_state
from captioner.store.statements import among, changed, locked


def mark_dispatched(
    connection: Connection, messages: Sequence[Sequence[UUID]], now: datetime
) -> None:
    """Stamp the jobs of each message, except those that wait for their time again by now.

    What is locked is left out: most likely it is just being claimed, and a job that stays queued
    without a stamp has a message sent again.
    """
    sent = [(job_id, dispatch) for ids in messages for dispatch in (uuid4(),) for job_id in ids]
    if connection.dialect.name == "sqlite":
        connection.execute(
            update(JobRow)
            .where(JobRow.id == bindparam("job_id"), JobRow.not_before.is_(None))
            .values(dispatched_at=now, dispatch_id=bindparam("dispatch")),
            [{"job_id": job_id, "dispatch": dispatch} for job_id, dispatch in sent],
        )
        return
    ids, dispatches = (literal(list(ids), ARRAY(Uuid())) for ids in zip(*sent, strict=True))
    pairs = (
        func.unnest(ids, dispatches)
        .table_valued(column("job_id", Uuid()), column("dispatch", Uuid()))
        .render_derived(name="sent")
    )
    rows = locked(among(connection, JobRow.id, [job_id for job_id, _ in sent]), skip=True)
    connection.execute(
        update(JobRow)
        .where(JobRow.id == rows.c.id, rows.c.id == pairs.c.job_id, rows.c.not_before.is_(None))
        .values(dispatched_at=now, dispatch_id=pairs.c.dispatch)
    )


def undispatched(
    connection: Connection, created_before: datetime, limit: int
) -> list[tuple[UUID, Lane]]:
    """Queued jobs that need a message now, oldest first."""
    query = (
        select(JobRow.id, JobRow.lane)
        .where(
            in_state(JobState.QUEUED),
            JobRow.dispatched_at.is_(None),
            JobRow.not_before.is_(None),
            JobRow.created_at < created_before,
        )
        .order_by(JobRow.created_at, JobRow.id)
        .limit(limit)
    )
    return [(row.id, row.lane) for row in connection.execute(query)]


def release_due(connection: Connection, limit: int, now: datetime) -> int:
    """Make retries whose time has come like any job without a message; how many.

    A step of its own, so that the claim need not ask the clock again: that of another machine may
    be behind, and the message would be refused and gone.
    """
    due = (
        select(JobRow.id)
        .where(in_state(JobState.QUEUED), JobRow.not_before <= now)
        .order_by(JobRow.not_before)
        .limit(limit)
    )
    rows = locked(JobRow.id.in_(due), skip=True)
    statement = (
        update(JobRow)
        .where(JobRow.id == rows.c.id, rows.c.state == JobState.QUEUED, rows.c.not_before <= now)
        .values(not_before=None, dispatched_at=None, dispatch_id=None)
    )
    return changed(connection, statement)


def count_dispatches(connection: Connection, lane: Lane, before: datetime) -> int:
    """How many messages sent before then a lane's queued jobs are in."""
    messages = (
        select(JobRow.dispatched_at, JobRow.dispatch_id)
        .where(
            in_state(JobState.QUEUED),
            JobRow.dispatched_at.is_not(None),
            JobRow.lane == lane,
            JobRow.dispatched_at < before,
        )
        .distinct()
    )
    return connection.scalar(select(func.count()).select_from(messages.subquery())) or 0


def newest_at_work(connection: Connection, lane: Lane) -> datetime | None:
    """When the newest message of a lane's jobs in processing was sent."""
    return connection.scalar(
        select(func.max(JobRow.dispatched_at)).where(
            in_state(JobState.PROCESSING), JobRow.lane == lane
        )
    )


def oldest_dispatches(
    connection: Connection, lane: Lane, before: datetime, limit: int
) -> dict[UUID, list[UUID]]:
    """The queued jobs of a lane's oldest messages by message, at most `limit` jobs."""
    query = (
        select(JobRow.dispatch_id, JobRow.id)
        .where(
            in_state(JobState.QUEUED),
            JobRow.dispatched_at.is_not(None),
            JobRow.lane == lane,
            JobRow.dispatched_at < before,
        )
        .order_by(JobRow.dispatched_at, JobRow.dispatch_id)
        .limit(limit)
    )
    messages: dict[UUID, list[UUID]] = {}
    for row in connection.execute(query):
        messages.setdefault(row.dispatch_id, []).append(row.id)
    return messages
