"""How attempts end in SQL: recorded, put back, or not wanted any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from captioner.attempts import Attempt
from captioner.domain import ClaimedJob, JobState, Lane, Outcome, Requeue
from captioner.errors import JobNotFoundError, StoreLockedError, StoreUnavailableError
from captioner.events import Event, event_type
from captioner.observers import Observers
from captioner.plugins import Plugins
from captioner.store import CombinedStore, Store

#: How long a thread waits for a database that is away, and how often it asks.
STORE_PATIENCE_SECONDS = 120.0
STORE_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Ending = TypeVar("Ending", Outcome, Requeue)


class Recorder:
    """Writes what became of attempts, and tells the observers. For any thread."""

    def __init__(
        self, store: Store, combined: CombinedStore, plugins: Plugins, observers: Observers
    ) -> None:
        """`combined` writes to `store`; `observers` are those of `plugins`."""
        self._store = store
        self._combined = combined
        self._plugins = plugins
        self._observers = observers

    def put_away(self, attempts: Sequence[Attempt]) -> None:
        """Record how these ended, and set what each job is then.

        Raises:
            StoreUnavailableError: the database stayed away for too long.
        """
        ended: list[tuple[Attempt, Outcome]] = []
        put_back: list[tuple[Attempt, Requeue]] = []
        unwanted: list[Attempt] = []
        for one in attempts:
            match one.end():
                case Outcome() as outcome:
                    ended.append((one, outcome))
                case Requeue() as requeue:
                    put_back.append((one, requeue))
                case None:
                    unwanted.append(one)
        self._combined.forget([one.job.id for one in unwanted])
        unwanted += self._record(ended) + self._put_back(put_back)
        for one in unwanted:  # canceled, or another attempt has begun: that one counts
            logger.info("the result is not wanted any more", extra=_extra(one.job))
            one.state = self._state_of(one.job)

    def _record(self, ended: Sequence[tuple[Attempt, Outcome]]) -> list[Attempt]:
        """Record these results; those attempts that nobody wants one of any more."""
        if not ended:
            return []
        outcomes = [outcome for _, outcome in ended]
        written = _written(outcomes, self._combined.record, self._combined.record_locked)
        recorded = [pair for pair, done in zip(ended, written, strict=True) if done]
        observed = self._plugins.implement("observe")
        for one, outcome in recorded:
            one.state = outcome.state
            if observed:
                event = _event(outcome, one.job.request.lane, self._store.now())
                self._observers.tell("observe", event=event)
        _log([outcome for _, outcome in recorded])
        return [one for (one, _), done in zip(ended, written, strict=True) if not done]

    def _put_back(self, put_back: Sequence[tuple[Attempt, Requeue]]) -> list[Attempt]:
        """Put these attempts back; those whose jobs are not theirs any more."""
        if not put_back:
            return []
        requeues = [requeue for _, requeue in put_back]
        done = _written(requeues, self._combined.requeue, self._combined.requeue_locked)
        for (one, requeue), again in zip(put_back, done, strict=True):
            if again:
                one.state = JobState.QUEUED
                if failure := requeue.failure:
                    logger.warning(
                        "the job will be tried again: %s",
                        failure.message,
                        extra=_extra(one.job) | {"error_code": failure.code.value},
                    )
        return [one for (one, _), again in zip(put_back, done, strict=True) if not again]

    def _state_of(self, job: ClaimedJob) -> JobState:
        try:
            return patiently(lambda: self._store.get(job.id).state)
        except JobNotFoundError:  # canceled, and deleted since
            return JobState.CANCELED


def _written(
    endings: Sequence[Ending],
    together: Callable[[Sequence[Ending]], list[bool]],
    apart: Callable[[Sequence[Ending]], list[bool]],
) -> list[bool]:
    """Which of these passed the guards: written with others, and then those that were locked.

    Each is repeated by itself: what was written once is refused the second time.
    """
    done = patiently(lambda: together(endings))
    left = [one for one, passed in zip(endings, done, strict=True) if not passed]
    if not left:
        return done
    later = iter(patiently(lambda: apart(left)))
    return [passed or next(later) for passed in done]


def patiently(work: Callable[[], Result]) -> Result:
    """Wait for a database that is away: what was captioned is worth it.

    For a lock that somebody holds there is no limit. The database is there, and who has the lock
    may need it for long, such as to build an index.

    Raises:
        StoreUnavailableError: it stayed away for too long.
    """
    give_up = time.monotonic() + STORE_PATIENCE_SECONDS
    while True:
        try:
            return work()
        except StoreUnavailableError as error:
            if time.monotonic() > give_up and not isinstance(error, StoreLockedError):
                raise
            logger.warning("waiting for the database: %s", error)
            time.sleep(STORE_RETRY_SECONDS)


def _extra(job: ClaimedJob) -> dict[str, Any]:
    return {"job_id": str(job.id), "attempt": job.attempt}


def _log(outcomes: Sequence[Outcome]) -> None:
    """A line for each, but one for all that succeeded together: thousands a second say nothing."""
    succeeded = [one for one in outcomes if one.state is JobState.SUCCEEDED]
    together = len(succeeded) > 1
    for outcome in outcomes:
        if together and outcome.state is JobState.SUCCEEDED:
            continue
        extra = {
            "job_id": str(outcome.job_id),
            "seconds": outcome.timings["total"],
            "attempt": outcome.attempt,
        }
        if outcome.failure:
            extra["error_code"] = outcome.failure.code.value
        logger.info("job %s", outcome.state, extra=extra)
    if together:
        seconds = max(one.timings["total"] for one in succeeded)
        logger.info("%d jobs succeeded", len(succeeded), extra={"seconds": seconds})


def _event(outcome: Outcome, lane: Lane, now: datetime) -> Event:
    return Event(
        job_id=outcome.job_id,
        type=event_type(outcome.state, lane),
        state=outcome.state,
        attempt=outcome.attempt,
        occurred_at=now,
        error_code=outcome.failure.code if outcome.failure else None,
        timings=tuple(outcome.timings.items()),
    )
