"""Where connections may go: to public addresses, and where an operator allows it besides.

A URL's text proves nothing: `0x7f.1` is a spelling of this machine, and any name may stand for an
address inside. So a name is resolved once, each of its addresses is checked, and the connection
goes to one of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.allowed_hosts import Address, AllowedHost
from captioner.media.addresses import is_public, parse_address
from captioner.media.lookups import Resolver, resolve_host

if TYPE_CHECKING:
    import httpx

    from captioner.settings import MediaSettings

SCHEMES = ("http", "https")
#: Open on every public host, and on those that are allowed without a port.
USUAL_PORTS = {"http": 80, "https": 443}


class Guard:
    """The rules of one installation, for what is downloaded and for what is sent."""

    def __init__(self, limits: MediaSettings, look_up: Resolver = resolve_host) -> None:
        """Take the rules over.

        Args:
            limits: `allowed_hosts` and `allowed_ports`.
            look_up: Gives every address of a host; asked once for each connection.
        """
        self._look_up = look_up
        self._hosts = limits.allowed_hosts
        self._ports = frozenset({*USUAL_PORTS.values(), *limits.allowed_ports})

    def objection(self, url: httpx.URL) -> str | None:
        """Why a URL is refused for what it shows itself; None: its addresses and port decide.

        Ports are not spoken of here: an error of their own would tell which of them are allowed.
        """
        if url.scheme not in SCHEMES:
            return "only http and https are allowed"
        if url.userinfo:
            return "URLs with a user name or a password are not allowed"
        return None

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host, if every one of them is allowed; a `Resolver`.

        Raises:
            OSError: the name cannot be resolved.
            ValueError: the name cannot exist.
            PermissionError: an address is not allowed. The text is for the operator's log: told
                to a client, it would be a map of what lies inside.
        """
        addresses = [parse_address(text) for text in self._look_up(host, port)]
        for address in addresses:
            if not self._allows(host, address, port):
                raise PermissionError(_explanation(address, port))
        return list(dict.fromkeys(str(address) for address in addresses))

    def _allows(self, host: str, address: Address, port: int) -> bool:
        if is_public(address) and port in self._ports:
            return True
        return any(
            (entry.names(host) or entry.contains(address)) and self._open(entry, port)
            for entry in self._hosts
        )

    def _open(self, entry: AllowedHost, port: int) -> bool:
        if entry.port is None:
            return port in self._ports
        return entry.port in ("*", port)


def _explanation(address: Address, port: int) -> str:
    what = f"port {port} of {address}" if is_public(address) else f"{address} is not public and"
    return f"{what} is not in CAPTIONER_MEDIA__ALLOWED_HOSTS"
