"""One source to its captions: fetch, sample frames, caption. No database, no broker.

An image is a one-frame video, so there is one path for both.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from captioner.domain import Caption, CaptionRequest, Frame, FrameCaptions, Lane, Media
from captioner.engine import Engine
from captioner.errors import CanceledError, ErrorCode, HandedBackError, JobError
from captioner.frame_log import FrameLog
from captioner.joint import JointFrames
from captioner.media import HostSlots, LocalFolders
from captioner.plugins import Plugins
from captioner.providers import Providers
from captioner.sampling import Sampler
from captioner.settings import MediaSettings
from captioner.source import Source

#: Most frames of one job that are with the engine, or have captions that are not kept yet. A long
#: video is not held in memory, and a crash costs no more than these.
FRAMES_IN_FLIGHT = 16
#: How often who waits for the engine looks whether the job is still wanted.
CHECK_SECONDS = 0.25
#: The folder of what is not brought anywhere.
_NOWHERE = nullcontext(Path(os.devnull))


@dataclass(frozen=True, slots=True)
class Captioned:
    """What became of one source."""

    captions: tuple[Caption, ...]
    #: Seconds by stage: `fetch`, `decode`, `engine`.
    timings: dict[str, float]


class Found(NamedTuple):
    """A local file that was found ahead."""

    media: Media
    #: How long that took.
    seconds: float


class Pipeline:
    """Fetches in the caller's thread, and waits there for decoders and the engine.

    Call it from many threads: their pictures share the engine's batches.
    """

    def __init__(
        self,
        engine: Engine,
        sampler: Sampler,
        limits: MediaSettings,
        *,
        plugins: Plugins | None = None,
        concurrency: int = 64,
    ) -> None:
        """Bring the parts together; who made them closes them.

        Args:
            engine: must be started.
            sampler: decodes the media.
            limits: what may be fetched.
            plugins: asked for sources and captions; their failures are counted there.
            concurrency: how many jobs are in hand at once, at most so many of them downloading;
                bulk jobs and videos leave some of that to interactive ones.
        """
        self._engine = engine
        self._sampler = sampler
        self._limits = limits
        self._providers = Providers(plugins or Plugins(), limits)
        self._hosts = HostSlots(limits.connections_per_host, concurrency)

    @property
    def finishes_slowly(self) -> bool:
        """True when plugins work on captions, which may take them any time."""
        return self._providers.process_captions

    def find(self, requests: Sequence[CaptionRequest]) -> list[Found | None]:
        """Find the local files of many requests, one after the other, for `begin`.

        That is faster than to find one, begin it, and find the next: of a folder with many it asks
        for each file only, and each time lets other threads go on, whose code drives this one's
        out of the processor's caches (measured, 2026-11: a sixth of a job's time).

        Returns:
            None for what `begin` has to fetch, or to say why that cannot be.
        """
        with LocalFolders(self._limits) as folders:
            return [
                None if self._providers.needs_folder(one.source) else _find(folders, one.source)
                for one in requests
            ]

    def caption(
        self,
        request: CaptionRequest,
        *,
        canceled: Callable[[], bool] | None = None,
    ) -> Captioned:
        """Caption one source.

        Args:
            request: what the client asked for; past its deadline nothing is waited for.
            canceled: asked now and then; true when nobody wants the result any more.

        Raises:
            JobError: it cannot be; the code says why.
            CrashError: the process that worked on it died.
            HostBusyError: its host has enough to do; the job belongs back in the queue.
            EngineClosedError: the engine is closed; the job belongs back in the queue.
            CanceledError: `canceled` said so.
        """
        return self.begin(request, canceled=canceled).result()

    def begin(
        self,
        request: CaptionRequest,
        *,
        canceled: Callable[[], bool] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        log: FrameLog | None = None,
        found: Found | None = None,
    ) -> Captioning:
        """Fetch and decode one source and give its frames to the engine; see `caption`.

        Returns when the engine has the last frame: what has many waits for room meanwhile. Frames
        that have captions by `log` are not captioned again, and it is told of the others. What is
        `found` is not fetched.

        Raises:
            HandedBackError: `stopping` said that this worker ends, and the log has all of a video
                that has captions; the others are for who goes on with it.
        """
        watch = _Watch(canceled, request.deadline_at)
        captioning = Captioning(self._engine, self._providers, request, watch, stopping, log)
        try:
            captioning.resume()
            try:
                self._add_frames(request, watch, captioning, found)
                captioning.complete()
            except HandedBackError:
                captioning.put_down()
                raise
        except BaseException as error:
            self._providers.count(error)
            captioning.abandon()
            raise
        return captioning

    def _add_frames(
        self, request: CaptionRequest, watch: _Watch, captioning: Captioning, found: Found | None
    ) -> None:
        """Fetch and decode; what was fetched is gone when the last frame was taken."""
        with _folder(needed=self._providers.needs_folder(request.source)) as folder:
            watch.check()
            if found:
                media = found.media
                watch.seconds["fetch"] += found.seconds
            else:
                since = time.monotonic()
                with self._hosts.hold(request.source, request.lane):
                    media = self._providers.open_source(request.source, folder)
                watch.count("fetch", since)
            size = self._engine.info.image_size
            stream = self._sampler.sample(
                media,
                request,
                size,
                done_seconds=captioning.done_seconds,
                look=captioning.look,
            )
            with closing(stream) as frames:
                while True:
                    captioning.look()
                    since = time.monotonic()
                    frame = next(frames, None)
                    watch.count("decode", since)
                    if frame is None:
                        return
                    captioning.add(frame)


class Captioning:
    """One source whose frames are with the engine."""

    def __init__(
        self,
        engine: Engine,
        providers: Providers,
        request: CaptionRequest,
        watch: _Watch,
        stopping: Callable[[], bool],
        log: FrameLog | None = None,
    ) -> None:
        """`engine` has none of the frames yet; `log` is told of those of a video."""
        self._engine = engine
        self._providers = providers
        self._request = request
        self._watch = watch
        #: Time and captions of each frame, in their order.
        self._done: list[FrameCaptions] = []
        #: What is with the engine; last, and without a time, all frames together.
        self._waiting: deque[tuple[_Seen | None, Future[list[Caption]]]] = deque()
        together = request.video.mode != "per_frame"
        self._joint_frames = JointFrames(engine.max_batch) if together else None
        self._joint: Caption | None = None
        #: Of the frame that came last: what it gives holds for frames that repeat it.
        self._last: Future[list[Caption]] | None = None
        self._log = log
        self._stopping = stopping
        #: What attempts before this one have done, by time.
        self._earlier: defaultdict[float, deque[FrameCaptions]] = defaultdict(deque)
        #: How many frames there will be, if that is known.
        self._expected: int | None = None
        #: True for a video, which the log is told of.
        self._logged = False
        #: Whoever has it may take frames: the one who waits for them all, or who has a look.
        self._taking = threading.Lock()
        self.abandoned = False

    def resume(self) -> None:
        """Take over the frames that attempts before this one have done."""
        for frame in self._log.earlier() if self._log else ():
            self._done.append(frame)
            if frame.time_seconds is not None:
                self._earlier[frame.time_seconds].append(frame)

    @property
    def done_seconds(self) -> tuple[float, ...]:
        """The times of these frames."""
        return tuple(one.time_seconds for one in self._done if one.time_seconds is not None)

    def add(self, frame: Frame) -> None:
        """Give the engine one more frame, when it has room for it; one that repeats costs none.

        One that was done before costs none either: not every plugin leaves those out.
        """
        self._expected = frame.expected_frames
        if self._joint_frames and frame.time_seconds is not None:
            self._joint_frames.add(frame)
            if self._request.video.mode == "joint":
                return
        if self._earlier and self._was_done(frame):
            return
        self._make_room()
        if self._last is None or not frame.repeated:
            request = self._request
            self._last = self._engine.submit(frame.pixels, request.options, request.lane)
        seen = _Seen(frame.time_seconds, frame.media_seconds, frame.expected_frames)
        self._waiting.append((seen, self._last))
        if self._log and frame.time_seconds is not None:
            self._logged = True
            self._take_done()

    def _make_room(self) -> None:
        while len(self._waiting) + self._unkept >= FRAMES_IN_FLIGHT:
            if self._unkept and self._log and self._log.keep():
                continue
            if len(self._waiting) < FRAMES_IN_FLIGHT:
                return  # a database that is away does not hold the video up
            self._take()
            self._take_what_is_done()

    @property
    def _unkept(self) -> int:
        return self._log.unkept if self._log else 0

    def _was_done(self, frame: Frame) -> bool:
        known = self._earlier.get(frame.time_seconds) if frame.time_seconds is not None else None
        if not known:
            return False
        # The next one may repeat it.
        self._last = Future()
        self._last.set_result(list(known.popleft().captions))
        return True

    def complete(self) -> None:
        """There are no more frames: where it was asked for, have all captioned together."""
        # It knows who waits for it: held here, the whole job would be left to the cycle collector.
        self._last = None
        pixels = self._joint_frames.pixels if self._joint_frames else None
        if pixels is not None:
            request = self._request
            self._waiting.append((None, self._engine.submit(pixels, request.options, request.lane)))

    def when_done(self, tell: Callable[[], None]) -> None:
        """Have `tell` called when `result` need not wait; maybe at once, maybe by the engine."""
        with self._taking:
            waiting = list(self._waiting)
        remaining = len(waiting)
        if not remaining:
            tell()
            return
        since = time.monotonic()

        def all_done(_: object = None) -> None:
            self._watch.count("engine", since)
            tell()

        if remaining == 1:  # as of every still picture
            waiting[0][1].add_done_callback(all_done)
            return
        lock = threading.Lock()

        def one_done(_: object) -> None:
            nonlocal remaining
            with lock:
                remaining -= 1
                last = not remaining
            if last:
                all_done()

        for _, future in waiting:
            future.add_done_callback(one_done)

    def look(self) -> None:
        """Take what the engine has done, and raise when no more is wanted; see `Pipeline.begin`.

        To be called now and then by who waits for a decoder.
        """
        self._watch.check()
        self._take_done()
        if self._stopping() and self._can_be_put_down:
            raise HandedBackError("the worker ends")

    @property
    def _can_be_put_down(self) -> bool:
        """True for a video with frames still to come whose others need not be done again."""
        if not (self._log and self._log.resumes):
            return False
        if self._expected is not None:
            return len(self._done) + len(self._waiting) < self._expected
        return self._logged or self._request.lane is Lane.VIDEO

    def put_down(self) -> None:
        """Have kept what the engine has done or is about; let it drop the rest."""
        with self._taking:
            while self._waiting and self._waiting[-1][1].cancel():
                self._waiting.pop()
            try:
                while self._waiting:
                    self._take()
            finally:  # an engine that fails meanwhile takes nothing of what was done before
                if self._log:
                    self._log.keep()

    def check(self) -> None:
        """Give up, and raise, when the result is not wanted any more; see `Pipeline.caption`."""
        try:
            self._watch.check()
            self._take_done()
        except BaseException:
            self.abandon()
            raise

    def result(self) -> Captioned:
        """Wait for the captions; see `Pipeline.caption`."""
        try:
            with self._taking:
                while self._waiting:
                    self._take()
            captions = self._providers.finish(self._done, self._request, self._joint)
        except BaseException as error:
            self._providers.count(error)
            self.abandon()
            raise
        timings = {stage: round(seconds, 6) for stage, seconds in self._watch.seconds.items()}
        return Captioned(captions, timings)

    def abandon(self) -> None:
        """Let the engine drop what it has not begun."""
        self.abandoned = True
        for _, future in list(self._waiting):  # another thread may be taking some
            future.cancel()

    def _take_done(self) -> None:
        """Take what need not be waited for, and have it kept; of a video only."""
        if not (self._log and self._logged):
            return
        with self._taking:
            self._take_what_is_done()
            self._log.keep_now_and_then()

    def _take_what_is_done(self) -> None:
        while self._waiting and self._waiting[0][1].done():
            self._take()

    def _take(self) -> None:
        seen, future = self._waiting[0]
        since = time.monotonic()
        captions = tuple(self._watch.result(future))
        self._watch.count("engine", since)
        if seen:
            frame = FrameCaptions(
                time_seconds=seen.time_seconds,
                captions=captions,
                media_seconds=seen.media_seconds,
            )
            self._done.append(frame)
            if self._log and self._logged:
                self._log.add(frame, seen.expected_frames)
        elif self._joint_frames:
            self._joint = self._joint_frames.told(captions)
        self._waiting.popleft()


class _Seen(NamedTuple):
    """What stays of a frame whose pixels are with the engine."""

    time_seconds: float | None
    media_seconds: float | None
    expected_frames: int | None


def _find(folders: LocalFolders, source: Source) -> Found | None:
    started = time.monotonic()
    try:
        return Found(folders.open(source), time.monotonic() - started)
    except JobError:  # not kept: it knows this frame, and would be left to the cycle collector
        return None


def _folder(*, needed: bool) -> AbstractContextManager[Path]:
    """Where a source is brought to, gone afterwards; a local file is read where it lies.

    Making and removing one took a quarter of a worker's time where captions took none.
    """
    return _own_folder() if needed else _NOWHERE


@contextmanager
def _own_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
        yield Path(folder)


class _Watch:
    """Whether a job may go on, and where its time goes."""

    def __init__(self, canceled: Callable[[], bool] | None, deadline_at: datetime | None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._canceled = canceled
        self._deadline_at = deadline_at

    def check(self) -> None:
        """Raise if the job is canceled or late."""
        if self._canceled and self._canceled():
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

    def count(self, stage: str, since: float) -> None:
        """Add the time that has passed since then, on the monotonic clock, to a stage's."""
        self.seconds[stage] += time.monotonic() - since
