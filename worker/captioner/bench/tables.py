"""What the measurement asks of the tables, and what it puts there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Engine, func, select, text

from captioner.domain import JobState
from captioner.store import create_store_engine
from captioner.store.models import JobRow
from captioner.store.transactions import translated


@contextlib.contextmanager
def disposed(url: str) -> Iterator[Engine]:
    """An engine for the block."""
    engine = create_store_engine(url, pool_size=1)
    try:
        yield engine
    finally:
        engine.dispose()


class Ended(NamedTuple):
    """What became of the jobs of one round."""

    jobs: int
    succeeded: int
    seconds: float


def unfinished(engine: Engine) -> int:
    """How many jobs have not ended."""
    states = (JobState.QUEUED, JobState.PROCESSING)
    with engine.connect() as connection:
        query = select(func.count()).where(JobRow.state.in_(states))
        return connection.scalar(query) or 0


def ended(engine: Engine, since: datetime) -> Ended:
    """What became of the jobs that were submitted since a time."""
    succeeded = func.count().filter(JobRow.state == JobState.SUCCEEDED)
    query = select(
        func.count(), succeeded, func.min(JobRow.started_at), func.max(JobRow.finished_at)
    ).where(JobRow.created_at >= since)
    with engine.connect() as connection:
        jobs, good, first, last = connection.execute(query).one()
    return Ended(jobs, good, (last - first).total_seconds() if first and last else 0.0)


def server_version(url: str) -> str:
    """Of the database server.

    Raises:
        StoreUnavailableError: it cannot be reached.
    """
    with disposed(url) as engine, translated(engine.url), engine.connect() as connection:
        return str(connection.scalar(text("SHOW server_version"))).partition(" ")[0]


def multiply_ended(url: str, count: int) -> None:
    """Add `count` ended jobs with captions and events: copies of one that is there, all older."""
    with disposed(url) as engine, engine.begin() as connection:
        for statement in _MULTIPLY:
            connection.execute(text(statement), {"count": count} if ":count" in statement else {})


#: `jsonb_populate_record` copies a row with some columns changed, whatever its other columns are.
_MULTIPLY = (
    """CREATE TEMPORARY TABLE copies ON COMMIT DROP AS
    SELECT template.id AS of, gen_random_uuid() AS id, n * interval '1 second' AS older
    FROM generate_series(1, :count) AS n,
        (SELECT id FROM jobs WHERE state = 'succeeded' LIMIT 1) AS template""",
    """INSERT INTO jobs SELECT copy.* FROM copies JOIN jobs ON jobs.id = copies.of,
    jsonb_populate_record(jobs, jsonb_build_object(
        'id', copies.id, 'created_at', created_at - older, 'dispatched_at', dispatched_at - older,
        'started_at', started_at - older, 'finished_at', finished_at - older)) AS copy""",
    """INSERT INTO captions SELECT copy.* FROM copies JOIN captions ON job_id = copies.of,
    jsonb_populate_record(captions, jsonb_build_object('job_id', copies.id)) AS copy""",
    """INSERT INTO events SELECT copy.* FROM copies JOIN events ON job_id = copies.of,
    jsonb_populate_record(events, jsonb_build_object(
        'job_id', copies.id, 'id', nextval(pg_get_serial_sequence('events', 'id')))) AS copy""",
    "ANALYZE",
)
