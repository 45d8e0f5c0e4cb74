"""Jobs that end without a result: canceled, expired, or given up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Connection, insert, select, update

from captioner.domain import JobFailure, JobState
from captioner.errors import ErrorCode
from captioner.events import event_type
from captioner.store import frames
from captioner.store.mapping import clean_message
from captioner.store.models import EventRow, JobRow, in_state
from captioner.store.statements import among, locked

_TOO_LATE = JobFailure(
    ErrorCode.DEADLINE_EXCEEDED, "the deadline passed before the job was run", retryable=False
)


def cancel(connection: Connection, ids: Collection[UUID], now: datetime) -> list[UUID]:
    """End jobs that have not ended, with one event each; the ids of those."""
    rows = locked(among(connection, JobRow.id, ids))
    unfinished = rows.c.state.in_([JobState.QUEUED, JobState.PROCESSING])
    return end(connection, rows, unfinished, JobState.CANCELED, None, now)


def expire_overdue(connection: Connection, limit: int, now: datetime) -> list[UUID]:
    """End queued jobs whose deadline has passed, with one event each; the ids of those."""
    overdue = (
        select(JobRow.id)
        .where(in_state(JobState.QUEUED), JobRow.deadline_at <= now)
        .order_by(JobRow.deadline_at)
        .limit(limit)
    )
    rows = locked(JobRow.id.in_(overdue), skip=True)
    still = rows.c.state == JobState.QUEUED
    return end(connection, rows, still, JobState.EXPIRED, _TOO_LATE, now)


def refuse(connection: Connection, job_id: UUID, failure: JobFailure, now: datetime) -> None:
    """End a queued job that cannot be tried, with one event."""
    rows = locked(JobRow.id == job_id)
    said = replace(failure, message=clean_message(failure.message))
    end(connection, rows, rows.c.state == JobState.QUEUED, JobState.FAILED, said, now)


def end(
    connection: Connection,
    rows: CTE,
    guard: ColumnElement[bool],
    state: JobState,
    failure: JobFailure | None,
    now: datetime,
) -> list[UUID]:
    """End those of the `locked` jobs that pass the guard, with one event each.

    Returns:
        The ids of those.
    """
    statement = (
        update(JobRow)
        .where(JobRow.id == rows.c.id, guard)
        .values(
            state=state,
            finished_at=now,
            not_before=None,
            error_code=failure and failure.code,
            error_message=failure and failure.message,
            error_retryable=failure and failure.retryable,
        )
        .returning(JobRow.id, JobRow.attempt, JobRow.lane, JobRow.frames_done)
    )
    ended = connection.execute(statement).all()
    if ended:
        connection.execute(
            insert(EventRow),
            [
                {
                    "job_id": row.id,
                    "type": event_type(state, row.lane),
                    "state": state,
                    "attempt": row.attempt,
                    "occurred_at": now,
                    "data": {"error_code": failure.code, "timings": {}} if failure else {},
                }
                for row in ended
            ],
        )
    if videos := [row.id for row in ended if row.frames_done is not None]:
        frames.forget(connection, videos)
    return [row.id for row in ended]
