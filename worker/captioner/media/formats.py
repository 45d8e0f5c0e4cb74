"""Which formats are read, told by a file's first bytes and never by its name.

Every reader here is one more parser that strangers can feed: the list is short on purpose.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captioner.media.scans import objection_to_scans

#: How the formats are named to people.
FORMAT_NAMES = ("JPEG", "PNG", "WebP", "GIF", "AVIF", "TIFF", "BMP")

#: Bytes that `find_format` needs at most.
_PREFIX = 512
_TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
#: Sizes of the header after BMP's own; two letters alone would take any text that begins with BM.
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """A format that is read."""

    name: str
    #: Pillow's class for it. Called directly: `Image.open` checks the size with a limit of its
    #: own, by a warning, and warnings cannot be caught safely beside other threads.
    reader: Callable[[io.BytesIO], ImageFile]
    #: Width and height for a format whose reader allocates memory as soon as it is made.
    size_before_open: Callable[[bytes], tuple[int, int] | None] = lambda _: None
    #: What speaks against decoding a file at all, for a format whose time its size does not bound.
    objection: Callable[[bytes], str | None] = lambda _: None


def find_format(data: bytes) -> ImageFormat | None:
    """The format of a file's bytes, or None when it is none of those read here."""
    head = data[:_PREFIX]
    for matches, image_format in _FORMATS:
        if matches(head):
            return image_format
    return None


def _is_avif(head: bytes) -> bool:
    """An ISO media file that names AVIF among its brands (HEIC names others)."""
    if head[4:8] != b"ftyp":
        return False
    brands = head[8 : min(int.from_bytes(head[:4], "big"), _PREFIX)]
    return any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4))


def _is_bmp(head: bytes) -> bool:
    return head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _is_webp(head: bytes) -> bool:
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The canvas, two copies of which the reader allocates when it is made."""
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
    return width & 0x3FFF, height & 0x3FFF


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """The screen, enlarged by a first frame that is larger, as the reader enlarges it.

    Reads blocks just as Pillow does, oddities included: a file that made the two disagree would
    pass by the limit.
    """
    stream = io.BytesIO(data)
    width, height, flags = struct.unpack("<6xHHB2x", stream.read(13))
    if flags & 0x80:
        stream.seek(3 << (flags & 7) + 1, io.SEEK_CUR)
    while (mark := stream.read(1)) not in (b"", b";"):
        if mark == b"!":
            _skip_gif_extension(stream)
        elif mark == b",":
            left, top, frame_width, frame_height = struct.unpack("<HHHH", stream.read(8))
            return max(width, left + frame_width), max(height, top + frame_height)
    return width, height


def _skip_gif_extension(stream: io.BytesIO) -> None:
    label = stream.read(1)
    first = _gif_block(stream)
    if label == b"\xfe" and not first:
        return
    if label == b"\xff" and first is not None and first.startswith(b"NETSCAPE2.0"):
        _gif_block(stream)
    while _gif_block(stream):
        pass


def _gif_block(stream: io.BytesIO) -> bytes | None:
    length = stream.read(1)
    return stream.read(length[0]) if length and length[0] else None


_FORMATS: tuple[tuple[Callable[[bytes], bool], ImageFormat], ...] = (
    # Not by way of MPO: its first picture is an ordinary JPEG, and the only one wanted.
    (
        lambda head: head.startswith(b"\xff\xd8\xff"),
        ImageFormat("JPEG", JpegImageFile, objection=objection_to_scans),
    ),
    (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), ImageFormat("PNG", PngImageFile)),
    (_is_webp, ImageFormat("WebP", WebPImageFile, _webp_size)),
    (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), ImageFormat("GIF", GifImageFile, _gif_size)),
    (_is_avif, ImageFormat("AVIF", AvifImageFile)),
    (lambda head: head.startswith(_TIFF_STARTS), ImageFormat("TIFF", TiffImageFile)),
    (_is_bmp, ImageFormat("BMP", BmpImageFile)),
)
