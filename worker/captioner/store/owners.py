"""Workers that fell silent, and the jobs they held."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Connection, delete, exists, select, update
from sqlalchemy.orm import InstrumentedAttribute

from captioner.domain import JobFailure, JobState
from captioner.errors import ErrorCode
from captioner.store.endings import end
from captioner.store.models import JobRow, WorkerRow, in_state
from captioner.store.requeues import QUEUED_AGAIN
from captioner.store.statements import changed, locked

_LOST = JobFailure(ErrorCode.WORKER_LOST, "its worker stopped answering", retryable=True)


def forget_silent(connection: Connection, heard_before: datetime) -> int:
    """Delete the workers last heard of before then; how many."""
    silent = delete(WorkerRow).where(WorkerRow.heartbeat_at < heard_before)
    return connection.execute(silent).rowcount


def give_up(connection: Connection, limit: int, max_losses: int, now: datetime) -> list[UUID]:
    """End jobs in processing whose owner has no row that were lost so often; their ids."""
    rows, still = _lost(JobRow.losses + 1 >= max_losses, limit)
    return end(connection, rows, still, JobState.FAILED, _LOST, now)


def take_back(connection: Connection, limit: int, max_losses: int) -> int:
    """Put back jobs in processing whose owner has no row and that may be tried again; how many."""
    rows, still = _lost(JobRow.losses + 1 < max_losses, limit)
    return changed(
        connection,
        update(JobRow)
        .where(JobRow.id == rows.c.id, still)
        .values(
            **QUEUED_AGAIN,
            losses=JobRow.losses + 1,
            error_code=_LOST.code,
            error_message=_LOST.message,
            error_retryable=_LOST.retryable,
        ),
    )


def _lost(which: ColumnElement[bool], limit: int) -> tuple[CTE, ColumnElement[bool]]:
    """Jobs of owners without a row, locked; and what is asked again once they are.

    What another connection has locked waits for the next round, here and in all that sweeps.
    """
    lost = (
        select(JobRow.id)
        .where(in_state(JobState.PROCESSING), _gone(JobRow.owner), which)
        .limit(limit)
    )
    rows = locked(JobRow.id.in_(lost), skip=True)
    # By then a job may be somebody else's.
    return rows, (rows.c.state == JobState.PROCESSING) & _gone(rows.c.owner)


def _gone(owner: InstrumentedAttribute[str | None] | ColumnElement[str]) -> ColumnElement[bool]:
    return ~exists().where(WorkerRow.id == owner)
