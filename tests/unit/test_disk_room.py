"""What it means that the worker's disk takes no more: `/dev/full` says so for real."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from captioner import disk_room, hookimpl, pipeline
from captioner.disk_room import AGAIN_SECONDS, DiskRoom
from captioner.domain import CaptionRequest, Media
from captioner.engine import Engine
from captioner.errors import CanceledError, ErrorCode, JobError, NoRoomError, PluginError
from captioner.media import open_source
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins
from captioner.providers import Providers
from captioner.sampling import InlineSampler
from captioner.settings import MediaSettings
from captioner.source import Source
from sites import running_site

LIMITS = MediaSettings(allowed_hosts="127.0.0.1:*")
INLINE = Source("data:;base64,R0lGODlhAQABAAAAACw=")


@pytest.fixture
def room() -> DiskRoom:
    return DiskRoom()


def full(folder: Path, name: str) -> None:
    (folder / name).symlink_to("/dev/full")


def test_a_folder_is_there_and_then_gone(room: DiskRoom) -> None:
    with room.folder() as folder:
        (folder / "download").write_bytes(b"x")
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("scheme", ["data", "http"])
def test_a_full_disk_is_no_failure_of_the_source(room: DiskRoom, scheme: str) -> None:
    with running_site() as site, room.folder() as folder:
        source = {"data": INLINE, "http": Source(f"http://127.0.0.1:{site.server_port}/photo")}
        full(folder, {"data": "inline", "http": "download"}[scheme])
        with (
            pytest.raises(
                NoRoomError, match=r"No space left on device; make room, .*TMPDIR"
            ) as told,
            room.filling(folder, "a.jpg"),
        ):
            open_source(source[scheme], folder, LIMITS)
    assert told.value.retry_after_seconds == AGAIN_SECONDS


def test_nor_is_one_that_has_no_folder_for_it(
    room: DiskRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(NoRoomError, match="No such file or directory"), room.folder():
        pass


@pytest.mark.parametrize(
    ("number", "is_full"),
    [
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EROFS, True),
        (errno.EIO, False),
        (errno.EACCES, False),
    ],
)
def test_a_plugin_may_find_the_disk_full_too(room: DiskRoom, number: int, is_full: bool) -> None:
    class Broken:
        @hookimpl
        def open_source(self, source: Source, folder: Path) -> Media:
            raise OSError(number, os.strerror(number))

    plugins = Plugins()
    plugins.register(Broken(), "mine")
    expected = NoRoomError if is_full else PluginError
    with (
        room.folder() as folder,
        pytest.raises(expected, match=os.strerror(number)),
        room.filling(folder, "a.jpg"),
    ):
        Providers(plugins, LIMITS).open_source(INLINE, folder)


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="no /proc/self/mem")
def test_what_a_plugin_brought_and_nobody_can_read_is_its_failure(tmp_path: Path) -> None:
    class Unreadable:
        @hookimpl
        def open_source(self, source: Source, folder: Path) -> Media:
            return Media(Path("/proc/self/mem"), "a file")  # there is nothing at 0

    plugins = Plugins()
    plugins.register(Unreadable(), "mine")
    with pytest.raises(
        PluginError, match=r"^plugin 'mine' failed in open_source: OSError: .*Errno 5"
    ):
        Providers(plugins, LIMITS).open_source(INLINE, tmp_path)


def fail(room: DiskRoom, error: OSError, held_bytes: int = 0) -> None:
    """As a download does that has come so far."""
    with room.folder() as folder, room.filling(folder, "cms.example/a.mp4"):
        (folder / "download").write_bytes(bytes(held_bytes))
        raise error


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError("odd")])
def test_other_errors_are_what_they_are(room: DiskRoom, error: OSError) -> None:
    with pytest.raises(type(error)) as caught:
        fail(room, error)
    assert caught.value is error


def test_what_is_too_large_for_the_disk_alone_counts_as_tried(
    room: DiskRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1_000))
    with pytest.raises(NoRoomError):
        fail(room, no_space(), held_bytes=500)
    with pytest.raises(JobError, match=r"^cms.example/a.mp4: 501 bytes .*TMPDIR") as caught:
        fail(room, no_space(), held_bytes=501)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.MEDIA_TOO_LARGE, True)


def test_the_log_is_told_once_in_a_while(
    room: DiskRoom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for seconds, told in ((30.0, 1), (30.0, 1), (30.0, 1), (0.0, 2)):
            monkeypatch.setattr(disk_room, "TOLD_EVERY_SECONDS", seconds)
            with pytest.raises(NoRoomError):
                fail(room, no_space())
            assert len(caplog.records) == told
    assert "jobs go back to the queue: downloads cannot be stored: No space left" in caplog.text


# In the pipeline


def in_a_full_house(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float, **asked: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(pipeline, "NO_ROOM_SECONDS", seconds)
    engine = cast(Engine, SimpleNamespace(info=SimpleNamespace(image_size=32)))
    whole = Pipeline(engine, InlineSampler(Plugins(), LIMITS), LIMITS)
    whole.begin(CaptionRequest(source=INLINE), **asked)


def test_a_job_keeps_its_place_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looks = []
    with pytest.raises(NoRoomError):
        in_a_full_house(monkeypatch, tmp_path, 0.6, canceled=lambda: looks.append(1))
    assert len(looks) >= 3


def test_but_not_in_a_worker_that_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(NoRoomError):
        in_a_full_house(monkeypatch, tmp_path, 60.0, stopping=lambda: True)


def test_nor_when_it_is_canceled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = iter([False, False])
    with pytest.raises(CanceledError):
        in_a_full_house(monkeypatch, tmp_path, 60.0, canceled=lambda: next(answers, True))
