"""The zoo: every odd picture has its right colours, every bad file its right error."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from captioner.domain import Media
from captioner.errors import ErrorCode, JobError
from captioner.media import decode_image
from captioner.media.frames import still_frame
from captioner.settings import MediaSettings
from pictures import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    BadFile,
    Picture,
    bad_files,
    encode,
    jpeg,
    png,
    quadrants,
    textured,
    tiff,
    zoo,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = MediaSettings()
ORIENTATIONS = {
    1: (RED, GREEN, BLUE, YELLOW),
    2: (GREEN, RED, YELLOW, BLUE),
    3: (YELLOW, BLUE, GREEN, RED),
    4: (BLUE, YELLOW, RED, GREEN),
    5: (RED, BLUE, GREEN, YELLOW),
    6: (BLUE, RED, YELLOW, GREEN),
    7: (YELLOW, GREEN, BLUE, RED),
    8: (GREEN, YELLOW, RED, BLUE),
}


def media_of(folder: Path, data: bytes) -> Media:
    path = folder / "media"
    path.write_bytes(data)
    return Media(path, "/pictures/photo")


def error_of(function: Callable[..., object], *arguments: object) -> JobError | None:
    """The JobError it ends with, or None when it succeeds; anything else is raised."""
    try:
        function(*arguments)
    except JobError as error:
        return error
    return None


def failure(folder: Path, data: bytes, limits: MediaSettings = LIMITS) -> JobError:
    media = media_of(folder, data)
    with pytest.raises(JobError) as caught:
        decode_image(media, limits)
    message = caught.value.message
    assert message.isprintable(), message
    assert message.startswith("/pictures/photo")
    assert len(message) < 300
    return caught.value


@pytest.mark.parametrize("picture", zoo(), ids=lambda picture: picture.name)
def test_every_picture_of_the_zoo_has_its_colours(tmp_path: Path, picture: Picture) -> None:
    image = decode_image(media_of(tmp_path, picture.data), LIMITS)

    assert (image.mode, image.size) == ("RGB", picture.size)
    mean = np.asarray(image).reshape(-1, 3).mean(axis=0)
    assert mean == pytest.approx(np.array(picture.mean), abs=picture.tolerance)


@pytest.mark.parametrize("bad", bad_files(), ids=lambda bad: bad.name)
def test_every_bad_file_is_refused_with_its_code(tmp_path: Path, bad: BadFile) -> None:
    error = failure(tmp_path, bad.data)

    assert error.code is bad.code, error.message
    assert not error.retryable


@pytest.mark.parametrize("name", ["photo.svg", "photo.jpg", "photo.html", "photo"])
def test_the_format_is_told_by_the_content_and_never_by_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encode(quadrants(), "PNG"))
    assert decode_image(Media(path, f"/{name}"), LIMITS).tobytes() == quadrants().tobytes()

    for content in (b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"%PDF-1.7", b"%!PS-Adobe-3.0"):
        path.write_bytes(content)
        with pytest.raises(JobError) as caught:
            decode_image(Media(path, f"/{name}"), LIMITS)
        assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, and none of JPEG, PNG, WebP, GIF"),
        (b"\n<!DOCTYPE html>\n<html><svg>", "a web page, and none of JPEG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, and none of"),
        (b"%PDF-1.7", "PDF, and none of JPEG"),
        (b"\x1f\x8b\x08\0", "compressed with gzip, and none of JPEG"),
        (
            b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6",
            "Windows Media, and none of MP4, QuickTime, Matroska, WebM, AVI, MPEG-TS",
        ),
        (b"no < picture", "none of JPEG, PNG, WebP, GIF, AVIF, TIFF, BMP"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(tmp_path: Path, content: bytes, what: str) -> None:
    assert f"the content is {what}" in failure(tmp_path, content).message


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_is_applied(tmp_path: Path, image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(quadrants(), image_format, exif=exif)

    pixels = np.asarray(decode_image(media_of(tmp_path, data), LIMITS)).astype(int)

    corners = (pixels[8, 8], pixels[8, 24], pixels[24, 8], pixels[24, 24])
    for corner, expected in zip(corners, ORIENTATIONS[orientation], strict=True):
        assert np.abs(corner - np.array(expected)).max() < 40


def test_orientation_turns_deep_pictures_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = np.repeat(np.array([[0, 65535]], np.uint16), 2, axis=0)  # black left, white right
    data = encode(Image.fromarray(samples), "PNG", exif=exif)

    pixels = np.asarray(decode_image(media_of(tmp_path, data), LIMITS))

    assert pixels[0].max() == 0
    assert pixels[1].min() == 255


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(quadrants(), "PNG", exif=exif)

    image = decode_image(media_of(tmp_path, data), LIMITS)

    assert image.tobytes() == quadrants().tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # pytest undoes the module's
def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    data = encode(quadrants(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 500)

    assert decode_image(media_of(tmp_path, data), LIMITS).size == (32, 32)


def test_pillow_logs_nothing_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failure(tmp_path, tiff(b"\0" * 16 * 16 * 19, bits=(8,) * 19))

    assert caplog.records == []


def test_metadata_of_megabytes_is_harmless(tmp_path: Path) -> None:
    plain = encode(quadrants(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + b"\xa5" * 65_527
    large = plain[:2] + segment * 150 + plain[2:]

    assert len(large) > 9_000_000
    assert decode_image(media_of(tmp_path, large), LIMITS).size == (32, 32)


def test_opaque_eight_bit_pictures_equal_plain_conversion(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "P", "RGBA"):
        media = media_of(tmp_path, encode(textured((60, 40)).convert(mode), "PNG"))
        with Image.open(media.path) as reference:
            expected = reference.convert("RGB").tobytes()

        assert decode_image(media, LIMITS).tobytes() == expected, mode


def test_limits_are_the_settings(tmp_path: Path) -> None:
    data = jpeg((64, 48))

    too_many = failure(tmp_path, data, MediaSettings(max_image_pixels=64 * 48 - 1))
    assert too_many.code is ErrorCode.PIXEL_LIMIT
    assert "64 × 48" in too_many.message
    assert "CAPTIONER_MEDIA__MAX_IMAGE_PIXELS" in too_many.message

    too_large = failure(tmp_path, data, MediaSettings(max_image_bytes=len(data) - 1))
    assert too_large.code is ErrorCode.MEDIA_TOO_LARGE

    exact = MediaSettings(max_image_pixels=64 * 48, max_image_bytes=len(data))
    assert decode_image(media_of(tmp_path, data), exact).size == (64, 48)


def test_pillow_never_warns_of_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 64 × 48 is a bomb to Pillow now
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for image_format in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP"):
            data = encode(textured((64, 48)), image_format)
            assert decode_image(media_of(tmp_path, data), LIMITS).size == (64, 48)
        for bad in bad_files():
            failure(tmp_path, bad.data)

    assert not [one for one in seen if issubclass(one.category, Image.DecompressionBombWarning)]


#: Decodes each file it is given with no more than 50 MB to spare, and prints what it was told.
STARVED = """
import resource, sys
from pathlib import Path
from captioner.domain import Media
from captioner.errors import JobError
from captioner.media import decode_image
from captioner.settings import MediaSettings

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 50_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[1:]:
    try:
        decode_image(Media(Path(name), "bomb"), MediaSettings())
    except JobError as error:
        print(error.code, error.message)
    except MemoryError:
        print("too little memory")
