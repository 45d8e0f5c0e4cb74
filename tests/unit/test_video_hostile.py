"""Hostile videos, in decoders with limits: nothing else is opened, nothing hangs, nothing dies."""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from captioner import CaptionRequest, ErrorCode, Frame, JobError, Media, Source, VideoOptions
from captioner.errors import CrashError
from captioner.sampling import ChildSampler, InlineSampler, open_plugins
from captioner.settings import LogSettings, MediaSettings, PluginSettings
from captioner.video_containers import find_container
from captioner_video import opening
from videos import clock, plain, write_song_with_cover, write_video

SIZE = 32
STRACE = shutil.which("strace")
#: Mutated files of the fuzz test. For a long run: CAPTIONER_TEST_FUZZ=500.
FUZZ = int(os.environ.get("CAPTIONER_TEST_FUZZ", "60"))
KINDS = ("mp4", "mkv", "webm", "avi", "ts", "mxf")
#: For one frame. The fuzz files are small, and their decoders are fresh.
LIMIT_SECONDS = 10.0


@pytest.fixture(scope="module")
def sampler() -> Iterator[ChildSampler]:
    limits = MediaSettings(
        decoders=2,
        decode_timeout_seconds=LIMIT_SECONDS,
        decoder_memory_bytes=2**30,
        video_timeout_seconds=LIMIT_SECONDS,
    )
    with closing(ChildSampler(PluginSettings(enabled=("video",)), limits, LogSettings())) as opened:
        yield opened


def sample(sampler: ChildSampler, path: Path, options: VideoOptions | None = None) -> list[Frame]:
    request = CaptionRequest(source=Source(str(path)), video=options or VideoOptions())
    return list(sampler.sample(Media(path, path.name), request, SIZE))


def attempt(
    sampler: ChildSampler, path: Path, options: VideoOptions | None = None
) -> list[Frame] | JobError:
    try:
        return sample(sampler, path, options)
    except CrashError:
        raise
    except JobError as error:
        return error


def failure(sampler: ChildSampler, path: Path) -> JobError:
    error = attempt(sampler, path)
    assert isinstance(error, JobError)
    return error


# --- Files that mean other files ------------------------------------------------------------------


def texts(folder: Path, port: int) -> dict[str, bytes]:
    secret = folder / "secret.mp4"
    return {
        "ffconcat": b"ffconcat version 1.0\nfile secret.mp4\n",
        "absolute ffconcat": f"ffconcat version 1.0\nfile 'file:{secret}'\n".encode(),
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "hls over http": f"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n".encode(),
        "dash": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f'<Representation><BaseURL>http://127.0.0.1:{port}/a</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>".encode(),
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n".encode(),
        "redirect": f"RTSPtext\nrtsp://127.0.0.1:{port}/a\n".encode(),
        "vobsub": b"# VobSub index file, v7\nid: en, index: 0\n",
        "image list": b"secret-%d.mp4\n",
    }  # fmt: skip


#: Magic bytes in front of a text: each opens its demuxer, and none follows the text.
PREFIXES = {
    "": b"",
    "mp4": b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00",
    "mkv": b"\x1aE\xdf\xa3\x80",
    "ts": (b"\x47" + bytes(187)) * 4,
    "avi": b"RIFF\x00\x00\x00\x00AVI ",
}

AUDIT = """
import os, sys
sys.path[:] = {path!r}
from pathlib import Path
import captioner_video, captioner_video.sampling
from captioner import CaptionRequest, JobError, Media, Source
from captioner.settings import MediaSettings
for name in sys.argv[1:]:
    path = Path(name)
    media, request = Media(path, path.name), CaptionRequest(source=Source(name))
    os.access("/BEGIN", os.R_OK)
    try:
        frames = captioner_video.sample_frames(media, request, 8, MediaSettings())
        list(frames or ())
    except JobError as error:
        print(error.code, error.message, flush=True)
"""


def disguised(folder: Path, port: int) -> list[Path]:
    """Each text with each prefix, as `upload-….mp4` beside the file it wants."""
    paths = []
    for (name, text), (prefix_name, prefix) in (
        (text, prefix) for text in texts(folder, port).items() for prefix in PREFIXES.items()
    ):
        paths.append(folder / f"upload-{prefix_name}-{name.replace(' ', '-')}.mp4")
        paths[-1].write_bytes(prefix + text)
    return paths


