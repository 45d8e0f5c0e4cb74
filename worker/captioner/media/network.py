"""Connections whose every wait, name resolution included, ends at one deadline.

httpx and httpcore limit each single read: a server that drips one byte a second is never too slow
for them. Here the limit is on the whole, down in the stream, where headers and TLS wait too.

Until a connection stands every failure is `httpcore.ConnectError`, a time-out too: whoever chose
the address must not learn what is there. The log says which it was.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

import httpcore

from captioner.errors import describe

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger(__name__)

#: Gives the addresses of a host and port, best first. Connections go to these addresses as they
#: are, with no second look-up: the place to refuse one is here, by raising PermissionError.
Resolver = Callable[[str, int], Sequence[str]]

#: One silent address must not use up the time of the host's others.
_CONNECT_SECONDS = 10.0


def resolve_host(host: str, port: int) -> list[str]:
    """Every address the system knows for a host, in its order of preference."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


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
        for address in self._addresses(host, port):
            limit = self._deadline.remaining(_CONNECT_SECONDS if timeout is None else timeout)
            try:
                stream = self._tcp.connect_tcp(address, port, limit, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _DeadlineStream(stream, self._deadline)
        raise failure

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Resolve in a thread of its own, because getaddrinfo knows no time limit."""
        answer: SimpleQueue[Sequence[str] | Exception] = SimpleQueue()

        def look_up() -> None:
            try:
                answer.put(self._resolve(host, port))
            except Exception as error:  # noqa: BLE001 (raised again in the waiting thread)
                answer.put(error)

        # A daemon: it ends when the system's resolver gives up, and holds up nobody until then.
        threading.Thread(target=look_up, name="captioner-resolve", daemon=True).start()
        try:
            found = answer.get(timeout=self._deadline.remaining())
        except Empty:
            raise httpcore.ConnectTimeout("the name was not resolved in time") from None
        if isinstance(found, OSError | ValueError):  # UnicodeError is a ValueError
            raise httpcore.ConnectError(found) from found
        if isinstance(found, Exception):
            raise found
        return found


class _DeadlineStream(httpcore.NetworkStream):
    """A stream that waits no longer than the deadline, however often it is asked."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.remaining(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            limit = self._deadline.remaining(timeout)
            stream = self._stream.start_tls(ssl_context, server_hostname, limit)
        except (httpcore.ConnectError, httpcore.TimeoutException, ValueError) as error:
            _fail(f"{server_hostname or '':.253} by TLS", error)  # ValueError: no name for it
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _fail(where: str, error: Exception) -> NoReturn:
    logger.info("no connection to %s: %s", where, describe(error))
    raise httpcore.ConnectError("no connection") from error
