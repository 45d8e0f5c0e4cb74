"""From pictures to the numbers the model sees, bit for bit as transformers' PIL path makes them.

Free of torch: what prepares pictures ahead of the model may use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import InvalidRequestError, ModelLoadError
from captioner.options.values import as_real, shown

#: What can be captioned: a PIL image, or uint8 `[height, width, 3]` in RGB.
Picture: TypeAlias = Image.Image | NDArray[np.uint8]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class PixelSettings:
    """How pixels become the model's input."""

    #: Pictures are squashed to this many pixels in height and width.
    size: int
    #: Per channel, of values rescaled to 0…1.
    mean: tuple[float, float, float] = _CLIP_MEAN
    std: tuple[float, float, float] = _CLIP_STD
    rescale_factor: float = 1 / 255


def read_pixel_settings(processor: Mapping[str, Any], image_size: int) -> PixelSettings:
    """Read the settings of a checkpoint's image processor.

    Args:
        processor: contents of preprocessor_config.json, or of `image_processor` in
            processor_config.json.
        image_size: side in pixels that config.json gives.

    Raises:
        ModelLoadError: the settings contradict config.json, or ask for steps BLIP does not have.
    """
    for step, wanted in (
        ("do_resize", True),
        ("do_rescale", True),
        ("do_normalize", True),
        ("do_center_crop", False),
    ):
        if processor.get(step) not in (None, wanted):
            raise ModelLoadError(f"image processor: {step} must be {str(wanted).lower()} for BLIP")
    if processor.get("resample") not in (None, Image.Resampling.BICUBIC):
        raise ModelLoadError(
            f"image processor: resample must be {Image.Resampling.BICUBIC:d} (bicubic), "
            f"not {processor['resample']!r}"
        )
    size = processor.get("size")
    size = {"height": size, "width": size} if isinstance(size, int) else size
    if size is not None and size != {"height": image_size, "width": image_size}:
        raise ModelLoadError(
            f"image processor: size {size} contradicts config.json, whose images are "
            f"{image_size} × {image_size}"
        )
    factor = processor.get("rescale_factor")
    if factor is not None and not (isinstance(factor, float) and (as_real(factor) or 0) > 0):
        raise ModelLoadError(f"image processor: rescale_factor cannot be {shown(factor)}")
    return PixelSettings(
        size=image_size,
        mean=_per_channel(processor, "image_mean", _CLIP_MEAN),
        std=_per_channel(processor, "image_std", _CLIP_STD),
        rescale_factor=1 / 255 if factor is None else factor,
    )


def _per_channel(
    processor: Mapping[str, Any], name: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = processor.get(name)
    if values is None:
        return default
    given = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    numbers = [real for value in given if (real := as_real(value)) is not None]
    if not len(given) == len(numbers) == 3 or (name == "image_std" and min(numbers) <= 0):
        above = " above 0" if name == "image_std" else ""
        raise ModelLoadError(
            f"image processor: {name} must be three numbers{above}, not {shown(values)}"
        )
    red, green, blue = numbers
    return red, green, blue


def resize(picture: Picture, size: int) -> NDArray[np.uint8]:
    """Squash a picture to a square, by PIL's bicubic filter; one of that size stays as it is.

    Transparency is composited on white. Sixteen-bit and float images are clipped by PIL: scale
    them before.

    Returns:
        uint8 `[size, size, 3]`, RGB.

    Raises:
        InvalidRequestError: the array is not uint8 `[height, width, 3]`, or there are no pixels.
    """
    if (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.shape == (size, size, 3)
    ):
        return picture
    image = _rgb(picture)
    if 0 in image.size:
        raise InvalidRequestError(f"the picture of {image.width} × {image.height} has no pixels")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _rgb(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InvalidRequestError(
                "an array must be uint8 [height, width, 3] in RGB, not "
                f"{picture.dtype} {list(picture.shape)}"
            )
        return Image.fromarray(np.ascontiguousarray(picture))
    if not isinstance(picture, Image.Image):
        raise InvalidRequestError(
            f"a picture must be a PIL image or a uint8 array, not {type(picture).__name__}"
        )
    if picture.mode == "La":  # Pillow converts it to nothing else
        picture = picture.convert("LA")
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def normalise(pixels: NDArray[np.uint8], settings: PixelSettings) -> NDArray[np.float32]:
    """Make the model's input of resized pixels.

    The order and the types of the arithmetic are those of transformers' PIL path: the product in
    float64, rounded to float32, then difference and quotient in float32. Folding the constants
    together changes last bits.

    Args:
        pixels: uint8 `[size, size, 3]`.
        settings: the checkpoint's.

    Returns:
        float32 `[3, size, size]`.
    """
    rescaled = (pixels.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    mean = np.array(settings.mean, dtype=np.float32)
    std = np.array(settings.std, dtype=np.float32)
    return np.ascontiguousarray(((rescaled - mean) / std).transpose(2, 0, 1))
