"""A zoo of odd pictures, made in code: every one is a real file of its format.

`zoo()` are pictures that must decode, each with the colour it must have; `bad_files()` are files
that must be refused, each with the error code they must get.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from captioner.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 160, 60), (40, 60, 200), (240, 220, 40)
#: Red at half opacity on white.
PINK = (237, 142, 142)
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """A file and what it must decode to."""

    name: str
    data: bytes = field(repr=False)
    #: Mean colour of the decoded picture.
    mean: Colour
    size: tuple[int, int] = (16, 16)
    #: By how much each channel's mean may differ: what lossy formats lose.
    tolerance: float = 1.0


@dataclass(frozen=True)
class BadFile:
    """A file that must be refused, and how."""

    name: str
    data: bytes = field(repr=False)
    code: ErrorCode


# --- Making files ---------------------------------------------------------------------------------


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The picture as a file of a format, by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(size: tuple[int, int] = (64, 48), seed: int = 0) -> bytes:
    """A small JPEG with something in every corner."""
    return encode(textured(size, seed), "JPEG", quality=90)


def textured(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colour with noise: compressible, and different at every pixel."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack(
        [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2
    )
    noise = np.random.default_rng(seed).integers(-20, 20, base.shape)
    return Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))


def quadrants(size: int = 32) -> Image.Image:
    """Red, green / blue, yellow: shows how it was turned."""
    image = Image.new("RGB", (size, size))
    half = size // 2
    for at, colour in zip(
        ((0, 0), (half, 0), (0, half), (half, half)), (RED, GREEN, BLUE, YELLOW), strict=True
    ):
        image.paste(colour, (*at, at[0] + half, at[1] + half))
    return image


def png(
    size: tuple[int, int],
    bits: int,
    colour_type: int,
    row: bytes,
    *,
    chunks: tuple[tuple[bytes, bytes], ...] = (),
    pixels: bytes | None = None,
) -> bytes:
    """A PNG written by hand: every row the same, extra chunks (tRNS, PLTE, …) before the pixels."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b""))
    )


def tiff(
    samples: NDArray[Any] | bytes,
    *,
    size: tuple[int, int] = (16, 16),
    bits: tuple[int, ...] = (16,),
    photometric: int = 1,
    sample_format: int = 1,
    extra_samples: tuple[int, ...] = (),
    big_endian: bool = False,
    more_tags: tuple[tuple[int, int, tuple[int, ...]], ...] = (),
) -> bytes:
    """An uncompressed TIFF of one strip, by hand; `samples` are already in its byte order."""
    order = ">" if big_endian else "<"
    strip = samples if isinstance(samples, bytes) else samples.tobytes()
    start = 8
    tags = [
        (256, 4, (size[0],)),
        (257, 4, (size[1],)),
        (258, 3, bits),
        (259, 3, (1,)),
        (262, 3, (photometric,)),
        (273, 4, (start,)),
        (277, 3, (len(bits),)),
        (278, 4, (size[1],)),
        (279, 4, (len(strip),)),
        *([(338, 3, extra_samples)] if extra_samples else []),
        (339, 3, (sample_format,) * len(bits)),
        *more_tags,
    ]
    directory_at = start + len(strip) + len(strip) % 2
    overflow_at = directory_at + 2 + 12 * len(tags) + 4
    entries, overflow = b"", b""
    for tag, kind, values in sorted(tags):
        packed = struct.pack(order + {3: "H", 4: "I"}[kind] * len(values), *values)
        if len(packed) > 4:
            packed, spilled = struct.pack(order + "I", overflow_at + len(overflow)), packed
            overflow += spilled
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"MM" if big_endian else b"II") + struct.pack(order + "HI", 42, directory_at)
    padding = b"\0" * (len(strip) % 2)
    count = struct.pack(order + "H", len(tags))
    return head + strip + padding + count + entries + b"\0\0\0\0" + overflow


