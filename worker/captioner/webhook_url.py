"""The URL of a receiver of webhooks: what it may be, and how it may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from captioner.errors import InvalidRequestError
from captioner.redaction import shown_origin

MAX_WEBHOOK_URL_CHARACTERS = 2_048

#: A name after IDNA or an address, and a port: what every parser of URLs takes for the same host.
_HOST_AND_PORT = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?", re.ASCII)


def check_webhook_url(url: object) -> None:
    """Refuse what no webhook could be sent to; whether it may be is asked when one is sent.

    Raises:
        InvalidRequestError: the text holds nothing of the URL, which may hold a secret.
    """
    if not isinstance(url, str) or not 0 < len(url) <= MAX_WEBHOOK_URL_CHARACTERS:
        raise InvalidRequestError(
            f"webhook_url must be a URL of at most {MAX_WEBHOOK_URL_CHARACTERS} characters"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequestError("webhook_url must be ASCII without spaces; percent-encode it")
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ("http", "https")
            and _HOST_AND_PORT.fullmatch(parts.netloc.rpartition("@")[2])
            and parts.port != 0
        )
    except ValueError:
        usable = False
    if not usable:
        raise InvalidRequestError("webhook_url must be of the form https://host/path")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequestError("webhook_url must not hold a user name or a password")


def webhook_display(url: str) -> str:
    """A receiver's URL as it may be shown: its path is often what keeps others out."""
    origin = shown_origin(url)
    if origin is None:
        return "…"
    parts = urlsplit(url)
    return f"{origin}/…" if parts.path not in ("", "/") or parts.query else origin
