"""Posts to a real server on this machine: one request, one answer, cut short."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from captioner.errors import ErrorCode, JobError
from captioner.media import Answer, post_http
from captioner.media.network import MAX_HEAD_BYTES
from captioner.settings import MediaSettings
from sites import PHOTO, Server, running_site

LIMITS = MediaSettings(allowed_hosts="127.0.0.1:*")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_site() as site:
        yield site


def post(
    url: str,
    *,
    body: bytes = b'{"type":"test"}',
    headers: Mapping[str, str] | None = None,
    deadline_seconds: float = 5,
    max_response_bytes: int = 4096,
    limits: MediaSettings = LIMITS,
) -> Answer:
    return post_http(
        url,
        body=body,
        headers=headers or {"Content-Type": "application/json", "webhook-id": "evt_1"},
        limits=limits,
        deadline_seconds=deadline_seconds,
        max_response_bytes=max_response_bytes,
    )


def failure(url: str, *, deadline_seconds: float = 5, limits: MediaSettings = LIMITS) -> JobError:
    with pytest.raises(JobError) as caught:
        post(url, deadline_seconds=deadline_seconds, limits=limits)
    for secret in ("hunter2", "path", "token", "password is"):
        assert secret not in caught.value.message
    return caught.value


@pytest.mark.parametrize("body", [b'{"type":"test"}', b"", bytes(range(256)) * 1000])
def test_the_body_and_the_headers_arrive(server: Server, body: bytes) -> None:
    answer = post(f"{server.url}/photo?x=1", body=body)

    assert (answer.status, answer.body) == (200, PHOTO[:4096])
    assert answer.headers["content-length"] == str(len(PHOTO))
    assert server.bodies[-1] == body
    headers = server.requests[-1]
    assert headers["content-type"] == "application/json"  # type: ignore[index]
    assert headers["webhook-id"] == "evt_1"  # type: ignore[index]
    assert headers["content-length"] == str(len(body))  # type: ignore[index]
    assert headers["accept-encoding"] == "identity"  # type: ignore[index]
    assert headers["user-agent"].startswith("captioner/")  # type: ignore[index]


def test_our_own_headers_can_be_replaced(server: Server) -> None:
    post(f"{server.url}/photo", headers={"User-Agent": "other/1"})

    assert server.requests[-1].get_all("user-agent") == ["other/1"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [204, 400, 404, 410, 429, 500, 503])
def test_every_status_is_an_answer(server: Server, status: int) -> None:
    assert post(f"{server.url}/status/{status}").status == status


def test_redirects_are_answers_too_and_are_not_followed(server: Server) -> None:
    before = server.connections

    answer = post(f"{server.url}/to?{server.url}/photo")

    assert (answer.status, answer.headers["location"]) == (302, f"{server.url}/photo")
    assert server.connections == before + 1


@pytest.mark.parametrize(("path", "limit"), [("endless", 4096), ("endless", 0), ("photo", 10)])
def test_no_more_of_the_body_is_read_than_wanted(server: Server, path: str, limit: int) -> None:
    started = time.monotonic()

    answer = post(f"{server.url}/{path}", max_response_bytes=limit, deadline_seconds=30)

    assert time.monotonic() - started < 10
    assert (answer.status, len(answer.body)) == (200, limit)


def test_encoded_bodies_stay_as_they_are(server: Server) -> None:
    answer = post(f"{server.url}/gzip-bomb", max_response_bytes=10**6)

    assert answer.status == 200
    assert answer.body.startswith(b"\x1f\x8b")
    assert len(answer.body) < 10**5


@pytest.mark.parametrize("path", ["cut-short", "reset"])
def test_a_body_that_breaks_off_is_cut_there(server: Server, path: str) -> None:
    answer = post(f"{server.url}/{path}")

    assert answer.status == 200
    assert PHOTO[:50].startswith(answer.body)


def test_a_body_that_drips_is_cut_at_the_deadline(server: Server) -> None:
    started = time.monotonic()

    answer = post(f"{server.url}/drip-body", deadline_seconds=0.5)

    assert time.monotonic() - started < 1.5
    assert answer.status == 200
    assert 0 < len(answer.body) < 1000


@pytest.mark.parametrize("path", ["drip-headers", "drip-hints", "silence"])
def test_without_a_status_there_is_no_answer(server: Server, path: str) -> None:
    started = time.monotonic()

    error = failure(f"{server.url}/{path}?token=abc", deadline_seconds=0.3)

    assert time.monotonic() - started < 1.5
    assert (error.code, error.retryable) == (ErrorCode.FETCH_TIMEOUT, True)
    assert "0.3 seconds" in error.message


def test_interim_answers_are_no_answer_however_many_there_are(server: Server) -> None:
    started = time.monotonic()

    error = failure(f"{server.url}/endless-hints", deadline_seconds=30)

    assert time.monotonic() - started < 10
    assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, True)
    assert post(f"{server.url}/many-hints").status == 200


def test_a_switch_of_protocols_that_nobody_asked_for_is_no_answer(server: Server) -> None:
    assert failure(f"{server.url}/switch").code is ErrorCode.FETCH_FAILED


def test_a_body_in_large_frames_is_cut(server: Server) -> None:
    started = time.monotonic()

    answer = post(f"{server.url}/framed", deadline_seconds=30)

    assert time.monotonic() - started < 10
    assert answer.status == 200
    assert 0 < len(answer.body) < MAX_HEAD_BYTES // 16_000 + 1


def test_a_slow_reader_is_given_up_at_the_deadline() -> None:
    """It always takes something before the time for one write is over."""
    done = threading.Event()

    def read_slowly(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while not done.wait(0.02) and connection.recv(500_000):
                pass

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reader = threading.Thread(target=read_slowly, args=(listener,))
        reader.start()
        port = listener.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(JobError) as caught:
            post(f"http://127.0.0.1:{port}/", body=bytes(200 * 2**20), deadline_seconds=0.5)
        took = time.monotonic() - started
        done.set()
        reader.join()

    assert caught.value.code is ErrorCode.FETCH_TIMEOUT
    assert 0.4 < took < 1.5


def test_what_is_no_answer_says_so(server: Server) -> None:
    error = failure(f"{server.url}/garbage")

    assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, True)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.2/path?token=abc", ErrorCode.FETCH_FAILED),
        ("http://10.0.0.1/path", ErrorCode.FETCH_FAILED),
        ("http://no-such-host.invalid/path", ErrorCode.FETCH_FAILED),
        ("http://user:hunter2@127.0.0.1/path", ErrorCode.SOURCE_NOT_ALLOWED),
        ("https://hooks.example:22/path", ErrorCode.FETCH_FAILED),
        ("ftp://127.0.0.1/path", ErrorCode.SOURCE_NOT_ALLOWED),
        ("file:///path", ErrorCode.SOURCE_NOT_ALLOWED),
        ("path", ErrorCode.SOURCE_NOT_ALLOWED),
        ("http://127.0.0.1:99999/path", ErrorCode.INVALID_REQUEST),
        ("http:///path", ErrorCode.INVALID_REQUEST),
        ("http://[::1/path", ErrorCode.INVALID_REQUEST),
        ("http://127.0.0.1\n/path", ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_is_never_asked(url: str, code: ErrorCode) -> None:
    assert failure(url, limits=MediaSettings()).code is code


@pytest.mark.parametrize(
    "headers",
    [{"x": "a\r\nevil: b"}, {"x\r\nevil": "b"}, {"x": "é"}, {"x": "a\0b"}],
)
def test_headers_that_would_be_something_else_are_not_sent(
    server: Server, headers: dict[str, str]
) -> None:
    before = server.connections

    with pytest.raises(JobError) as caught:
        post(f"{server.url}/photo", headers=headers)

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert server.connections == before


def test_posts_do_not_wait_for_each_other(server: Server) -> None:
    held = threading.Thread(
        target=lambda: failure(f"{server.url}/silence", deadline_seconds=3), daemon=True
    )
    held.start()

    assert post(f"{server.url}/photo").status == 200
    assert held.is_alive()
    held.join()