def external_track(data: bytes, name: bytes) -> bytes:
    """An MP4 file whose data reference says that its pictures are in another, beside it."""
    path = b"x/" + name + b"\0" * (len(name) % 2)
    # Macintosh's alias record: the volume, the name, how many folders up and down, the path.
    alias = bytes(4 + 10 + 1 + 27 + 12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(path)) + path
    alias += b"\xff\xff\0\0"
    alias = alias.ljust(180, b"\0")
    entry = struct.pack(">I", 8 + len(alias)) + b"alis" + alias
    at = data.index(b"url ", data.index(b"dref")) - 4
    (old_length,) = struct.unpack_from(">I", data, at)
    changed = bytearray(data[:at] + entry + data[at + old_length :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        where = data.index(box) - 4
        (size,) = struct.unpack_from(">I", data, where)
        struct.pack_into(">I", changed, where, size + len(entry) - old_length)
    return bytes(changed)


def test_texts_that_name_other_files_open_none_of_them(
    tmp_path: Path, sampler: ChildSampler
) -> None:
    secret = tmp_path / "secret.mp4"
    os.mkfifo(secret)  # who opens it for reading waits for its writer, and is late
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        for path in disguised(tmp_path, server.getsockname()[1]):
            error = failure(sampler, path)
            assert error.code in (
                ErrorCode.UNSUPPORTED_MEDIA_TYPE,
                ErrorCode.DECODE_FAILED,
                ErrorCode.VIDEO_NO_FRAMES,
            ), path
            assert "TIMEOUT" not in error.message
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.skipif(STRACE is None, reason="strace shows what FFmpeg opens, and is not here")
def test_the_kernel_sees_no_other_file_and_no_socket(tmp_path: Path) -> None:
    good = write_video(tmp_path / "secret.mp4", clock(10))
    external = tmp_path / "external.mp4"
    external.write_bytes(external_track(good.read_bytes(), b"secret.mp4"))
    names = [str(path) for path in (*disguised(tmp_path, 9), external)]
    log = tmp_path / "strace.log"
    ran = subprocess.run(
        [str(STRACE), "-f", "-e", "trace=open,openat,access,socket,connect,bind", "-o", str(log),
         sys.executable, "-c", AUDIT.format(path=sys.path), *names],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    before, _, after = log.read_text().partition("/BEGIN")
    assert "libavformat" in before
    for name in names:
        assert name in after
    assert "secret.mp4" not in after
    assert "socket(" not in after
    assert "connect(" not in after


def test_a_fifo_in_the_files_place_is_refused_at_once(
    tmp_path: Path, sampler: ChildSampler
) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert failure(sampler, tmp_path / "a.mp4").code is ErrorCode.SOURCE_NOT_ALLOWED


def test_a_song_is_no_video_in_a_decoder_either(tmp_path: Path, sampler: ChildSampler) -> None:
    error = failure(sampler, write_song_with_cover(tmp_path / "a.m4a"))
    assert error.code is ErrorCode.VIDEO_NO_FRAMES


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_give_what_there_is_or_fail_cleanly(
    tmp_path: Path, sampler: ChildSampler, kind: str, part: float
) -> None:
    data = write_video(tmp_path / f"a.{kind}", clock(60), rate=25, gop=10).read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(len(data) * part)])
    found = attempt(sampler, path)
    if isinstance(found, JobError):
        assert found.code in (
            ErrorCode.DECODE_FAILED, ErrorCode.VIDEO_NO_FRAMES, ErrorCode.UNSUPPORTED_MEDIA_TYPE
        )  # fmt: skip
    else:
        assert found


# --- Fuzz -----------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The beginning stays, or it would be no video any more; the rest is damaged."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20, 200))):
        at = rng.randrange(12, len(changed))
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
            case 2:
                del changed[at : at + rng.randrange(1, 64)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 64))
            case 4:
                length = rng.randrange(1, 512)
                source = rng.randrange(len(changed))
                changed[at : at + length] = changed[source : source + length]
        if len(changed) < 64:
            break
    return bytes(changed[: rng.randrange(64, len(changed) + 1)] if rng.random() < 0.1 else changed)


