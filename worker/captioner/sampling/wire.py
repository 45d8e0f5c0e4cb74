"""What a decoder says to its worker: bytes of a fixed shape, never pickles.

A decoder may have been taken over by the file it read, and unpickling what it says then would
hand it the worker as well.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np

from captioner.domain import Frame
from captioner.errors import ErrorCode, JobError

#: What it is and, of a frame, its time in seconds; not a number: a still image.
_HEADER = struct.Struct("<cd")
_FRAME, _READY = b"F", b"R"
_MAX_READY_BYTES = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Ready:
    """The decoder has done what it had to do, and waits for a job."""

    #: Why its last job failed.
    error: JobError | None = None
    #: It wants to be replaced and takes no other job.
    retires: bool = False


def max_bytes(image_size: int) -> int:
    """Longest message of a decoder whose frames are of this height and width in pixels."""
    return max(_HEADER.size + image_size * image_size * 3, _MAX_READY_BYTES)


def pack(message: Frame | Ready) -> bytes:
    """A message as bytes."""
    if isinstance(message, Frame):
        time = float("nan") if message.time_seconds is None else message.time_seconds
        return _HEADER.pack(_FRAME, time) + message.pixels.tobytes()
    error = message.error
    body = {
        "retires": message.retires,
        "error": error
        and [error.code.value, error.message[:_MAX_MESSAGE_CHARACTERS], error.retryable],
    }
    return _HEADER.pack(_READY, 0.0) + json.dumps(body).encode()


def unpack(data: bytes, image_size: int) -> Frame | Ready:
    """A message of bytes, its pixels of `image_size` in height and width.

    Raises:
        ValueError: no decoder in its right mind says this.
    """
    try:
        kind, time = _HEADER.unpack_from(data)
        if kind == _FRAME:
            pixels = np.frombuffer(data, np.uint8, offset=_HEADER.size)
            # Copied, because what lies in bytes cannot be written to, which torch dislikes.
            pixels = pixels.reshape(image_size, image_size, 3).copy()
            return Frame(pixels, None if np.isnan(time) else time)
        if kind != _READY:
            raise ValueError(f"a message of kind {kind!r}")
        body = json.loads(data[_HEADER.size :])
        error = body["error"]
        if error is not None:
            code, message, retryable = error
            error = JobError(ErrorCode(code), str(message), retryable=bool(retryable))
        return Ready(error, bool(body["retires"]))
    except (struct.error, KeyError, TypeError, RecursionError) as error:
        raise ValueError("a malformed message") from error
