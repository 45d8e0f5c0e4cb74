"""Deleting what ended long ago."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, exists, or_, select

from captioner.events import DeliveryState
from captioner.store.models import DeliveryRow, EventRow, JobRow, delivery_in_state
from captioner.store.statements import among, changed, locked


def delete_finished(connection: Connection, finished_before: datetime, limit: int) -> int:
    """Delete jobs that ended before then, oldest first, with their captions and events; how many.

    A job stays until its event is expanded, and until all its deliveries are made or given up. That
    is asked again once the jobs are locked, as `redeliver` locks them: what somebody has just asked
    to be delivered again is not deleted.
    """
    pending = exists().where(
        DeliveryRow.event_id == EventRow.id, delivery_in_state(DeliveryState.PENDING)
    )
    awaited = exists().where(
        EventRow.job_id == JobRow.id, or_(EventRow.expanded_at.is_(None), pending)
    )
    old = (
        select(JobRow.id)
        .where(JobRow.finished_at < finished_before, ~awaited)
        .order_by(JobRow.finished_at)
        .limit(limit)
    )
    ids = connection.scalars(select(locked(JobRow.id.in_(old), skip=True).c.id)).all()
    # A statement of its own: one that had to wait for a lock would judge by what it saw before.
    over = delete(JobRow).where(among(connection, JobRow.id, ids), ~awaited)
    return changed(connection, over) if ids else 0
