"""Whether what a plugin gave is a frame: found out where it was made, and blamed on who made it.

What a decoder cannot say to its worker (`wire`) would end the decoder, and nobody would know why.
"""

from __future__ import annotations

import numpy as np

from captioner.domain import Frame

#: Three centuries: what is more was meant in another unit. Without a limit what reckons with times,
#: such as subtitles do in milliseconds, could overflow.
MAX_SECONDS = 10**10
#: Of 32 bits.
MAX_FRAMES = 2**31 - 1
#: Of width to height.
MAX_RATIO = 10**6


def check_frame(frame: object, image_size: int) -> None:
    """Refuse what is no frame of this height and width in pixels.

    Raises:
        TypeError: it is something else, or a part of it is.
        ValueError: a part of it has a value that it cannot have.
    """
    pixels = getattr(frame, "pixels", None)
    if not isinstance(frame, Frame) or not isinstance(pixels, np.ndarray):
        raise TypeError(f"gave {type(frame).__name__} instead of a Frame of an array")
    if pixels.dtype != np.uint8 or pixels.shape != (image_size, image_size, 3):
        raise ValueError(
            f"gave a frame of {pixels.dtype} {list(pixels.shape)} "
            f"instead of uint8 {[image_size, image_size, 3]}"
        )
    _check_number("time_seconds", frame.time_seconds, MAX_SECONDS)
    _check_number("media_seconds", frame.media_seconds, MAX_SECONDS)
    _check_number("aspect_ratio", frame.aspect_ratio, MAX_RATIO)
    _check_number("expected_frames", frame.expected_frames, MAX_FRAMES, whole=True)
    if not isinstance(frame.repeated, bool | np.bool_):
        raise TypeError(f"gave a frame whose repeated is {type(frame.repeated).__name__}, not bool")


def _check_number(name: str, number: object, most: int, *, whole: bool = False) -> None:
    if number is None:
        return
    wanted = int if whole else float
    if isinstance(number, bool) or not isinstance(number, int | wanted):
        raise TypeError(
            f"gave a frame whose {name} is {type(number).__name__}, not {wanted.__name__}"
        )
    if not 0 <= number <= most:  # not a number is neither
        # Python refuses to write integers of thousands of digits.
        shown = "huge" if isinstance(number, int) and number > 2**64 else number
        raise ValueError(f"gave a frame whose {name} is {shown}, not from 0 to {most}")
