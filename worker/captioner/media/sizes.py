"""How large a file may be: videos are larger than pictures, and told by their first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.errors import ErrorCode, JobError
from captioner.video_containers import find_container

if TYPE_CHECKING:
    from captioner.settings import MediaSettings


def largest_bytes(limits: MediaSettings) -> int:
    """Bytes that no file may exceed, whatever is in it."""
    return max(limits.max_image_bytes, limits.max_video_bytes)


def smallest_limit_bytes(limits: MediaSettings) -> int:
    """Bytes that any file may have, whatever is in it."""
    return min(limits.max_image_bytes, limits.max_video_bytes)


def check_size(name: str, size: int, head: bytes, limits: MediaSettings) -> None:
    """Refuse a file that is larger than one of its kind may be.

    Args:
        name: as it may be shown.
        size: in bytes, so far known.
        head: its first `PREFIX_BYTES`, or what there is of them; a picture until it shows itself a
            video.
        limits: `max_image_bytes` and `max_video_bytes`.

    Raises:
        JobError: `media_too_large`.
    """
    if find_container(head):
        limit, setting = limits.max_video_bytes, "CAPTIONER_MEDIA__MAX_VIDEO_BYTES"
    else:
        limit, setting = limits.max_image_bytes, "CAPTIONER_MEDIA__MAX_IMAGE_BYTES"
    if size > limit:
        raise JobError(
            ErrorCode.MEDIA_TOO_LARGE, f"{name}: {size} bytes, at most {limit} ({setting})"
        )
