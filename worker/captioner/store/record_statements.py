"""The SQL that records outcomes: one statement for all of them, or three for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    Connection,
    Select,
    TableValuedAlias,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)

from captioner.domain import JobState, Outcome
from captioner.events import event_type
from captioner.store import frames
from captioner.store.columns import UtcDateTime
from captioner.store.mapping import CAPTION_FIELDS
from captioner.store.models import CaptionRow, EventRow, FrameRow, JobRow, in_state
from captioner.store.statements import (
    among_parameter,
    event_type_of,
    id_list,
    locked,
    recordset,
)

#: Columns of `jobs` that an outcome sets from its own values.
_RESULT_FIELDS = ("error_code", "error_message", "error_retryable", "model", "timings")
#: Those of them that its event has, too.
_EVENT_FIELDS = ("error_code", "timings")


class Prepared(NamedTuple):
    """An outcome as JSON-like rows, each with `job_id` and `attempt`."""

    outcome: Outcome
    job: dict[str, Any]
    captions: list[dict[str, Any]]

    @property
    def is_video(self) -> bool:
        """True when frames of it may have been kept."""
        return self.outcome.frames_done is not None


def write_one(connection: Connection, one: Prepared, now: datetime) -> bool:
    """Three statements, where one cannot write to several tables; False when the guard refused."""
    guarded = update(JobRow).where(
        JobRow.id == one.outcome.job_id,
        in_state(JobState.PROCESSING),
        JobRow.attempt == one.outcome.attempt,
    )
    values = {name: one.job[name] for name in _RESULT_FIELDS}
    if one.is_video:
        values["frames_done"] = one.outcome.frames_done
        if one.outcome.state is JobState.SUCCEEDED:
            values["frames_total"] = one.outcome.frames_done
    changed = guarded.values(state=one.outcome.state, finished_at=now, **values)
    lane = connection.scalar(changed.returning(JobRow.lane))
    if lane is None:
        return False
    if one.captions:
        key = {"job_id": one.outcome.job_id}
        connection.execute(
            insert(CaptionRow),
            [{name: caption[name] for name in CAPTION_FIELDS} | key for caption in one.captions],
        )
    connection.execute(
        insert(EventRow).values(
            job_id=one.outcome.job_id,
            type=event_type(one.outcome.state, lane),
            state=one.outcome.state,
            attempt=one.outcome.attempt,
            occurred_at=now,
            data={name: one.job[name] for name in _EVENT_FIELDS},
        )
    )
    if one.is_video:
        frames.forget(connection, [one.outcome.job_id])
    return True


def write_combined(
    connection: Connection,
    ids: Sequence[UUID],
    jobs: str,
    captions: str,
    now: datetime,
    *,
    videos: bool,
    skip_locked: bool,
) -> set[UUID]:
    """One statement and one commit for outcomes of different jobs.

    Args:
        connection: to PostgreSQL.
        ids: of the jobs.
        jobs: `Prepared.job` of each, as a JSON array.
        captions: all of `Prepared.captions`, as a JSON array.
        now: when they ended.
        videos: whether frames of any may have been kept.
        skip_locked: leave out jobs that another connection has locked.

    Returns:
        The ids of those that passed the guard.
    """
    parameters = {
        "ids": id_list("postgresql", ids),
        "outcomes": jobs,
        "captions": captions,
        "now": now,
    }
    statement = _combined_statement(videos=videos, skip_locked=skip_locked)
    return set(connection.scalars(statement, parameters).all())


@functools.cache
def _combined_statement(*, videos: bool, skip_locked: bool) -> Select[UUID]:
    """One statement for any number of outcomes: a round trip and a commit for all of them.

    The rows come as two JSON parameters. Only jobs that pass the guard reach `recorded`, and only
    `recorded` feeds captions and events. With `videos` it also counts and deletes frames.
    """
    jobs = JobRow.__table__.columns
    counts = {"frames_done": jobs["frames_done"]} if videos else {}
    outcome = recordset(
        "outcomes",
        attempt=jobs["attempt"],
        state=jobs["state"],
        **{name: jobs[name] for name in _RESULT_FIELDS},
        **counts,
    )
    caption = recordset(
        "captions",
        attempt=jobs["attempt"],
        **{name: CaptionRow.__table__.columns[name] for name in CAPTION_FIELDS},
    )
    now = bindparam("now", type_=UtcDateTime())
    data = func.jsonb_build_object(*chain.from_iterable((n, outcome.c[n]) for n in _EVENT_FIELDS))
    rows = locked(among_parameter("postgresql", JobRow.id, "ids"), skip=skip_locked)
    recorded = (
        update(JobRow)
        .where(
            JobRow.id == rows.c.id,
            rows.c.id == outcome.c.job_id,
            rows.c.state == JobState.PROCESSING,
            rows.c.attempt == outcome.c.attempt,
        )
        .values(
            state=outcome.c.state,
            finished_at=now,
            **{name: outcome.c[name] for name in _RESULT_FIELDS},
            **(_frame_counts(outcome) if videos else {}),
        )
        .returning(JobRow.id, JobRow.attempt, JobRow.lane, outcome.c.state, data.label("data"))
        .cte("recorded")
    )
    captions = insert(CaptionRow).from_select(
        ["job_id", *CAPTION_FIELDS],
        select(caption.c.job_id, *(caption.c[name] for name in CAPTION_FIELDS)).join(
            recorded,
            (recorded.c.id == caption.c.job_id) & (recorded.c.attempt == caption.c.attempt),
        ),
    )
    events = insert(EventRow).from_select(
        ["job_id", "type", "state", "attempt", "occurred_at", "data"],
        select(
            recorded.c.id,
            event_type_of(recorded.c.state, recorded.c.lane),
            recorded.c.state,
            recorded.c.attempt,
            now,
            recorded.c.data,
        ),
    )
    statement = select(recorded.c.id).add_cte(
        captions.cte("written_captions"), events.cte("written_events")
    )
    if videos:
        kept = delete(FrameRow).where(FrameRow.job_id == recorded.c.id)
        statement = statement.add_cte(kept.cte("deleted_frames"))
    return statement


def _frame_counts(outcome: TableValuedAlias) -> dict[str, Any]:
    """Of what succeeded, all frames that there were have captions."""
    succeeded = outcome.c.state == JobState.SUCCEEDED
    return {
        "frames_done": outcome.c.frames_done,
        "frames_total": case(
            (succeeded, outcome.c.frames_done), else_=JobRow.__table__.columns["frames_total"]
        ),
    }
