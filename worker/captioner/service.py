"""One job from claim to record. Knows the order of things, and no framework."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from captioner.domain import Caption, Job, JobFailure, JobState, ModelInfo, Outcome, Requeue
from captioner.engine import Engine, EngineClosedError, EngineStats
from captioner.errors import (
    CanceledError,
    CrashError,
    ErrorCode,
    HostBusyError,
    JobError,
    JobNotFoundError,
    StoreUnavailableError,
    describe,
)
from captioner.events import EVENT_TYPES, Event
from captioner.in_hand import Claim, InHand
from captioner.loading import open_engine
from captioner.logs import job_context
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins
from captioner.retrying import retry
from captioner.sampling import Sampler, open_plugins, open_sampler
from captioner.settings import Settings
from captioner.store import CombinedStore, Store, open_store

#: How long a thread waits for a database that is away, and how often it asks.
STORE_PATIENCE_SECONDS = 120.0
STORE_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class CaptionService:
    """Claims jobs, captions them, records what became of them, and tells the observers."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        sampler: Sampler,
        plugins: Plugins,
        settings: Settings,
        owner: str,
    ) -> None:
        """`engine` must be started; `owner` is this worker's id in SQL."""
        self.store = store
        self.owner = owner
        self._combined = CombinedStore(store, owner)
        self._engine = engine
        self._plugins = plugins
        self._sampler = sampler
        self._pipeline = Pipeline(engine, sampler, settings.media, concurrency=settings.concurrency)
        self._retry = settings.retry
        self._executor = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="job")
        self._in_hand = InHand()
        self._stopping = threading.Event()
        self._forgotten: set[Claim] = set()
        self._closed = False

    @property
    def model(self) -> ModelInfo:
        """The resident model."""
        return self._engine.info

    @property
    def engine_stats(self) -> EngineStats:
        """What the engine has done so far."""
        return self._engine.stats

    @property
    def failed(self) -> bool:
        """True when the model is lost for good: the worker should end, with code 1."""
        return self._engine.failed

    def run(self, job_ids: Sequence[UUID]) -> list[JobState]:
        """Caption those of these jobs that can be claimed; the others are somebody else's.

        Returns:
            What each claimed job is afterwards; `queued` where it will be tried again.

        Raises:
            StoreUnavailableError: the database stayed away for too long.
        """
        jobs = self._patiently(lambda: self._combined.claim(job_ids))
        self._in_hand.add(jobs)
        if len(jobs) < 2:  # the usual case needs no second thread
            return [self._run_one(job) for job in jobs]
        return list(self._executor.map(self._run_one, jobs))

    def _run_one(self, job: Job) -> JobState:
        with job_context(job.id):
            try:
                ending = self._attempt(job)
                if isinstance(ending, Requeue):
                    return self._put_back(job, ending)
                if ending and self._patiently(lambda: self._combined.record(ending)):
                    return self._tell(ending)
                # Canceled, or another attempt has begun: that one counts.
                logger.info("the result is not wanted any more", extra={"attempt": job.attempt})
                return self._state_of(job)
            finally:
                self._in_hand.remove(job)
                self._combined.forget(job.id)

    def _attempt(self, job: Job) -> Outcome | Requeue | None:
        """How the attempt ended; None: nobody wants to know."""
        if self._stopping.is_set():
            return _untried(job)
        started = time.monotonic()
        try:
            captioned = self._pipeline.caption(job.request, canceled=self._in_hand.canceled(job))
        except CanceledError:
            return None
        except EngineClosedError:
            return _untried(job)
        except HostBusyError as error:
            return _untried(job, not_before=_from_now(error.retry_after_seconds))
        except JobError as error:
            failure = JobFailure(error.code, error.message, error.retryable)
            return self._failed(job, failure, started, crashed=isinstance(error, CrashError))
        except Exception as error:
            logger.exception("the job failed unexpectedly")
            failure = JobFailure(ErrorCode.INTERNAL, describe(error), retryable=True)
            return self._failed(job, failure, started)
        return self._outcome(
            job, JobState.SUCCEEDED, started, captions=captioned.captions, stages=captioned.timings
        )

    def _failed(
        self, job: Job, failure: JobFailure, started: float, *, crashed: bool = False
    ) -> Outcome | Requeue:
        if _seconds_left(job) == 0.0:
            late = JobFailure(ErrorCode.DEADLINE_EXCEEDED, failure.message, retryable=False)
            return self._outcome(job, JobState.EXPIRED, started, failure=late)
        again = retry(job, failure, self._retry, datetime.now(UTC), crashed=crashed)
        return again or self._outcome(job, JobState.FAILED, started, failure=failure)

    def _outcome(
        self,
        job: Job,
        state: JobState,
        started: float,
        *,
        captions: tuple[Caption, ...] = (),
        failure: JobFailure | None = None,
        stages: dict[str, float] | None = None,
    ) -> Outcome:
        return Outcome(
            job_id=job.id,
            attempt=job.attempt,
            state=state,
            captions=captions,
            failure=failure,
            model=self.model,
            timings={**(stages or {}), "total": round(time.monotonic() - started, 6)},
        )

    def _put_back(self, job: Job, requeue: Requeue) -> JobState:
        if not self._patiently(lambda: self._combined.requeue(requeue)):
            return self._state_of(job)
        if failure := requeue.failure:
            logger.warning(
                "the job will be tried again: %s",
                failure.message,
                extra={"attempt": job.attempt, "error_code": failure.code.value},
            )
        return JobState.QUEUED

    def _tell(self, outcome: Outcome) -> JobState:
        logger.info(
            "job %s",
            outcome.state,
            extra={"seconds": outcome.timings["total"], "attempt": outcome.attempt}
            | ({"error_code": outcome.failure.code.value} if outcome.failure else {}),
        )
        self._plugins.notify("observe", event=_event(outcome))
        return outcome.state

    def _state_of(self, job: Job) -> JobState:
        try:
            return self.store.get(job.id).state
        except JobNotFoundError:  # canceled, and deleted since
            return JobState.CANCELED

    def _patiently(self, work: Callable[[], Result]) -> Result:
        """Wait for a database that is away: what was captioned is worth it."""
        give_up = time.monotonic() + STORE_PATIENCE_SECONDS
        while True:
            try:
                return work()
            except StoreUnavailableError as error:
                if time.monotonic() > give_up:
                    raise
                logger.warning("waiting for the database: %s", error)
                time.sleep(STORE_RETRY_SECONDS)

    def look_after(self) -> None:
        """Compare what is in hand with what SQL says is; to be called at every heartbeat.

        Jobs that were canceled, or given to others, are told to stop. Jobs that SQL says are this
        worker's, but that nobody here has in hand, are put back: the answer to their claim was
        lost, or their record could not be written. Those are given one round to appear.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        held = self._in_hand.claims()
        claimed = self.store.claimed_by(self.owner)
        self._in_hand.cancel(held - claimed)
        missing = claimed - self._in_hand.claims()
        forgotten = missing & self._forgotten
        self._forgotten = missing - forgotten
        if forgotten:
            logger.warning("%d jobs nobody here has in hand are put back", len(forgotten))
            self.store.requeue([Requeue(job_id=one, attempt=attempt) for one, attempt in forgotten])

    def cancel(self, job_ids: Collection[UUID]) -> None:
        """Cancel jobs in SQL, and stop those of them that run here."""
        self.store.cancel(job_ids)
        self._in_hand.cancel([claim for claim in self._in_hand.claims() if claim[0] in job_ids])

    def stop_taking(self) -> None:
        """From now on claimed jobs that have not begun are handed back; what runs goes on."""
        self._stopping.set()

    def hand_back(self) -> None:
        """Give back everything, what runs too, at once: this process is about to end."""
        self.stop_taking()
        claims = self._in_hand.claims()
        self.store.requeue([Requeue(job_id=one, attempt=attempt) for one, attempt in claims])
        self._in_hand.cancel(claims)
        self.store.unregister_worker(self.owner)

    def close(self) -> None:
        """Wait for running jobs, tell the plugins, and free the model; twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._executor.shutdown()
        self._plugins.notify("worker_stopping")
        self._sampler.close()
        self._engine.close()
        try:
            self.store.unregister_worker(self.owner)
        except StoreUnavailableError as error:
            logger.warning("this worker stays listed until it expires: %s", error)
        self.store.close()


