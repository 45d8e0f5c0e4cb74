"""One exchange over http or https: its connections, and the texts of its failures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import httpcore
import httpx

from captioner.errors import ErrorCode, JobError
from captioner.media.lookups import Resolver
from captioner.media.network import Deadline, DeadlineBackend, FramingError

if TYPE_CHECKING:
    import ssl

    from captioner.media.network import DeadlineStream


@contextlib.contextmanager
def connections(
    name: str, seconds: float, resolve: Resolver, *, limit: str
) -> Iterator[httpcore.ConnectionPool]:
    """Connections that all end at one deadline; each carries one request.

    All that comes of an answer is `MAX_HEAD_BYTES`, unless `body_of` reads it.

    Proxies named in the environment are not used: they would bypass `resolve`. Additional
    certificate authorities are taken from `SSL_CERT_FILE` or `SSL_CERT_DIR`.

    Args:
        name: What errors call the other side.
        seconds: For everything from the first name resolution to the last byte.
        resolve: Gives the addresses of each host, or refuses them.
        limit: What errors call `seconds`.

    Raises:
        JobError: `fetch_timeout` or `fetch_failed`; it may work later, unless a body was more
            frames than content.
    """
    backend = DeadlineBackend(Deadline(seconds), resolve)
    try:
        with httpcore.ConnectionPool(
            _ssl_context(), max_keepalive_connections=0, network_backend=backend
        ) as pool:
            yield pool
    except httpcore.ConnectError as error:
        # One text for every reason, or the worker could be used to scan the network it is in.
        raise JobError(
            ErrorCode.FETCH_FAILED,
            f"{name}: no connection could be made; hosts that are not public, and ports other than "
            "80 and 443, must be in CAPTIONER_MEDIA__ALLOWED_HOSTS",
        ) from error
    except httpcore.TimeoutException as error:
        raise JobError(
            ErrorCode.FETCH_TIMEOUT, f"{name}: no complete answer in time ({limit})"
        ) from error
    except FramingError as error:
        # Final: what costs the worker time, and its sender none, is not asked for again.
        raise JobError(
            ErrorCode.FETCH_FAILED,
            f"{name}: the answer is split into chunks of too few bytes; let its server send larger "
            "ones, or a Content-Length",
            retryable=False,
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise JobError(
            ErrorCode.FETCH_FAILED, f"{name}: the connection broke or the answer was malformed"
        ) from error


def body_of(response: httpcore.Response) -> Iterator[bytes]:
    """The body as it comes: without this an answer may be no larger than a head may be."""
    stream: DeadlineStream = response.extensions["network_stream"]
    stream.expect_body()
    for part in response.iter_stream():
        stream.took(len(part))
        yield part


def request_headers(others: Mapping[str, str] | None = None) -> list[tuple[bytes, bytes]]:
    """What every request says, nothing encoded being asked for, and `others`, which replace it.

    Raises:
        ValueError: one of the others is not printable ASCII.
    """
    headers = {**_common_headers(), **{k.lower(): v for k, v in (others or {}).items()}}
    if not all(text.isprintable() for header in headers.items() for text in header):
        raise ValueError  # a line break would begin another header
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


@functools.cache
def _common_headers() -> Mapping[str, str]:
    return {
        "user-agent": f"captioner/{version('captioner')}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: reading the certificate authorities takes longer than a small download."""
    return httpx.create_ssl_context()
