"""The right picture at the right time, from every kind of file that is read, odd ones too."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import captioner_video
from captioner import CaptionRequest, ErrorCode, Frame, JobError, Media, Source, VideoOptions
from captioner.plugins import Plugins
from captioner.sampling import InlineSampler, open_plugins
from captioner.settings import MediaSettings, PluginSettings
from captioner.video_containers import find_container
from captioner_video.decoding import Reader
from captioner_video.opening import opened, video_stream
from captioner_video.sampling import frames_of
from captioner_video.watch import Watch
from pictures import zoo
from videos import (
    KINDS,
    clock,
    frame_of,
    lengthened,
    misplaced,
    plain,
    told,
    write_long_sound,
    write_song_with_cover,
    write_video,
)

LIMITS = MediaSettings()
SIZE = 64
#: Keyframes where they are asked for, and nowhere else.
STEADY = {"x264-params": "scenecut=0:keyint=30:min-keyint=30:bframes=0"}
#: Pictures and their rate; MPEG-2 knows no rate of 10, and its encoder drops a picture or two.
COUNT, RATE = 120, 10


def rate_of(kind: str) -> int:
    return 25 if kind in ("mpg", "mxf") else RATE


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, of pictures that tell their number."""
    folder = tmp_path_factory.mktemp("films")
    return {
        kind: write_video(
            folder / f"clock.{kind}", clock(COUNT, (128, 96)), rate=rate_of(kind), gop=30
        )
        for kind in KINDS
    }


def frames(path: Path, limits: MediaSettings = LIMITS, **options: Any) -> list[Frame]:
    request = CaptionRequest(source=Source(str(path)), video=VideoOptions(**options))
    found = captioner_video.sample_frames(Media(path, path.name), request, SIZE, limits)
    assert found is not None
    return list(found)


def failure(path: Path, limits: MediaSettings = LIMITS, **options: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        frames(path, limits, **options)
    return caught.value


STRATEGIES: list[dict[str, Any]] = [
    {},
    {"frames": 1},
    {"strategy": "interval", "interval_seconds": 0.33},
    {"strategy": "fps", "fps": 20, "frames": 50},
    {"strategy": "keyframes"},
    {"strategy": "timestamps", "timestamps": (0.05, 1.3, 1.35, 1.4, 4.6)},
]


@pytest.mark.parametrize("options", STRATEGIES, ids=lambda options: options.get("strategy"))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_picture_that_is_shown_then(
    films: dict[str, Path], kind: str, options: dict[str, Any]
) -> None:
    found = frames(films[kind], **options)
    assert found
    tolerance = 1 if kind == "mpg" else 0
    for frame in found:
        assert frame.time_seconds is not None
        expected = int(frame.time_seconds * rate_of(kind) + 1e-6)
        assert abs(told(frame.pixels) - expected) <= tolerance
        assert frame.expected_frames == len(found)
        assert frame.media_seconds == pytest.approx(COUNT / rate_of(kind), abs=0.25)
        assert frame.aspect_ratio == pytest.approx(4 / 3)
    times = [frame.time_seconds or 0.0 for frame in found]
    assert times == sorted(set(times))
    if options.get("strategy") == "keyframes":
        assert times[0] == 0
        assert len(times) >= COUNT / 30


def test_frames_are_squared_as_still_pictures_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (96, 240, 3), np.uint8))
    path = write_video(tmp_path / "a.mkv", [picture], codec="ffv1", pixel_format="bgr0")
    picture.save(tmp_path / "a.png")
    (frame,) = frames(path, frames=1)
    (still,) = sampler().sample(
        Media(tmp_path / "a.png", "a"), CaptionRequest(source=Source("/a")), SIZE
    )
    np.testing.assert_array_equal(frame.pixels, still.pixels)
    assert frame.aspect_ratio == still.aspect_ratio == 2.5
    assert frame.pixels.flags.c_contiguous
    assert frame.pixels.flags.writeable


