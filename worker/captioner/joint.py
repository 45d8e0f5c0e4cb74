"""One caption of all frames of a video together: which pictures it is made of, and how it is told.

Experimental: no BLIP was trained for it (see `Captioner.generate_joint`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from captioner.domain import JOINT, Caption, Frame
from captioner.model import MAX_JOINT_PICTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray


class JointFrames:
    """Gathers frames as they come, and keeps so many of them as one caption may be made of.

    A frame that looks like the one before it is left out: what is seen long is not fed twice. Of
    the others all are kept while there is room. When there is none left, every second one of them
    is, then every fourth, and so on: evenly spread, and never fewer than half of what has room.
    """

    def __init__(self, most: int) -> None:
        """`most` is how many pictures the engine takes; more than the model does are not held."""
        self._most = min(most, MAX_JOINT_PICTURES)
        self._pixels: NDArray[np.uint8] | None = None
        self._kept = 0
        #: Frames that differ from the one before them, so far; each so many-th is kept.
        self._seen = 0
        self._every = 1
        self._end_seconds = 0.0

    def add(self, frame: Frame) -> None:
        """Take one more, in the order of time; its pixels are copied if they are wanted."""
        self._end_seconds = max(
            self._end_seconds, frame.time_seconds or 0.0, frame.media_seconds or 0.0
        )
        if frame.repeated and self._seen:
            return
        number = self._seen
        self._seen += 1
        if number % self._every == 0 and self._kept == self._most:
            self._thin_out()
        if number % self._every:
            return
        if self._pixels is None:
            self._pixels = np.empty((self._most, *frame.pixels.shape), np.uint8)
        self._pixels[self._kept] = frame.pixels
        self._kept += 1

    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """What was kept, uint8 `[pictures, size, size, 3]`; None without frames."""
        return None if self._pixels is None else self._pixels[: self._kept]

    def told(self, captions: Sequence[Caption]) -> Caption:
        """The best of the model's captions, for the whole time and labelled as what it is."""
        return replace(captions[0], start_seconds=0.0, end_seconds=self._end_seconds, origin=JOINT)

    def _thin_out(self) -> None:
        if self._pixels is None:
            return
        self._every *= 2
        kept = self._pixels[: self._kept : 2]
        self._kept = len(kept)
        self._pixels[: self._kept] = kept
