"""One attempt: sign, post, and say what the answer means for the next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from captioner.errors import DeliveryError, JobError
from captioner.events import Receipt
from captioner.media import post_http
from captioner.settings import Settings
from captioner.webhooks.signing import signed_headers

#: Read of an answer, and kept of it: enough to see what went wrong.
MAX_ANSWER_BYTES = 4096
MAX_EXCERPT_BYTES = 1024
#: The receiver says that it wants nothing any more.
GONE = 410
#: Longest `Retry-After` in seconds that is understood; the dispatcher waits a day at most.
_MAX_RETRY_AFTER_SECONDS = 1e9


def send(
    url: str,
    *,
    secrets: Sequence[str],
    message_id: str,
    body: bytes,
    settings: Settings,
    now: datetime,
) -> Receipt:
    """Post a webhook once.

    Args:
        url: in full; it is not shown.
        secrets: to sign with: two while one replaces the other.
        message_id: the same on every attempt.
        body: as `webhook_body` makes it.
        settings: time limit, and what `media` says of hosts and ports.
        now: what it is signed with; receivers refuse a time that is minutes away from theirs.

    Returns:
        What the receiver answered, with a status from 200 to 299.

    Raises:
        DeliveryError: it did not arrive, or was answered otherwise. `permanent` when there is no
            point in trying again.
    """
    headers = {
        "Content-Type": "application/json",
        **signed_headers(secrets, message_id, now, body),
    }
    try:
        answer = post_http(
            url,
            body=body,
            headers=headers,
            limits=settings.media,
            deadline_seconds=_deadline_seconds(settings),
            max_response_bytes=MAX_ANSWER_BYTES,
        )
    except JobError as error:
        raise DeliveryError(error.message, permanent=not error.retryable) from error
    excerpt = _excerpt(answer.body)
    if 200 <= answer.status < 300:
        return Receipt(status=answer.status, excerpt=excerpt)
    raise DeliveryError(
        _meaning(answer.status),
        status=answer.status,
        excerpt=excerpt,
        retry_after_seconds=retry_after_seconds(answer.headers.get("retry-after"), now),
        permanent=answer.status == GONE,
    )


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """What a `Retry-After` asks for: seconds, or an HTTP date; None when it asks for nothing."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(value)
        # "-0000" is UTC from somebody who will not say where he is.
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max(0.0, (moment - now).total_seconds()), _MAX_RETRY_AFTER_SECONDS)
    except (ValueError, OverflowError):
        return None


def _deadline_seconds(settings: Settings) -> float:
    # What takes as long as an attempt may is taken for a hang, and its thread is lost.
    return min(settings.webhooks.timeout_seconds, 0.9 * settings.events.attempt_timeout_seconds)


def _meaning(status: int) -> str:
    if status == GONE:
        return f"answered with HTTP status {status}: the receiver wants no more"
    if 300 <= status < 400:
        return f"answered with HTTP status {status}; redirects are not followed"
    return f"answered with HTTP status {status}"


def _excerpt(body: bytes) -> str:
    text = body[:MAX_EXCERPT_BYTES].decode(errors="replace")
    # Shown to people and stored: no control characters, of which NUL cannot be stored at all.
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
