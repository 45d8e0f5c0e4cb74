"""Frames that look like the one before: they need no caption of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bits of 64 by which the hashes of near-duplicates differ at most.
MOST_BITS = 6
#: By how much of 255 any cell of a thumbnail may differ. A hash alone knows no colours, and little
#: of small things on plain ground.
MOST_CELL = 12
#: Cells beside each other that differ by less, of 255, are equal: noise is no edge.
LEAST_EDGE = 3

_THUMBNAIL_SIDE = 24


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a frame looks like, in 1.8 KB."""

    #: uint8 `[24, 24, 3]`.
    thumbnail: NDArray[np.uint8]
    #: dHash: 64 bits, whether each of 8 × 8 cells is brighter than its right neighbour.
    bits: NDArray[np.bool_]


def look_of(pixels: NDArray[np.uint8]) -> Look:
    """The look of a squared frame, uint8 `[size, size, 3]`."""
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    thumbnail = image.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)
    return Look(np.asarray(thumbnail), grey[:, :-1] > grey[:, 1:] + LEAST_EDGE)


def look_alike(one: Look, other: Look) -> bool:
    """True when one caption will do for both."""
    if np.count_nonzero(one.bits != other.bits) > MOST_BITS:
        return False
    difference = one.thumbnail.astype(np.int16) - other.thumbnail
    return int(np.abs(difference).max()) <= MOST_CELL