def empty_scans(count: int, side: int = 16) -> bytes:
    """A progressive JPEG whose scans say nothing, each at the cost of the whole picture."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    # Runs of 32,767 blocks in which nothing ends, until there are blocks enough.
    runs = -(-(((side + 7) // 8) ** 2) // 32_767)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    coded = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    start = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    start += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    start += segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + coded.replace(b"\xff", b"\xff\0")
    return start + scan * count + b"\xff\xd9"


def gif(
    screen: tuple[int, int], frame: tuple[int, int, int, int], extensions: bytes = b""
) -> bytes:
    """A GIF that declares a screen and one frame (left, top, width, height) without pixels."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *screen, 0, 0, 0)
        + extensions
        + b","
        + struct.pack("<HHHHB", *frame, 0)
        + b"\x08\x00;"
    )


# --- The zoo --------------------------------------------------------------------------------------


@functools.cache
def zoo() -> tuple[Picture, ...]:
    """Pictures that must decode, each to its mean colour."""
    return (*_plain(), *_transparent(), *_deep(), *_colour_spaces(), *_animated())


def _solid(mode: str = "RGB", colour: Any = RED) -> Image.Image:
    return Image.new(mode, (16, 16), colour)


def _ramp() -> NDArray[np.float64]:
    """0 … 1 in 256 steps: mean 0.5 by whatever it is scaled."""
    return np.linspace(0, 1, 256).reshape(16, 16)


def _plain() -> Iterator[Picture]:
    red = _solid()
    yield Picture("jpeg", encode(red, "JPEG"), RED, tolerance=3)
    yield Picture("jpeg-progressive", encode(red, "JPEG", progressive=True), RED, tolerance=3)
    yield Picture("jpeg-grey", encode(_solid("L", 90), "JPEG"), (90, 90, 90))
    yield Picture("png", encode(red, "PNG"), RED)
    yield Picture("png-1-bit", encode(_solid("1", 1), "PNG"), (255, 255, 255))
    yield Picture("png-grey", encode(_solid("L", 90), "PNG"), (90, 90, 90))
    yield Picture("png-2-bit-grey", png((16, 16), 2, 0, b"\x55" * 4), (85, 85, 85))
    yield Picture("png-palette", encode(red.quantize(4), "PNG"), RED)
    yield Picture("webp", encode(red, "WEBP", lossless=True), RED)
    yield Picture("webp-lossy", encode(red, "WEBP"), RED, tolerance=4)
    yield Picture("gif", encode(red, "GIF"), RED)
    yield Picture("gif-grey", encode(_solid("L", 90), "GIF"), (90, 90, 90))
    yield Picture("avif", encode(red, "AVIF", quality=95), RED, tolerance=4)
    yield Picture("bmp", encode(red, "BMP"), RED)
    yield Picture("bmp-1-bit", encode(_solid("1", 1), "BMP"), (255, 255, 255))
    yield Picture("bmp-palette", encode(red.quantize(4), "BMP"), RED)
    yield Picture("tiff", encode(red, "TIFF"), RED)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Picture(compression, encode(red, "TIFF", compression=compression), RED)
    yield Picture("tiff-jpeg", encode(red, "TIFF", compression="jpeg"), RED, tolerance=3)
    yield Picture(
        "tiff-group4", encode(_solid("1", 1), "TIFF", compression="group4"), (255, 255, 255)
    )
    yield Picture("one-pixel", encode(Image.new("RGB", (1, 1), RED), "PNG"), RED, (1, 1))
    yield Picture("very-wide", encode(Image.new("RGB", (4000, 1), RED), "PNG"), RED, (4000, 1))


