"""Downloads from a real server on this machine, honest and otherwise."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import httpcore
import pytest

from captioner.allowed_hosts import parse_allowed_hosts
from captioner.errors import ErrorCode, JobError
from captioner.media import decode_image, lookups, open_source
from captioner.media.http import open_http
from captioner.media.lookups import resolve_host
from captioner.media.network import Deadline, DeadlineBackend
from captioner.settings import MediaSettings
from captioner.source import Source
from sites import MUCH, PHOTO, Server, running_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = MediaSettings(
    max_image_bytes=100_000, fetch_timeout_seconds=5, allowed_hosts="127.0.0.1:*"
)
HURRIED = LIMITS.model_copy(update={"fetch_timeout_seconds": 0.3})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_site() as site:
        yield site


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
        "bytewise",
        "many-hints",
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
        ("endless-chunk", ErrorCode.MEDIA_TOO_LARGE, False),
        ("endless-header", ErrorCode.FETCH_FAILED, True),
        ("endless-hints", ErrorCode.FETCH_FAILED, True),
        ("switch", ErrorCode.FETCH_FAILED, True),
        ("gzip", ErrorCode.FETCH_FAILED, False),
        ("gzip-twice", ErrorCode.FETCH_FAILED, False),
        ("gzip-bomb", ErrorCode.FETCH_FAILED, False),
        ("gzip-transfer", ErrorCode.FETCH_FAILED, True),
        ("claims-twice", ErrorCode.FETCH_FAILED, True),
        ("claims-less-than-nothing", ErrorCode.FETCH_FAILED, True),
        ("claims-no-number", ErrorCode.FETCH_FAILED, True),
        ("claims-a-long-number", ErrorCode.FETCH_FAILED, True),
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


@pytest.mark.parametrize(
    "path", ["drip-body", "drip-headers", "drip-hints", "silence", "slow-loop"]
)
def test_the_deadline_is_for_the_whole_download(server: Server, tmp_path: Path, path: str) -> None:
    limits = HURRIED.model_copy(update={"max_redirects": 20})
    started = time.monotonic()

    error = failure(f"{server.url}/{path}", tmp_path, limits)

    assert 0.25 < time.monotonic() - started < 1.5
    assert (error.code, error.retryable) == (ErrorCode.FETCH_TIMEOUT, True)
    assert "CAPTIONER_MEDIA__FETCH_TIMEOUT_SECONDS" in error.message


@pytest.mark.parametrize("path", ["framed", "chunks/0", "chunks/16"])
def test_a_body_is_content_rather_than_frames(server: Server, tmp_path: Path, path: str) -> None:
    """Each chunk costs time: a body of tiny ones must not keep a worker busy until the deadline."""
    limits = LIMITS.model_copy(update={"max_image_bytes": 10**8, "fetch_timeout_seconds": 60})
    started = time.thread_time()

    error = failure(f"{server.url}/{path}", tmp_path, limits)

    assert time.thread_time() - started < 0.5
    assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, False)
    assert "chunks of too few bytes" in error.message
    assert tmp_path.joinpath("download").stat().st_size < 100_000


@pytest.mark.parametrize("size", [100, 512, 1024, 65_536])
def test_chunks_that_servers_do_send_are_all_taken(
    server: Server, tmp_path: Path, size: int
) -> None:
    limits = LIMITS.model_copy(update={"max_image_bytes": 10**8, "fetch_timeout_seconds": 60})

    media = open_source(Source(f"{server.url}/chunks/{size}"), tmp_path, limits)

    assert media.path.read_bytes() == MUCH


def test_what_goes_beyond_the_announced_length_is_not_taken(server: Server, tmp_path: Path) -> None:
    media = open_source(Source(f"{server.url}/claims-too-little"), tmp_path, LIMITS)

    assert media.path.read_bytes() == PHOTO[:50]


def test_name_resolution_is_under_the_deadline_too(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        release.wait(20)
        return []

    started = time.monotonic()
    with pytest.raises(JobError) as caught:
        open_http(Source("http://slow.example/photo"), tmp_path, HURRIED, look_up=hang)
    release.set()

    assert time.monotonic() - started < 1.5
    assert caught.value.code is ErrorCode.FETCH_FAILED


def test_names_that_are_never_resolved_do_not_pile_up_threads(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_turns", threading.BoundedSemaphore(3))
    release, hurried = threading.Event(), LIMITS.model_copy(update={"fetch_timeout_seconds": 0.02})

    def hang(host: str, port: int) -> list[str]:
        release.wait(60)
        raise OSError

    def resolving() -> int:
        return sum(one.name == "captioner-resolve" for one in threading.enumerate())

    told = set()
    for _ in range(10):
        with pytest.raises(JobError) as caught:
            open_http(Source("http://slow.example/photo"), tmp_path, hurried, look_up=hang)
        told.add((caught.value.code, caught.value.message))
    assert resolving() == 3
    assert len(told) == 1
    release.set()
    # Waits for its turn, which comes as soon as the others have given up.
    assert open_http(Source(f"{server.url}/photo"), tmp_path, LIMITS).path.read_bytes() == PHOTO


@pytest.mark.parametrize(
    ("scheme", "code"),
    [("http", ErrorCode.FETCH_TIMEOUT), ("https", ErrorCode.FETCH_FAILED)],  # TLS never stood
)
def test_a_server_that_never_says_a_word_is_given_up(
    tmp_path: Path, scheme: str, code: ErrorCode
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = failure(f"{scheme}://127.0.0.1:{port}/", tmp_path, HURRIED)

    assert (error.code, error.retryable) == (code, True)


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


# --- Names and addresses; which of them are refused is in test_media_hostile.py -------------------


def test_the_resolver_decides_where_connections_go(server: Server, tmp_path: Path) -> None:
    asked = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    url = f"http://pictures.example:{server.server_port}/hops/1"
    server.requests.clear()
    media = open_http(Source(url), tmp_path, LIMITS, look_up=look_up)

    assert media.path.read_bytes() == PHOTO
    assert asked == [("pictures.example", server.server_port)] * 2
    for headers in server.requests:
        assert headers["Host"] == f"pictures.example:{server.server_port}"  # type: ignore[index]


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    media = open_http(
        Source(f"http://pictures.example:{server.server_port}/photo"),
        tmp_path,
        LIMITS.model_copy(update={"allowed_hosts": parse_allowed_hosts("pictures.example:*")}),
        look_up=lambda host, port: ["127.0.0.2", "127.0.0.1"],
    )

    assert media.path.read_bytes() == PHOTO


def test_no_address_at_all_is_no_connection() -> None:
    backend = DeadlineBackend(Deadline(1), lambda host, port: [])

    with pytest.raises(httpcore.ConnectError):
        backend.connect_tcp("pictures.example", 80)


def test_this_machine_has_addresses() -> None:
    assert set(resolve_host("localhost", 80)) <= {"127.0.0.1", "::1"}
