"""Taking jobs, and asking whether they are still wanted."""

from __future__ import annotations

import functools
from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Update, bindparam, or_, select, update

from captioner.domain import JobState
from captioner.store.columns import UtcDateTime
from captioner.store.mapping import CLAIMED_COLUMNS
from captioner.store.models import JobRow, in_state
from captioner.store.statements import among_parameter, id_list, locked


def claim(
    connection: Connection,
    ids: Collection[UUID],
    owner: str,
    now: datetime,
    *,
    skip_locked: bool,
) -> list[Row[Any]]:
    """Take queued jobs, in one statement; the rows of those that are now the owner's.

    A claimant waits for another's claim of the same row and then finds it taken. One that skips
    locked rows has to come back for them: the other may roll back, and nobody would have the job.
    """
    dialect = connection.dialect.name
    parameters = {"ids": id_list(dialect, ids), "claimant": owner, "now": now}
    statement = _claim_statement(dialect, skip_locked=skip_locked)
    return list(connection.execute(statement, parameters).all())


@functools.cache
def _claim_statement(dialect: str, *, skip_locked: bool) -> Update:
    """Built once: building it takes longer than the database needs to run it."""
    now = bindparam("now", type_=UtcDateTime())
    rows = locked(among_parameter(dialect, JobRow.id, "ids"), skip=skip_locked)
    due = or_(rows.c.not_before.is_(None), rows.c.not_before <= now)
    in_time = or_(rows.c.deadline_at.is_(None), rows.c.deadline_at > now)
    return (
        update(JobRow)
        .where(JobRow.id == rows.c.id, rows.c.state == JobState.QUEUED, due, in_time)
        .values(
            state=JobState.PROCESSING,
            attempt=JobRow.attempt + 1,
            owner=bindparam("claimant"),
            started_at=now,
            not_before=None,
        )
        .returning(*CLAIMED_COLUMNS)
    )


def claimed_by(connection: Connection, owner: str) -> set[tuple[UUID, int]]:
    """Id and attempt of what is processing under this owner; an index holds just those."""
    query = select(JobRow.id, JobRow.attempt).where(
        in_state(JobState.PROCESSING), JobRow.owner == owner
    )
    return {(row.id, row.attempt) for row in connection.execute(query)}