def _transparent() -> Iterator[Picture]:
    half, clear = _solid("RGBA", (*RED, 128)), _solid("RGBA", (*RED, 0))
    white = (255, 255, 255)
    yield Picture("png-rgba", encode(half, "PNG"), PINK)
    yield Picture("png-rgba-clear", encode(clear, "PNG"), white)
    yield Picture("png-rgba-opaque", encode(_solid("RGBA", (*RED, 255)), "PNG"), RED)
    yield Picture("png-la", encode(_solid("LA", (0, 128)), "PNG"), (127, 127, 127))
    yield Picture("webp-rgba", encode(half, "WEBP", lossless=True), PINK)
    yield Picture("avif-rgba", encode(half, "AVIF", quality=95), PINK, tolerance=4)
    yield Picture("tiff-rgba", encode(half, "TIFF"), PINK)
    yield Picture("tiff-la", encode(_solid("LA", (0, 128)), "TIFF"), (127, 127, 127))
    premultiplied = np.full((256, 2), (0, 128), np.uint8)
    yield Picture(
        "tiff-premultiplied-grey",
        tiff(premultiplied, bits=(8, 8), extra_samples=(1,)),
        (127, 127, 127),
    )
    palette = (b"PLTE", bytes(RED) + bytes(BLUE))
    yield Picture(
        "png-palette-trns",
        png((16, 16), 8, 3, b"\0" * 8 + b"\1" * 8, chunks=(palette, (b"tRNS", b"\0"))),
        (147, 157, 227),
    )
    yield Picture(
        "png-palette-trns-bytes",
        png((16, 16), 8, 3, b"\0" * 16, chunks=(palette, (b"tRNS", b"\x80\xff"))),
        PINK,
    )
    yield Picture("gif-transparent", encode(red_index_clear(), "GIF", transparency=0), white)
    key = struct.pack(">HHH", *RED)
    row = bytes(RED) * 8 + bytes(BLUE) * 8
    yield Picture(
        "png-rgb-trns", png((16, 16), 8, 2, row, chunks=((b"tRNS", key),)), (147, 157, 227)
    )
    grey_row = b"\x00" * 8 + b"\x40" * 8
    yield Picture(
        "png-grey-trns",
        png((16, 16), 8, 0, grey_row, chunks=((b"tRNS", b"\0\0"),)),
        (159, 159, 159),
    )
    # Samples are widened to 8 bits on decoding, the transparent value is not: 1 means 85.
    yield Picture(
        "png-2-bit-grey-trns",
        png((16, 16), 2, 0, b"\x55\x55\x00\x00", chunks=((b"tRNS", b"\0\1"),)),
        (127, 127, 127),
    )
    yield Picture(
        "png-4-bit-grey-trns",
        png((16, 16), 4, 0, b"\x55" * 4 + b"\x00" * 4, chunks=((b"tRNS", b"\0\5"),)),
        (127, 127, 127),
    )
    yield Picture(
        "png-1-bit-trns", png((16, 16), 1, 0, b"\x00\xff", chunks=((b"tRNS", b"\0\0"),)), white
    )
    yield Picture(
        "png-16-bit-grey-trns",
        png((16, 16), 16, 0, b"\x00\x07" * 8 + b"\x00\x08" * 8, chunks=((b"tRNS", b"\0\7"),)),
        (127, 127, 127),
    )
    yield Picture(
        "png-16-bit-rgb-trns",
        png(
            (16, 16),
            16,
            2,
            b"\x80\x01\x40\x02\x20\x03" * 8 + b"\0" * 48,
            chunks=((b"tRNS", b"\x80\x01\x40\x02\x20\x03"),),
        ),
        (127, 127, 127),
    )
    yield Picture("png-16-bit-la", png((16, 16), 16, 4, b"\x00\x00\x80\x00" * 16), (127, 127, 127))
    yield Picture(
        "png-16-bit-rgba", png((16, 16), 16, 6, b"\xff\xff\0\0\0\0\x80\0" * 16), (255, 127, 127)
    )


