"""The frame of a still image, and of any other: the picture squashed to the model's square."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from captioner.domain import Frame
from captioner.media.decode import decode_image, decoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from captioner.domain import Media
    from captioner.settings import MediaSettings


def still_frame(media: Media, size: int, limits: MediaSettings) -> Frame:
    """Decode an image into the one frame of a still picture.

    The pixels are bit-equal to those of BLIP's own processor (`backend="pil"`) before it
    normalises: squashed without keeping proportions, bicubic, rounded to 8 bits. With `scaled_jpeg`
    those of large JPEGs are so nearly.

    Args:
        media: The file.
        size: Height and width of the result in pixels, from the checkpoint.
        limits: As for `decode_image`.

    Returns:
        uint8 `[size, size, 3]`, C-contiguous, writable; `time_seconds` is None.

    Raises:
        JobError: as for `decode_image`.
    """
    image = decode_image(media, limits, size)
    with decoding(media):
        return Frame(square(image, size), aspect_ratio=image.width / image.height)


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Squash a picture to what the model sees, as BLIP's own processor does.

    Args:
        image: Mode RGB, of any size.
        size: Height and width of the result in pixels.

    Returns:
        uint8 `[size, size, 3]`, C-contiguous, writable.
    """
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))
