"""URLs, read once and by one parser: a second would see another host in some of them."""

from __future__ import annotations

import re
import socket

import httpcore
import httpx

from captioner.media.addresses import parse_address
from captioner.media.guard import SCHEMES, USUAL_PORTS

#: A name after IDNA, or an IPv4 or IPv6 address.
_HOST = re.compile(rb"[\w.-]+|[0-9A-Fa-f:.]+", re.ASCII)


def parse_url(text: str) -> httpx.URL:
    """Read a URL.

    Raises:
        ValueError: not one, or its host or port is none. Without a text: httpx quotes parts of
            the URL in its messages, and they may be secret.
    """
    try:
        return _checked(httpx.URL(text))
    except httpx.InvalidURL:
        raise ValueError from None


def join_url(url: httpx.URL, location: bytes) -> httpx.URL:
    """Where a redirect from `url` leads; raises as `parse_url` does."""
    try:
        return _checked(url.join(location.decode("utf-8", "replace")))
    except httpx.InvalidURL:
        raise ValueError from None


def for_request(url: httpx.URL) -> httpcore.URL:
    """The same URL for httpcore, without its fragment."""
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def host_of(url: httpx.URL) -> str:
    """The host in one of its spellings: `CMS.example.`, `0x7f.1` and `[::ffff:7f00:1]` have more.

    For counting, not for connecting: what is connected to is what was looked up.
    """
    name = url.raw_host.decode("ascii").lower().rstrip(".")
    try:
        # As C libraries read it: decimal, octal, hexadecimal, and with parts missing.
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        pass
    try:
        return str(parse_address(name))
    except ValueError:
        return name


def origin_of(url: httpx.URL) -> str:
    """Scheme, host and port, the same for every spelling of them."""
    host = host_of(url)
    host = f"[{host}]" if ":" in host else host
    port = url.port if url.port != USUAL_PORTS.get(url.scheme) else None
    return f"{url.scheme}://{host}{f':{port}' if port else ''}"


def _checked(url: httpx.URL) -> httpx.URL:
    if url.scheme in SCHEMES and not _HOST.fullmatch(url.raw_host):
        raise ValueError  # httpx percent-encodes what it does not like
    if url.port is not None and not 0 < url.port < 65_536:
        raise ValueError
    return url
