"""From a source to a file on this machine: which scheme is opened by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from captioner.domain import Media
from captioner.errors import ErrorCode, JobError
from captioner.media.files import open_file
from captioner.media.http import open_http
from captioner.media.inline import open_inline
from captioner.settings import MediaSettings
from captioner.source import Source

Opener = Callable[[Source, Path, MediaSettings], Media]

#: What this package opens by itself; plugins are asked first, and may know other schemes.
OPENERS: Mapping[str, Opener] = MappingProxyType(
    {"data": open_inline, "file": open_file, "http": open_http, "https": open_http}
)


def open_source(source: Source, folder: Path, limits: MediaSettings) -> Media:
    """Bring a source to this machine.

    Args:
        source: What the client named.
        folder: An existing folder of this job alone; downloads are written here. Whoever made it
            removes it, also after an error, which may leave part of a download.
        limits: What may be read, and how much.

    Returns:
        A regular file of at most `max_image_bytes`, or `max_video_bytes` for one that begins like
            a video; not yet looked into any further.

    Raises:
        JobError: the source may not be read, cannot be read, or is too large. The text is one
            line without credentials, query strings or anything the other side sent.
        OSError: the job's folder cannot be written to.
    """
    opener = OPENERS.get(source.scheme)
    if opener is None:
        # Without "//" it may be a user's name.
        named = f"of scheme {source.scheme[:40]!r}" if "://" in source.uri else "like this"
        raise JobError(
            ErrorCode.SOURCE_NOT_ALLOWED,
            f"sources {named} cannot be read; known schemes are {', '.join(OPENERS)}",
        )
    return opener(source, folder, limits)
