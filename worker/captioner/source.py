"""Where media is, as a client names it, and how that may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from captioner.errors import InvalidRequestError
from captioner.redaction import CREDENTIALS, printable, shown_origin, shown_path

#: Longest source accepted by reference, in characters; `data:` has a limit of its own.
MAX_SOURCE_CHARACTERS = 8_192
#: Longest `data:` source, in characters: 256 KiB of bytes as base64, and the header.
MAX_INLINE_CHARACTERS = 256 * 1024 * 4 // 3 + 256

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: What a plugin may call its own, as RFC 3986 has it: `s3+eu://…`, `my-store://…`.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
#: Half a character, which UTF-8 cannot encode.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the media is: `https://…`, `http://…`, `file:///…`, an absolute path, or `data:…`.

    Raises:
        InvalidRequestError: the text is empty, too long, or holds control characters.
    """

    uri: str = field(repr=False)
    #: The URL scheme in lower case; `file` for a plain path.
    scheme: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no provider could open, before it is stored."""
        if not isinstance(self.uri, str) or not self.uri.strip():
            raise InvalidRequestError("source must be a URL, a data: URL or an absolute path")
        object.__setattr__(self, "scheme", _scheme(self.uri))
        limit = MAX_INLINE_CHARACTERS if self.scheme == "data" else MAX_SOURCE_CHARACTERS
        if len(self.uri) > limit:
            raise InvalidRequestError(f"source of {len(self.uri)} characters; at most {limit}")
        if self.uri.isprintable():
            return  # what follows is not in it
        if _CONTROL.search(self.uri):
            raise InvalidRequestError("source must not contain control characters")
        if _SURROGATE.search(self.uri):
            raise InvalidRequestError("source must be valid Unicode; rename the file to UTF-8")

    @property
    def is_local(self) -> bool:
        """True when it is on this machine, or in the request itself."""
        return self.scheme in ("file", "data")

    @property
    def display(self) -> str:
        """The source as it may be shown and logged: no credentials, query, fragment or bytes.

        Nor what may be meant as credentials in a URL that is mistyped: of `user:password@host/a`
        there is `…@host/a`.
        """
        return printable(self._display())

    def _display(self) -> str:
        if self.scheme == "data":
            return f"data:{self.uri[5:].partition(',')[0][:40]},…"
        if self.scheme == "file":
            return shown_path(self.path)
        head, slashes, _ = self.uri.partition("://")
        if not slashes or ":" in head:
            return shown_path(self.uri)
        origin = shown_origin(self.uri)
        if origin is None:
            return f"{self.scheme}:…"
        parts = urlsplit(self.uri)
        return f"{origin}{CREDENTIALS.sub('…@', parts.path)}{'?…' if parts.query else ''}"

    @property
    def path(self) -> str:
        """The local path of a `file` source, percent-decoded when it came as a URL."""
        if self.uri[:5].lower() != "file:":
            return self.uri
        try:
            return unquote(urlsplit(self.uri).path)
        except ValueError:  # file://[
            return ""


def _scheme(uri: str) -> str:
    head, colon, rest = uri.partition(":")
    if colon and head.isascii() and head.isalnum() and len(head) > 1:
        return head.lower()
    return head.lower() if rest.startswith("//") and _SCHEME.fullmatch(head) else "file"
