"""What people and programs read; nothing here changes a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from sqlalchemy import Connection, Row, func, literal, select, tuple_

from captioner.domain import Caption, Job, JobState
from captioner.store.mapping import caption_from_row, job_from_row
from captioner.store.models import CaptionRow, JobRow, in_state
from captioner.store.statements import among


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the list of jobs, newest first: just after this one."""

    created_at: datetime
    id: UUID

    @classmethod
    def after(cls, job: Job) -> Self:
        """Where the page after the one that ends with `job` begins."""
        return cls(job.created_at, job.id)


def jobs_from_rows(connection: Connection, rows: Iterable[Row[Any]]) -> list[Job]:
    """The jobs of these rows of `jobs`, with their captions."""
    rows = list(rows)
    captions: dict[UUID, list[Caption]] = defaultdict(list)
    # Captions are committed with the state: what is not `succeeded` in this row has none.
    finished = {row.id for row in rows if row.state is JobState.SUCCEEDED}
    if finished:
        query = (
            select(CaptionRow.__table__)
            .where(among(connection, CaptionRow.job_id, finished))
            .order_by(CaptionRow.rank)
        )
        for row in connection.execute(query):
            job_id, caption = caption_from_row(row)
            captions[job_id].append(caption)
    return [job_from_row(row, captions[row.id]) for row in rows]


def get_many(connection: Connection, ids: Collection[UUID]) -> list[Job]:
    """The jobs with these ids, in the order asked for; unknown ones are left out."""
    query = select(JobRow.__table__).where(among(connection, JobRow.id, ids))
    jobs = {job.id: job for job in jobs_from_rows(connection, connection.execute(query))}
    return [jobs[one] for one in ids if one in jobs]


def list_jobs(
    connection: Connection, state: JobState | None, limit: int, before: Cursor | None
) -> list[Job]:
    """One page of jobs, newest first."""
    query = select(JobRow.__table__)
    if state is not None:
        query = query.where(in_state(state))
    if before is not None:
        place = tuple_(
            literal(before.created_at, JobRow.created_at.type), literal(before.id, JobRow.id.type)
        )
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < place)
    query = query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    return jobs_from_rows(connection, connection.execute(query))


def count_by_state(connection: Connection) -> dict[JobState, int]:
    """How many jobs are in each state; all states are there."""
    query = select(JobRow.state, func.count()).group_by(JobRow.state)
    return dict.fromkeys(JobState, 0) | dict(connection.execute(query).all())


def count_unfinished(connection: Connection, most: int) -> dict[JobState, int]:
    """How many jobs are queued and processing, each counted up to `most`."""
    counts = {}
    for state in (JobState.QUEUED, JobState.PROCESSING):
        some = select(JobRow.id).where(in_state(state)).limit(most).subquery()
        counts[state] = connection.scalars(select(func.count()).select_from(some)).one()
    return counts
