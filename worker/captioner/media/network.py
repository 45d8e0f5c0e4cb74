"""Connections whose every wait, name resolution included, ends at one deadline.

httpx and httpcore limit each single read: a server that drips one byte a second is never too slow
for them. Here the limit is on the whole, down in the stream, where headers and TLS wait too.

Until a connection stands every failure is `httpcore.ConnectError`, a time-out too: whoever chose
the address must not learn what is there. The log says which it was.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import httpcore

from captioner.errors import describe
from captioner.media.lookups import Resolver, resolve_host, resolve_within

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger(__name__)

#: One silent address must not use up the time of the host's others.
_CONNECT_SECONDS = 10.0
#: Of an answer before its body, interim answers (1xx) included, of which there may be many.
MAX_HEAD_BYTES = 256 * 1024
#: Of a head at once: what is read with it of a body is counted as none.
_HEAD_READ_BYTES = 4 * 1024
#: Of a body, what is no content: the frames of its chunks. That much may come of any; beyond it a
#: sixteenth of the content, which chunks of 100 bytes need. A chunk of one byte costs our parser as
#: much time as thousands of bytes do in a large one, and its sender nothing.
MAX_FRAMING_BYTES = 16 * 1024
_CONTENT_PER_FRAMING = 16


class FramingError(httpcore.RemoteProtocolError):
    """Too much of a body is no content."""


class Deadline:
    """A moment after which nothing is waited for any more."""

    def __init__(self, seconds: float) -> None:
        """`seconds` from now."""
        self._end = time.monotonic() + seconds

    def remaining(self, at_most: float | None = None) -> float:
        """Seconds left, more than 0.

        Raises:
            httpcore.TimeoutException: none are left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException("the deadline has passed")
        return left if at_most is None else min(left, at_most)


class DeadlineBackend(httpcore.NetworkBackend):
    """TCP connections for one download; `resolve` decides where they may go."""

    def __init__(self, deadline: Deadline, resolve: Resolver = resolve_host) -> None:
        """`deadline` also covers `resolve`, which may block."""
        self._deadline = deadline
        self._resolve = resolve
        self._tcp = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers."""
        try:
            return self._connect(host, port, timeout, local_address, socket_options)
        except (httpcore.ConnectError, httpcore.TimeoutException) as error:
            _fail(f"{host:.253} port {port}", error)

    def _connect(
        self,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in resolve_within(self._deadline, self._resolve, host, port):
            limit = self._deadline.remaining(_CONNECT_SECONDS if timeout is None else timeout)
            try:
                stream = self._tcp.connect_tcp(address, port, limit, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return DeadlineStream(stream, self._deadline)
        raise failure


class DeadlineStream(httpcore.NetworkStream):
    """A stream that waits no longer than the deadline, however often it is asked, and is finite."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        """Around `stream`; until a body is expected no more than the head of an answer may come."""
        self._stream = stream
        self._deadline = deadline
        self._bytes_left = MAX_HEAD_BYTES
        self._in_body = False

    def expect_body(self) -> None:
        """Let a body come, whose content `took` counts; how much it may be is the caller's."""
        self._bytes_left = MAX_FRAMING_BYTES
        self._in_body = True

    def took(self, content_bytes: int) -> None:
        """So much of what has come was content: as much may come again, and its frames."""
        self._bytes_left += content_bytes + content_bytes // _CONTENT_PER_FRAMING

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """`httpcore.RemoteProtocolError` when more comes than may; of a body `FramingError`."""
        if self._bytes_left <= 0:
            if self._in_body:
                raise FramingError("the body is more frames than content")
            raise httpcore.RemoteProtocolError("the answer is larger than it may be")
        at_once = self._bytes_left if self._in_body else min(self._bytes_left, _HEAD_READ_BYTES)
        data = self._stream.read(min(max_bytes, at_once), self._deadline.remaining(timeout))
        self._bytes_left -= len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Part by part: were each given the same time, a slow reader could take any time."""
        connection: socket.socket = self._stream.get_extra_info("socket")
        left = memoryview(buffer)
        try:
            while left:
                connection.settimeout(self._deadline.remaining(timeout))
                left = left[connection.send(left) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """The same over TLS; `httpcore.ConnectError` for whatever goes wrong."""
        try:
            limit = self._deadline.remaining(timeout)
            stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        except (httpcore.ConnectError, httpcore.TimeoutException, ValueError) as error:
            _fail(f"{server_hostname or '':.253} by TLS", error)  # ValueError: no name for it
        return DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore's own stream knows."""
        return self._stream.get_extra_info(info)


def _fail(where: str, error: Exception) -> NoReturn:
    logger.info("no connection to %s: %s", where, describe(error))
    raise httpcore.ConnectError("no connection") from error
