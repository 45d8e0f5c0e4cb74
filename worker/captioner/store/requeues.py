"""Putting jobs back: attempts that ended without a result."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Update, case, update

from captioner.domain import JobState, Requeue
from captioner.store.columns import utc
from captioner.store.mapping import clean_message
from captioner.store.models import JobRow, in_state
from captioner.store.statements import among_parameter, id_list, locked, recordset
from captioner.store.transactions import Database

#: A queued job is nobody's and has no message; whatever put it back.
QUEUED_AGAIN: Mapping[str, Any] = {
    "state": JobState.QUEUED,
    "owner": None,
    "started_at": None,
    "dispatched_at": None,
    "dispatch_id": None,
}
_ERROR_FIELDS = ("error_code", "error_message", "error_retryable")


def requeue(database: Database, requeues: Sequence[Requeue], *, skip_locked: bool) -> set[UUID]:
    """Put back what passes the guard; see `Store.requeue`."""
    if not requeues:
        return set()
    if database.combines:
        with database.statement(skips_locked=skip_locked) as connection:
            ids, again = [one.job_id for one in requeues], json.dumps(_rows(requeues))
            parameters = {"ids": id_list("postgresql", ids), "again": again}
            statement = _combined_statement(skip_locked=skip_locked)
            return set(connection.scalars(statement, parameters))
    with database.transaction() as connection:
        return {one.job_id for one in requeues if _write_one(connection, one)}


def _rows(requeues: Sequence[Requeue]) -> list[dict[str, Any]]:
    return [
        {
            "job_id": str(one.job_id),
            "attempt": one.attempt,
            "not_before": one.not_before and utc(one.not_before).isoformat(),
            "failures": int(one.failure is not None),
            "crashes": int(one.crashed),
            **_error(one),
        }
        for one in requeues
    ]


def _error(one: Requeue) -> dict[str, Any]:
    if one.failure is None:
        return dict.fromkeys(_ERROR_FIELDS)
    return {
        "error_code": one.failure.code,
        "error_message": clean_message(one.failure.message),
        "error_retryable": one.failure.retryable,
    }


def _write_one(connection: Connection, one: Requeue) -> bool:
    guarded = update(JobRow).where(
        JobRow.id == one.job_id, in_state(JobState.PROCESSING), JobRow.attempt == one.attempt
    )
    values = {
        **QUEUED_AGAIN,
        "not_before": one.not_before,
        "retries": JobRow.retries + int(one.failure is not None),
        "crashes": JobRow.crashes + int(one.crashed),
        **(_error(one) if one.failure else {}),
    }
    return bool(connection.execute(guarded.values(values)).rowcount)


@functools.cache
def _combined_statement(*, skip_locked: bool) -> Update:
    jobs = JobRow.__table__.columns
    again = recordset(
        "again",
        attempt=jobs["attempt"],
        not_before=jobs["not_before"],
        failures=jobs["retries"],
        crashes=jobs["crashes"],
        **{name: jobs[name] for name in _ERROR_FIELDS},
    )
    rows = locked(among_parameter("postgresql", JobRow.id, "ids"), skip=skip_locked)
    return (
        update(JobRow)
        .where(
            JobRow.id == rows.c.id,
            rows.c.id == again.c.job_id,
            rows.c.state == JobState.PROCESSING,
            rows.c.attempt == again.c.attempt,
        )
        .values(
            **QUEUED_AGAIN,
            not_before=again.c.not_before,
            retries=JobRow.retries + again.c.failures,
            crashes=JobRow.crashes + again.c.crashes,
            # Of an attempt that did not fail, the error of the last one that did stays.
            **{
                name: case((again.c.failures > 0, again.c[name]), else_=jobs[name])
                for name in _ERROR_FIELDS
            },
        )
        .returning(JobRow.id)
    )
