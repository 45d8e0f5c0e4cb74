"""URLs, read once and by one parser: a second would see another host in some of them."""

from __future__ import annotations

import re

import httpcore
import httpx

from captioner.media.guard import SCHEMES

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


def _checked(url: httpx.URL) -> httpx.URL:
    if url.scheme in SCHEMES and not _HOST.fullmatch(url.raw_host):
        raise ValueError  # httpx percent-encodes what it does not like
    if url.port is not None and not 0 < url.port < 65_536:
        raise ValueError
    return url
