"""One attempt at one job: begun in one thread, ended in another, and how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from captioner.captioning import Captioning
from captioner.chains import Chain, Threads
from captioner.domain import (
    Caption,
    ClaimedJob,
    JobFailure,
    JobState,
    ModelInfo,
    Outcome,
    Requeue,
)
from captioner.engine import EngineClosedError
from captioner.errors import (
    CanceledError,
    CrashError,
    ErrorCode,
    HandedBackError,
    JobError,
    NotNowError,
    UnfitError,
    describe,
)
from captioner.frame_log import FrameLog
from captioner.logs import job_context
from captioner.pipeline import Pipeline
from captioner.providers import Found
from captioner.retrying import retry
from captioner.settings import RetrySettings
from captioner.watch import CHECK_SECONDS

#: How long plugins may be at work on the captions of one job.
FINISH_SECONDS = 60.0

#: How an attempt ended; None: nobody wants to know.
Ending = Outcome | Requeue | None
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Attempt:
    """A claimed job on its way through the pipeline."""

    def __init__(
        self,
        job: ClaimedJob,
        pipeline: Pipeline,
        model: ModelInfo,
        retries: RetrySettings,
        canceled: Callable[[], bool],
        stopping: Callable[[], bool],
        frames: FrameLog,
        finishers: Threads | None = None,
    ) -> None:
        """Begin nothing yet.

        Args:
            job: claimed, and in hand.
            pipeline: fetches, decodes and captions.
            model: stamped on the result.
            retries: whether a failure is followed by another attempt.
            canceled: tells whether nobody wants the result any more.
            stopping: tells whether this worker ends.
            frames: which of a video's are done.
            finishers: where plugins work on captions; None: what is done with captions takes no
                time, and is done where the end is asked for.
        """
        self.job = job
        self._pipeline = pipeline
        self._model = model
        self._retries = retries
        self._canceled = canceled
        self._stopping = stopping
        self._frames = frames
        self._finishers = finishers
        self._started = time.monotonic()
        self._given_up = False
        self._captioning: Captioning | None = None
        #: Plugins at work on its captions, or waiting for a thread.
        self._finishing: Chain[Attempt, None] | None = None
        #: For how long they were at work.
        self._finishing_seconds = 0.0
        #: True when `_ending` is final.
        self._finished = False
        self._ending: Ending = None
        #: What this worker lacks for it.
        self.unfit: UnfitError | None = None
        #: What the job is after it, once that is recorded.
        self.state = JobState.PROCESSING

    def begin(self, ready: Callable[[Attempt], None], found: Found | None = None) -> None:
        """Bring the source's frames to the engine.

        Args:
            ready: called once, from any thread, when `end` need not wait for anything.
            found: as of `Pipeline.begin`.
        """
        with job_context(self.job.id):
            self._captioning = self._judged(
                lambda: self._pipeline.begin(
                    self.job.request,
                    canceled=self._unwanted,
                    stopping=self._stopping,
                    log=self._frames,
                    found=found,
                )
            )
        if self._captioning:
            self._captioning.when_done(lambda: self._captioned(ready))
        else:
            ready(self)

    def _unwanted(self) -> bool:
        return self._given_up or self._canceled() or self._frames.lost

    def _captioned(self, ready: Callable[[Attempt], None]) -> None:
        """Told by the engine, whose thread must not wait for plugins."""
        if self._finishers is None:
            ready(self)
            return

        def tell(_attempt: Attempt, _finished: None) -> bool:
            ready(self)
            return False

        self._finishing = Chain([self], Attempt._finish, take=tell, over=_nothing)
        self._finishers.run(self._finishing)

    def hand_back(self, ready: Callable[[Attempt], None]) -> None:
        """Instead of `begin`: the job goes back to the queue."""
        self._ending = _untried(self.job)
        ready(self)

    def in_vain(self) -> bool:
        """Whether nothing is left to wait for: it was canceled, is too late, or a plugin hangs.

        To be asked no more often than every `CHECK_SECONDS`.
        """
        captioning = self._captioning
        if captioning is None:
            return False  # its own thread sees to that
        self._judged(captioning.check)
        if not captioning.abandoned and self._finishing_too_long():
            self._judged(self._fail_for_a_hanging_plugin)
            captioning.abandon()
        if captioning.abandoned:
            self._leave_plugins()
        self._finished = self._finished or captioning.abandoned
        return captioning.abandoned

    def give_up(self) -> None:
        """Nobody will ask for the end."""
        self._given_up = True
        if captioning := self._captioning:  # another thread may be done with it just now
            captioning.abandon()
        self._leave_plugins()

    def end(self) -> Ending:
        """How it ended; waits when it is not ready."""
        if not self._finished:
            self._finish()
        return self._ending

    def _finish(self) -> None:
        if captioning := self._captioning:
            with job_context(self.job.id):
                captioned = self._judged(captioning.result)
            if captioned and not self._finished:
                self._ending = self._outcome(
                    JobState.SUCCEEDED, captions=captioned.captions, stages=captioned.timings
                )
        self._finished = True
        # Each knows the other: both would be left to the cycle collector.
        self._captioning = None

    def _finishing_too_long(self) -> bool:
        """Counted by looks, not by a clock: in a worker that was paused, plugins were too."""
        if self._finishing and self._finishing.begun:
            self._finishing_seconds += CHECK_SECONDS
        return self._finishing_seconds > FINISH_SECONDS

    def _fail_for_a_hanging_plugin(self) -> None:
        if self._finishing:
            raise self._pipeline.hung(self._finishing.thread, FINISH_SECONDS)

    def _leave_plugins(self) -> None:
        """Nothing ends their thread; another takes its place."""
        if self._finishers and self._finishing:
            self._finishing.stop()
            if self._finishing.leave():
                self._finishers.replace()

    def _judged(self, work: Callable[[], Result]) -> Result | None:
        """Do `work`; if it fails, None, and that is how the attempt ended."""
        try:
            return work()
        except CanceledError:
            self._ending = None
        except (EngineClosedError, HandedBackError):
            self._ending = _untried(self.job)
        except NotNowError as error:
            self.unfit = error if isinstance(error, UnfitError) else None
            self._ending = _untried(
                self.job,
                not_before=self._pipeline.now() + timedelta(seconds=error.retry_after_seconds),
            )
        except JobError as error:
            failure = JobFailure(error.code, error.message, error.retryable)
            self._ending = self._failed(failure, crashed=isinstance(error, CrashError))
        except BaseException as error:  # plugins may raise anything, and whoever waits must know
            logger.exception("the job failed unexpectedly", extra={"job_id": str(self.job.id)})
            failure = JobFailure(ErrorCode.INTERNAL, describe(error), retryable=True)
            self._ending = self._failed(failure)
        return None

    def _failed(self, failure: JobFailure, *, crashed: bool = False) -> Ending:
        now = self._pipeline.now()
        if (deadline := self.job.request.deadline_at) and deadline <= now:
            late = JobFailure(ErrorCode.DEADLINE_EXCEEDED, failure.message, retryable=False)
            return self._outcome(JobState.EXPIRED, failure=late)
        again = retry(self.job, failure, self._retries, now, crashed=crashed)
        return again or self._outcome(JobState.FAILED, failure=failure)

    def _outcome(
        self,
        state: JobState,
        *,
        captions: tuple[Caption, ...] = (),
        failure: JobFailure | None = None,
        stages: dict[str, float] | None = None,
    ) -> Outcome:
        return Outcome(
            job_id=self.job.id,
            attempt=self.job.attempt,
            state=state,
            captions=captions,
            failure=failure,
            model=self._model,
            timings={**(stages or {}), "total": round(time.monotonic() - self._started, 6)},
            frames_done=self._frames.done,
        )


def _nothing() -> None:
    pass


def _untried(job: ClaimedJob, *, not_before: datetime | None = None) -> Requeue:
    """Handed back: counts neither as a retry nor as a failure."""
    return Requeue(job_id=job.id, attempt=job.attempt, not_before=not_before)
