"""Videos: frames in time, captioned one by one and told as segments.

Only the first bytes say what is a video. An animated GIF is a still picture, its first, unless the
request has options of videos; other animations (WebP, AVIF) always are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from captioner import (
    PREFIX_BYTES,
    Caption,
    CaptionRequest,
    ErrorCode,
    Frame,
    FrameCaptions,
    JobError,
    Media,
    VideoOptions,
    find_container,
    hookimpl,
)

if TYPE_CHECKING:
    from captioner import MediaSettings


@hookimpl
def sample_frames(
    media: Media,
    request: CaptionRequest,
    image_size: int,
    limits: MediaSettings,
    done_seconds: Collection[float] = (),
) -> Iterable[Frame] | None:
    """The frames that the request's options ask for; None for what is no video."""
    demuxer = _demuxer_of(media, request.video)
    if demuxer is None:
        return None
    try:
        import av  # noqa: F401  # only to see whether it is there
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        remedy = "on the worker run: pip install 'captioner[video]'" if missing else str(error)
        raise JobError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"{media.name}: it is a video, and videos need PyAV; {remedy}",
        ) from error
    # Not before: who only lists plugins, or decodes pictures, need not load FFmpeg.
    from captioner_video.sampling import frames_of

    return frames_of(media, demuxer, request.video, image_size, limits, done_seconds)


@hookimpl
def combine_captions(
    frames: Sequence[FrameCaptions], request: CaptionRequest
) -> Sequence[Caption] | None:
    """One caption of all, and one of each segment; None for a still image."""
    if frames[0].time_seconds is None:
        return None
    from captioner_video.segments import combine

    return combine(frames, begins_at_frames=request.video.strategy == "keyframes")


def _demuxer_of(media: Media, options: VideoOptions) -> str | None:
    try:
        with media.open() as file:
            head = file.read(PREFIX_BYTES)
    except OSError as error:
        # Not for the next one to try: it may succeed, and would find no picture in a video.
        raise media.unreadable(error) from error
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif" if options != VideoOptions() else None
    return find_container(head)
