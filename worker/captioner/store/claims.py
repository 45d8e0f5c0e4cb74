"""Guarded transitions that need no result: claiming and canceling."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, insert, or_, update

from captioner.domain import JobState
from captioner.events import EVENT_TYPES
from captioner.store.models import EventRow, JobRow
from captioner.store.statements import among, locked


def claim(
    connection: Connection, ids: Collection[UUID], owner: str, now: datetime
) -> list[Row[Any]]:
    """Take queued jobs, in one statement; the rows of those that are now the owner's.

    On PostgreSQL a claimant waits for another's claim of the same row and then finds it taken; it
    does not skip locked rows, because the other may roll back and nobody would have the job.
    """
    rows = locked(among(connection, JobRow.id, ids))
    due = or_(rows.c.not_before.is_(None), rows.c.not_before <= now)
    statement = (
        update(JobRow)
        .where(JobRow.id == rows.c.id, rows.c.state == JobState.QUEUED, due)
        .values(
            state=JobState.PROCESSING,
            attempt=JobRow.attempt + 1,
            owner=owner,
            started_at=now,
            not_before=None,
        )
        .returning(*JobRow.__table__.columns)
    )
    return list(connection.execute(statement))


def cancel(connection: Connection, ids: Collection[UUID], now: datetime) -> list[UUID]:
    """End jobs that have not ended, with one event each; the ids of those."""
    rows = locked(among(connection, JobRow.id, ids))
    unfinished = rows.c.state.in_([JobState.QUEUED, JobState.PROCESSING])
    statement = (
        update(JobRow)
        .where(JobRow.id == rows.c.id, unfinished)
        .values(
            state=JobState.CANCELED,
            finished_at=now,
            not_before=None,
            error_code=None,
            error_message=None,
            error_retryable=None,
        )
        .returning(JobRow.id, JobRow.attempt)
    )
    canceled = connection.execute(statement).all()
    if canceled:
        connection.execute(
            insert(EventRow),
            [
                {
                    "job_id": row.id,
                    "type": EVENT_TYPES[JobState.CANCELED],
                    "state": JobState.CANCELED,
                    "attempt": row.attempt,
                    "occurred_at": now,
                    "data": {},
                }
                for row in canceled
            ],
        )
    return [row.id for row in canceled]
