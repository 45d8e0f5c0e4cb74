"""The picture that is shown at a given time, found by seeking and decoding, within a budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av.error

from captioner import ErrorCode, JobError, Media, MediaSettings
from captioner_video.opening import check_pixels
from captioner_video.watch import Watch

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

#: Times that differ by less are the same: containers round them.
SAME_SECONDS = 1e-3
#: Pictures and sound of one length end within this of each other.
CONTRADICTION_SECONDS = 1.0
#: Where no index says where keyframes are, a time so near is reached without seeking.
NEAR_SECONDS = 4.0
#: What is sought lies behind a keyframe; where that is not known, this long before, then longer.
STEPS_BACK_SECONDS = (0.0, 1.0, 5.0, 25.0)


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded picture and when it is shown, in seconds from the start of the video."""

    frame: VideoFrame
    seconds: float


class Reader:
    """Gives the pictures of one video, best asked for in the order of time."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        media: Media,
        limits: MediaSettings,
        watch: Watch,
    ) -> None:
        """`stream` is of `container`, and the only one that is switched on."""
        self._container = container
        self._stream = stream
        self._media = media
        self._limits = limits
        self._watch = watch
        self._seconds_per_tick = float(stream.time_base or 1)
        self._start_seconds = _start_seconds(container.start_time, stream)
        #: Packets decoded so far.
        self._decoded = 0
        #: Those of them since the last picture.
        self._in_vain = 0
        #: The last picture that is shown by the time asked for last, and the one after it.
        self._shown: Shown | None = None
        self._next: Shown | None = None
        self._coming = self._decode()
        #: False when the picture last given is not the one that is shown at the time asked for.
        self.exact = True
        #: When the last picture ends, once the end was reached.
        self.end_seconds: float | None = None

    @property
    def exhausted(self) -> bool:
        """True when no more may be decoded to be exact."""
        return self._decoded >= self._limits.max_decoded_frames

    def at(self, seconds: float) -> Shown | None:
        """The picture that is shown at a time.

        Returns:
            The first one before there is any, the last one after the end; an earlier one when that
            time cannot be reached within the limits, which `exact` tells. None when nothing can be
            decoded.
        """
        self.end_seconds = None
        if self.exhausted:
            self.exact = False
            return self._keyframe_before(seconds)
        if not self._is_near(seconds):
            self._seek_before(seconds)
        stop = self._decoded + self._limits.max_decoded_frames_per_seek
        while not self._reached(seconds):
            if self._next is not None:
                self._shown, self._next = self._next, None
                continue
            if self._decoded >= stop and self._shown is not None:
                break
            self._next = next(self._coming, None)
            if self._next is None:
                self.end_seconds = self._end_of(self._shown)
                break
        self.exact = self._shown is not None and (
            self.end_seconds is not None or self._reached(seconds)
        )
        return self._shown or self._next

    def scan(self) -> tuple[float, list[float]]:
        """Read all packets without decoding any.

        Returns:
            When the video ends, and when its keyframes are shown, in order.
        """
        end, keyframes = 0.0, []
        for packet in self._packets():
            ticks = packet.pts if packet.pts is not None else packet.dts
            if ticks is None:
                continue
            seconds = max(0.0, self._seconds(ticks))
            end = max(end, seconds + (packet.duration or 0) * self._seconds_per_tick)
            if packet.is_keyframe and not packet.is_discard:
                keyframes.append(seconds)
        self._seek(0.0)
        return end, sorted(set(keyframes))

    # --- Where to read ----------------------------------------------------------------------------

    def _reached(self, seconds: float) -> bool:
        """The next picture comes too late, or this one just then."""
        if self._shown is not None and abs(self._shown.seconds - seconds) < SAME_SECONDS:
            return True
        return self._next is not None and self._next.seconds > seconds + SAME_SECONDS

    def _is_near(self, seconds: float) -> bool:
        """True when decoding on is the shortest way: no keyframe lies between."""
        here = self._next or self._shown
        if here is None:
            return seconds < NEAR_SECONDS and self._decoded == 0
        if self._shown is not None and self._shown.seconds > seconds + SAME_SECONDS:
            return False
        keyframe = self._indexed_keyframe(seconds)
        if keyframe is not None:
            return keyframe <= here.seconds + SAME_SECONDS
        return seconds - here.seconds <= NEAR_SECONDS

    def _indexed_keyframe(self, seconds: float) -> float | None:
        """When the last keyframe before a time is; None when there is no index that reaches it."""
        entries, ticks = self._stream.index_entries, self._ticks(seconds)
        if not len(entries) or entries[len(entries) - 1].timestamp < ticks:
            return None
        at = entries.search_timestamp(ticks, backward=True)
        return None if at < 0 else self._seconds(entries[at].timestamp)

    def _seek_before(self, seconds: float) -> None:
        """Go to a keyframe that is shown no later; containers without an index miss at times."""
        for step in STEPS_BACK_SECONDS:
            target = max(0.0, seconds - step)
            self._seek(target)
            self._next = next(self._coming, None)
            if self._next is not None and self._next.seconds <= seconds + SAME_SECONDS:
                return
            if not target:
                return
        self._seek(0.0)

    def _keyframe_before(self, seconds: float) -> Shown | None:
        self._seek(seconds)
        return next(self._coming, None)

    def _seek(self, seconds: float) -> None:
        self._shown = self._next = None
        # Transport streams find their beginning only from before it, others know no such time.
        for target in (seconds,) if seconds > 0 else (-1.0, 0.0):
            try:
                self._container.seek(self._ticks(target), stream=self._stream, backward=True)
            except av.error.FFmpegError:
                continue  # what cannot seek is read on from where it is
            break
        self._coming = self._decode()

    # --- Decoding ---------------------------------------------------------------------------------

    def _packets(self) -> Iterator[av.Packet[VideoStream]]:
        """From here to the end; damaged places are passed over by the demuxer, or end it."""
        with contextlib.suppress(av.error.EOFError, av.error.InvalidDataError):
            for packet in self._container.demux(self._stream):
                self._watch.check()
                yield packet

    def _decode(self) -> Iterator[Shown]:
        for packet in self._packets():
            self._decoded += 1
            self._in_vain += 1
            self._check_decoded()
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:
                context = self._stream.codec_context
                check_pixels(context.width, context.height, self._media, self._limits)
                continue  # damaged; the next ones may not be
            for frame in frames:
                ticks = frame.pts if frame.pts is not None else frame.dts
                if ticks is None:
                    continue
                check_pixels(frame.width, frame.height, self._media, self._limits)
                seconds = ticks * float(frame.time_base or 0) - self._start_seconds
                self._in_vain = 0
                yield Shown(frame, max(0.0, seconds))

    def _check_decoded(self) -> None:
        """Keyframes need little decoding; who has no budget left for anything else must have them.

        Raises:
            JobError: `video_too_long`.
        """
        if self.exhausted and self._in_vain > self._limits.max_decoded_frames_per_seek:
            raise JobError(
                ErrorCode.VIDEO_TOO_LONG,
                f"{self._media.name}: {self._decoded} frames were decoded, at most "
                f"{self._limits.max_decoded_frames} (CAPTIONER_MEDIA__MAX_DECODED_FRAMES), and the "
                f"last {self._in_vain} gave no picture",
            )

    # --- Time -------------------------------------------------------------------------------------

    def _seconds(self, ticks: int) -> float:
        return ticks * self._seconds_per_tick - self._start_seconds

    def _ticks(self, seconds: float) -> int:
        return round((seconds + self._start_seconds) / self._seconds_per_tick)

    def _end_of(self, last: Shown | None) -> float | None:
        if last is None:
            return None
        rate = self._stream.average_rate
        return last.seconds + (1 / float(rate) if rate else 0.0)


def duration_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """How long a video says it lasts; None when it does not say, says nonsense, or two things.

    The container counts sound, too, which may go on long after the last picture.
    """
    own = None
    if stream.duration is not None and stream.duration > 0 and stream.time_base:
        own = float(stream.duration * stream.time_base)
    if container.duration is None or container.duration <= 0:
        return own
    # Matroska says when the last picture ends, others how long there are any.
    begins = container.start_time if container.format.name.startswith("matroska") else 0
    whole = float((container.duration - max(0, begins or 0)) / av.time_base)
    if whole <= 0:  # it says how long it lasts, not when it ends
        return own
    if own is not None and stream.time_base:
        first = float((stream.start_time or 0) * stream.time_base)
        own += max(0.0, first - _start_seconds(container.start_time, stream))
        if own < whole - CONTRADICTION_SECONDS:
            return None
    return whole


def _start_seconds(start_time: int | None, stream: VideoStream) -> float:
    """What a container's clock shows at its start: transport streams begin anywhere."""
    if start_time is not None:
        return start_time / av.time_base
    if stream.start_time is not None and stream.time_base:
        return float(stream.start_time * stream.time_base)
    return 0.0