@pytest.mark.parametrize("fps_of_file", [1, 60])
def test_a_rate_that_differs_repeats_or_leaves_out(tmp_path: Path, fps_of_file: int) -> None:
    path = write_video(tmp_path / "a.mp4", clock(2 * fps_of_file), rate=fps_of_file)
    found = frames(path, strategy="fps", fps=4)
    assert [frame.time_seconds for frame in found] == [n / 4 for n in range(8)]
    assert [told(frame.pixels) for frame in found] == [n * fps_of_file // 4 for n in range(8)]
    assert [frame.repeated for frame in found] == [
        fps_of_file == 1 and number % 4 != 0 for number in range(8)
    ]


def test_what_was_done_before_is_not_given_again(films: dict[str, Path]) -> None:
    media = Media(films["mp4"], "a")
    options = VideoOptions(strategy="interval", interval_seconds=1)
    done = [0.0, 1.0, 2.0, 5.0]
    found = list(frames_of(media, "mov", options, SIZE, LIMITS, done))
    assert [frame.time_seconds for frame in found] == [3, 4, *range(6, 12)]
    assert all(told(f.pixels) == round((f.time_seconds or 0) * RATE) for f in found)
    assert {frame.expected_frames for frame in found} == {12}
    assert list(frames_of(media, "mov", options, SIZE, LIMITS, range(12))) == []


# --- Odd files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, angle: int) -> None:
    picture = plain((20, 20, 20), (96, 48))
    picture.paste((250, 250, 250), (0, 0, 24, 24))  # top left
    path = write_video(tmp_path / "a.mp4", [picture] * 3, rotation=angle)
    (frame,) = frames(path, frames=1)
    corners = [(8, 8), (8, -8), (-8, 8), (-8, -8)]
    bright = [corner for corner in corners if frame.pixels[corner].min() > 150]
    # Counterclockwise from the top left.
    assert bright == [{0: (8, 8), 90: (-8, 8), 180: (-8, -8), -90: (8, -8)}[angle]]
    assert frame.aspect_ratio == (2.0 if angle in (0, 180) else 0.5)


@pytest.mark.parametrize(("angle", "bright_at"), [(0, (8, -8)), (180, (-8, 8)), (90, (-8, -8))])
def test_mirrored_pictures_are_mirrored_and_not_upside_down(
    tmp_path: Path, angle: int, bright_at: tuple[int, int]
) -> None:
    picture = plain((20, 20, 20), (96, 48))
    picture.paste((250, 250, 250), (0, 0, 24, 24))  # top left
    path = write_video(tmp_path / "a.mp4", [picture] * 3, rotation=angle, mirrored=True)
    (frame,) = frames(path, frames=1)
    corners = [(8, 8), (8, -8), (-8, 8), (-8, -8)]
    assert [at for at in corners if frame.pixels[at].min() > 150] == [bright_at]


@pytest.mark.parametrize(
    ("pixel_ratio", "rotation", "seen"),
    [
        (Fraction(16, 11), None, 720 / 576 * 16 / 11),  # PAL, widescreen
        (Fraction(16, 11), 90, 576 / 720 * 11 / 16),
        (Fraction(2_000_000, 1), None, 720 / 576),  # nobody's
    ],
)
def test_proportions_are_those_of_the_screen(
    tmp_path: Path, pixel_ratio: Fraction, rotation: int | None, seen: float
) -> None:
    pictures = [plain((20, 20, 20), (720, 576))] * 3
    path = write_video(
        tmp_path / "a.mov", pictures, rotation=rotation, pixel_ratio=pixel_ratio, codec="libx264"
    )
    (frame,) = frames(path, frames=1)
    assert frame.aspect_ratio == pytest.approx(seen)


@pytest.mark.parametrize("kind", ["ts", "mkv", "mp4"])
def test_times_are_from_the_start_wherever_the_clock_begins(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / f"a.{kind}", clock(50, (128, 96)), start_seconds=5_000, gop=10)
    found = frames(path, strategy="interval", interval_seconds=1)
    seconds = [frame.time_seconds for frame in found]
    if kind != "ts":  # these keep what lies before: the first picture is shown until it comes
        assert found[0].media_seconds == pytest.approx(5, abs=0.3)
    assert seconds == [0, 1, 2, 3, 4]
    assert [told(frame.pixels) for frame in found] == [0, 10, 20, 30, 40]


def test_a_clock_that_begins_after_the_length_that_is_told(tmp_path: Path) -> None:
    # Matroska tells when the last picture ends. Recorders whose clock runs on tell how long it is.
    path = write_video(tmp_path / "a.mkv", clock(30, (128, 96)), start_seconds=100)
    path.write_bytes(lengthened(path.read_bytes(), 3 / 103))

    found = frames(path, frames=3)

    assert [told(frame.pixels) for frame in found] == [5, 15, 25]
    assert [frame.time_seconds for frame in found] == pytest.approx([0.5, 1.5, 2.5])
    assert found[0].media_seconds == pytest.approx(3)


def test_a_variable_rate_shows_each_picture_until_the_next(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 4.0, 4.1, 9.0, 9.9]
    path = write_video(tmp_path / "a.mkv", clock(len(times)), times=times)
    found = frames(path, strategy="timestamps", timestamps=(0.15, 3.9, 4.05, 8.9, 9.5))
    assert [told(frame.pixels) for frame in found] == [1, 2, 3, 4, 5]
    assert [frame.time_seconds for frame in found] == [0.15, 3.9, 4.05, 8.9, 9.5]


def test_a_recording_that_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "live.webm"
    with path.open("wb") as file:
        write_live(file)
    with av.open(str(path)) as container:
        assert container.duration is None
    found = frames(path)
    assert found[0].media_seconds == pytest.approx(12)
    assert [told(frame.pixels) for frame in found] == [7, 22, 37, 52, 67, 82, 97, 112]
    keyframes = frames(path, strategy="keyframes")
    assert [told(frame.pixels) for frame in keyframes] == [0, 30, 60, 90]


def write_live(file: Any) -> None:
    class Pipe:
        def write(self, data: bytes) -> int:
            written: int = file.write(data)
            return written

    with av.open(Pipe(), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE, options={"deadline": "realtime"})
        stream.pix_fmt, stream.gop_size, stream.width, stream.height = "yuv420p", 30, 128, 96
        for number, picture in enumerate(clock(COUNT, (128, 96))):
            frame = frame_of(picture)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("factor", [3, 40])
def test_a_video_shorter_than_it_says(films: dict[str, Path], tmp_path: Path, factor: int) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(lengthened(films["mkv"].read_bytes(), factor))
    found = frames(path)
    assert found[0].media_seconds == pytest.approx(12 * factor if factor < 16 else 12, abs=0.2)
    assert found[-1].media_seconds == pytest.approx(12, abs=0.2)
    assert found[-1].expected_frames == len(found) >= 3
    for frame in found:
        assert frame.time_seconds is not None
        assert told(frame.pixels) == int(frame.time_seconds * RATE + 1e-6)


@pytest.mark.parametrize("kind", ["mp4", "ts"])
def test_sound_that_goes_on_after_the_last_picture_is_not_looked_at(
    tmp_path: Path, kind: str
) -> None:
    path = write_long_sound(tmp_path / f"a.{kind}", clock(50, (128, 96)), 20)
    found = frames(path)
    assert len(found) == 8
    assert [told(frame.pixels) for frame in found] == pytest.approx(
        [(number + 0.5) * 50 / 8 for number in range(8)], abs=3
    )
    assert {round(frame.media_seconds or 0) for frame in found} == {5}


def test_times_stay_in_order_and_within_where_the_end_comes_unannounced(tmp_path: Path) -> None:
    path = write_long_sound(tmp_path / "a.mkv", clock(50, (128, 96)), 20)
    found = frames(path, strategy="interval", interval_seconds=1.0)
    times = [frame.time_seconds or 0 for frame in found]
    assert times == sorted(times)
    assert times[:5] == [0, 1, 2, 3, 4]
    assert times[-1] <= (found[-1].media_seconds or 0) == 5
    assert told(found[-1].pixels) == 49


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("libx265", "yuv420p10le"), ("libx264", "yuv422p"), ("libx264", "yuv444p"), ("ffv1", "gray")],
)
def test_depths_and_samplings(tmp_path: Path, codec: str, pixel_format: str) -> None:
    path = write_video(
        tmp_path / "a.mkv", [plain((190, 90, 30))] * 3, codec=codec, pixel_format=pixel_format
    )
    (frame,) = frames(path, frames=1)
    expected = [113] * 3 if pixel_format == "gray" else [190, 90, 30]
    assert np.abs(frame.pixels.mean(axis=(0, 1)) - expected).max() < 6


