"""Downloads from a real server on this machine, honest and otherwise."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import socketserver
import struct
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import httpcore
import pytest

from captioner.domain import Source
from captioner.errors import ErrorCode, JobError
from captioner.media import decode_image, open_source
from captioner.media.http import open_http
from captioner.media.network import Deadline, DeadlineBackend, resolve_host
from captioner.settings import MediaSettings
from pictures import jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PHOTO = jpeg()
LIMITS = MediaSettings(max_image_bytes=100_000, fetch_timeout_seconds=5)
HURRIED = MediaSettings(max_image_bytes=100_000, fetch_timeout_seconds=0.3)


class Site(http.server.BaseHTTPRequestHandler):
    """Every path behaves in its own way."""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/").replace("-", "_").split("/")[0]
        with contextlib.suppress(OSError):  # clients that cut us off are the point
            getattr(self, f"send_{name}")()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        self.server.requests.append(self.headers)  # type: ignore[attr-defined]

    def answer(self, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, location: str, status: int = 302) -> None:
        self.answer(status, ("Location", location), ("Content-Length", "0"))

    def send_photo(self) -> None:
        self.answer(200, ("Content-Length", str(len(PHOTO))), body=PHOTO)

    def send_no_length(self) -> None:
        self.answer(200, body=PHOTO)

    def send_chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        chunks = [PHOTO[at : at + 100] for at in range(0, len(PHOTO), 100)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        self.answer(200, ("Transfer-Encoding", "chunked"), body=body)

    def send_claims_too_much(self) -> None:
        self.answer(200, ("Content-Length", str(10**12)), body=b"x")

    def send_endless(self) -> None:
        self.answer(200)
        while True:
            self.wfile.write(bytes(10_000))

    def send_cut_short(self) -> None:
        self.answer(200, ("Content-Length", str(len(PHOTO))), body=PHOTO[:50])

    def send_reset(self) -> None:
        self.answer(200, ("Content-Length", str(len(PHOTO))), body=PHOTO[:50])
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def send_garbage(self) -> None:
        self.wfile.write(b"\x00\x01 this is not HTTP, and the password is hunter2\r\n\r\n")

    def send_drip_body(self) -> None:
        self.answer(200)
        self.drip(b"x" * 1000)

    def send_drip_headers(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)

    def send_silence(self) -> None:
        self.server.closing.wait(20)  # type: ignore[attr-defined]

    def send_gzip(self) -> None:
        self.answer(200, ("Content-Encoding", "gzip"), body=gzip.compress(PHOTO))

    def send_identity(self) -> None:
        self.answer(200, ("Content-Encoding", "Identity"), body=PHOTO)

    def send_empty(self) -> None:
        self.answer(200, ("Content-Length", "0"))

    def send_status(self) -> None:
        self.answer(
            int(self.path.partition("?")[0].split("/")[2]), body=b"internal: password is hunter2"
        )

    def send_hops(self) -> None:
        left = int(self.path.split("/")[2])
        self.redirect(f"/hops/{left - 1}" if left > 1 else "../photo", 307 if left % 2 else 301)

    def send_loop(self) -> None:
        self.redirect("/loop")

    def send_slow_loop(self) -> None:
        time.sleep(0.2)
        self.redirect("/slow-loop")

    def send_to(self) -> None:
        self.redirect(unquote(self.path.partition("?")[2]))

    def send_nowhere(self) -> None:
        self.answer(302)

    def drip(self, data: bytes) -> None:
        for byte in data:
            if self.server.closing.wait(0.05):  # type: ignore[attr-defined]
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.requests: list[object] = []
        self.closing = threading.Event()
        self.connections = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.05,))
        thread.start()
        yield site
        site.closing.set()
        site.shutdown()
        thread.join()


def failure(uri: str, folder: Path, limits: MediaSettings = LIMITS) -> JobError:
    source = Source(uri)
    started = time.monotonic()
    with pytest.raises(JobError) as caught:
        open_source(source, folder, limits)
    took = time.monotonic() - started
    assert took < limits.fetch_timeout_seconds + 1.5
    message = caught.value.message
    assert message.startswith(source.display)
    assert message.isprintable()
    for secret in ("hunter2", "token=abc", "password is"):
        assert secret not in message
    return caught.value


@pytest.mark.parametrize(
    "path",
    [
        "photo",
        "photo?token=abc#part",
        "no-length",
        "chunked",
        "identity",
        "hops/1",
        "hops/3",
        "to?photo",
        "to?//127.0.0.1:{port}/photo?token=abc#part",
    ],
)
def test_a_photo_arrives(server: Server, tmp_path: Path, path: str) -> None:
    path = path.format(port=server.server_port)

    media = open_source(Source(f"{server.url}/{path}"), tmp_path, LIMITS)

    assert media.path.parent == tmp_path
    assert media.path.read_bytes() == PHOTO
    assert "token" not in media.name
    assert decode_image(media, LIMITS).size == (64, 48)


def test_requests_ask_for_nothing_encoded_and_carry_no_secrets(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.requests.clear()

    open_source(Source(f"{server.url}/hops/2"), tmp_path, LIMITS)

    assert len(server.requests) == 3
    for headers in server.requests:
        found = {name.lower(): value for name, value in headers.items()}  # type: ignore[attr-defined]
        assert found["accept-encoding"] == "identity"
        assert found["host"] == server.url.removeprefix("http://")
        assert found["user-agent"].startswith("captioner/")
        assert not {"cookie", "authorization", "referer"} & set(found)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (204, False), (206, False), (304, False), (400, False), (401, False), (403, False),
        (404, False), (408, True), (410, False), (425, True), (429, True), (500, True), (503, True),
    ],
)  # fmt: skip
def test_each_status_is_final_or_to_be_tried_again(
    server: Server, tmp_path: Path, status: int, retryable: bool
) -> None:
    error = failure(f"{server.url}/status/{status}?token=abc", tmp_path)

    assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, retryable)
    assert str(status) in error.message


@pytest.mark.parametrize(
    ("path", "code", "retryable"),
    [
        ("claims-too-much", ErrorCode.MEDIA_TOO_LARGE, False),
        ("endless", ErrorCode.MEDIA_TOO_LARGE, False),
        ("gzip", ErrorCode.FETCH_FAILED, False),
        ("cut-short", ErrorCode.FETCH_FAILED, True),
        ("reset", ErrorCode.FETCH_FAILED, True),
        ("garbage", ErrorCode.FETCH_FAILED, True),
        ("nowhere", ErrorCode.FETCH_FAILED, False),
        ("loop", ErrorCode.FETCH_FAILED, False),
        ("hops/4", ErrorCode.FETCH_FAILED, False),
        ("to?http://[broken", ErrorCode.FETCH_FAILED, False),
        ("to?http://127.0.0.1:99999/", ErrorCode.FETCH_FAILED, False),
        ("to?file:///etc/passwd", ErrorCode.SOURCE_NOT_ALLOWED, False),
        ("to?data:,x", ErrorCode.SOURCE_NOT_ALLOWED, False),
        ("to?ftp://127.0.0.1/photo", ErrorCode.SOURCE_NOT_ALLOWED, False),
        ("to?http://user:hunter2@127.0.0.1/photo", ErrorCode.SOURCE_NOT_ALLOWED, False),
    ],
)
def test_each_misbehaviour_has_its_code(
    server: Server, tmp_path: Path, path: str, code: ErrorCode, retryable: bool
) -> None:
    error = failure(f"{server.url}/{path}", tmp_path)

    assert (error.code, error.retryable) == (code, retryable), error.message
    assert not tmp_path.joinpath("download").exists() or (
        tmp_path.joinpath("download").stat().st_size <= LIMITS.max_image_bytes
    )


@pytest.mark.parametrize("path", ["drip-body", "drip-headers", "silence", "slow-loop"])
def test_the_deadline_is_for_the_whole_download(server: Server, tmp_path: Path, path: str) -> None:
    limits = HURRIED.model_copy(update={"max_redirects": 20})
    started = time.monotonic()

    error = failure(f"{server.url}/{path}", tmp_path, limits)

    assert 0.25 < time.monotonic() - started < 1.5
    assert (error.code, error.retryable) == (ErrorCode.FETCH_TIMEOUT, True)
    assert "CAPTIONER_MEDIA__FETCH_TIMEOUT_SECONDS" in error.message


def test_name_resolution_is_under_the_deadline_too(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        release.wait(20)
        return []

    started = time.monotonic()
    with pytest.raises(JobError) as caught:
        open_http(Source("http://slow.example/photo"), tmp_path, HURRIED, resolve=hang)
    release.set()

    assert time.monotonic() - started < 1.5
    assert caught.value.code is ErrorCode.FETCH_TIMEOUT


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_says_a_word_is_given_up(tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = failure(f"{scheme}://127.0.0.1:{port}/", tmp_path, HURRIED)

    assert (error.code, error.retryable) == (ErrorCode.FETCH_TIMEOUT, True)


def test_no_connection_is_one_text_for_every_reason(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    texts = set()
    for uri in (
        f"http://127.0.0.1:{closed}/photo",
        "http://no-such-host.invalid/photo",
        f"http://{'a' * 70}.example/photo",
        f"https://127.0.0.1:{server.server_port}/photo",  # speaks no TLS
    ):
        error = failure(uri, tmp_path)
        assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, True)
        texts.add(error.message.removeprefix(Source(uri).display))

    assert texts == {": no connection could be made"}


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("http://user:hunter2@127.0.0.1/photo?token=abc", ErrorCode.SOURCE_NOT_ALLOWED),
        ("http://user@127.0.0.1/photo", ErrorCode.SOURCE_NOT_ALLOWED),
        ("http:///photo?token=abc", ErrorCode.INVALID_REQUEST),
        ("http://bad host/photo", ErrorCode.INVALID_REQUEST),
        ("http://a%00b/photo", ErrorCode.INVALID_REQUEST),
        ("http:photo", ErrorCode.INVALID_REQUEST),
        ("http://[::1/photo?token=abc", ErrorCode.INVALID_REQUEST),
        ("http://127.0.0.1:99999/photo?token=abc", ErrorCode.INVALID_REQUEST),
        ("http://127.0.0.1:0/photo?token=abc", ErrorCode.INVALID_REQUEST),
        ("http://127.0.0.1:port/photo?token=abc", ErrorCode.INVALID_REQUEST),
    ],
)
def test_urls_that_are_never_asked_for(tmp_path: Path, uri: str, code: ErrorCode) -> None:
    error = failure(uri, tmp_path)

    assert (error.code, error.retryable) == (code, False)


def test_an_empty_answer_is_refused_on_decoding(server: Server, tmp_path: Path) -> None:
    media = open_source(Source(f"{server.url}/empty"), tmp_path, LIMITS)

    with pytest.raises(JobError) as caught:
        decode_image(media, LIMITS)
    assert caught.value.code is ErrorCode.DECODE_FAILED


# --- The seam for address policies ----------------------------------------------------------------


def test_the_resolver_decides_where_connections_go(server: Server, tmp_path: Path) -> None:
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    url = f"http://pictures.example:{server.server_port}/hops/1"
    server.requests.clear()
    media = open_http(Source(url), tmp_path, LIMITS, resolve=resolve)

    assert media.path.read_bytes() == PHOTO
    assert asked == [("pictures.example", server.server_port)] * 2
    for headers in server.requests:
        assert headers["Host"] == f"pictures.example:{server.server_port}"  # type: ignore[index]


def test_a_resolver_may_refuse_and_nothing_connects(server: Server, tmp_path: Path) -> None:
    def refuse(host: str, port: int) -> list[str]:
        raise JobError(ErrorCode.SOURCE_NOT_ALLOWED, "not there")

    before = server.connections
    with pytest.raises(JobError, match="not there"):
        open_http(Source(f"{server.url}/photo"), tmp_path, LIMITS, resolve=refuse)

    assert server.connections == before


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    media = open_http(
        Source(f"http://pictures.example:{server.server_port}/photo"),
        tmp_path,
        LIMITS,
        resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"],
    )

    assert media.path.read_bytes() == PHOTO


def test_no_address_at_all_is_no_connection() -> None:
    backend = DeadlineBackend(Deadline(1), lambda host, port: [])

    with pytest.raises(httpcore.ConnectError):
        backend.connect_tcp("pictures.example", 80)


def test_this_machine_has_addresses() -> None:
    assert set(resolve_host("localhost", 80)) <= {"127.0.0.1", "::1"}
