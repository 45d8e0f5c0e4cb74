"""One job from claim to record. Knows the order of things, and no framework."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID

from captioner.domain import Caption, Job, JobFailure, JobState, ModelInfo, Outcome
from captioner.engine import CaptionModel, Engine, InlineEngine
from captioner.errors import ErrorCode, JobError, StoreUnavailableError, describe
from captioner.events import EVENT_TYPES, Event
from captioner.logs import job_context
from captioner.media import StillImages
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins, load_plugins
from captioner.settings import Settings
from captioner.store import Store, open_store

#: How long a finished job waits for a database that is away, and how often it asks.
RECORD_PATIENCE_SECONDS = 120.0
RECORD_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class CaptionService:
    """Claims jobs, captions them, records what became of them, and tells the observers."""

    def __init__(
        self, store: Store, engine: Engine, plugins: Plugins, settings: Settings, owner: str
    ) -> None:
        """`engine` must be started; `owner` is this worker's id in SQL."""
        self.store = store
        self.owner = owner
        self._engine = engine
        self._plugins = plugins
        self._pipeline = Pipeline(engine, plugins, settings.media)
        self._executor = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="job")
        self._closed = False

    @property
    def model(self) -> ModelInfo:
        """The resident model."""
        return self._engine.info

    def run(self, job_ids: Sequence[UUID]) -> list[JobState]:
        """Caption those of these jobs that can be claimed; the others are somebody else's.

        Returns:
            The recorded state of each claimed job.
        """
        jobs = self.store.claim(job_ids, self.owner)
        if len(jobs) < 2:  # the usual case needs no second thread
            return [self._run_one(job) for job in jobs]
        return list(self._executor.map(self._run_one, jobs))

    def _run_one(self, job: Job) -> JobState:
        with job_context(job.id):
            outcome = self._attempt(job)
            if not self._record(outcome):
                # Canceled, or another attempt has begun: that one counts.
                logger.info("the result is not wanted any more", extra={"attempt": job.attempt})
                return self.store.get(job.id).state
            logger.info(
                "job %s",
                outcome.state,
                extra={"seconds": outcome.timings["total"], "attempt": job.attempt}
                | ({"error_code": outcome.failure.code.value} if outcome.failure else {}),
            )
            self._plugins.notify("observe", event=_event(outcome))
            return outcome.state

    def _attempt(self, job: Job) -> Outcome:
        started = time.monotonic()
        timings: dict[str, float] = {}
        captions: tuple[Caption, ...] = ()
        failure = None
        try:
            captioned = self._pipeline.caption(job.request)
            captions, timings = captioned.captions, captioned.timings
        except JobError as error:
            failure = JobFailure(error.code, error.message, error.retryable)
        except Exception as error:
            logger.exception("the job failed unexpectedly")
            failure = JobFailure(ErrorCode.INTERNAL, describe(error), retryable=True)
        return Outcome(
            job_id=job.id,
            attempt=job.attempt,
            state=JobState.FAILED if failure else JobState.SUCCEEDED,
            captions=captions,
            failure=failure,
            model=self.model,
            timings={**timings, "total": round(time.monotonic() - started, 6)},
        )

    def _record(self, outcome: Outcome) -> bool:
        """Write the outcome, waiting for a database that is away: the work is done already."""
        give_up = time.monotonic() + RECORD_PATIENCE_SECONDS
        while True:
            try:
                return outcome.job_id in self.store.record([outcome])
            except StoreUnavailableError as error:
                if time.monotonic() > give_up:
                    raise
                logger.warning("the result cannot be recorded yet: %s", error)
                time.sleep(RECORD_RETRY_SECONDS)

    def close(self) -> None:
        """Wait for running jobs, tell the plugins, and free the model; twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._executor.shutdown()
        self._plugins.notify("worker_stopping")
        self._engine.close()
        try:
            self.store.unregister_worker(self.owner)
        except StoreUnavailableError as error:
            logger.warning("this worker stays listed until it expires: %s", error)
        self.store.close()


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
    try:
        plugins = open_plugins(settings)
        engine = open_engine(settings)
        engine.start(poll)
        owner = store.register_worker(socket.gethostname())
    except BaseException:
        store.close()
        raise
    model = engine.info
    logger.info(
        "model %s is resident",
        model.id,
        extra={"revision": model.revision, "device": model.device, "dtype": model.dtype},
    )
    plugins.notify("worker_ready", settings=settings)
    return CaptionService(store, engine, plugins, settings, owner)


def open_plugins(settings: Settings) -> Plugins:
    """The installed plugins and the built-in still image, which is asked last."""
    plugins = load_plugins(settings.plugins)
    plugins.register(StillImages(settings.media), "still_image")
    return plugins


def open_engine(settings: Settings) -> InlineEngine:
    """The engine these settings ask for, not started yet."""

    def load() -> CaptionModel:
        from captioner.inference import load_captioner  # torch: only where a model is wanted

        model = settings.model
        return load_captioner(
            model.id,
            revision=model.revision,
            device=model.device,
            dtype=model.dtype,
            backend=model.backend,
        )

    return InlineEngine(load, settings.engine.max_batch)
