"""The hosts an operator allows beside public ones, as `CAPTIONER_MEDIA__ALLOWED_HOSTS` has them.

`intranet.example`, `10.0.0.0/8`, `fd00::/8`; each may end in a port, `intranet.example:8080` or
`[fd00::1]:8080`, or in `:*` for any port. An IPv6 address with a port needs its brackets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ENTRY = re.compile(r"(?P<host>\[[^\]]*\]|[^\[\]:]+)(?::(?P<port>\*|[0-9]{1,5}))?", re.ASCII)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
#: As URLs have it: a last label like this makes the whole an address, however it is spelled.
_NUMBER = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)")


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """One entry: whom it covers, and on which port."""

    #: A name, in lower case and without a final dot, or addresses.
    host: str | Network
    #: `*` is any port; None are those that are open on every host.
    port: int | Literal["*"] | None = None

    def names(self, host: str) -> bool:
        """Whether the entry is this name, as a URL spells it."""
        return self.host == host.lower().removesuffix(".")

    def contains(self, address: Address) -> bool:
        """Whether the entry is a network with this address in it."""
        return not isinstance(self.host, str) and address in self.host


def parse_allowed_hosts(text: str) -> tuple[AllowedHost, ...]:
    """Read entries separated by commas.

    Raises:
        ValueError: one of them is neither a name nor an address nor a network, or has no port
            behind its colon.
    """
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(entry: str) -> AllowedHost:
    if "@" in entry:  # not quoted: somebody has written a URL, with a password in it
        raise ValueError("a host has no user name; write intranet.example or 10.0.0.0/8")
    if network := _network(entry):  # before ports are looked for: IPv6 is full of colons
        return AllowedHost(network)
    parts = _ENTRY.fullmatch(entry)
    if parts is None:
        raise ValueError(
            f"{entry!r} is no host: write intranet.example, 10.0.0.0/8 or [fd00::/8], and "
            ":8080 or :* behind it where the port is not a usual one"
        )
    host = parts["host"].removeprefix("[").removesuffix("]")
    return AllowedHost(_network(host) or _name(host), _port(parts["port"]))


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            network = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"{text} is an address in a network: write {network}") from None
        return None


def _name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name):
        raise ValueError(
            f"{text!r} is neither a host's name (letters beyond ASCII as xn--…) nor an address"
        )
    return name


def _port(text: str | None) -> int | Literal["*"] | None:
    if text is None:
        return None
    if text == "*":
        return "*"
    if not 0 < int(text) < 65_536:
        raise ValueError(f"{text} is not a port")
    return int(text)
