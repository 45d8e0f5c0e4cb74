"""Deleting what ended long ago."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, select

from captioner.store.models import JobRow
from captioner.store.statements import changed, locked


def delete_finished(connection: Connection, finished_before: datetime, limit: int) -> int:
    """Delete jobs that ended before then, oldest first, with their captions and events; how many.

    Nobody reads the outbox yet. Once deliveries do, a job has to stay until its event is expanded:
    one more condition of `old`.
    """
    old = (
        select(JobRow.id)
        .where(JobRow.finished_at < finished_before)
        .order_by(JobRow.finished_at)
        .limit(limit)
    )
    rows = locked(JobRow.id.in_(old))
    return changed(connection, delete(JobRow).where(JobRow.id.in_(select(rows.c.id))))
