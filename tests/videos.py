"""Videos made in code: pictures that tell their number, and odd files of real formats."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

#: Container and encoder of each kind of file that is read.
KINDS: Mapping[str, tuple[str, str]] = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "mpeg4"),
    "mkv": ("matroska", "libx265"),
    "webm": ("webm", "libvpx-vp9"),
    "avi": ("avi", "mpeg4"),
    "ts": ("mpegts", "libx264"),
    "mpg": ("mpeg", "mpeg2video"),
    "flv": ("flv", "flv1"),
    "mxf": ("mxf", "mpeg2video"),
}
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libvpx-vp9": {"deadline": "realtime"}}


def write_video(
    path: Path,
    pictures: Iterable[Image.Image],
    *,
    rate: int = 10,
    gop: int = 250,
    codec: str | None = None,
    pixel_format: str = "yuv420p",
    rotation: int | None = None,
    mirrored: bool = False,
    pixel_ratio: Fraction | None = None,
    times: Sequence[float] | None = None,
    start_seconds: float = 0.0,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Encode pictures of one size, `rate` a second or at `times`; the suffix says how."""
    container_format, usual = KINDS[path.suffix[1:]]
    codec = codec or usual
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(
            codec, rate=rate, options={**QUIET.get(codec, {}), **(options or {})}
        )
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = pixel_format
        stream.gop_size = gop
        ticks = Fraction(1, 1_000) if times or start_seconds else Fraction(1, rate)
        stream.codec_context.time_base = ticks
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirrored)
        if pixel_ratio is not None:
            stream.sample_aspect_ratio = pixel_ratio
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.width, stream.height = picture.size
            frame = frame_of(picture)
            seconds = times[number] if times else number / rate
            frame.pts = round((seconds + start_seconds) / ticks)
            frame.time_base = ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_of(picture: Image.Image) -> av.VideoFrame:
    """As an encoder takes it."""
    return av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)


def clock(count: int, size: tuple[int, int] = (64, 48)) -> Iterator[Image.Image]:
    """Pictures that tell their number: 8 bits as black and white columns."""
    for number in range(count):
        bits = [255 * (number >> bit & 1) for bit in range(8)]
        row = np.repeat(np.array(bits, np.uint8), size[0] // 8)
        yield Image.fromarray(np.tile(row, (size[1], 1))).convert("RGB")


def told(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    """The number that a picture of `clock` tells, at any size."""
    side = pixels.shape[1]
    middle = pixels[pixels.shape[0] // 2, :, 1]
    centres = [int((column + 0.5) * side / 8) for column in range(8)]
    return sum(1 << bit for bit, at in enumerate(centres) if middle[at] > 127)


# --- Odd files ------------------------------------------------------------------------------------


def lengthened(data: bytes, factor: float) -> bytes:
    """A Matroska file whose header says that it lasts longer; FFmpeg corrects that of others."""
    at = data.index(b"\x44\x89\x88") + 3
    (length,) = struct.unpack_from(">d", data, at)
    return data[:at] + struct.pack(">d", length * factor) + data[at + 8 :]


def misplaced(data: bytes) -> bytes:
    """An MP4 file of one track, its index last, whose pictures are where no file has a byte."""
    at = data.rindex(b"stco") - 4
    length, _, _, count = struct.unpack_from(">I4sII", data, at)
    places = struct.pack(">I4sII", 16 + 8 * count, b"co64", 0, count)
    places += struct.pack(">Q", 2**62) * count
    moved = bytearray(data[:at] + places + data[at + length :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = moved.rindex(name) - 4
        (size,) = struct.unpack_from(">I", moved, place)
        struct.pack_into(">I", moved, place, size + len(places) - length)
    return bytes(moved)


def write_long_sound(path: Path, pictures: Iterable[Image.Image], sound_seconds: float) -> Path:
    """Ten pictures a second, and silence that goes on for longer."""
    container_format, codec = KINDS[path.suffix[1:]]
    with av.open(str(path), "w", format=container_format) as container:
        video = container.add_stream(codec, rate=10)
        assert isinstance(video, av.VideoStream)
        audio = container.add_stream("aac", rate=8_000, layout="mono")
        packets: list[av.Packet[Any]] = []
        for number, picture in enumerate(pictures):
            if number == 0:
                video.width, video.height, video.pix_fmt = *picture.size, "yuv420p"
            frame = frame_of(picture)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += video.encode(frame)
        packets += video.encode()
        for number in range(int(sound_seconds * 8_000 / 1_024)):
            packets += audio.encode(_silence(number))
        packets += audio.encode()
        container.mux(sorted(packets, key=_decoded_at))
    return path


def _decoded_at(packet: av.Packet[Any]) -> Fraction:
    return (packet.dts or 0) * (packet.time_base or Fraction(1))


def _silence(number: int) -> av.AudioFrame:
    sound = av.AudioFrame.from_ndarray(
        np.zeros((1, 1_024), np.float32), format="fltp", layout="mono"
    )
    sound.sample_rate, sound.pts = 8_000, number * 1_024
    sound.time_base = Fraction(1, 8_000)
    return sound


def write_song_with_cover(path: Path) -> Path:
    """An m4a file: a second of silence, and a cover picture, which is a video stream to FFmpeg."""
    cover = Image.new("RGB", (32, 32), "red")
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=8_000, layout="mono")
        picture = container.add_stream("mjpeg", rate=1)
        picture.pix_fmt, picture.width, picture.height = "yuvj420p", 32, 32
        picture.disposition = Disposition.attached_pic
        container.mux(picture.encode(frame_of(cover)))
        container.mux(picture.encode())
        for number in range(8):
            container.mux(audio.encode(_silence(number)))
        container.mux(audio.encode())
    return path
