"""One source to its captions: fetch, sample frames, caption. No database, no broker.

An image is a one-frame video, so there is one path for both.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from captioner.domain import Caption, CaptionRequest, Frame, Source
from captioner.engine import Engine
from captioner.errors import CanceledError, ErrorCode, JobError
from captioner.media import HostSlots, open_source
from captioner.sampling import Sampler
from captioner.settings import MediaSettings

#: Most frames of one job that wait for the engine; a long video is not held in memory.
FRAMES_IN_FLIGHT = 16
#: How often who waits for the engine looks whether the job is still wanted.
CHECK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Captioned:
    """What became of one source."""

    captions: tuple[Caption, ...]
    #: Seconds by stage: `fetch`, `decode`, `engine`.
    timings: dict[str, float]


class Pipeline:
    """Fetches in the caller's thread, and waits there for decoders and the engine.

    Call it from many threads: their pictures share the engine's batches.
    """

    def __init__(
        self, engine: Engine, sampler: Sampler, limits: MediaSettings, *, concurrency: int = 64
    ) -> None:
        """Bring the parts together; who made them closes them.

        Args:
            engine: must be started.
            sampler: decodes the media.
            limits: what may be fetched.
            concurrency: how many jobs are in hand at once, at most so many of them downloading;
                bulk jobs and videos leave some of that to interactive ones.
        """
        self._engine = engine
        self._sampler = sampler
        self._limits = limits
        self._hosts = HostSlots(limits.connections_per_host, concurrency)

    def caption(
        self,
        request: CaptionRequest,
        *,
        canceled: threading.Event | None = None,
    ) -> Captioned:
        """Caption one source.

        Args:
            request: what the client asked for; past its deadline nothing is waited for.
            canceled: set by whoever does not want the result any more.

        Raises:
            JobError: it cannot be; the code says why.
            CrashError: the process that worked on it died.
            HostBusyError: its host has enough to do; the job belongs back in the queue.
            EngineClosedError: the engine is closed; the job belongs back in the queue.
            CanceledError: `canceled` was set.
        """
        watch = _Watch(canceled, request.deadline_at)
        with closing(self._frames(request, watch)) as frames:
            captions = self._captions(frames, request, watch)
        timings = {stage: round(seconds, 6) for stage, seconds in watch.seconds.items()}
        return Captioned(_combine(captions), timings)

    def _frames(self, request: CaptionRequest, watch: _Watch) -> Generator[Frame, None, None]:
        """Fetch and decode; what was fetched is gone when the last frame was taken."""
        with _folder_for(request.source) as folder:
            watch.check()
            with watch.timed("fetch"), self._hosts.hold(request.source, request.lane):
                media = open_source(request.source, folder, self._limits)
            size = self._engine.info.image_size
            with closing(self._sampler.sample(media, request, size)) as frames:
                while True:
                    watch.check()
                    with watch.timed("decode"):
                        frame = next(frames, None)
                    if frame is None:
                        return
                    yield frame

    def _captions(
        self, frames: Iterator[Frame], request: CaptionRequest, watch: _Watch
    ) -> list[tuple[float | None, list[Caption]]]:
        """Time and captions of each frame, in their order."""
        done: list[tuple[float | None, list[Caption]]] = []
        waiting: deque[tuple[float | None, Future[list[Caption]]]] = deque()

        def take() -> None:
            seconds, future = waiting[0]
            with watch.timed("engine"):
                done.append((seconds, watch.result(future)))
            waiting.popleft()

        try:
            for frame in frames:
                if len(waiting) == FRAMES_IN_FLIGHT:
                    take()
                future = self._engine.submit(frame.pixels, request.options, request.lane)
                waiting.append((frame.time_seconds, future))
            while waiting:
                take()
        finally:
            for _, future in waiting:
                future.cancel()
        return done


@contextmanager
def _folder_for(source: Source) -> Iterator[Path]:
    """Where a source is brought to, gone afterwards; a local file is read where it lies.

    Making and removing one took a quarter of a worker's time where captions took none.
    """
    if source.scheme == "file":
        yield Path(os.devnull)
        return
    with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
        yield Path(folder)


class _Watch:
    """Whether a job may go on, and where its time goes."""

    def __init__(self, canceled: threading.Event | None, deadline_at: datetime | None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._canceled = canceled
        self._deadline_at = deadline_at

    def check(self) -> None:
        """Raise if the job is canceled or late."""
        if self._canceled and self._canceled.is_set():
            raise CanceledError("the job was canceled")
        if self._deadline_at and datetime.now(UTC) > self._deadline_at:
            raise JobError(ErrorCode.DEADLINE_EXCEEDED, f"not done by {self._deadline_at}")

    def result(self, future: Future[list[Caption]]) -> list[Caption]:
        """Wait for the engine no longer than the job is wanted."""
        while True:
            self.check()
            try:
                return future.result(timeout=CHECK_SECONDS)
            except TimeoutError:
                if future.done():
                    return future.result()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - started


def _combine(frames: Sequence[tuple[float | None, Sequence[Caption]]]) -> tuple[Caption, ...]:
    """A still image keeps its n-best list; of several frames each keeps its best, in time order."""
    if len(frames) == 1:
        return tuple(frames[0][1])
    return tuple(
        replace(captions[0], rank=rank, start_seconds=seconds)
        for rank, (seconds, captions) in enumerate(frames)
    )
