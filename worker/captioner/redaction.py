"""What may be shown of texts that hold secrets: of URLs, and of paths that may be mistyped URLs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

#: What may be a user's name and password, before an `@`.
CREDENTIALS = re.compile(r"^(//|[^/]).*@|[^/@]*:.*@")
_CONTROLS_ABOVE = re.compile(r"[\x7f-\x9f]")


def printable(text: str) -> str:
    """Without what could forge lines, or steer a terminal; it may have been percent-encoded."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable_lines(text: str) -> str:
    """The same of a text that may have lines, such as a traceback."""
    return "\n".join(map(printable, text.expandtabs(4).splitlines()))


def printable_json(text: str) -> str:
    """The same JSON, for a terminal: `json` leaves control characters above ASCII as they are."""
    return _CONTROLS_ABOVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown_path(text: str) -> str:
    """An absolute path, or what is none and may have been meant to be a URL."""
    shown = CREDENTIALS.sub("…@", text) if "@" in text else text
    if text.startswith("/") and not text.startswith("//"):
        return shown
    before, query, _ = shown.partition("?")
    return f"{before}?…" if query else before


def shown_origin(url: str) -> str | None:
    """Scheme, host and port; None when it is not certain which part of the text they are."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    # In https://user:12/34@host a password with a slash in it looks like a port and a path.
    behind = url.partition("://")[2].removeprefix(parts.netloc)
    if not host or (port is not None and "@" in behind):
        return None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"
