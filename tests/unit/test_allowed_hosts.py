from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from captioner.allowed_hosts import AllowedHost, parse_allowed_hosts
from captioner.errors import SettingsError
from captioner.settings import load_settings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("intranet.example", "intranet.example", None),
        ("Intranet.Example.", "intranet.example", None),
        ("cms", "cms", None),
        ("my_host-2.xn--bcher-kva.example:8080", "my_host-2.xn--bcher-kva.example", 8080),
        ("intranet.example:*", "intranet.example", "*"),
        ("10.0.0.0/8", ip_network("10.0.0.0/8"), None),
        ("10.0.0.0/8:8080", ip_network("10.0.0.0/8"), 8080),
        ("10.1.2.3", ip_network("10.1.2.3/32"), None),
        ("127.0.0.1:*", ip_network("127.0.0.1/32"), "*"),
        ("::1", ip_network("::1/128"), None),
        ("fd00::/8", ip_network("fd00::/8"), None),
        ("[fd00::/8]", ip_network("fd00::/8"), None),
        ("[fd00::1]:65535", ip_network("fd00::1/128"), 65_535),
    ],
)
def test_entries(text: str, host: object, port: object) -> None:
    (entry,) = parse_allowed_hosts(text)
    assert (entry.host, entry.port) == (host, port)


def test_entries_are_separated_by_commas() -> None:
    assert parse_allowed_hosts(" a.example , ,10.0.0.0/8:80,") == (
        AllowedHost("a.example"),
        AllowedHost(ip_network("10.0.0.0/8"), 80),
    )
    assert parse_allowed_hosts("") == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.5/8", "write 10.0.0.0/8"),
        ("fd00::1/8", "write fd00::/8"),
        ("10.0.0.0/33", "no host|neither"),
        ("https://intranet.example", "no host"),
        ("intranet.example/path", "neither"),
        ("user@intranet.example", "user name"),
        ("*.example", "neither"),
        ("bücher.example", "xn--"),
        ("two words", "neither"),
        ("-a.example", "neither"),
        ("a..example", "neither"),
        ("127.1", "neither"),
        ("2130706433", "neither"),
        ("host.0x7f", "neither"),
        ("a.example:", "no host"),
        ("a.example:http", "no host"),
        ("a.example:0", "not a port"),
        ("a.example:65536", "not a port"),
        ("[::1", "no host"),
        ("[a.example", "no host"),
    ],
)
def test_what_is_no_entry_is_said_so(
    monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setenv("CAPTIONER_MEDIA__ALLOWED_HOSTS", f"good.example,{text}")
    with pytest.raises(SettingsError, match=problem) as raised:
        load_settings()
    assert str(raised.value).startswith("CAPTIONER_MEDIA__ALLOWED_HOSTS: ")
    assert (text in str(raised.value)) is ("@" not in text)


def test_names_are_compared_as_dns_compares_them() -> None:
    (entry,) = parse_allowed_hosts("Intranet.example")
    assert entry.names("intranet.EXAMPLE.")
    assert not entry.names("intranet.example..")
    assert not entry.names("www.intranet.example")
    assert not entry.names("intranet.example.evil.example")
    assert not entry.contains(ip_address("10.0.0.1"))


def test_networks_contain_addresses_of_their_family_alone() -> None:
    (entry,) = parse_allowed_hosts("0.0.0.0/0")
    assert entry.contains(ip_address("10.0.0.1"))
    assert not entry.contains(ip_address("::1"))
    assert not entry.names("0.0.0.0/0")


@pytest.mark.parametrize("ports", ["0", "65536", "http", "80;443", "-1"])
def test_ports_are_numbers(monkeypatch: pytest.MonkeyPatch, ports: str) -> None:
    monkeypatch.setenv("CAPTIONER_MEDIA__ALLOWED_PORTS", ports)
    with pytest.raises(SettingsError, match="CAPTIONER_MEDIA__ALLOWED_PORTS: "):
        load_settings()


def test_both_settings_are_empty_by_default_and_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    media = load_settings().media
    assert (media.allowed_hosts, media.allowed_ports) == ((), ())
    monkeypatch.setenv("CAPTIONER_MEDIA__ALLOWED_HOSTS", "cms:8080")
    monkeypatch.setenv("CAPTIONER_MEDIA__ALLOWED_PORTS", "8080, 8443")
    media = load_settings().media
    assert media.allowed_hosts == (AllowedHost("cms", 8080),)
    assert media.allowed_ports == (8080, 8443)