def _untried(job: Job, *, not_before: datetime | None = None) -> Requeue:
    """Handed back: counts neither as a retry nor as a failure."""
    return Requeue(job_id=job.id, attempt=job.attempt, not_before=not_before)


def _seconds_left(job: Job) -> float | None:
    if job.deadline_at is None:
        return None
    return max(0.0, (job.deadline_at - datetime.now(UTC)).total_seconds())


def _from_now(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _event(outcome: Outcome) -> Event:
    return Event(
        job_id=outcome.job_id,
        type=EVENT_TYPES[outcome.state],
        state=outcome.state,
        attempt=outcome.attempt,
        occurred_at=datetime.now(UTC),
        error_code=outcome.failure.code if outcome.failure else None,
        timings=tuple(outcome.timings.items()),
    )


def open_service(settings: Settings, *, poll: Callable[[], None] = lambda: None) -> CaptionService:
    """Everything a worker needs, with the model loaded.

    Args:
        settings: of this process.
        poll: called now and then while the model loads; what it raises ends the loading.

    Raises:
        SchemaError: the database is not of this version.
        StoreUnavailableError: the database cannot be reached.
        ModelLoadError: the model cannot be loaded.
    """
    store = open_store(settings)
    engine = open_engine(settings)
    try:
        plugins = open_plugins(settings.plugins, settings.media)
        engine.start(poll)
        owner = store.register_worker(socket.gethostname())
    except BaseException:
        engine.close()
        store.close()
        raise
    model = engine.info
    logger.info(
        "model %s is resident",
        model.id,
        extra={"revision": model.revision, "device": model.device, "dtype": model.dtype},
    )
    plugins.notify("worker_ready", settings=settings)
    sampler = open_sampler(settings, plugins)
    return CaptionService(store, engine, sampler, plugins, settings, owner)
