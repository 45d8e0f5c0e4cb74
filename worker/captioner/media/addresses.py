"""Which addresses are public: those of hosts on the Internet, and of nothing nearer.

`ipaddress.is_global` is not the question: it lets multicast, site-local, NAT64 and IPv4-compatible
addresses and clouds' own hosts pass, and its tables change with the version of Python.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

from captioner.allowed_hosts import Address

#: IANA IPv4 Special-Purpose Address Registry: all that is not globally reachable, and what is so
#: only within a block that as a whole is not. Then multicast, and clouds' hosts elsewhere.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host (RFC 791); Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",  # private use (RFC 1918)
        "100.64.0.0/10",  # carriers' NAT (RFC 6598); 100.100.100.200 is Alibaba's metadata
        "127.0.0.0/8",  # loopback (RFC 1122)
        "168.63.129.16/32",  # Azure's own host, by its documentation; its machines alone reach it
        "169.254.0.0/16",  # link-local (RFC 3927); 169.254.169.254 is most clouds' metadata
        "172.16.0.0/12",  # private use (RFC 1918)
        "192.0.0.0/24",  # protocol assignments (RFC 6890); 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",  # documentation (RFC 5737)
        "192.88.99.0/24",  # relays of 6to4, withdrawn (RFC 7526)
        "192.168.0.0/16",  # private use (RFC 1918)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "198.51.100.0/24",  # documentation (RFC 5737)
        "203.0.113.0/24",  # documentation (RFC 5737)
        "224.0.0.0/4",  # multicast (RFC 5771)
        "240.0.0.0/4",  # reserved (RFC 1112), with 255.255.255.255
    )
)

#: All that IANA has opened for unicast (IPv6 Address Space registry, RFC 4291). Outside are ::,
#: ::1, IPv4-compatible ones, 64:ff9b:1::/48, discard, 5f00::/16, fc00::/7, fe80::/10, fec0::/10
#: and multicast.
_UNICAST_6 = IPv6Network("2000::/3")
#: IANA IPv6 Special-Purpose Address Registry, as above.
_NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments (RFC 2928): Teredo, benchmarks, ORCHID, …
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4 (RFC 3056, RFC 7526): an IPv4 address by way of some relay
        "3fff::/20",  # documentation (RFC 9637)
    )
)
#: NAT64's well-known prefix (RFC 6052): where there is no IPv4, DNS64 gives every IPv4 host so.
_NAT64 = IPv6Network("64:ff9b::/96")


def parse_address(text: str) -> Address:
    """An address as resolvers write it; one mapped into IPv6 as the IPv4 address it stands for.

    Raises:
        ValueError: not an address, or a spelling that only some programs take for one.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def is_public(address: Address) -> bool:
    """True for an address of a host on the Internet; see `parse_address` for mapped ones."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _UNICAST_6 and not any(address in network for network in _NOT_PUBLIC_6)
