"""From any picture Pillow can hold to 8-bit RGB on white.

`Image.convert("RGB")` alone turns 16-bit pictures white, float pictures black and transparency
black: each would be captioned with confidence, and wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

#: TIFF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0
#: Rows are scaled in blocks of about this many pixels, to keep the float64 copies small.
_BLOCK_PIXELS = 1 << 20


def to_rgb(image: ImageFile) -> Image.Image:
    """Decode an opened file and convert it.

    Args:
        image: Opened, not yet loaded: how samples are stored is forgotten by loading.

    Returns:
        Mode RGB, of the same size. Opaque 8-bit pictures equal `image.convert("RGB")`;
        transparent ones are composited on white; deeper ones are scaled to 8 bits.
    """
    key_scale = _key_scale(image)
    image.load()
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        return _grey(_scaled(np.asarray(image)), inverted=_white_is_zero(image))
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode in ("1", "L", "RGB"):
        key = image.info.pop("transparency", None)
        rgb = image.convert("RGB")
        return rgb if key is None else _on_white(rgb, _differs(image, key, key_scale))
    if image.mode == "La":  # the only way out of premultiplied grey
        return _on_white_by_alpha(image.convert("LA"))
    if image.mode in ("LA", "PA", "RGBA") or image.has_transparency_data:
        return _on_white_by_alpha(image)
    return image.convert("RGB")


# --- Transparency ---------------------------------------------------------------------------------


def _on_white_by_alpha(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return _on_white(rgba.convert("RGB"), rgba.getchannel("A"))


def _on_white(rgb: Image.Image, opacity: Image.Image) -> Image.Image:
    paper = Image.new("RGB", rgb.size, "white")
    paper.paste(rgb, mask=opacity)
    return paper


def _key_scale(image: ImageFile) -> float:
    """By what a PNG's transparent colour must be multiplied to be found among decoded samples.

    The key is as stored, with 2, 4 or 16 bits, while Pillow brings these samples to 8.
    """
    raw_mode = image.tile[0].args if image.tile and image.format == "PNG" else None
    return {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}.get(str(raw_mode), 1)


def _differs(image: Image.Image, key: Any, scale: float) -> Image.Image:
    """255 where a pixel is not of the transparent colour, 0 where it is."""
    # A 16-bit key keeps its high byte, as the samples did: near-equal colours go with it.
    wanted = [int(value * scale) for value in (key if isinstance(key, tuple) else (key,))]
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    if samples.ndim == 2:
        samples = samples[:, :, None]
    differs = [samples[:, :, at] != value for at, value in enumerate(wanted)]
    return _opacity(np.logical_or.reduce(differs))


def _opacity(opaque: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))


# --- More than 8 bits -----------------------------------------------------------------------------


def _from_16_bit(image: ImageFile) -> Image.Image:
    """The high byte: 0–65535 become 0–255, as Pillow does it for 16-bit colours."""
    samples = np.asarray(image)
    is_12_bit = isinstance(image, TiffImageFile) and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,)
    high = (samples >> (4 if is_12_bit else 8)).astype(np.uint8)
    rgb = _grey(high, inverted=_white_is_zero(image))
    key = image.info.get("transparency")
    return rgb if key is None else _on_white(rgb, _opacity(samples != key))


def _white_is_zero(image: ImageFile) -> bool:
    """True for a TIFF with white at 0, which Pillow inverts only up to 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _grey(samples: NDArray[np.uint8], *, inverted: bool) -> Image.Image:
    return Image.fromarray(~samples if inverted else samples).convert("RGB")


def _scaled(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """32-bit samples, whole or float, as 8-bit ones. NaN counts as black, ±inf as the extremes."""
    black, white = _black_and_white(samples)
    result = np.empty(samples.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // samples.shape[1])
    for top in range(0, len(samples), rows):
        block = samples[top : top + rows].astype(np.float64)
        block = np.nan_to_num(block, nan=black, posinf=white, neginf=black)
        result[top : top + rows] = np.rint((block - black) * (255 / (white - black))).clip(0, 255)
    return result


def _black_and_white(samples: NDArray[Any]) -> tuple[float, float]:
    """Which values become 0 and 255.

    Within 0–1: 0 and 1. Within 0–255: 0 and 255. Otherwise the least and the greatest, since
    nothing says what was meant; if they are equal, that one value is mid-grey.
    """
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    for top in (1.0, 255.0):
        if low >= 0 and high <= top:
            return 0.0, top
    if low == high:
        margin = max(1.0, abs(low))
        return low - margin, high + margin
    return low, high


# --- Colour spaces --------------------------------------------------------------------------------


def _from_lab(image: Image.Image) -> Image.Image:
    """CIELAB, which `convert` does not know; embedded profiles are not followed anywhere."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