"""


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    names = []
    for bad in bad_files():
        if bad.code is ErrorCode.PIXEL_LIMIT:
            names.append(tmp_path / bad.name)
            names[-1].write_bytes(bad.data)
    honest = tmp_path / "honest.png"  # 40 megapixels: allowed, and more than 50 MB
    honest.write_bytes(png((8000, 5000), 8, 0, bytes(8000)))

    result = subprocess.run(
        [sys.executable, "-c", STARVED, *names, honest], capture_output=True, text=True, check=True
    )

    *bombs, starved = result.stdout.splitlines()
    assert len(bombs) == len(names)
    assert all("pixels, at most" in line for line in bombs), bombs
    assert starved == "too little memory"


def test_a_fifo_or_folder_in_the_files_place_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, code in (
        ("fifo", ErrorCode.SOURCE_NOT_ALLOWED),
        (".", ErrorCode.FETCH_FAILED),
        ("missing", ErrorCode.FETCH_FAILED),
    ):
        with pytest.raises(JobError) as caught:
            decode_image(Media(tmp_path / name, name), LIMITS)
        assert caught.value.code is code


def test_threads_decode_side_by_side(tmp_path: Path) -> None:
    pictures = zoo()
    for index, picture in enumerate(pictures):
        (tmp_path / str(index)).write_bytes(picture.data)
    barrier = threading.Barrier(8)

    def decode_all(_: int) -> list[bytes]:
        barrier.wait()
        return [
            decode_image(Media(tmp_path / str(index), "zoo"), LIMITS).tobytes()
            for index in range(len(pictures))
        ]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(decode_all, range(8)))
    assert all(result == results[0] for result in results)


def test_arguments_travel_to_a_child_process(tmp_path: Path) -> None:
    arguments = (media_of(tmp_path, jpeg()), LIMITS)

    media, limits = pickle.loads(pickle.dumps(arguments))

    assert decode_image(media, limits).size == (64, 48)


SMALL = {
    name: encode(textured((24, 18)), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
}


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(SMALL)),
    cut=st.integers(0, 4000),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
)
@example(name="JPEG", cut=2, changes=[])
@example(name="PNG", cut=8, changes=[])
def test_damage_is_decoded_or_refused_and_nothing_else(
    tmp_path: Path, name: str, cut: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SMALL[name][: cut or None])
    for at, value in changes:
        data[at % len(data)] = value

    error = error_of(decode_image, media_of(tmp_path, bytes(data)), LIMITS)

    assert error is None or (error.message.isprintable() and not error.retryable)


def test_an_icc_profile_that_expands_without_end_is_cut_off(tmp_path: Path) -> None:
    profile = b"x\0\0" + zlib.compress(b"\0" * 50_000_000)
    data = png((16, 16), 8, 0, b"\0" * 16, chunks=((b"iCCP", profile),))

    assert failure(tmp_path, data).code is ErrorCode.DECODE_FAILED


def _photograph(path: Path, size: tuple[int, int], **options: Any) -> Media:
    """Fine structure everywhere, as a photograph has it."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return Media(path, path.name)


@pytest.mark.parametrize(
    ("name", "size", "decoded"),
    [
        ("large.jpg", (3200, 1600), (1600, 800)),
        ("larger.jpg", (6400, 6400), (800, 800)),
        ("small.jpg", (1000, 1000), (1000, 1000)),
        ("large.png", (3200, 1600), (3200, 1600)),
    ],
)
def test_scaled_jpegs_are_decoded_small_and_almost_the_same(
    tmp_path: Path, name: str, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    media = _photograph(tmp_path / name, size)
    exact, scaled = MediaSettings(), MediaSettings(scaled_jpeg=True)
    assert decode_image(media, exact, 384).size == size
    assert decode_image(media, scaled, 384).size == decoded
    frames = [still_frame(media, 384, limits).pixels.astype(int) for limits in (exact, scaled)]
    difference = np.abs(frames[0] - frames[1])
    assert difference.mean() < 4
    assert (difference.max() == 0) == (decoded == size)


def test_scaled_jpegs_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    media = _photograph(tmp_path / "turned.jpg", (3200, 1600), exif=exif)
    assert decode_image(media, MediaSettings(scaled_jpeg=True), 384).size == (800, 1600)
