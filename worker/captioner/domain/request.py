"""What a client asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from captioner.domain.states import Lane
from captioner.errors import InvalidRequestError
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions
from captioner.source import Source
from captioner.webhook_url import check_webhook_url

MAX_CLIENT_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRequest:
    """What a client asks for: one image (or video) to be captioned.

    Raises:
        InvalidRequestError: a value cannot be stored or used.
    """

    source: Source
    options: GenerationOptions = field(default_factory=GenerationOptions)
    #: For plugins that make alt texts.
    alt_text: AltTextOptions = field(default_factory=AltTextOptions)
    #: Which frames of a video are captioned.
    video: VideoOptions = field(default_factory=VideoOptions)
    #: The client's own key: the same key never makes a second job.
    client_key: str | None = None
    #: Opaque to captioner; stored, and echoed in results and events.
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lane: Lane = Lane.INTERACTIVE
    #: Of no use after this, with a time zone (kept as UTC); what has not ended by then expires.
    deadline_at: datetime | None = None
    #: Who is told how the job ended; it may hold a secret.
    webhook_url: str | None = field(default=None, repr=False)
    id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        """Refuse an unusable client key, deadline or webhook URL."""
        key = self.client_key
        if key is not None and not 0 < len(key) <= MAX_CLIENT_KEY_CHARACTERS:
            raise InvalidRequestError(
                f"client_key must have 1 to {MAX_CLIENT_KEY_CHARACTERS} characters"
            )
        if key is not None and "\x00" in key:
            raise InvalidRequestError("client_key must not contain NUL characters")
        if self.deadline_at is not None:
            object.__setattr__(self, "deadline_at", _deadline(self.deadline_at))
        if self.webhook_url is not None:
            check_webhook_url(self.webhook_url)


def _deadline(value: object) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidRequestError("deadline_at must be a time with a time zone")
    beyond = InvalidRequestError("deadline_at is beyond the calendar")
    try:
        value = value.astimezone(UTC)
    except OverflowError:
        raise beyond from None
    # Of its first and last year, some moments are not of the calendar in other zones.
    if not MINYEAR < value.year < MAXYEAR:
        raise beyond
    return value