def test_mutated_files_kill_no_decoder_and_end_in_time(
    tmp_path: Path, sampler: ChildSampler
) -> None:
    seeds = {
        kind: write_video(
            tmp_path / f"seed.{kind}", clock(30, (96, 64)), rate=25, gop=8
        ).read_bytes()
        for kind in KINDS
    }
    rng = random.Random(20)
    strategies = (
        VideoOptions(),
        VideoOptions(strategy="keyframes"),
        VideoOptions(strategy="fps", fps=10),
    )
    slowest_seconds = 0.0

    def run(number: int) -> str:
        nonlocal slowest_seconds
        started = time.monotonic()
        try:
            return end_of(number)
        finally:
            slowest_seconds = max(slowest_seconds, time.monotonic() - started)

    def end_of(number: int) -> str:
        kind = KINDS[number % len(KINDS)]
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(files[number])
        try:
            found = attempt(sampler, path, strategies[number // len(KINDS) % len(strategies)])
        except CrashError as error:
            return f"crash: {path.name}: {error.message}"
        if isinstance(found, JobError):
            late = f"late: {path.name}" if "TIMEOUT" in found.message else None
            return late or found.code.value
        assert 1 <= len(found) <= 512
        return "frames"

    files = [mutated(seeds[KINDS[number % len(KINDS)]], rng) for number in range(FUZZ)]
    assert sum(find_container(data[:1024]) is not None for data in files) > 0.8 * FUZZ
    with ThreadPoolExecutor(2) as executor:
        found = list(executor.map(run, range(FUZZ)))
    for place, kind in enumerate(KINDS):
        ends = Counter(found[place :: len(KINDS)])
        print(kind, dict(ends))
        assert set(ends) <= {
            "frames", "decode_failed", "video_no_frames", "video_too_long", "pixel_limit",
            "unsupported_media_type", "out_of_memory",
        }  # fmt: skip
        assert 0 < ends["frames"] < ends.total(), f"{kind}: damaged too much, or not at all"
    print(f"slowest: {slowest_seconds:.2f} s")
    # What is over the limit is "late" above; beside it a decoder may have had to start.
    assert slowest_seconds < 2 * LIMIT_SECONDS


def test_memory_is_limited(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", [plain((9, 9, 9), (7680, 4320))] * 2, options={"preset": "ultrafast"}
    )
    enough, little = (
        MediaSettings(decoders=1, decoder_memory_bytes=size) for size in (2**31, 2**28)
    )
    for limits in (enough, little):
        plugins = PluginSettings(enabled=("video",))
        with closing(ChildSampler(plugins, limits, LogSettings())) as opened:
            if limits is enough:
                assert len(sample(opened, path, VideoOptions(frames=1))) == 1
            else:
                assert failure(opened, path).code is ErrorCode.OUT_OF_MEMORY


class Drive(io.RawIOBase):
    """A file on a drive that is away for a moment: one read of all fails."""

    def __init__(self, path: Path, reads: Iterator[int], failing: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._reads = reads
        self._failing = failing

    def readinto(self, buffer: Any) -> int:
        if next(self._reads) == self._failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


@pytest.mark.parametrize("failing", [0, 1, 2, 8])
def test_a_video_on_a_drive_that_is_away_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path = write_video(tmp_path / "film.ts", clock(100), gop=10)
    monkeypatch.setattr(opening, "BUFFER_BYTES", 4096)
    reads = itertools.count()
    monkeypatch.setattr(Media, "open", lambda self, **_: Drive(self.path, reads, failing))
    limits = MediaSettings()
    sampler = InlineSampler(open_plugins(PluginSettings(enabled=("video",)), limits), limits)
    request = CaptionRequest(source=Source(str(path)), video=VideoOptions(strategy="fps", fps=1))
    with pytest.raises(JobError, match=r"film\.ts: Input/output error") as caught:
        list(sampler.sample(Media(path, path.name), request, SIZE))
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.FETCH_FAILED, True)
