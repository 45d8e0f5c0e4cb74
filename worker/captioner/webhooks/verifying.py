"""For receivers: is this request a webhook of ours, unchanged, and of now?

The request may come from anybody. Whatever is wrong with it is one exception, so that no malformed
header becomes an error page of the receiver's own.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from captioner.errors import WebhookVerificationError
from captioner.webhooks.signing import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    signature,
)

#: A clock may be wrong by this much, and a delivery may take as long.
TOLERANCE_SECONDS = 300

Text = str | bytes
# No dots: two messages could have the same signed text.
_ID = re.compile(r"[!-\-/-~]{1,255}")
_TIMESTAMP = re.compile(r"[0-9]{1,10}")


class HasItems(Protocol):
    """A mapping of headers, such as every web framework has."""

    def items(self) -> Iterable[tuple[Text, Text]]:
        """Names and values."""


@dataclass(frozen=True, slots=True)
class VerifiedWebhook:
    """What a receiver may rely on, beside the body."""

    #: The same on every attempt to deliver one event: work done under it need not be done again.
    id: str
    #: When this attempt was made, in UTC.
    sent_at: datetime


def verify(
    headers: HasItems | Iterable[tuple[Text, Text]],
    body: Text,
    secrets: str | Sequence[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: datetime | None = None,
) -> VerifiedWebhook:
    """Check a request before its body is believed.

    Args:
        headers: of the request, in any case, as a mapping or as pairs.
        body: of the request, exactly as it came: read JSON from it afterwards.
        secrets: `whsec_…`, one or several; any of them will do.
        tolerance_seconds: how old, or how far ahead, the request may be.
        now: the time to work with, with a time zone; the clock's by default.

    Raises:
        WebhookVerificationError: it is none of ours, was changed, is too old, or is malformed in
            any way. Answer it with 401, and without the text.
    """
    given = _wanted_headers(headers)
    message_id, written, signatures = (
        given.get(name, "") for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)
    )
    if not _ID.fullmatch(message_id):
        raise WebhookVerificationError(f"{ID_HEADER} is missing or malformed")
    if not _TIMESTAMP.fullmatch(written):
        raise WebhookVerificationError(f"{TIMESTAMP_HEADER} is missing or malformed")
    timestamp = int(written)
    # Before the time: what is too old and was never ours should not learn which.
    if not _matches(signatures, _expected(secrets, message_id, timestamp, _bytes(body))):
        raise WebhookVerificationError("no signature is right")
    distance_seconds = abs((now or datetime.now(UTC)).timestamp() - timestamp)
    if not distance_seconds <= tolerance_seconds:  # refuses NaN, too
        raise WebhookVerificationError(
            f"sent more than {tolerance_seconds:g} s ago, or ahead; are both clocks right?"
        )
    return VerifiedWebhook(message_id, datetime.fromtimestamp(timestamp, UTC))


def _wanted_headers(headers: HasItems | Iterable[tuple[Text, Text]]) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        pairs = headers.items() if hasattr(headers, "items") else headers
        for name, value in pairs:
            key = _text(name).lower()
            if key not in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER):
                continue
            if key in found:
                raise WebhookVerificationError(f"{key} is given twice")
            found[key] = _text(value).strip()
    except (TypeError, ValueError):
        raise WebhookVerificationError("the headers are no pairs of texts") from None
    return found


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _bytes(body: object) -> bytes:
    try:
        if isinstance(body, str):
            return body.encode()
        if isinstance(body, bytes | bytearray | memoryview):
            return bytes(body)
    except ValueError:
        pass  # half of a surrogate pair, or memory that was released
    raise WebhookVerificationError("the body is neither bytes nor valid text")


def _expected(secrets: object, message_id: str, timestamp: int, body: bytes) -> list[bytes]:
    """The right signature for each secret."""
    wanted = [secrets] if isinstance(secrets, str) else secrets
    try:
        expected = [
            signature(_text(secret), message_id, timestamp, body).encode()
            for secret in wanted  # type: ignore[attr-defined]  # anything may have been given
        ]
    except (TypeError, ValueError):
        raise WebhookVerificationError(
            "a secret is whsec_ followed by base64 of 24 to 64 bytes"
        ) from None
    if not expected:
        raise WebhookVerificationError("no secret to verify with")
    return expected


def _matches(signatures: str, expected: Sequence[bytes]) -> bool:
    """Compare all with all: the time it takes says nothing of how near one came."""
    right = False
    for given in signatures.split(" "):
        for wanted in expected:
            # latin-1 has no more than a byte for a character; what it lacks is no signature.
            right |= hmac.compare_digest(given.encode("latin-1", "replace"), wanted)
    return right
