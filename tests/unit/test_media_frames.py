"""Frames are what BLIP's own processor makes, bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from captioner.domain import Media
from captioner.errors import ErrorCode, JobError
from captioner.media import StillImages, decode_image, still_frame
from captioner.settings import MediaSettings
from pictures import RED, encode, quadrants, textured, zoo

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LIMITS = MediaSettings()


def reference(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The processor's pixels before rescaling and normalising, as [height, width, channel]."""
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    return np.moveaxis(pixels["pixel_values"][0], 0, -1)


@pytest.mark.parametrize("size", [64, 384])
@pytest.mark.parametrize(
    "shape", [(640, 480), (333, 1001), (64, 64), (384, 384), (1, 1), (2000, 3), (7, 500)]
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_pixels_equal_the_processors(
    tmp_path: Path, shape: tuple[int, int], size: int, image_format: str
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encode(textured(shape, seed=size), image_format))

    frame = still_frame(Media(path, "picture"), size, LIMITS)

    with Image.open(path) as image:
        expected = reference(image, size)
    assert expected.dtype == frame.pixels.dtype == np.uint8
    np.testing.assert_array_equal(frame.pixels, expected)
    assert frame.pixels.shape == (size, size, 3)
    assert frame.pixels.flags.c_contiguous
    assert frame.pixels.flags.writeable
    assert frame.time_seconds is None


def test_every_picture_of_the_zoo_becomes_a_frame(tmp_path: Path) -> None:
    for picture in zoo():
        path = tmp_path / picture.name
        path.write_bytes(picture.data)
        media = Media(path, picture.name)

        pixels = still_frame(media, 32, LIMITS).pixels

        np.testing.assert_array_equal(pixels, reference(decode_image(media, LIMITS), 32))


def test_the_picture_is_turned_before_it_is_squashed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "picture.png"
    path.write_bytes(encode(quadrants().resize((64, 32)), "PNG", exif=exif))

    pixels = still_frame(Media(path, "picture"), 16, LIMITS).pixels

    assert np.abs(pixels[4, 12].astype(int) - np.array(RED)).max() < 5


def test_the_built_in_provider_gives_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(quadrants(), "PNG"))

    (frame,) = StillImages(LIMITS).sample_frames(Media(path, "picture"), 24)

    assert frame.pixels.shape == (24, 24, 3)


def test_errors_are_those_of_decoding(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"no picture at all")

    with pytest.raises(JobError) as caught:
        still_frame(Media(path, "picture"), 24, LIMITS)

    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE
