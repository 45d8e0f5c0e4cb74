"""The frames of one video, one after the other: planned, decoded, squared, compared."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from captioner import ErrorCode, Frame, JobError, Media, MediaSettings, VideoOptions, square
from captioner_video.decoding import Reader, Shown, duration_seconds
from captioner_video.duplicates import Look, look_alike, look_of
from captioner_video.opening import decoding, opened, pixel_ratio, video_stream
from captioner_video.pictures import seen_ratio, upright_picture
from captioner_video.strategies import count_times, plan_times, still_to_do
from captioner_video.watch import Watch

#: A video that ends so much earlier than it says is planned anew.
EARLY_END_SECONDS = 1.0

logger = logging.getLogger(__name__)


def frames_of(
    media: Media,
    demuxer: str,
    options: VideoOptions,
    image_size: int,
    limits: MediaSettings,
    done_seconds: Collection[float] = (),
) -> Iterator[Frame]:
    """Sample a video, one frame in memory at a time.

    Args:
        media: the file.
        demuxer: which of FFmpeg's demuxers reads it, and no other.
        options: which frames.
        image_size: height and width of each frame in pixels.
        limits: of bytes, pixels, time and frames.
        done_seconds: times of frames that are not wanted again: the first ones of an attempt
            before this one. Their pictures are not looked at, so the one after them is new.

    Yields:
        Frames in the order of time; one that looks like the one before it is `repeated`. Its time
        is the one asked for, or its own where that could not be reached.

    Raises:
        JobError: `video_no_frames`, `video_too_long`, `media_too_large`, `pixel_limit`,
            `decode_failed`, `fetch_failed`.
    """
    watch = Watch(media.name, limits.video_timeout_seconds)
    with ExitStack() as stack:
        container = stack.enter_context(opened(media, demuxer, limits))
        stack.enter_context(decoding(media))
        stream = video_stream(container, media, limits)
        reader = Reader(container, stream, media, limits, watch)
        run = _Run(media, options, image_size, limits, reader, pixel_ratio(stream))
        run.plan(duration_seconds(container, stream))
        for frame in run.frames(done_seconds):
            with watch.stopped():
                yield frame
        run.tell()


@dataclass(slots=True)
class _Seen:
    """What is kept of the frames so far."""

    #: Of the last one that differed.
    look: Look | None = None
    #: Of the last one.
    seconds: float = 0.0
    frames: int = 0
    repeated: int = 0


class _Run:
    """One video on its way to frames."""

    def __init__(
        self,
        media: Media,
        options: VideoOptions,
        image_size: int,
        limits: MediaSettings,
        reader: Reader,
        pixel_ratio: float,
    ) -> None:
        self._media = media
        self._options = options
        self._image_size = image_size
        self._limits = limits
        self._reader = reader
        self._pixel_ratio = pixel_ratio
        self._duration_seconds = 0.0
        self._times: list[float] = []
        self._seen = _Seen()

    def plan(self, announced_seconds: float | None) -> None:
        """Decide on the times; what does not say how long it is, is read to its end."""
        keyframes: list[float] = []
        duration = announced_seconds
        if duration is None or self._options.strategy == "keyframes":
            self._check_length(duration or 0.0)
            end, keyframes = self._reader.scan()
            duration = end if duration is None else duration
        self._check_length(duration)
        self._duration_seconds = duration
        self._times = plan_times(self._options, duration, keyframes)
        self._check_count(len(self._times))
        if not self._times:
            raise self._no_frames(f"it lasts {duration:.3f} s, and no time asked for is in it")

    def frames(self, done_seconds: Collection[float]) -> Iterator[Frame]:
        times = still_to_do(self._times, done_seconds)
        before = [done for done in done_seconds if times and done <= times[0]]
        self._seen.seconds = max(before, default=0.0)
        for seconds in times:
            shown = self._reader.at(seconds)
            if shown is None:
                break
            end = self._reader.end_seconds
            if end is not None and end < seconds - EARLY_END_SECONDS:
                yield from self._ended_early(end, shown, done_seconds)
                return
            yield self._frame(shown, seconds if self._reader.exact else shown.seconds)
        if not self._seen.frames and not done_seconds and times:
            raise self._no_frames("none of its frames can be decoded")

    def tell(self) -> None:
        """One line on what was left out."""
        if self._seen.repeated:
            logger.info(
                "%d of %d frames look like the one before and are not captioned",
                self._seen.repeated,
                self._seen.frames,
            )

    def _ended_early(
        self, end: float, last: Shown, done_seconds: Collection[float]
    ) -> Iterator[Frame]:
        """It is shorter than it said: plan anew, or close with its last frame."""
        logger.info("the video says %.1f s and ends at %.1f s", self._duration_seconds, end)
        self._duration_seconds = end
        within = [seconds for seconds in self._times if end >= seconds - EARLY_END_SECONDS]
        if within:
            self._times = self._times[: len(within) + 1]
            if len(done_seconds) < len(self._times):  # else it is closed
                yield self._frame(last, last.seconds)
            return
        self._times = plan_times(self._options, end, [last.seconds])
        if not self._times:
            raise self._no_frames(f"it lasts {end:.3f} s, and no time asked for is in it")
        for seconds in still_to_do(self._times, done_seconds):
            shown = self._reader.at(seconds)
            if shown is not None:
                yield self._frame(shown, seconds if self._reader.exact else shown.seconds)

    def _frame(self, shown: Shown, seconds: float) -> Frame:
        # What was asked for may lie after the end, and the last picture begin before it.
        end = self._reader.end_seconds
        seconds = max(self._seen.seconds, seconds if end is None else min(seconds, end))
        self._seen.seconds = seconds
        pixels = square(upright_picture(shown.frame), self._image_size)
        look = look_of(pixels)
        repeated = self._seen.look is not None and look_alike(self._seen.look, look)
        if not repeated:
            self._seen.look = look
        self._seen.frames += 1
        self._seen.repeated += repeated
        return Frame(
            pixels,
            seconds,
            expected_frames=len(self._times),
            media_seconds=self._duration_seconds,
            repeated=repeated,
            aspect_ratio=seen_ratio(shown.frame, self._pixel_ratio),
        )

    def _check_length(self, duration: float) -> None:
        if duration > self._limits.max_video_seconds:
            raise JobError(
                ErrorCode.VIDEO_TOO_LONG,
                f"{self._media.name}: it lasts {duration:.0f} s, at most "
                f"{self._limits.max_video_seconds:g} s (CAPTIONER_MEDIA__MAX_VIDEO_SECONDS)",
            )
        self._check_count(count_times(self._options, duration))

    def _check_count(self, count: int) -> None:
        if count > self._limits.max_video_frames:
            raise JobError(
                ErrorCode.VIDEO_TOO_LONG,
                f"{self._media.name}: {count} frames are asked for, at most "
                f"{self._limits.max_video_frames} (CAPTIONER_MEDIA__MAX_VIDEO_FRAMES)",
            )

    def _no_frames(self, reason: str) -> JobError:
        return JobError(ErrorCode.VIDEO_NO_FRAMES, f"{self._media.name}: {reason}")
