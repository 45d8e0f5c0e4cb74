"""One worker's claims, records and requeues, those of all its threads combined."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, islice
from typing import TypeVar
from uuid import UUID

from captioner.domain import ClaimedJob, Outcome, Requeue
from captioner.store.combining import Combiner
from captioner.store.repository import Store
from captioner.store.transactions import is_row_problem

#: Measured with 96 threads and a model that answers at once: 8 ms 2.4, 20 ms 1.9 CPU ms a job.
LINGER_SECONDS = 0.02
#: Jobs of one message that do not wait for those of others.
MANY = 8
#: Threads that wait for locks at once: each has one of the few connections while it does.
MOST_WAITING = 2

Ending = TypeVar("Ending", Outcome, Requeue)
Item = TypeVar("Item")
Result = TypeVar("Result")


class CombinedStore:
    """`Store.claim`, `record` and `requeue` for the threads of one worker.

    Concurrent calls share one statement and one commit. While jobs are in hand others are expected
    to come, and a statement waits for them a few milliseconds; a worker with one job at a time
    never waits. Thread-safe.

    What is shared must not wait for one job that somebody else has locked, so locked ones are
    skipped. For each of the three there is another method that waits, to be called for what the
    first has left out.
    """

    def __init__(self, store: Store, owner: str, *, linger_seconds: float = LINGER_SECONDS) -> None:
        """`owner` is this worker's id in `store`."""
        self._store = store
        self._owner = owner
        #: Claimed here, and neither recorded, put back nor forgotten yet.
        self._in_hand: set[UUID] = set()
        self._waiting = threading.Semaphore(MOST_WAITING)

        def combined(
            run: Callable[[Sequence[Item]], Sequence[Result]],
            enough: Callable[[Item], bool] = lambda _: False,
        ) -> Combiner[Item, Result]:
            return Combiner(
                run,
                linger_seconds=linger_seconds,
                expects=lambda: bool(self._in_hand),
                at_fault=is_row_problem,
                enough=enough,
            )

        self._claims: Combiner[Sequence[UUID], list[ClaimedJob]] = combined(
            self._claim_all, _are_many
        )
        self._records: Combiner[Sequence[Outcome], list[bool]] = combined(
            self._record_all, _are_many
        )
        self._requeues: Combiner[Sequence[Requeue], list[bool]] = combined(
            self._requeue_all, _are_many
        )

    def claim(self, job_ids: Sequence[UUID]) -> list[ClaimedJob]:
        """Those of these jobs that are now this worker's; of two callers, one gets a job.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        jobs = self._claims(job_ids)
        self._in_hand.update(job.id for job in jobs)
        return jobs

    def claim_locked(self, job_ids: Sequence[UUID]) -> list[ClaimedJob]:
        """`claim` for what it has left out.

        Raises:
            StoreUnavailableError: the database cannot be reached.
            StoreLockedError: one of them is still locked; none was claimed.
        """
        if not self._store.skips_locked:
            return []
        with self._waiting:
            jobs = self._store.claim(job_ids, self._owner)
        self._in_hand.update(job.id for job in jobs)
        return jobs

    def record(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Write how attempts of different jobs ended; False where nobody wants that any more.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        self.forget([outcome.job_id for outcome in outcomes])
        return self._records(outcomes)

    def record_locked(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """`record` for what it has left out.

        Raises:
            StoreUnavailableError: the database cannot be reached.
            StoreLockedError: one of them is still locked; call again.
        """
        return self._wait(outcomes, self._store.record)

    def requeue(self, requeues: Sequence[Requeue]) -> list[bool]:
        """Put attempts of different jobs back; False where the job is not this attempt's any more.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        self.forget([requeue.job_id for requeue in requeues])
        return self._requeues(requeues)

    def requeue_locked(self, requeues: Sequence[Requeue]) -> list[bool]:
        """`requeue` for what it has left out.

        Raises:
            StoreUnavailableError: the database cannot be reached.
            StoreLockedError: one of them is still locked; call again.
        """
        return self._wait(requeues, self._store.requeue)

    def forget(self, job_ids: Sequence[UUID]) -> None:
        """Expect nothing more of claimed jobs: they were canceled, or are another worker's now."""
        if not self._in_hand:
            return
        self._in_hand.difference_update(job_ids)
        if not self._in_hand:
            for one in (self._claims, self._records, self._requeues):
                one.hurry()

    def _claim_all(self, asked: Sequence[Sequence[UUID]]) -> list[list[ClaimedJob]]:
        jobs = self._store.claim({*chain(*asked)}, self._owner, skip_locked=True)
        claimed = {job.id: job for job in jobs}
        return [
            [job for job_id in job_ids if (job := claimed.pop(job_id, None))] for job_ids in asked
        ]

    def _record_all(self, asked: Sequence[Sequence[Outcome]]) -> list[list[bool]]:
        write = partial(self._store.record, skip_locked=True)
        return _shared_out(asked, _job_by_job([*chain(*asked)], write))

    def _requeue_all(self, asked: Sequence[Sequence[Requeue]]) -> list[list[bool]]:
        write = partial(self._store.requeue, skip_locked=True)
        return _shared_out(asked, _job_by_job([*chain(*asked)], write))

    def _wait(
        self, endings: Sequence[Ending], write: Callable[[Sequence[Ending]], set[UUID]]
    ) -> list[bool]:
        if not self._store.skips_locked:
            return [False] * len(endings)
        with self._waiting:
            return _job_by_job(endings, write)


def _shared_out(asked: Sequence[Sequence[object]], answers: Sequence[bool]) -> list[list[bool]]:
    """To each call its own of the answers, which come in the same order."""
    rest = iter(answers)
    return [list(islice(rest, len(items))) for items in asked]


def _are_many(jobs: Sequence[object]) -> bool:
    return len(jobs) >= MANY


def _job_by_job(
    endings: Sequence[Ending], write: Callable[[Sequence[Ending]], set[UUID]]
) -> list[bool]:
    """Whether each was written. Those of one job, of several attempts, are not written together.

    `write` answers with ids of jobs, and a stale attempt must not take another's answer for its.
    """
    written = [False] * len(endings)
    pending: Sequence[int] = range(len(endings))
    while pending:
        first: dict[UUID, int] = {}
        for index in pending:
            first.setdefault(endings[index].job_id, index)
        passed = write([endings[index] for index in first.values()])
        for job_id, index in first.items():
            written[index] = job_id in passed
        if len(first) == len(pending):
            break
        pending = [index for index in pending if first[endings[index].job_id] != index]
    return written
