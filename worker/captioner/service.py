"""One job from claim to record. Knows the order of things, and no framework."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from uuid import UUID

from captioner.attempts import Attempt
from captioner.beginnings import Beginnings
from captioner.chains import Threads
from captioner.disk_room import remove_abandoned
from captioner.domain import (
    ClaimedJob,
    FrameCaptions,
    JobState,
    ModelInfo,
    Progress,
    Requeue,
)
from captioner.engine import Engine, EngineStats
from captioner.errors import StoreUnavailableError, UnfitError
from captioner.frame_log import FrameLog
from captioner.in_hand import Claim, InHand
from captioner.loading import open_engine
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins
from captioner.recording import Recorder, patiently
from captioner.reports import Reports
from captioner.room import Room
from captioner.sampling import Sampler, decoder_count, open_plugins, open_sampler
from captioner.settings import Settings
from captioner.stats import WorkerStats
from captioner.store import CombinedStore, Store, open_store
from captioner.watch import CHECK_SECONDS

#: Jobs claimed at once before no more messages are taken, in multiples of the concurrency: as much
#: as a fast GPU needs until the next look.
MOST_CLAIMED = 10
#: How long the first result of a message waits for the others, to be recorded with them.
GATHER_SECONDS = 0.02
#: Threads in which plugins hang until the worker ends.
MOST_HANGING = 256
#: How long a thread rests after a job that this worker is not fit for.
REST_SECONDS = 5.0
#: How often the log is told of that.
TOLD_EVERY_SECONDS = 30.0

logger = logging.getLogger(__name__)


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
        self.plugins = plugins
        #: What the plugins hear, and what is counted of them.
        self.reports = Reports(store, plugins)
        self.reports.include(self._add_stats)
        self._recorder = Recorder(store, self._combined, plugins, self.reports.observers)
        self._sampler = sampler
        self._pipeline = Pipeline(
            engine,
            sampler,
            settings.media,
            plugins=plugins,
            concurrency=settings.concurrency,
            now=store.now,
        )
        self._retry = settings.retry
        self._concurrency = settings.concurrency
        self._room = Room(settings.concurrency)
        self._executor = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="job")
        #: Where plugins work on captions, which may hang there.
        self._finishers = Threads(settings.concurrency, "captions")
        self._in_hand = InHand()
        self._stopping = threading.Event()
        self._beginnings = Beginnings(
            self._pipeline,
            self._executor,
            decoder_count(settings.media) or 1,
            self._stopping.is_set,
        )
        #: When the log was told that this worker is not fit for its jobs.
        self._told_at = float("-inf")
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
        """True when nothing but a new process helps: the worker should end, with code 1.

        The model is lost for good, or plugins hang in so many threads that more would be too many.
        """
        hanging = self._finishers.replaced + self._pipeline.hanging
        return self._engine.failed or hanging >= MOST_HANGING

    def run(
        self, job_ids: Sequence[UUID], tell: Callable[[Progress], None] = lambda _: None
    ) -> list[JobState]:
        """Caption those of these jobs that can be claimed; the others are somebody else's.

        Args:
            job_ids: of one message.
            tell: called now and then with how far a video is, by several threads.

        Returns:
            What each claimed job is afterwards; `queued` where it will be tried again.

        Raises:
            StoreUnavailableError: the database stayed away for too long.
        """
        # Claimed first: what waits without an owner would be taken for lost.
        jobs = self._claimed(job_ids)
        if not jobs:
            return []  # without waiting for room, or for its turn
        self._in_hand.add(jobs)
        attempts = self._attempts(jobs, tell)
        try:
            with (
                self._room.taken(len(jobs))
                if len(jobs) > 1
                else nullcontext(_holds_no_room) as leave
            ):
                for ended in self._worked_off(attempts):
                    leave(len(ended))  # the next message is begun while this one is recorded
                    self._recorder.put_away(ended)
                    self._in_hand.remove([one.job for one in ended])
        except BaseException:
            # Left over when the database stays away: what still runs is in vain.
            for attempt in attempts:
                attempt.give_up()
            self._in_hand.remove(jobs)
            self._combined.forget([job.id for job in jobs])
            raise
        for attempt in attempts:
            if attempt.unfit:
                self._rest(attempt.unfit)
                break
        return [attempt.state for attempt in attempts]

    def _claimed(self, job_ids: Sequence[UUID]) -> list[ClaimedJob]:
        jobs = patiently(lambda: self._combined.claim(job_ids))
        if left := set(job_ids) - {job.id for job in jobs}:
            try:
                jobs += self._combined.claim_locked(list(left))
            except StoreUnavailableError as error:
                # They stay queued, and the sweeper finds that their message is gone.
                logger.warning("up to %d jobs wait for another message: %s", len(left), error)
        return jobs

    def _rest(self, reason: UnfitError) -> None:
        """Hold a thread that could take the next message.

        What fails in moments would take most of the queue from workers that are fit.
        """
        if time.monotonic() - self._told_at > TOLD_EVERY_SECONDS:
            self._told_at = time.monotonic()
            logger.warning("jobs go back to the queue: %s", reason)
        self._stopping.wait(REST_SECONDS)

    def has_plenty(self) -> bool:
        """True when so much is claimed that other workers should have the next bulk message."""
        return len(self._in_hand) >= MOST_CLAIMED * self._concurrency

    def _attempts(
        self, jobs: Sequence[ClaimedJob], tell: Callable[[Progress], None]
    ) -> list[Attempt]:
        model = self.model
        finishers = self._finishers if self._pipeline.finishes_slowly else None

        def keep(progress: Progress) -> bool:
            kept = self.store.record_frames(progress)
            if kept:
                tell(progress)
            return kept

        return [
            Attempt(
                job,
                self._pipeline,
                model,
                self._retry,
                self._in_hand.canceled(job),
                self._stopping.is_set,
                FrameLog(job, model, load=self._recorded_frames, keep=keep),
                finishers,
            )
            for job in jobs
        ]

    def _recorded_frames(self, job: ClaimedJob) -> Sequence[FrameCaptions]:
        return patiently(lambda: self.store.recorded_frames(job, self.model))

    def _worked_off(self, attempts: Sequence[Attempt]) -> Iterator[list[Attempt]]:
        """Work on all of them at once; yields those that have ended, as they do."""
        ready: SimpleQueue[Attempt] = SimpleQueue()
        self._beginnings.begin(attempts, ready.put)
        pending = set(attempts)
        while pending:
            ended = _waited_for(ready, len(pending)) or {one for one in pending if one.in_vain()}
            ended &= pending  # what was given up may still become ready
            pending -= ended
            yield [one for one in attempts if one in ended]

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
        self.reports.send()

    def _add_stats(self, stats: WorkerStats) -> WorkerStats:
        done = self._engine.stats
        return replace(
            stats,
            batches=done.batches,
            pictures=done.pictures,
            busy_seconds=done.busy_seconds,
            engine_restarts=done.restarts,
        )

    def cancel(self, job_ids: Collection[UUID]) -> None:
        """Cancel jobs in SQL, and stop those of them that run here."""
        self.store.cancel(job_ids)
        self._in_hand.cancel([claim for claim in self._in_hand.claims() if claim[0] in job_ids])

    def stop_taking(self) -> None:
        """From now on nothing is begun, and what runs goes on.

        Claimed jobs that have not begun are handed back, and so are videos in the middle, once the
        frames that the engine is about are kept.
        """
        self._stopping.set()
        self._room.stop_waiting()

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
        self._finishers.close()
        self._pipeline.close()
        self.reports.end()
        self._sampler.close()
        self._engine.close()
        try:
            self.store.unregister_worker(self.owner)
        except StoreUnavailableError as error:
            logger.warning("this worker stays listed until it expires: %s", error)
        self.store.close()


def _holds_no_room(_: int) -> None:
    """A single job is let in whenever there is a thread for it."""


def _waited_for(ready: SimpleQueue[Attempt], most: int) -> set[Attempt]:
    """What becomes ready within a moment, and what follows it closely; `most` are expected."""
    found = set()
    with suppress(Empty):
        found.add(ready.get(timeout=CHECK_SECONDS))
        until = time.monotonic() + GATHER_SECONDS
        while len(found) < most:
            found.add(ready.get(timeout=max(0.0, until - time.monotonic())))
    return found


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
    if removed := remove_abandoned():
        logger.info("removed %d folders of jobs whose process was killed", removed)
    with ExitStack() as opened:
        store = open_store(settings)
        opened.callback(store.close)
        engine = open_engine(settings)
        opened.callback(engine.close)
        plugins = open_plugins(settings.plugins, settings.media)
        engine.start(poll)
        owner = store.register_worker(socket.gethostname())
        model = engine.info
        logger.info(
            "model %s is resident",
            model.id,
            extra={"revision": model.revision, "device": model.device, "dtype": model.dtype},
        )
        sampler = open_sampler(settings, plugins)
        opened.callback(sampler.close)
        service = CaptionService(store, engine, sampler, plugins, settings, owner)
        service.reports.begin(settings)
        opened.pop_all()
        return service