def red_index_clear() -> Image.Image:
    """A palette picture of index 0 alone, which is red."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *BLUE])
    return image


def _deep() -> Iterator[Picture]:
    grey = (127, 127, 127)
    ramp = _ramp()
    words = np.rint(ramp * 65535)
    yield Picture("png-16-bit-grey", encode(Image.fromarray(words.astype(np.uint16)), "PNG"), grey)
    yield Picture(
        "png-16-bit-rgb", png((16, 16), 16, 2, b"\x80\x01\x40\x02\x20\x03" * 16), (128, 64, 32)
    )
    yield Picture("tiff-16-bit", tiff(words.astype("<u2")), grey)
    yield Picture("tiff-16-bit-big-endian", tiff(words.astype(">u2"), big_endian=True), grey)
    yield Picture("tiff-16-bit-dark", tiff(np.full(256, 0x1A00, "<u2")), (26, 26, 26))
    yield Picture(
        "tiff-16-bit-white-is-0", tiff(np.full(256, 0x1A00, "<u2"), photometric=0), (229, 229, 229)
    )
    yield Picture(
        "tiff-16-bit-rgb",
        tiff(np.full((256, 3), 0x4000, "<u2"), bits=(16,) * 3, photometric=2),
        (64, 64, 64),
    )
    yield Picture("tiff-16-bit-signed", tiff((words - 32768).astype("<i2"), sample_format=2), grey)
    # Two samples of 12 bits in three bytes: 0x800 is the middle of 12 bits.
    yield Picture("tiff-12-bit", tiff(b"\x80\x08\x00" * 128, bits=(12,)), (128, 128, 128))
    for name, values, expected in (
        ("0-1", ramp, grey),
        ("0-255", ramp * 255, grey),
        ("wide", ramp * 7e6 - 3e6, grey),
        ("huge", (ramp - 0.5) * 6e38, grey),
        ("constant-half", ramp * 0 + 0.5, (128, 128, 128)),
        ("constant-100", ramp * 0 + 100, (100, 100, 100)),
        ("constant-1e30", ramp * 0 + 1e30, (128, 128, 128)),
        ("constant-negative", ramp * 0 - 5, (128, 128, 128)),
        ("all-nan", ramp * np.nan, (0, 0, 0)),
        (
            "infinite",
            np.where(ramp < 0.5, -np.inf, np.where(ramp > 0.9, np.inf, ramp)),
            (97, 97, 97),
        ),
    ):
        data = tiff(values.astype("<f4"), bits=(32,), sample_format=3)
        yield Picture(f"tiff-float-{name}", data, expected, tolerance=2)
    for name, values, expected in (
        ("0-255", ramp * 255, grey),
        ("mask", ramp * 0 + 1, (255, 255, 255)),
        ("wide", ramp * 4000, grey),
        ("signed", ramp * 4000 - 2000, grey),
        ("constant-0", ramp * 0, (0, 0, 0)),
        ("constant-9000", ramp * 0 + 9000, (128, 128, 128)),
    ):
        data = tiff(values.astype("<i4"), bits=(32,), sample_format=2)
        yield Picture(f"tiff-int-{name}", data, expected, tolerance=2)


def _colour_spaces() -> Iterator[Picture]:
    cmyk = _solid("CMYK", (0, 255, 255, 0))
    pure_red = (255, 0, 0)
    # Pillow writes CMYK JPEGs as Adobe does: inverted, with an Adobe marker.
    yield Picture("jpeg-cmyk-adobe", encode(cmyk, "JPEG", quality=95), pure_red, tolerance=4)
    yield Picture("tiff-cmyk", encode(cmyk, "TIFF"), pure_red)
    yield Picture("tiff-ycbcr", encode(_solid().convert("YCbCr"), "TIFF"), RED, tolerance=3)
    for name, lab, expected in (
        ("white", (255, 0, 0), (255, 255, 255)),
        ("red", (138, 81, 70), (255, 0, 0)),
        ("grey", (128, 0, 0), (120, 120, 120)),
    ):
        samples = np.full((256, 3), lab, np.uint8)
        yield Picture(
            f"tiff-lab-{name}", tiff(samples, bits=(8, 8, 8), photometric=8), expected, tolerance=6
        )


def _animated() -> Iterator[Picture]:
    first, second = _solid(), _solid("RGB", BLUE)
    for image_format in ("GIF", "WEBP", "PNG", "TIFF"):
        options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
        data = encode(first, image_format, save_all=True, append_images=[second], **options)
        yield Picture(f"first-of-two-{image_format.lower()}", data, RED)
    data = encode(first, "AVIF", save_all=True, append_images=[second], quality=95)
    yield Picture("first-of-two-avif", data, RED, tolerance=4)
    data = encode(first, "MPO", save_all=True, append_images=[second])
    yield Picture("first-of-two-mpo", data, RED, tolerance=3)


# --- Files to refuse ------------------------------------------------------------------------------


@functools.cache
def bad_files() -> tuple[BadFile, ...]:
    """Files that must be refused, each with its code."""
    return (*_not_pictures(), *_damaged(), *_too_many_pixels())


def _not_pictures() -> Iterator[BadFile]:
    for name, data in (
        ("text.jpg", b"This is only a text.\n" * 20),
        ("text-beginning-with-bm.bmp", b"BMW builds cars and motorcycles in Munich.\n" * 5),
        ("page.html", b"<!doctype html><title>Log in</title>"),
        ("drawing.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("paper.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n"),
        ("photo.psd", b"8BPS\x00\x01" + b"\0" * 40),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
        ("photo.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40),
        ("film.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 40),
        ("one-byte", b"\xff"),
    ):
        yield BadFile(name, data, ErrorCode.UNSUPPORTED_MEDIA_TYPE)


def _damaged() -> Iterator[BadFile]:
    yield BadFile("empty.jpg", b"", ErrorCode.DECODE_FAILED)
    image = textured((64, 48))
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP"):
        data = encode(image, image_format)
        name = image_format.lower()
        yield BadFile(f"half.{name}", data[: len(data) // 2], ErrorCode.DECODE_FAILED)
        yield BadFile(f"start.{name}", data[:32], ErrorCode.DECODE_FAILED)
    flipped = bytearray(encode(image, "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    yield BadFile("damaged.png", bytes(flipped), ErrorCode.DECODE_FAILED)
    yield BadFile("scans.jpg", empty_scans(101), ErrorCode.DECODE_FAILED)
    text = zlib.compress(b"x" * 8_000_000)
    yield BadFile(
        "text-bomb.png",
        png((16, 16), 8, 0, b"\0" * 16, chunks=((b"zTXt", b"k\0\0" + text),)),
        ErrorCode.DECODE_FAILED,
    )


def _too_many_pixels() -> Iterator[BadFile]:
    code = ErrorCode.PIXEL_LIMIT
    row = b"\0" * 1625
    yield BadFile("bomb.png", png((13_000, 13_000), 1, 0, row), code)
    yield BadFile("huge.png", png((2**31 - 1, 2**31 - 1), 8, 2, b"", pixels=b""), code)
    yield BadFile("long.png", png((40_000_000, 1), 1, 0, b"", pixels=b""), code)
    canvas = b"\x10\0\0\0" + b"\xff\x3f\0" * 2
    body = b"VP8X" + struct.pack("<I", 10) + canvas
    yield BadFile("bomb.webp", b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body, code)
    yield BadFile("bomb.gif", gif((10_000, 10_000), (0, 0, 1, 1)), code)
    restore = b"!\xf9\x04\x08\0\0\0\0"  # disposal 2: Pillow allocates the frame on opening
    yield BadFile("frame-bomb.gif", gif((1, 1), (0, 0, 10_000, 10_000), restore), code)
    note = b"!\xfe\x03abc\0!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0!\x01\0\0"
    yield BadFile("hidden-bomb.gif", gif((1, 1), (0, 0, 10_000, 10_000), note + restore), code)
    yield BadFile("bomb.tiff", tiff(b"\0\0", size=(60_000, 60_000)), code)
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield BadFile("bomb.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header, code)
    start = encode(Image.new("RGB", (8, 8)), "JPEG")
    at = start.index(b"\xff\xc0") + 5
    yield BadFile("bomb.jpg", start[:at] + b"\xff\xdc\xff\xdc" + start[at + 4 :], code)
