"""What a decoder says to its worker: bytes of a fixed shape, never pickles.

A decoder may have been taken over by the file it read, and unpickling what it says then would
hand it the worker as well.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass

import numpy as np

from captioner.domain import Frame
from captioner.errors import ErrorCode, JobError, PluginError

#: What it is and, of a frame, its time in seconds; not a number: a still image.
_HEADER = struct.Struct("<cd")
#: What else there is to a frame: how many there will be (-1: not known), the seconds of the media
#: and the aspect ratio (not a number: not known), and whether it repeats the one before it.
_FACTS = struct.Struct("<qdd?")
_FRAME, _READY = b"F", b"R"
_MAX_READY_BYTES = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 4096
#: The only one that is called in a decoder.
_HOOK = "sample_frames"


@dataclass(frozen=True, slots=True)
class Ready:
    """The decoder has done what it had to do, and waits for a job."""

    #: Why its last job failed.
    error: JobError | None = None
    #: It wants to be replaced and takes no other job.
    retires: bool = False


def max_bytes(image_size: int) -> int:
    """Longest message of a decoder whose frames are of this height and width in pixels."""
    frame_bytes = _HEADER.size + _FACTS.size + image_size * image_size * 3
    return max(frame_bytes, _MAX_READY_BYTES)


def pack(message: Frame | Ready) -> bytes:
    """A message as bytes."""
    if isinstance(message, Frame):
        return (
            _HEADER.pack(_FRAME, _or_nan(message.time_seconds))
            + _FACTS.pack(
                -1 if message.expected_frames is None else message.expected_frames,
                _or_nan(message.media_seconds),
                _or_nan(message.aspect_ratio),
                message.repeated,
            )
            + message.pixels.tobytes()
        )
    error = message.error
    body = {
        "retires": message.retires,
        "error": error
        and [error.code.value, error.message[:_MAX_MESSAGE_CHARACTERS], error.retryable],
    }
    if isinstance(error, PluginError):
        body["plugin"] = [error.plugin, error.reason[:_MAX_MESSAGE_CHARACTERS]]
    return _HEADER.pack(_READY, 0.0) + json.dumps(body).encode()


def unpack(data: bytes, image_size: int) -> Frame | Ready:
    """A message of bytes, its pixels of `image_size` in height and width.

    Raises:
        ValueError: no decoder in its right mind says this.
    """
    try:
        kind, time = _HEADER.unpack_from(data)
        if kind == _FRAME:
            return _unpack_frame(data, time, image_size)
        if kind != _READY:
            raise ValueError(f"a message of kind {kind!r}")
        body = json.loads(data[_HEADER.size :])
        error = body["error"]
        if "plugin" in body:
            plugin, reason = body["plugin"]
            error = PluginError(str(plugin), _HOOK, str(reason))
        elif error is not None:
            code, message, retryable = error
            error = JobError(ErrorCode(code), str(message), retryable=bool(retryable))
        return Ready(error, bool(body["retires"]))
    except (struct.error, KeyError, TypeError, RecursionError) as error:
        raise ValueError("a malformed message") from error


def _unpack_frame(data: bytes, time: float, image_size: int) -> Frame:
    expected, media_seconds, aspect_ratio, repeated = _FACTS.unpack_from(data, _HEADER.size)
    pixels = np.frombuffer(data, np.uint8, offset=_HEADER.size + _FACTS.size)
    return Frame(
        # Copied, because what lies in bytes cannot be written to, which torch dislikes.
        pixels.reshape(image_size, image_size, 3).copy(),
        _or_none(time),
        expected_frames=None if expected < 0 else expected,
        media_seconds=_or_none(media_seconds),
        repeated=repeated,
        aspect_ratio=_or_none(aspect_ratio),
    )


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number


def _or_none(number: float) -> float | None:
    if math.isnan(number):
        return None
    if not 0 <= number < math.inf:
        raise ValueError(f"a frame with a time or ratio of {number}")
    return number
