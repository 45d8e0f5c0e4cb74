"""Signatures of Standard Webhooks 1.0.0: HMAC-SHA256 of `id.timestamp.body`."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from datetime import datetime

from captioner.webhooks.secrets import secret_key

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature, as it stands in the header: `v1,` and base64.

    Args:
        secret: `whsec_…`.
        message_id: without dots, which would make the signed text ambiguous.
        timestamp: seconds since 1970, UTC.
        body: exactly the bytes that are sent.

    Raises:
        ValueError: the secret is none.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    digest = hmac.digest(secret_key(secret), signed, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def signed_headers(
    secrets: Sequence[str], message_id: str, sent_at: datetime, body: bytes
) -> dict[str, str]:
    """The headers that make a request a webhook.

    Args:
        secrets: a receiver accepts any of them: two while one replaces the other.
        message_id: the same on every attempt; receivers know by it what they have had.
        sent_at: the moment of this attempt, with a time zone.
        body: exactly the bytes that are sent.
    """
    timestamp = int(sent_at.timestamp())
    signatures = (signature(secret, message_id, timestamp, body) for secret in secrets)
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: " ".join(signatures),
    }
