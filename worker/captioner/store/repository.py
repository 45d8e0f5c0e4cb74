"""The store: every operation on jobs, each in a short transaction of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Self
from uuid import UUID

from captioner.domain import (
    CaptionRequest,
    ClaimedJob,
    FrameCaptions,
    Job,
    JobFailure,
    JobState,
    ModelInfo,
    Outcome,
    Progress,
    Requeue,
)
from captioner.errors import InvalidRequestError, JobNotFoundError
from captioner.store import claims, endings, frames, queries, records, submissions
from captioner.store.deliveries import Deliveries
from captioner.store.endpoints import Endpoints
from captioner.store.mapping import claimed_from_row
from captioner.store.queries import Cursor
from captioner.store.requeues import requeue
from captioner.store.submissions import Submission
from captioner.store.upkeep import Upkeep


class Store(Deliveries, Endpoints, Upkeep):
    """Jobs, captions, events, workers and leases in SQL. Thread-safe; a context manager.

    Every method is one short transaction; `record` and `expire_workers` can be a few. `now` is the
    time to work with, by default the database's, whatever the clock of this machine says.
    Any method raises `StoreUnavailableError` when the database cannot be reached, with nothing
    changed or with the change complete, and `StoreLockedError`, which is one, when another
    connection holds a lock for too long, with nothing changed.
    """

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
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return submissions.add(connection, requests, moment)

    def add_refused(self, request: CaptionRequest, failure: JobFailure) -> bool:
        """Insert a job that has failed before it was tried, with its event; nobody can claim it.

        Returns:
            False when there is such a job: it stays as it is.

        Raises:
            DuplicateClientKeyError, InvalidRequestError: as of `add`.
        """
        moment = self._database.moment()
        with self._database.transaction() as connection:
            (submission,) = submissions.add(connection, [request], moment)
            if submission.created:
                endings.refuse(connection, request.id, failure, moment)
            return submission.created

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

    def count_unfinished(self, most: int) -> dict[JobState, int]:
        """How many jobs are queued and processing, each counted up to `most`: a cheap look."""
        with self._database.reading() as connection:
            return queries.count_unfinished(connection, most)

    # Working

    @property
    def skips_locked(self) -> bool:
        """Whether `skip_locked` makes a difference with this database."""
        return self._database.locks_rows

    def claim(
        self,
        ids: Collection[UUID],
        owner: str,
        *,
        now: datetime | None = None,
        skip_locked: bool = False,
    ) -> list[ClaimedJob]:
        """Take queued jobs that are due: `processing`, `attempt` + 1, `owner`'s.

        Returns:
            Those that are now the owner's; the others are taken, canceled, not due, past their
            deadline, or unknown, or locked by another connection, if those are skipped.
        """
        moment = self._database.moment(now)
        with self._database.statement(skips_locked=skip_locked) as connection:
            rows = claims.claim(connection, ids, owner, moment, skip_locked=skip_locked)
        claimed, refused = [], []
        for row in rows:
            try:
                claimed.append(claimed_from_row(row))
            except InvalidRequestError as error:
                # Another version's: it must end here, or it would be claimed for ever.
                failure = JobFailure(error.code, error.message, error.retryable)
                refused.append(
                    Outcome(
                        job_id=row.id,
                        attempt=row.attempt,
                        state=JobState.FAILED,
                        failure=failure,
                        frames_done=row.frames_done,
                    )
                )
        self.record(refused, now=moment)
        return claimed

    def record(
        self,
        outcomes: Sequence[Outcome],
        *,
        now: datetime | None = None,
        skip_locked: bool = False,
    ) -> set[UUID]:
        """Write how attempts ended: state, captions (of a success) and one event each.

        An outcome whose job is not `processing`, or is at another attempt, changes nothing. One
        that the database cannot hold is recorded as failed (`internal`) and harms no other.

        Returns:
            The ids of the jobs that were recorded.
        """
        moment = self._database.moment(now)
        return records.record(self._database, outcomes, moment, skip_locked=skip_locked)

    def requeue(self, requeues: Sequence[Requeue], *, skip_locked: bool = False) -> set[UUID]:
        """Put attempts back that ended without a result: `queued`, nobody's, without a message.

        An attempt that failed counts as a retry, and its error is kept for people to see; one that
        crashed counts as a crash. As with `record`, a job that is not `processing`, or is at
        another attempt, stays as it is.

        Returns:
            The ids of the jobs that were put back.
        """
        return requeue(self._database, requeues, skip_locked=skip_locked)

    def record_frames(self, progress: Progress) -> bool:
        """Keep frames of a video that has not ended, for its next attempt, and count them.

        They are deleted when the job ends, in the same transaction. Written twice they are one.

        Returns:
            False when the job is not processing, or is at another attempt: nothing was written.

        Raises:
            ValueError: a caption cannot be stored; nothing was written.
        """
        return frames.keep(self._database, progress)

    def recorded_frames(self, job: ClaimedJob | Job, model: ModelInfo) -> list[FrameCaptions]:
        """The frames that were recorded for a claimed job, in the order in which they came.

        Those of another model, or of another revision of this one, are of no use: they are deleted.
        """
        with self._database.transaction() as connection:
            return frames.kept(connection, job.id, job.attempt, model)

    def claimed_by(self, owner: str) -> set[tuple[UUID, int]]:
        """Id and attempt of every job that is processing under this owner."""
        with self._database.reading() as connection:
            return claims.claimed_by(connection, owner)

    def cancel(self, ids: Collection[UUID], *, now: datetime | None = None) -> list[UUID]:
        """End jobs that are queued or processing, with one event each.

        What a worker records for one of them afterwards is refused.

        Returns:
            The ids of the jobs that were canceled; the others had ended, or are unknown.
        """
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return endings.cancel(connection, ids, moment)
