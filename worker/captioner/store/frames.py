"""Frames of long videos, kept while their job runs: a later attempt need not do them again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Select, Uuid, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql

from captioner.domain import Caption, FrameCaptions, JobState, ModelInfo, Progress
from captioner.store.mapping import canonical_json
from captioner.store.models import FrameRow, JobRow, in_state
from captioner.store.statements import among, insert_into, locked, recordset
from captioner.store.transactions import Database

_FIELDS = tuple(
    column.key for column in FrameRow.__table__.columns if column.key not in ("job_id", "number")
)
_CAPTION_FIELDS = frozenset(field.name for field in dataclasses.fields(Caption))


def keep(database: Database, progress: Progress) -> bool:
    """Write how far an attempt is; see `Store.record_frames`."""
    rows = _rows(progress)
    written = canonical_json([{**row, "job_id": str(progress.job_id)} for row in rows])
    if database.combines:
        with database.statement() as connection:
            parameters = {
                "frames": written,
                "asked_id": progress.job_id,
                "asked_attempt": progress.attempt,
                "done": progress.done,
                "total": progress.total,
            }
            return connection.scalar(_combined_statement(), parameters) is not None
    with database.transaction() as connection:
        guarded = _this_attempts(progress.job_id, progress.attempt)
        counts = {"frames_done": progress.done, "frames_total": progress.total}
        if not connection.execute(guarded.values(counts)).rowcount:
            return False
        if rows:
            into = insert_into(connection, FrameRow).on_conflict_do_nothing()
            connection.execute(into, [{**row, "job_id": progress.job_id} for row in rows])
        return True


def kept(
    connection: Connection, job_id: UUID, attempt: int, model: ModelInfo
) -> list[FrameCaptions]:
    """What this model said of a job's frames before; what another one said is deleted."""
    query = select(FrameRow.__table__).where(FrameRow.job_id == job_id).order_by(FrameRow.number)
    rows = connection.execute(query).all()
    if all((row.model_id, row.model_revision) == (model.id, model.revision) for row in rows):
        return [
            FrameCaptions(
                time_seconds=row.time_seconds,
                captions=tuple(map(_caption, row.captions)),
                media_seconds=row.media_seconds,
            )
            for row in rows
        ]
    if connection.execute(_this_attempts(job_id, attempt).values(frames_done=0)).rowcount:
        forget(connection, [job_id])
    return []


def forget(connection: Connection, job_ids: Collection[UUID]) -> None:
    """Delete the frames of jobs that end, in the transaction that ends them."""
    connection.execute(delete(FrameRow).where(among(connection, FrameRow.job_id, job_ids)))


def _rows(progress: Progress) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "time_seconds": frame.time_seconds,
            "media_seconds": frame.media_seconds,
            "captions": [dataclasses.asdict(caption) for caption in frame.captions],
            "model_id": progress.model.id,
            "model_revision": progress.model.revision,
        }
        for number, frame in enumerate(progress.frames, progress.first)
    ]


def _caption(values: dict[str, Any]) -> Caption:
    # A newer version may have kept more.
    return Caption(**{name: value for name, value in values.items() if name in _CAPTION_FIELDS})


def _this_attempts(job_id: UUID, attempt: int) -> Any:
    return update(JobRow).where(
        JobRow.id == job_id, in_state(JobState.PROCESSING), JobRow.attempt == attempt
    )


@functools.cache
def _combined_statement() -> Select[UUID]:
    """One statement and one commit: frames are inserted only where the guard let the job pass."""
    columns = FrameRow.__table__.columns
    frame = recordset(
        "frames", number=columns["number"], **{name: columns[name] for name in _FIELDS}
    )
    rows = locked(JobRow.id == bindparam("asked_id", type_=Uuid()))
    passed = (
        update(JobRow)
        .where(
            JobRow.id == rows.c.id,
            rows.c.state == JobState.PROCESSING,
            rows.c.attempt == bindparam("asked_attempt"),
        )
        .values(frames_done=bindparam("done"), frames_total=bindparam("total"))
        .returning(JobRow.id)
        .cte("passed")
    )
    names = ["job_id", "number", *_FIELDS]
    written = (
        postgresql.insert(FrameRow)
        .from_select(
            names,
            select(*(frame.c[name] for name in names)).join(passed, passed.c.id == frame.c.job_id),
        )
        # The answer to a write may have been lost, and the write is made again.
        .on_conflict_do_nothing()
    )
    return select(passed.c.id).add_cte(written.cte("written"))
