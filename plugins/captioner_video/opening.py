"""Opening a stranger's video: one demuxer, this one file, and nothing else.

FFmpeg's demuxers can open files and sockets of their own: playlists, concat scripts, SDP, external
tracks of QuickTime. Here the demuxer is the one that the first bytes call for, which is none of
those; FFmpeg is given an open file instead of a name; and it may use no protocol at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeGuard

import av
import av.error
import av.logging
from av.stream import Discard, Disposition

from captioner import ErrorCode, JobError, Media, MediaSettings

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

#: How long FFmpeg may wait for data; it is a local file.
IO_TIMEOUT_SECONDS = 10.0
BUFFER_BYTES = 256 * 1024
#: Pixels are no more than so much wider or narrower than high; those of widescreen DV are 1.5.
ODDEST_PIXEL = 10

_MAX_REASON_CHARACTERS = 160
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails

# What libraries think of a file is noise, and says what is in it.
av.logging.set_level(None)


@contextlib.contextmanager
def opened(media: Media, demuxer: str, limits: MediaSettings) -> Iterator[InputContainer]:
    """Open a video file for reading.

    Args:
        media: a file; its name is not believed, and not given to FFmpeg.
        demuxer: the only one that may read it.
        limits: `max_video_bytes`, `max_video_pixels`.

    Raises:
        JobError: `media_too_large`, `decode_failed` for what the demuxer stumbles over,
            `fetch_failed` when the file cannot be read.
    """
    options = {
        "format_whitelist": demuxer,
        "protocol_whitelist": "none",
        "enable_drefs": "0",
        # Opening decodes a little: with these, too.
        "max_pixels": str(limits.max_video_pixels),
        "threads": "1",
    }
    with (
        _file(media, limits) as file,
        decoding(media),
        av.open(
            file,
            "r",
            format=demuxer,
            options=options,
            metadata_errors="ignore",
            buffer_size=BUFFER_BYTES,
            timeout=IO_TIMEOUT_SECONDS,
        ) as container,
    ):
        yield container


@contextlib.contextmanager
def decoding(media: Media) -> Iterator[None]:
    """Turn what FFmpeg raises into a `JobError`; `MemoryError` is left to who knows the limit.

    Raises:
        JobError: `decode_failed`; `fetch_failed` when the file cannot be read just now.
    """
    try:
        yield
    except (JobError, MemoryError):
        raise
    except Exception as error:
        if _is_of_the_file(error):
            raise media.unreadable(error) from error
        # Mostly FFmpegError; damaged metadata and indices raise UnicodeDecodeError, IndexError….
        text = str(getattr(error, "strerror", None) or error).partition("\n")[0]
        reason = "".join(c if c.isprintable() else "?" for c in f"{type(error).__name__}: {text}")
        raise JobError(
            ErrorCode.DECODE_FAILED,
            f"{media.name}: damaged or not supported ({reason[:_MAX_REASON_CHARACTERS]})",
        ) from error


def _is_of_the_file(error: Exception) -> TypeGuard[OSError]:
    """Not of what is in it: a drive that is away says nothing of the video.

    But a place that no file can have is what the video says of itself.
    """
    if isinstance(error, av.error.FFmpegError) or not isinstance(error, OSError):
        return False
    return error.errno != errno.EINVAL


def video_stream(container: InputContainer, media: Media, limits: MediaSettings) -> VideoStream:
    """The stream to look at, the others switched off: the default one, else the largest.

    Raises:
        JobError: `video_no_frames` when there is none but cover pictures, `pixel_limit`,
            `decode_failed` when no decoder knows it.
    """
    streams = [one for one in container.streams.video if not one.disposition & _PICTURES]
    if not streams:
        raise JobError(ErrorCode.VIDEO_NO_FRAMES, f"{media.name}: there is no video in it")
    known = [one for one in streams if one.codec_context is not None]
    if not known:
        raise JobError(ErrorCode.DECODE_FAILED, f"{media.name}: its codec is not supported")
    stream = max(known, key=_preference)
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    check_pixels(stream.codec_context.width, stream.codec_context.height, media, limits)
    # One decoder process a core: threads would only take memory from each other.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(limits.max_video_pixels)}
    return stream


def check_pixels(width: int, height: int, media: Media, limits: MediaSettings) -> None:
    """Refuse pictures that are too large; asked again for every frame, as sizes may change.

    Raises:
        JobError: `pixel_limit`.
    """
    if width * height > limits.max_video_pixels:
        raise JobError(
            ErrorCode.PIXEL_LIMIT,
            f"{media.name}: {width} × {height} pixels, at most {limits.max_video_pixels} in all "
            "(CAPTIONER_MEDIA__MAX_VIDEO_PIXELS)",
        )


def pixel_ratio(stream: VideoStream) -> float:
    """Width over height of its pixels; 1 where the file does not say, or nothing that is true."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio and 1 / ODDEST_PIXEL <= ratio <= ODDEST_PIXEL else 1.0


def _preference(stream: VideoStream) -> tuple[bool, int]:
    pixels = stream.codec_context.width * stream.codec_context.height
    return bool(stream.disposition & Disposition.default), pixels


@contextlib.contextmanager
def _file(media: Media, limits: MediaSettings) -> Iterator[BinaryIO]:
    """The file itself, checked after it was opened: what lies there may have been exchanged."""
    with media.open(buffering=0) as file:
        status = os.fstat(file.fileno())
        if status.st_size > limits.max_video_bytes:
            raise JobError(
                ErrorCode.MEDIA_TOO_LARGE,
                f"{media.name}: {status.st_size} bytes, at most {limits.max_video_bytes} "
                "(CAPTIONER_MEDIA__MAX_VIDEO_BYTES)",
            )
        yield file
