"""New jobs, or those that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from captioner.domain import CaptionRequest, Job
from captioner.errors import DuplicateClientKeyError, StoreUnavailableError
from captioner.store.mapping import fingerprint, job_values, new_job
from captioner.store.models import JobRow
from captioner.store.queries import jobs_from_rows
from captioner.store.statements import among, among_texts, insert_into

#: A row in our way can be deleted before it is read; that it happens again and again cannot be.
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of one request."""

    job: Job
    #: False when the job was there before: the same request, submitted again.
    created: bool


def add(
    connection: Connection, requests: Sequence[CaptionRequest], now: datetime
) -> list[Submission]:
    """Insert what is new and find the rest; see `Store.add`."""
    # Lists show the newest first: a microsecond between them keeps the order of submission.
    moments = [now + timedelta(microseconds=index) for index in range(len(requests))]
    rows = [
        job_values(request, created_at=moment)
        for request, moment in zip(requests, moments, strict=True)
    ]
    created: set[int] = set()
    found: dict[int, Row[Any]] = {}
    pending = list(range(len(requests)))
    for _ in range(_ROUNDS):
        created |= _insert(connection, rows, pending)
        pending = [index for index in pending if index not in created]
        found |= _find(connection, requests, pending)
        pending = [index for index in pending if index not in found]
        if not pending:
            break
    else:
        raise StoreUnavailableError("jobs are deleted as fast as they are submitted; try again")
    existing = dict(zip(found, jobs_from_rows(connection, found.values()), strict=True))
    return [
        Submission(new_job(request, moments[index]), created=True)
        if index in created
        else Submission(existing[index], created=False)
        for index, request in enumerate(requests)
    ]


def _insert(connection: Connection, rows: list[dict[str, Any]], pending: list[int]) -> set[int]:
    """Insert those of the rows that meet no other; the indexes of those."""
    if not pending:
        return set()
    # In one order for everybody: two submitters of the same keys must not wait for each other.
    # Of several requests for one key or id, the first of this call comes first here too.
    ordered = sorted(pending, key=lambda index: _conflict(rows[index]))
    statement = insert_into(connection, JobRow).on_conflict_do_nothing().returning(JobRow.id)
    inserted = set(connection.scalars(statement, [rows[index] for index in ordered]))
    created = set()
    for index in ordered:
        # Of two requests with one id, the first is the one that was inserted.
        if rows[index]["id"] in inserted:
            inserted.remove(rows[index]["id"])
            created.add(index)
    return created


def _conflict(row: dict[str, Any]) -> tuple[str, str]:
    """What a row may share with another submitter's: its client key, or else its id."""
    return (row["client_key"], "") if row["client_key"] else ("", row["id"].hex)


def _find(
    connection: Connection, requests: Sequence[CaptionRequest], pending: list[int]
) -> dict[int, Row[Any]]:
    """The rows that kept these requests from being inserted, by index."""
    if not pending:
        return {}
    ids = [requests[index].id for index in pending]
    keys = [key for index in pending if (key := requests[index].client_key) is not None]
    query = select(JobRow.__table__).where(
        or_(among(connection, JobRow.id, ids), among_texts(connection, JobRow.client_key, keys))
    )
    rows = connection.execute(query).all()
    by_id = {row.id: row for row in rows}
    by_key = {row.client_key: row for row in rows if row.client_key is not None}
    found: dict[int, Row[Any]] = {}
    for index in pending:
        request = requests[index]
        row = by_key.get(request.client_key) or by_id.get(request.id)
        if row is not None:
            _require_same(request, row)
            found[index] = row
    return found


def _require_same(request: CaptionRequest, row: Row[Any]) -> None:
    if row.client_key != request.client_key:
        raise DuplicateClientKeyError(
            f"the id {request.id} belongs to a job with another client key"
        )
    if row.fingerprint != fingerprint(request):
        name = f"client key {request.client_key!r}" if request.client_key else f"id {request.id}"
        raise DuplicateClientKeyError(
            f"the {name} belongs to a job with another source or other options"
        )
