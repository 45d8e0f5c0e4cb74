"""The store: every operation on jobs, each in a short transaction of its own."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID

from sqlalchemy import Engine

from captioner.domain import CaptionRequest, Job, JobFailure, JobState, Lane, Outcome
from captioner.errors import InvalidRequestError, JobNotFoundError
from captioner.store import claims, queries, records, submissions, workers
from captioner.store.mapping import job_from_row
from captioner.store.queries import Cursor
from captioner.store.submissions import Submission
from captioner.store.transactions import Database


class Store:
    """Jobs, captions, events, workers and leases in SQL. Thread-safe; a context manager.

    Every method is one transaction, or one per record that had to be tried alone. `now` is the
    time to work with, the clock's by default. Any method raises `StoreUnavailableError` when the
    database cannot be reached, with nothing changed or with the change complete.
    """

    def __init__(self, engine: Engine) -> None:
        """`engine` is from `create_store_engine`; `close` disposes of it."""
        self._database = Database(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    # Submitting

    def add(
        self, requests: Sequence[CaptionRequest], *, now: datetime | None = None
    ) -> list[Submission]:
        """Insert new jobs, `queued`; one submission per request, in their order.

        A request with the id or client key of an existing job, and with the same source and
        options, is that job. Safe under concurrent submission of the same requests.

        Raises:
            DuplicateClientKeyError: the key or id belongs to another request; nothing of this
                call is inserted.
            InvalidRequestError: a request holds what cannot be stored; nothing is inserted.
        """
        with self._database.transaction() as connection:
            return submissions.add(connection, requests, _or_now(now))

    def mark_dispatched(self, ids: Collection[UUID], *, now: datetime | None = None) -> None:
        """Stamp jobs whose message the broker has taken."""
        with self._database.statement() as connection:
            submissions.mark_dispatched(connection, ids, _or_now(now))

    def undispatched(self, created_before: datetime, limit: int) -> list[tuple[UUID, Lane]]:
        """Queued jobs that never had a message, oldest first, with the lane each belongs to."""
        with self._database.reading() as connection:
            return submissions.undispatched(connection, created_before, limit)

    # Reading

    def get(self, job_id: UUID) -> Job:
        """One job with its captions.

        Raises:
            JobNotFoundError: there is none.
        """
        found = self.get_many([job_id])
        if not found:
            raise JobNotFoundError(job_id)
        return found[0]

    def get_many(self, ids: Collection[UUID]) -> list[Job]:
        """The jobs with these ids, in the order asked for; unknown ones are left out."""
        with self._database.reading() as connection:
            return queries.get_many(connection, ids)

    def list_jobs(
        self, state: JobState | None = None, *, limit: int = 50, before: Cursor | None = None
    ) -> list[Job]:
        """One page of jobs, newest first; the next begins at `Cursor.after` the last of them."""
        with self._database.reading() as connection:
            return queries.list_jobs(connection, state, limit, before)

    def count_by_state(self) -> dict[JobState, int]:
        """How many jobs are in each state; every state is there."""
        with self._database.reading() as connection:
            return queries.count_by_state(connection)

    # Working

    def claim(self, ids: Collection[UUID], owner: str, *, now: datetime | None = None) -> list[Job]:
        """Take queued jobs that are due: `processing`, `attempt` + 1, `owner`'s.

        Returns:
            Those that are now the owner's; the others are taken, canceled, not due, or unknown.
        """
        moment = _or_now(now)
        with self._database.statement() as connection:
            rows = claims.claim(connection, ids, owner, moment)
        claimed, refused = [], []
        for row in rows:
            try:
                claimed.append(job_from_row(row))
            except InvalidRequestError as error:
                # Another version's: it must end here, or it would be claimed for ever.
                failure = JobFailure(error.code, error.message, error.retryable)
                refused.append(
                    Outcome(
                        job_id=row.id, attempt=row.attempt, state=JobState.FAILED, failure=failure
                    )
                )
        self.record(refused, now=moment)
        return claimed

    def record(self, outcomes: Sequence[Outcome], *, now: datetime | None = None) -> set[UUID]:
        """Write how attempts ended: state, captions (of a success) and one event each.

        An outcome whose job is not `processing`, or is at another attempt, changes nothing. One
        that the database cannot hold is recorded as failed (`internal`) and harms no other.

        Returns:
            The ids of the jobs that were recorded.
        """
        return records.record(self._database, outcomes, _or_now(now))

    def cancel(self, ids: Collection[UUID], *, now: datetime | None = None) -> list[UUID]:
        """End jobs that are queued or processing, with one event each.

        What a worker records for one of them afterwards is refused.

        Returns:
            The ids of the jobs that were canceled; the others had ended, or are unknown.
        """
        with self._database.transaction() as connection:
            return claims.cancel(connection, ids, _or_now(now))

    # Workers and leases

    def register_worker(
        self,
        name: str,
        *,
        pid: int | None = None,
        queues: Sequence[str] = (),
        now: datetime | None = None,
    ) -> str:
        """Announce a worker process, this one by default.

        Args:
            name: for people, such as `gpu0@host`.
            pid: its process id.
            queues: what it consumes.
            now: the time to work with.

        Returns:
            Its id, unlike that of any process before: the `owner` of its claims.
        """
        with self._database.statement() as connection:
            return workers.register_worker(
                connection, name, pid=pid or os.getpid(), queues=queues, now=_or_now(now)
            )

    def heartbeat(self, worker_id: str, *, now: datetime | None = None) -> bool:
        """Say that a worker lives; False when it is no longer known and its jobs may be taken."""
        with self._database.statement() as connection:
            return workers.heartbeat(connection, worker_id, _or_now(now))

    def unregister_worker(self, worker_id: str) -> None:
        """Take a worker off the list; its jobs stay as they are."""
        with self._database.statement() as connection:
            workers.unregister_worker(connection, worker_id)

    def try_acquire(
        self, name: str, holder: str, ttl: timedelta, *, now: datetime | None = None
    ) -> bool:
        """Take the lease `name` until `ttl` from now, or renew it; False when another has it."""
        with self._database.statement() as connection:
            return workers.try_acquire(connection, name, holder, ttl, _or_now(now))

    def release(self, name: str, holder: str) -> None:
        """Give the lease `name` up, if it is still the holder's."""
        with self._database.statement() as connection:
            workers.release(connection, name, holder)


def _or_now(now: datetime | None) -> datetime:
    return now if now is not None else datetime.now(UTC)