def test_untagged_hd_is_bt709_as_players_have_it(tmp_path: Path) -> None:
    def green(size: tuple[int, int]) -> int:
        picture = plain((30, 200, 30), size)
        frame = frame_of(picture).reformat(format="yuv444p", dst_colorspace="ITU709")
        path = tmp_path / f"{size[1]}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=1)
            stream.pix_fmt, stream.width, stream.height = "yuv444p", *size
            frame.colorspace = 2
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        (found,) = frames(path, frames=1)
        return int(found.pixels[32, 32, 1])

    assert abs(green((1280, 720)) - 200) <= 2
    assert abs(green((320, 240)) - 200) > 8


def write_hdr(path: Path, level: int, transfer: int) -> None:
    """Ten-bit grey of a code value from 0 to 1023, tagged BT.2020 and PQ or HLG."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.pix_fmt, stream.width, stream.height = "gbrp10le", 64, 48
        stream.codec_context.color_trc = transfer
        stream.codec_context.color_primaries = 9
        frame = av.VideoFrame.from_ndarray(
            np.full((48, 64, 3), level, np.uint16), format="gbrp10le", channel_last=True
        )
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("transfer", "code", "low", "high"),
    [
        (16, 0.58, 235, 252),  # PQ: 203 candela is paper white
        (16, 0.0, 0, 2),
        (16, 0.75, 248, 255),  # 983 candela, a light
        (16, 0.38, 85, 125),  # 26 candela: a mid-grey of 13 %
        (18, 0.75, 235, 252),  # HLG: paper white
        (18, 0.38, 100, 140),
    ],
)
def test_hdr_is_neither_dull_nor_burnt_out(
    tmp_path: Path, transfer: int, code: float, low: int, high: int
) -> None:
    write_hdr(tmp_path / "a.mkv", round(code * 1023), transfer)
    (frame,) = frames(tmp_path / "a.mkv", frames=1)
    assert low <= frame.pixels.mean() <= high


def test_transparency_is_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.pix_fmt, stream.width, stream.height = "bgra", 64, 48
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 4), np.uint8), format="bgra")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (found,) = frames(path, frames=1)
    assert found.pixels.min() == 255


def test_pictures_whose_size_changes(tmp_path: Path) -> None:
    small = write_video(tmp_path / "s.ts", clock(20, (128, 96)), gop=5).read_bytes()
    large = write_video(
        tmp_path / "l.ts", itertools.islice(clock(40, (256, 192)), 20, 40), gop=5, start_seconds=2.2
    ).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(small + large)
    found = frames(path, strategy="interval", interval_seconds=0.5)
    assert [told(frame.pixels) for frame in found] == [0, 5, 10, 15, 20, 25, 30, 35]
    tight = MediaSettings(max_video_pixels=128 * 96)
    error = failure(path, tight, strategy="interval", interval_seconds=0.5)
    assert error.code is ErrorCode.PIXEL_LIMIT


@pytest.mark.parametrize("kind", ["mp4", "ts", "avi"])
def test_what_can_be_decoded_of_a_damaged_file_is_given(
    films: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    data = bytearray(films[kind].read_bytes())
    with av.open(str(films[kind])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    damaged = [packet for packet in packets[5:9] if packet.pos is not None]
    for packet in damaged:
        assert packet.pos is not None
        at = packet.pos if kind != "ts" else packet.pos + 30
        data[at : at + min(packet.size, 100)] = b"\xff" * min(packet.size, 100)
    assert damaged
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data)
    found = frames(path, strategy="timestamps", timestamps=(0, 6.05, 9.5))
    assert [told(frame.pixels) for frame in found] == [0, 60, 95]


def test_pictures_that_lie_where_no_file_has_a_byte_are_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", clock(10))
    path.write_bytes(misplaced(path.read_bytes()))

    error = failure(path)

    # Some file systems let one look there, and find nothing.
    assert error.code in (ErrorCode.DECODE_FAILED, ErrorCode.VIDEO_NO_FRAMES), error.message
    assert not error.retryable


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    error = failure(write_song_with_cover(tmp_path / "a.m4a"))
    assert (error.code, error.retryable) == (ErrorCode.VIDEO_NO_FRAMES, False)
    assert error.message == "a.m4a: there is no video in it"


# --- What is a video ------------------------------------------------------------------------------


def sampler() -> InlineSampler:
    return InlineSampler(open_plugins(PluginSettings(enabled=("video",)), LIMITS), LIMITS)


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    for picture in zoo():
        path = tmp_path / f"{picture.name}.mp4"  # names say nothing
        path.write_bytes(picture.data)
        request = CaptionRequest(source=Source(str(path)))
        (frame,) = sampler().sample(Media(path, "x"), request, 16)
        assert frame.time_seconds is None
        assert find_container(picture.data[:1024]) is None


def test_a_gif_is_a_video_when_it_is_asked_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    first, *others = clock(10, (64, 64))
    first.save(path, save_all=True, append_images=others, duration=100, loop=0)
    still = CaptionRequest(source=Source(str(path)))
    (frame,) = sampler().sample(Media(path, "x"), still, SIZE)
    assert (told(frame.pixels), frame.time_seconds) == (0, None)
    moving = CaptionRequest(source=Source(str(path)), video=VideoOptions(frames=5))
    found = list(sampler().sample(Media(path, "x"), moving, SIZE))
    assert [told(frame.pixels) for frame in found] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\x00" * 1024, b"G" * 1024, b"RIFF\0\0\0\0WEBP", b"ID3\x04", b"#EXTM3U\n",
        b"ffconcat version 1.0\n", b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", b"<?xml?><MPD/>",
        b"\0\0\0\x1cftypavif", b"\0\0\0\x1cftypheic", b"\x47" + bytes(400),
    ],
)  # fmt: skip
def test_what_is_no_container(head: bytes) -> None:
    expected = "mpegts" if head == b"G" * 1024 else None
    assert find_container(head) == expected


def test_without_pyav_a_video_says_what_to_install(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    error = failure(films["mp4"])
    assert error.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE
    assert "pip install 'captioner[video]'" in error.message


# --- Limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "options", "code", "setting"),
    [
        ({"max_video_seconds": 11.9}, {}, ErrorCode.VIDEO_TOO_LONG, "MAX_VIDEO_SECONDS"),
        ({"max_video_pixels": 128 * 96 - 1}, {}, ErrorCode.PIXEL_LIMIT, "MAX_VIDEO_PIXELS"),
        ({"max_video_bytes": 1_000}, {}, ErrorCode.MEDIA_TOO_LARGE, "MAX_VIDEO_BYTES"),
        ({"max_video_frames": 7}, {}, ErrorCode.VIDEO_TOO_LONG, "MAX_VIDEO_FRAMES"),
        (
            {},
            {"strategy": "interval", "interval_seconds": 1e-3},
            ErrorCode.VIDEO_TOO_LONG,
            "MAX_VIDEO_FRAMES",
        ),
        ({"max_video_frames": 3}, {"strategy": "keyframes"}, ErrorCode.VIDEO_TOO_LONG, "FRAMES"),
        (
            # A picture comes out some packets after it went in.
            {"max_decoded_frames": 1, "max_decoded_frames_per_seek": 1},
            {},
            ErrorCode.VIDEO_TOO_LONG,
            "MAX_DECODED_FRAMES",
        ),
        ({"video_timeout_seconds": 1e-6}, {}, ErrorCode.DECODE_FAILED, "VIDEO_TIMEOUT_SECONDS"),
        (
            {},
            {"strategy": "timestamps", "timestamps": (99,)},
            ErrorCode.VIDEO_NO_FRAMES,
            "no time asked for is in it",
        ),
    ],
)
def test_each_limit_has_its_code_and_names_its_setting(
    films: dict[str, Path],
    limits: dict[str, Any],
    options: dict[str, Any],
    code: ErrorCode,
    setting: str,
) -> None:
    error = failure(films["mp4"], MediaSettings(**limits), **options)
    assert (error.code, error.retryable) == (code, False)
    assert setting in error.message
    assert error.message.startswith("clock.mp4: ")


def test_limits_are_not_one_too_strict(films: dict[str, Path]) -> None:
    limits = MediaSettings(
        max_video_seconds=12, max_video_pixels=128 * 96, max_video_frames=8,
        max_video_bytes=films["mp4"].stat().st_size,
    )  # fmt: skip
    assert len(frames(films["mp4"], limits)) == 8


def test_where_the_budget_of_a_seek_ends_the_last_picture_serves(films: dict[str, Path]) -> None:
    found = frames(films["webm"], MediaSettings(max_decoded_frames_per_seek=10), frames=4)
    for frame in found:
        assert frame.time_seconds is not None
        # It says when it is from, not when it was wanted.
        assert told(frame.pixels) == int(frame.time_seconds * RATE + 1e-6)
    wanted = [1.5, 4.5, 7.5, 10.5]
    assert [round(frame.time_seconds or 0, 3) for frame in found] != wanted
    assert all((f.time_seconds or 0) <= t for f, t in zip(found, wanted, strict=True))


def test_where_the_whole_budget_ends_keyframes_serve(films: dict[str, Path]) -> None:
    found = frames(
        films["mov"],
        MediaSettings(max_decoded_frames=1),
        strategy="timestamps",
        timestamps=(0.5, 3.4, 6.5, 9.7),
    )
    told_numbers = [told(frame.pixels) for frame in found]
    assert told_numbers[1:] == [32, 64, 96]
    assert [round((f.time_seconds or 0) * RATE) for f in found][1:] == told_numbers[1:]


def reader_of(stack: ExitStack, path: Path) -> Reader:
    media = Media(path, path.name)
    container = stack.enter_context(opened(media, "mov", LIMITS))
    return Reader(container, video_stream(container, media, LIMITS), media, LIMITS, Watch("x", 99))


def test_times_near_each_other_are_decoded_once_and_those_far_apart_are_sought(
    tmp_path: Path,
) -> None:
    path = write_video(tmp_path / "a.mp4", clock(COUNT, (128, 96)), gop=30, options=STEADY)
    with ExitStack() as stack:
        reader = reader_of(stack, path)
        for number in range(COUNT):
            reader.at(number / RATE)
        assert reader._decoded <= COUNT + 2
    with ExitStack() as stack:
        reader = reader_of(stack, path)
        for seconds in (6.1, 9.1):
            reader.at(seconds)
        assert reader._decoded < COUNT / 4


def test_a_slow_change_is_a_change(tmp_path: Path) -> None:
    shades = [plain((40 + 5 * number, 90, 90)) for number in range(20)]
    found = frames(write_video(tmp_path / "a.mp4", shades), strategy="fps", fps=RATE)
    repeated = [frame.repeated for frame in found]
    assert not repeated[0]
    assert repeated[1]
    assert 4 <= repeated.count(False) <= 12


def test_the_time_others_take_with_frames_does_not_count(films: dict[str, Path]) -> None:
    stream = frames_of(
        Media(films["mp4"], "a"), "mov", VideoOptions(frames=3), SIZE,
        MediaSettings(video_timeout_seconds=1),
    )  # fmt: skip
    next(stream)
    time.sleep(1.1)
    assert len(list(stream)) == 2


def test_the_time_others_take_does_not_count(films: dict[str, Path]) -> None:
    watch = Watch("x", 0.05)
    with watch.stopped():
        time.sleep(0.1)
    watch.check()
    time.sleep(0.05)
    with pytest.raises(JobError, match=r"x: sampling it took longer than 0\.05 s"):
        watch.check()


def test_the_time_in_which_all_was_paused_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Watch("x", 100)
    now += 3600
    watch.check()  # 30 of them count
    now += 20
    with watch.stopped():
        now += 500
    for _ in range(49):
        now += 1
        watch.check()
    now += 2
    with pytest.raises(JobError):
        watch.check()


def test_frames_come_one_by_one(films: dict[str, Path]) -> None:
    plugins = Plugins()
    plugins.register(captioner_video, "video")
    request = CaptionRequest(source=Source("/x"), video=VideoOptions(strategy="fps", fps=10))
    stream: Iterator[Frame] = InlineSampler(plugins, LIMITS).sample(
        Media(films["mp4"], "x"), request, SIZE
    )
    with closing(stream) as found:  # type: ignore[type-var]  # a generator, as it happens
        assert next(found).expected_frames == 120
        films["mp4"].rename(films["mp4"].with_suffix(".away"))
        assert told(next(found).pixels) == 1  # it is open
    films["mp4"].with_suffix(".away").rename(films["mp4"])
