"""From a file to an upright RGB picture: the one place where strangers' bytes meet decoders.

Pure: a path and limits in, a picture or a `JobError` out, so that it runs alike in a thread and
in a child process with limits of its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

from PIL import ExifTags, Image

from captioner.errors import ErrorCode, JobError, describe
from captioner.media.colour import to_rgb
from captioner.media.formats import find_format
from captioner.media.unread import told
from captioner.video_containers import PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captioner.domain import Media
    from captioner.settings import MediaSettings

#: Longest side in pixels. Resizing costs memory by the side, not by the area: a picture of
#: 1 × 50,000,000 pixels would take 1.6 GB for its filter alone. JPEG itself cannot go beyond.
MAX_SIDE = 65_535

_MAX_REASON_CHARACTERS = 160
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Pillow reports damaged metadata by warnings, which do not say of which file and change nothing.
# Set once for the process: `warnings.catch_warnings` is not safe beside other threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# And a TIFF of too many samples by an error of its own in the log, beside the one it raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_image(
    media: Media, limits: MediaSettings, wanted_side: int | None = None
) -> Image.Image:
    """Decode a still image, or the first picture of an animation.

    Bytes and pixels are checked before anything is decoded. Colour profiles are not followed,
    as the model's own processor does not follow them.

    Args:
        media: The file; its name and its media type are not believed.
        limits: `max_image_bytes` and `max_image_pixels`. A pixel limit above Pillow's own
            (about 89 million) raises that for the whole process.
        wanted_side: what the picture will be resized to. Where `scaled_jpeg` is set, a JPEG that
            is large enough is decoded at 1/2, 1/4 or 1/8 of its size, from its coefficients.

    Returns:
        Mode RGB, turned upright by its EXIF orientation, transparency composited on white.

    Raises:
        JobError: `media_too_large`; `unsupported_media_type` when the content is of no known
            format; `pixel_limit`; `decode_failed` for everything a decoder stumbles over;
            `fetch_failed` when the file cannot be read.
        MemoryError: memory does not suffice.
    """
    data = _read(media, limits.max_image_bytes)
    with decoding(media):
        return _decode(data, media.name, limits, wanted_side if limits.scaled_jpeg else None)


@contextlib.contextmanager
def decoding(media: Media) -> Iterator[None]:
    """Turn what a decoder raises into a `JobError`: the boundary, and the only one.

    `MemoryError` is left to whoever knows what memory there is.
    """
    try:
        yield
    except (JobError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise JobError(
            ErrorCode.PIXEL_LIMIT, f"{media.name}: decoding it takes too much memory"
        ) from error
    except Exception as error:
        # Decoders raise OSError, ValueError, SyntaxError, RuntimeError, struct.error and more.
        reason = "".join(c if c.isprintable() else "?" for c in describe(error))
        raise JobError(
            ErrorCode.DECODE_FAILED,
            f"{media.name}: damaged or not supported ({reason[:_MAX_REASON_CHARACTERS]})",
        ) from error


def _read(media: Media, limit: int) -> bytes:
    """The whole file, so that it cannot change between the checks and the decoding."""
    try:
        with media.open() as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise media.unreadable(error) from error
    if len(data) > limit:
        raise JobError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"{media.name}: more than {limit} bytes (CAPTIONER_MEDIA__MAX_IMAGE_BYTES)",
        )
    if not data:
        raise JobError(ErrorCode.DECODE_FAILED, f"{media.name}: the file is empty")
    return data


def _decode(data: bytes, name: str, limits: MediaSettings, wanted_side: int | None) -> Image.Image:
    image_format = find_format(data)
    if image_format is None:
        raise JobError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"{name}: the content is {told(data[:PREFIX_BYTES])}",
        )
    _raise_pillows_limit(limits.max_image_pixels)
    size = image_format.size_before_open(data)
    if size:
        _check_size(size, name, limits.max_image_pixels)
    if objection := image_format.objection(data):
        raise JobError(
            ErrorCode.DECODE_FAILED,
            f"{name}: {image_format.name} of {objection}; save it anew, with fewer",
        )
    with image_format.reader(io.BytesIO(data)) as image:
        _check_size(image.size, name, limits.max_image_pixels)
        if wanted_side:
            # Does nothing but for JPEG. Twice the side: what is resized afterwards is then nearly
            # what it would have been (see CAPTIONER_MEDIA__SCALED_JPEG in media/README.md).
            image.draft(None, (2 * wanted_side, 2 * wanted_side))
        rgb = to_rgb(image)
        # Read after loading: PNG may keep EXIF behind the pixels, TIFF is turned by loading.
        turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise JobError(
            ErrorCode.PIXEL_LIMIT,
            f"{name}: {width} × {height} pixels, at most {max_pixels} in all "
            "(CAPTIONER_MEDIA__MAX_IMAGE_PIXELS)",
        )
    if max(width, height) > MAX_SIDE:
        raise JobError(
            ErrorCode.PIXEL_LIMIT,
            f"{name}: {width} × {height} pixels, at most {MAX_SIDE} on a side",
        )


def _raise_pillows_limit(max_pixels: int) -> None:
    """Let Pillow's TIFF, GIF and WebP readers accept what the operator allows.

    Never lowers it, so that threads cannot disagree about it for long.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; damaged metadata must not cost the picture."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 (anything at all: these bytes are not the picture's)
        return 1
