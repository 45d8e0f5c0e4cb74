"""The frames of one source that are with the engine, and what comes back of them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from captioner.domain import Caption, CaptionRequest, Frame, FrameCaptions, Lane
from captioner.engine import Engine
from captioner.errors import HandedBackError
from captioner.frame_log import FrameLog
from captioner.joint import JointFrames
from captioner.providers import Providers
from captioner.watch import Watch

#: Most frames of one job that are with the engine, or have captions that are not kept yet. A long
#: video is not held in memory, and a crash costs no more than these.
FRAMES_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Captioned:
    """What became of one source."""

    captions: tuple[Caption, ...]
    #: Seconds by stage: `fetch`, `decode`, `engine`.
    timings: dict[str, float]


class Captioning:
    """One source whose frames are with the engine."""

    def __init__(
        self,
        engine: Engine,
        providers: Providers,
        request: CaptionRequest,
        watch: Watch,
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
        except BaseException:  # raised again: whatever it is, the engine need not go on
            self.abandon()
            raise

    def result(self) -> Captioned:
        """Wait for the captions; see `Pipeline.caption`."""
        try:
            with self._taking:
                while self._waiting:
                    self._take()
            captions = self._providers.finish(self._done, self._request, self._joint)
        except BaseException as error:  # raised again, as above
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
