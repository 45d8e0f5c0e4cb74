"""Downloads over http and https: bounded in bytes, in time and in redirects, and guarded.

httpx parses the URLs; the requests go through its engine httpcore, which can be given its own
connections (`network`), reads no environment and follows, decodes and remembers nothing by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from captioner.domain import Media
from captioner.errors import ErrorCode, InvalidRequestError, JobError
from captioner.media.exchange import body_of, connections, request_headers
from captioner.media.guard import Guard
from captioner.media.lookups import Resolver, resolve_host
from captioner.media.sizes import check_size, largest_bytes
from captioner.media.urls import for_request, join_url, parse_url
from captioner.source import Source
from captioner.video_containers import PREFIX_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    import httpcore
    import httpx

    from captioner.settings import MediaSettings

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: 203 is a 200 that passed through a transforming proxy.
_SUCCESSES = frozenset({200, 203})
_UNENCODED = frozenset({b"", b"identity"})
#: Of the answers from 400 to 499, those that say "later": timeout, too early, too many requests.
_LATER = frozenset({408, 425, 429})


def open_http(
    source: Source, folder: Path, limits: MediaSettings, *, look_up: Resolver = resolve_host
) -> Media:
    """Download an http or https source into the job's folder.

    Args:
        source: The URL, without user name or password.
        folder: The job's own folder, which exists.
        limits: `max_image_bytes` and `max_video_bytes`, `max_redirects`,
            `fetch_timeout_seconds` for everything from the first name resolution to the last
            byte, `allowed_hosts` and `allowed_ports`.
        look_up: Gives every address of a host; each redirect is looked up and checked again.

    Raises:
        JobError: `invalid_request`, `source_not_allowed` for what the URL itself shows,
            `media_too_large`, `fetch_timeout`, or `fetch_failed`, which is retryable unless the
            answer is final. A host whose address is refused is `fetch_failed` with the same text
            as one that does not exist.
    """
    name = source.display
    try:
        url = parse_url(source.uri)
    except ValueError:
        raise InvalidRequestError(f"{name}: this URL has no valid host") from None
    guard = Guard(limits, look_up)
    seconds = limits.fetch_timeout_seconds
    limit = f"CAPTIONER_MEDIA__FETCH_TIMEOUT_SECONDS is {seconds:g}"
    with connections(name, seconds, guard.resolve, limit=limit) as pool:
        path = _Download(pool, guard, name, folder / "download", limits).run(url)
    return Media(path, name)


class _Download:
    """One source, from the first request to the file."""

    def __init__(
        self,
        pool: httpcore.ConnectionPool,
        guard: Guard,
        name: str,
        path: Path,
        limits: MediaSettings,
    ) -> None:
        self._pool = pool
        self._guard = guard
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
        if objection := self._guard.objection(url):
            raise JobError(ErrorCode.SOURCE_NOT_ALLOWED, f"{self._name}: {objection}")
        with self._pool.stream("GET", for_request(url), headers=request_headers()) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                return headers.get(b"location", b"")
            announced = self._check_answer(response.status, headers)
            self._check_encoding(response)
            self._store(response, announced)
        return None

    def _redirected(self, url: httpx.URL, location: bytes) -> httpx.URL:
        if not location:
            self._fail("redirected to nowhere")
        try:
            return join_url(url, location)
        except ValueError:
            self._fail("redirected to a URL that cannot be understood")

    def _check_answer(self, status: int, headers: dict[bytes, bytes]) -> int:
        """How many bytes it announces; 0 when it does not say."""
        if status not in _SUCCESSES:
            self._fail(
                f"answered with HTTP status {status}", retryable=status >= 500 or status in _LATER
            )
        length = headers.get(b"content-length", b"")
        announced = int(length) if length.isdigit() else 0
        if announced > largest_bytes(self._limits):
            check_size(self._name, announced, head=b"", limits=self._limits)
        return announced

    def _check_encoding(self, response: httpcore.Response) -> None:
        """Nothing is decoded, on purpose: one gzip block can be a thousand times its size."""
        for name, value in response.headers:
            if name.lower() == b"content-encoding" and value.strip().lower() not in _UNENCODED:
                self._fail("answered with a Content-Encoding although none was asked for")

    def _store(self, response: httpcore.Response, announced: int) -> None:
        size, head = 0, b""
        with self._path.open("wb") as file:
            for chunk in body_of(response):
                size += len(chunk)
                head += chunk[: PREFIX_BYTES - len(head)]
                # Until all of its beginning is here nobody knows which limit is its own.
                known = announced if len(head) == PREFIX_BYTES else size
                check_size(self._name, max(size, known), head, self._limits)
                file.write(chunk)

    def _fail(self, reason: str, *, retryable: bool = False) -> NoReturn:
        raise JobError(ErrorCode.FETCH_FAILED, f"{self._name}: {reason}", retryable=retryable)
