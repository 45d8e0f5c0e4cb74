"""Requests that send something, such as webhooks: the same guard, and answers cut short."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpcore

from captioner.errors import ErrorCode, InvalidRequestError, JobError
from captioner.media.exchange import connections, request_headers
from captioner.media.guard import Guard
from captioner.media.lookups import Resolver, resolve_host
from captioner.media.urls import for_request, parse_url

if TYPE_CHECKING:
    from captioner.settings import MediaSettings


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side said, with any status: 3xx, 4xx and 5xx are answers too."""

    status: int
    #: Names in lower case; of several with one name the last.
    headers: Mapping[str, str] = field(repr=False)
    #: As it was sent, undecoded; the beginning of it when it was longer than wanted.
    body: bytes = field(repr=False)


def post_http(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    limits: MediaSettings,
    deadline_seconds: float,
    max_response_bytes: int,
    look_up: Resolver = resolve_host,
) -> Answer:
    """Send one POST request, once, to where the guard allows; redirects are not followed.

    Once the status is there the request has been answered: a body that breaks off, or is not
    there in time, is cut where it ended.

    Args:
        url: http or https. Its path may be a secret: errors and the log name the host alone.
        body: What is sent.
        headers: Sent beside our own, which they replace.
        limits: `allowed_hosts` and `allowed_ports`.
        deadline_seconds: From the name resolution to the last byte of the answer.
        max_response_bytes: No more of the answer's body is read.
        look_up: Gives every address of the host.

    Raises:
        JobError: `invalid_request` for what is no URL and headers that cannot be sent,
            `source_not_allowed` for what the URL itself shows, `fetch_timeout`, or `fetch_failed`,
            with one text for every reason that no connection could be made.
    """
    try:
        target = parse_url(url)
        sent = request_headers(headers)
    except ValueError:
        raise InvalidRequestError(
            "the URL has no valid host, or a header is not printable ASCII"
        ) from None
    name = target.raw_host.decode("ascii") or "this URL"
    guard = Guard(limits, look_up)
    if objection := guard.objection(target):
        raise JobError(ErrorCode.SOURCE_NOT_ALLOWED, f"{name}: {objection}")
    limit = f"{deadline_seconds:g} seconds"
    with (
        connections(name, deadline_seconds, guard.resolve, limit=limit) as pool,
        pool.stream("POST", for_request(target), headers=sent, content=body) as response,
    ):
        return Answer(
            response.status,
            {_text(key).lower(): _text(value) for key, value in response.headers},
            _beginning(response, max_response_bytes),
        )


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _beginning(response: httpcore.Response, limit: int) -> bytes:
    received = bytearray()
    # The answer stands already: see `post_http`.
    with contextlib.suppress(
        httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException
    ):
        for chunk in response.iter_stream():
            received += chunk
            if len(received) >= limit:
                break
    return bytes(received[:limit])
