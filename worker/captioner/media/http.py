"""Downloads over http and https: bounded in bytes, in time and in redirects.

httpx parses the URLs; the requests go through its engine httpcore, which can be given its own
connections (`network`), reads no environment and follows, decodes and remembers nothing by itself.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

import httpcore
import httpx

from captioner.domain import Media, Source
from captioner.errors import ErrorCode, InvalidRequestError, JobError
from captioner.media.network import Deadline, DeadlineBackend, Resolver, resolve_host

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from captioner.settings import MediaSettings

_SCHEMES = ("http", "https")
#: A name after IDNA, or an IPv4 or IPv6 address.
_HOST = re.compile(rb"[\w.-]+|[0-9A-Fa-f:.]+", re.ASCII)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: 203 is a 200 that passed through a transforming proxy.
_SUCCESSES = frozenset({200, 203})
#: Of the answers from 400 to 499, those that say "later": timeout, too early, too many requests.
_LATER = frozenset({408, 425, 429})


def open_http(
    source: Source, folder: Path, limits: MediaSettings, *, resolve: Resolver = resolve_host
) -> Media:
    """Download an http or https source into the job's folder.

    Proxies named in the environment are not used: they would bypass `resolve`. Additional
    certificate authorities are taken from `SSL_CERT_FILE` or `SSL_CERT_DIR`.

    Args:
        source: The URL, without user name or password.
        folder: The job's own folder, which exists.
        limits: `max_image_bytes`, `max_redirects`, and `fetch_timeout_seconds` for everything
            from the first name resolution to the last byte.
        resolve: Gives the addresses of each host, redirects' included, and may refuse them.

    Raises:
        JobError: `invalid_request`, `source_not_allowed`, `media_too_large`, `fetch_timeout`, or
            `fetch_failed`, which is retryable unless the answer is final.
    """
    name = source.display
    backend = DeadlineBackend(Deadline(limits.fetch_timeout_seconds), resolve)
    try:
        with httpcore.ConnectionPool(
            _ssl_context(), max_keepalive_connections=0, network_backend=backend
        ) as pool:
            path = _Download(pool, name, folder / "download", limits).run(_first_url(source))
    except httpcore.TimeoutException as error:
        raise JobError(
            ErrorCode.FETCH_TIMEOUT,
            f"{name}: no complete answer in time "
            f"(CAPTIONER_MEDIA__FETCH_TIMEOUT_SECONDS is {limits.fetch_timeout_seconds:g})",
        ) from error
    except httpcore.ConnectError as error:
        # One text for every reason, or the worker could be used to scan the network it is in.
        raise JobError(ErrorCode.FETCH_FAILED, f"{name}: no connection could be made") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise JobError(
            ErrorCode.FETCH_FAILED, f"{name}: the connection broke or the answer was malformed"
        ) from error
    return Media(path, name)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: reading the certificate authorities takes longer than a small download."""
    return httpx.create_ssl_context()


def _first_url(source: Source) -> httpx.URL:
    try:
        return _with_host(httpx.URL(source.uri))
    except (httpx.InvalidURL, ValueError):
        # httpx quotes parts of the URL in its messages; they may be secret.
        raise InvalidRequestError(f"{source.display}: this URL has no valid host") from None


def _with_host(url: httpx.URL) -> httpx.URL:
    if url.scheme in _SCHEMES and not _HOST.fullmatch(url.raw_host):
        raise ValueError("not a host")  # httpx percent-encodes what it does not like
    if url.port is not None and not 0 < url.port < 65_536:
        raise ValueError("not a port")
    return url


class _Download:
    """One source, from the first request to the file."""

    def __init__(
        self, pool: httpcore.ConnectionPool, name: str, path: Path, limits: MediaSettings
    ) -> None:
        self._pool = pool
        self._name = name
        self._path = path
        self._limits = limits

    def run(self, url: httpx.URL) -> Path:
        location = self._request(url)
        redirects = 0
        while location is not None:
            redirects += 1
            if redirects > self._limits.max_redirects:
                self._fail(
                    f"more than {self._limits.max_redirects} redirects "
                    "(CAPTIONER_MEDIA__MAX_REDIRECTS)"
                )
            url = self._redirected(url, location)
            location = self._request(url)
        return self._path

    def _request(self, url: httpx.URL) -> bytes | None:
        """Store the body, or return where the answer redirects to."""
        self._check(url)
        request = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        with self._pool.stream("GET", request, headers=_request_headers()) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                return headers.get(b"location", b"")
            self._check_answer(response.status, headers)
            self._store(response)
        return None

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in _SCHEMES:
            self._refuse("redirected to something that is neither http nor https")
        if url.userinfo:
            self._refuse("URLs with a user name or a password are not fetched")

    def _redirected(self, url: httpx.URL, location: bytes) -> httpx.URL:
        if not location:
            self._fail("redirected to nowhere")
        try:
            return _with_host(url.join(location.decode("utf-8", "replace")))
        except (httpx.InvalidURL, ValueError):
            self._fail("redirected to a URL that cannot be understood")

    def _check_answer(self, status: int, headers: dict[bytes, bytes]) -> None:
        if status not in _SUCCESSES:
            self._fail(
                f"answered with HTTP status {status}", retryable=status >= 500 or status in _LATER
            )
        # Not decoded, on purpose: one gzip block can be a thousand times its size.
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
            self._fail("answered with a Content-Encoding although none was asked for")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limits.max_image_bytes:
            self._too_large(f"{int(length)} bytes")

    def _store(self, response: httpcore.Response) -> None:
        size = 0
        with self._path.open("wb") as file:
            for chunk in response.iter_stream():
                size += len(chunk)
                if size > self._limits.max_image_bytes:
                    self._too_large("larger than it may be")
                file.write(chunk)

    def _fail(self, reason: str, *, retryable: bool = False) -> NoReturn:
        raise JobError(ErrorCode.FETCH_FAILED, f"{self._name}: {reason}", retryable=retryable)

    def _refuse(self, reason: str) -> NoReturn:
        raise JobError(ErrorCode.SOURCE_NOT_ALLOWED, f"{self._name}: {reason}")

    def _too_large(self, what: str) -> NoReturn:
        raise JobError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"{self._name}: {what}, at most {self._limits.max_image_bytes} bytes "
            "(CAPTIONER_MEDIA__MAX_IMAGE_BYTES)",
        )


@functools.cache
def _request_headers() -> dict[bytes | str, bytes | str]:
    return {
        "User-Agent": f"captioner/{version('captioner')}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
