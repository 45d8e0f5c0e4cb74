"""Public or not: the edges of every block, and what `ipaddress.is_global` gets wrong."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.media.addresses import is_public, parse_address

#: Each block with an address just outside it that is public (None: it has none there).
BLOCKS = [
    ("0.0.0.0/8", None, "1.0.0.0"),
    ("10.0.0.0/8", "9.255.255.255", "11.0.0.0"),
    ("100.64.0.0/10", "100.63.255.255", "100.128.0.0"),
    ("127.0.0.0/8", "126.255.255.255", "128.0.0.0"),
    ("168.63.129.16/32", "168.63.129.15", "168.63.129.17"),
    ("169.254.0.0/16", "169.253.255.255", "169.255.0.0"),
    ("172.16.0.0/12", "172.15.255.255", "172.32.0.0"),
    ("192.0.0.0/24", "191.255.255.255", "192.0.1.0"),
    ("192.0.2.0/24", "192.0.1.255", "192.0.3.0"),
    ("192.88.99.0/24", "192.88.98.255", "192.88.100.0"),
    ("192.168.0.0/16", "192.167.255.255", "192.169.0.0"),
    ("198.18.0.0/15", "198.17.255.255", "198.20.0.0"),
    ("198.51.100.0/24", "198.51.99.255", "198.51.101.0"),
    ("203.0.113.0/24", "203.0.112.255", "203.0.114.0"),
    ("224.0.0.0/3", "223.255.255.255", None),
    ("::/3", None, "2400::"),
    ("2001::/23", "2000:ffff::", "2001:200::"),
    ("2001:db8::/32", "2001:db7:ffff::", "2001:db9::"),
    ("2002::/16", "2001:ffff::", "2003::"),
    ("3fff::/20", "3ffe:ffff::", "3fff:1000::"),
    ("4000::/2", "3fff:ffff::", None),
    ("8000::/1", None, None),
]


@pytest.mark.parametrize(("block", "before", "after"), BLOCKS)
def test_blocks_begin_and_end_where_they_should(
    block: str, before: str | None, after: str | None
) -> None:
    network = ip_network(block)
    assert not is_public(network[0])
    assert not is_public(network[-1])
    for outside in (before, after):
        if outside:
            assert is_public(ip_address(outside)), outside


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "100.100.100.200", "169.254.169.254", "172.31.255.255",
        "192.0.0.8", "192.0.0.9", "192.0.0.192", "192.168.1.1", "224.0.0.1", "239.255.255.255",
        "255.255.255.255", "168.63.129.16", "192.88.99.1",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1",
        "64:ff9b:1::1", "64:ff9b:1::8.8.8.8", "100::1", "100:0:0:1::1", "2001::1",
        "2001:0:808:808::1",
        "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1",
        "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
        "ff02::1", "ff0e::1",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    assert not is_public(parse_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "1.1.1.1", "93.184.216.34", "172.15.0.1", "198.20.0.1", "2606:4700::1111",
        "2a00:1450:4001::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
    ],
)  # fmt: skip
def test_public(address: str) -> None:
    assert is_public(parse_address(address))


def test_an_address_mapped_into_ipv6_is_the_ipv4_address() -> None:
    assert parse_address("::ffff:7f00:1") == IPv4Address("127.0.0.1")


@pytest.mark.parametrize(
    "text",
    ["", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "017700000001", "0", "①②⑦.⓪.⓪.①",
     "127.0.0.1 ", "127.0.0.1/32", "[::1]", "localhost", "1.2.3.4.5", "::ffff:0x7f000001"],
)  # fmt: skip
def test_spellings_of_addresses_are_not_guessed_at(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        parse_address(text)


@given(st.ip_addresses())
def test_never_more_generous_than_python(address: object) -> None:
    """Whatever this version of Python holds to be private is refused here too."""
    parsed = parse_address(str(address))
    assert parsed.is_global or not is_public(parsed)
