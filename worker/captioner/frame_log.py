"""Which frames of a video have captions: those of earlier attempts, and those of this one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from captioner.domain import ClaimedJob, FrameCaptions, ModelInfo, Progress
from captioner.errors import StoreUnavailableError, describe

#: How often frames are kept at least; after a failure, how soon that is tried again.
KEEP_SECONDS = 1.0

logger = logging.getLogger(__name__)


class FrameLog:
    """The frames of one attempt at one job; of a still picture there is nothing to keep.

    Not safe for threads.
    """

    __slots__ = (
        "_first",
        "_job",
        "_keep",
        "_keep_at",
        "_kept",
        "_load",
        "_model",
        "_pending",
        "_total",
        "_tries_at",
        "done",
        "lost",
    )

    def __init__(
        self,
        job: ClaimedJob,
        model: ModelInfo,
        *,
        load: Callable[[ClaimedJob], Sequence[FrameCaptions]],
        keep: Callable[[Progress], bool],
    ) -> None:
        """Begin with what the claim says.

        Args:
            job: as it was claimed.
            model: captions the frames.
            load: the frames of a job that attempts before this one have had kept.
            keep: keeps new ones; false: the job is not this attempt's any more.
        """
        self._job = job
        self._model = model
        self._load = load
        self._keep = keep
        #: Frames that have captions; None: it is no video, as far as is known.
        self.done = job.frames_done
        self._total = job.frames_total
        self._pending: list[FrameCaptions] = []
        self._first = 0
        #: What was `done` when something was kept last.
        self._kept = self.done
        self._keep_at = time.monotonic() + KEEP_SECONDS
        #: Not before; None: what there is can never be kept.
        self._tries_at: float | None = 0.0
        #: True when nobody wants the result any more.
        self.lost = False

    def earlier(self) -> Sequence[FrameCaptions]:
        """What need not be done again, in the order in which it came; to be asked once, first."""
        if not self.done:
            return ()
        frames = self._load(self._job) if self.resumes else ()
        self._first = self._kept = self.done = len(frames)
        if frames:
            logger.info(
                "%d frames have captions already",
                len(frames),
                extra={"job_id": str(self._job.id), "attempt": self._job.attempt},
            )
        return frames

    @property
    def resumes(self) -> bool:
        """True when what is kept need not be done again; captions of all frames need them all."""
        return self._job.request.video.mode == "per_frame"

    @property
    def unkept(self) -> int:
        """Frames that would be captioned again if this process died now."""
        return len(self._pending)

    def add(self, frame: FrameCaptions, expected: int | None) -> None:
        """One more frame has captions; `expected` is how many there will be, if that is known."""
        self.done = (self.done or 0) + 1
        self._total = expected
        if self.resumes:
            self._pending.append(frame)

    def keep_now_and_then(self) -> None:
        """Keep what is new, once a second; what cannot be kept now waits for the next time."""
        if time.monotonic() >= self._keep_at:
            self.keep()

    def keep(self) -> bool:
        """Keep what is new, now; false when that cannot be."""
        if self.done is None or self.done == self._kept or self.lost or self._tries_at is None:
            return False
        now = time.monotonic()
        if now < self._tries_at:
            return False
        self._keep_at = now + KEEP_SECONDS
        progress = Progress(
            job_id=self._job.id,
            attempt=self._job.attempt,
            model=self._model,
            frames=tuple(self._pending),
            first=self._first,
            done=self.done,
            total=self._total,
        )
        try:
            self.lost = not self._keep(progress)
        except StoreUnavailableError as error:
            logger.warning("frames are kept later: %s", error)
            self._tries_at = self._keep_at
            return False
        except ValueError as error:
            # The result will say so; until then nothing after these frames can be kept.
            logger.warning("frames cannot be kept: %s", describe(error))
            self._tries_at = None
            return False
        self._first += len(self._pending)
        self._pending.clear()
        self._kept = self.done
        return not self.lost
