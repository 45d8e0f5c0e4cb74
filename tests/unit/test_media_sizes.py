"""Videos may be larger than pictures: which limit a file has, its first bytes say."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from captioner import ErrorCode, JobError, Media, Source, hookimpl
from captioner.media import open_source
from captioner.plugins import Plugins
from captioner.providers import Providers
from captioner.settings import MediaSettings

#: A transport stream, of which the first 377 bytes are needed to know it.
VIDEO = (b"\x47" + bytes(187)) * 20
PICTURE = b"\xff\xd8\xff" + bytes(len(VIDEO) - 3)
LIMITS = {"max_image_bytes": 2_000, "max_video_bytes": len(VIDEO)}


def settings(**changes: object) -> MediaSettings:
    return MediaSettings.model_validate({"allowed_hosts": "127.0.0.1:*", **LIMITS, **changes})


@contextmanager
def served(data: bytes, *, announced: bool) -> Iterator[str]:
    """The URL of a file whose first 100 bytes come alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if announced:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100])
            self.wfile.flush()
            threading.Event().wait(0.05)
            with contextlib.suppress(ConnectionError):  # refused
                self.wfile.write(data[100:])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a"
        finally:
            server.shutdown()
            thread.join()


def refused(source: str, folder: Path, limits: MediaSettings) -> str:
    with pytest.raises(JobError) as caught:
        open_source(Source(source), folder, limits)
    assert caught.value.code is ErrorCode.MEDIA_TOO_LARGE
    return caught.value.message


def test_files(tmp_path: Path) -> None:
    (tmp_path / "video.jpg").write_bytes(VIDEO)
    (tmp_path / "picture.mp4").write_bytes(PICTURE)
    limits = settings(allowed_roots=(tmp_path,))
    assert open_source(Source(str(tmp_path / "video.jpg")), tmp_path, limits).path.exists()
    assert "MAX_IMAGE_BYTES" in refused(str(tmp_path / "picture.mp4"), tmp_path, limits)
    tight = settings(allowed_roots=(tmp_path,), max_video_bytes=len(VIDEO) - 1)
    message = refused(str(tmp_path / "video.jpg"), tmp_path, tight)
    assert message.endswith("3760 bytes, at most 3759 (CAPTIONER_MEDIA__MAX_VIDEO_BYTES)")


@pytest.mark.parametrize("announced", [True, False])
def test_downloads(tmp_path: Path, announced: bool) -> None:
    with served(VIDEO, announced=announced) as url:
        assert open_source(Source(url), tmp_path, settings()).path.read_bytes() == VIDEO
        tight = settings(max_video_bytes=len(VIDEO) - 1)
        assert "MAX_VIDEO_BYTES" in refused(url, tmp_path, tight) or announced
    with served(PICTURE, announced=announced) as url:
        assert "MAX_IMAGE_BYTES" in refused(url, tmp_path, settings())


def test_what_plugins_bring(tmp_path: Path) -> None:
    class Shelf:
        @hookimpl
        def open_source(self, source: Source) -> Media:
            return Media(tmp_path / source.uri.rpartition("/")[2], source.display)

    (tmp_path / "video").write_bytes(VIDEO)
    (tmp_path / "picture").write_bytes(PICTURE)
    plugins = Plugins()
    plugins.register(Shelf(), "shelf")
    providers = Providers(plugins, settings())
    assert providers.open_source(Source("shelf://x/video"), tmp_path).path == tmp_path / "video"
    with pytest.raises(JobError, match="MAX_IMAGE_BYTES"):
        providers.open_source(Source("shelf://x/picture"), tmp_path)
