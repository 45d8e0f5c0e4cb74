"""What it means that the worker's disk takes no more: `/dev/full` says so for real."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from captioner import hookimpl
from captioner.disk_room import filling, job_folder, remove_abandoned
from captioner.domain import Media
from captioner.errors import ErrorCode, JobError, PluginError, UnfitError
from captioner.media import open_source
from captioner.plugins import Plugins
from captioner.providers import Providers
from captioner.settings import MediaSettings
from captioner.source import Source
from captioner.testing import caption_with
from sites import running_site

LIMITS = MediaSettings(allowed_hosts="127.0.0.1:*")
INLINE = Source("data:;base64,R0lGODlhAQABAAAAACw=")


def full(folder: Path, name: str) -> None:
    (folder / name).symlink_to("/dev/full")


def test_a_folder_is_there_and_then_gone() -> None:
    with job_folder() as folder:
        (folder / "download").write_bytes(b"x")
        assert folder.is_dir()
    assert not folder.exists()


def test_a_folder_whose_process_was_killed_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = """
import os
from captioner.disk_room import job_folder
with job_folder() as folder:
    (folder / "download").write_bytes(b"x")
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False
    )
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    others = tmp_path / "captioner-job-is-no-folder"
    others.touch()
    with job_folder() as mine:
        assert remove_abandoned() == 1
        assert not left.exists()
        assert mine.is_dir()
    assert [*tmp_path.iterdir()] == [others]


def test_a_worker_that_begins_leaves_the_folders_of_plugins_tests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begins:
        @hookimpl
        def open_source(self) -> None:
            assert remove_abandoned() == 0

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert caption_with(Begins()).caption == "mean colour 10 20 30"


@pytest.mark.parametrize("scheme", ["data", "http"])
def test_a_full_disk_is_no_failure_of_the_source(scheme: str) -> None:
    with running_site() as site, job_folder() as folder:
        source = {"data": INLINE, "http": Source(f"http://127.0.0.1:{site.server_port}/photo")}
        full(folder, {"data": "inline", "http": "download"}[scheme])
        with (
            pytest.raises(UnfitError, match=r"No space left on device; make room, .*TMPDIR"),
            filling(folder, "a.jpg"),
        ):
            open_source(source[scheme], folder, LIMITS)


def test_nor_is_one_that_has_no_folder_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UnfitError, match="No such file or directory"), job_folder():
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
def test_a_plugin_may_find_the_disk_full_too(number: int, is_full: bool) -> None:
    class Broken:
        @hookimpl
        def open_source(self, source: Source, folder: Path) -> Media:
            raise OSError(number, os.strerror(number))

    plugins = Plugins()
    plugins.register(Broken(), "mine")
    expected = UnfitError if is_full else PluginError
    with (
        job_folder() as folder,
        pytest.raises(expected, match=os.strerror(number)),
        filling(folder, "a.jpg"),
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


def fail(error: OSError, held_bytes: int = 0) -> None:
    """As a download does that has come so far."""
    with job_folder() as folder, filling(folder, "cms.example/a.mp4"):
        (folder / "download").write_bytes(bytes(held_bytes))
        raise error


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError("odd")])
def test_other_errors_are_what_they_are(error: OSError) -> None:
    with pytest.raises(type(error)) as caught:
        fail(error)
    assert caught.value is error


def test_what_is_too_large_for_the_disk_alone_counts_as_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1_000))
    with pytest.raises(UnfitError):
        fail(no_space(), held_bytes=500)
    with pytest.raises(JobError, match=r"^cms.example/a.mp4: 501 bytes .*TMPDIR") as caught:
        fail(no_space(), held_bytes=501)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.MEDIA_TOO_LARGE, True)
