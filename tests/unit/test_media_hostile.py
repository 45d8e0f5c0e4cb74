"""URLs that lead inside: none of them makes a connection, whatever it is written or resolved like.

Connections are counted twice: at a socket that listens on every address of this machine, and by
Python's own audit of `connect`, which sees attempts at addresses elsewhere too.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpcore
import pytest

from captioner.errors import ErrorCode, JobError
from captioner.media import open_source, post_http
from captioner.media.guard import Guard
from captioner.media.http import open_http
from captioner.media.lookups import resolve_host
from captioner.settings import MediaSettings
from captioner.source import Source
from processes import wait_until
from sites import PHOTO, Server, running_site

REFUSED = ErrorCode.FETCH_FAILED
SHOWN = ErrorCode.SOURCE_NOT_ALLOWED
UNREADABLE = ErrorCode.INVALID_REQUEST

#: Written in the URL: `{port}` is the listening one, and open to public hosts.
URLS: list[tuple[str, ErrorCode]] = [
    # this machine, spelled as C libraries read it
    ("http://127.0.0.1:{port}/", REFUSED),
    ("HTTP://127.0.0.1:{port}/", REFUSED),
    ("https://127.0.0.1:{port}/", REFUSED),
    ("http://localhost:{port}/", REFUSED),
    ("http://LocalHost:{port}/", REFUSED),
    ("http://localhost.:{port}/", REFUSED),
    ("http://127.0.0.2:{port}/", REFUSED),
    ("http://127.255.255.255:{port}/", REFUSED),
    ("http://127.1:{port}/", REFUSED),
    ("http://127.0.1:{port}/", REFUSED),
    ("http://0x7f.1:{port}/", REFUSED),
    ("http://0x7f000001:{port}/", REFUSED),
    ("http://0X7F.0x0.0x0.0x1:{port}/", REFUSED),
    ("http://2130706433:{port}/", REFUSED),
    ("http://0177.0.0.1:{port}/", UNREADABLE),
    ("http://0000177.0.0.01:{port}/", UNREADABLE),
    ("http://017700000001:{port}/", REFUSED),
    ("http://127.0.0.1.:{port}/", REFUSED),
    ("http://127。0。0。1:{port}/", REFUSED),
    ("http://①②⑦.⓪.⓪.①:{port}/", UNREADABLE),
    ("http://１２７.0.0.1:{port}/", UNREADABLE),
    ("http://0:{port}/", REFUSED),
    ("http://0.0.0.0:{port}/", REFUSED),
    ("http://[::1]:{port}/", REFUSED),
    ("http://[0:0:0:0:0:0:0:1]:{port}/", REFUSED),
    ("http://[::]:{port}/", REFUSED),
    ("http://[::ffff:127.0.0.1]:{port}/", REFUSED),
    ("http://[::ffff:7f00:1]:{port}/", REFUSED),
    ("http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/", REFUSED),
    ("http://[::ffff:0.0.0.0]:{port}/", REFUSED),
    ("http://[::127.0.0.1]:{port}/", REFUSED),
    ("http://[::ffff:0:127.0.0.1]:{port}/", REFUSED),
    # other families that carry an IPv4 address
    ("http://[64:ff9b::127.0.0.1]:{port}/", REFUSED),
    ("http://[64:ff9b::a9fe:a9fe]/", REFUSED),
    ("http://[64:ff9b:1::7f00:1]:{port}/", REFUSED),
    ("http://[2002:7f00:1::]:{port}/", REFUSED),
    ("http://[2002:808:808::1]/", REFUSED),
    ("http://[2001:0:7f00:1::1]:{port}/", REFUSED),
    ("http://[2001:0:808:808::1]/", REFUSED),
    # networks that are not the Internet
    ("http://10.0.0.1/", REFUSED),
    ("http://172.16.0.1/", REFUSED),
    ("http://172.31.255.254/", REFUSED),
    ("http://192.168.0.1/", REFUSED),
    ("http://100.64.0.1/", REFUSED),
    ("http://198.18.0.1/", REFUSED),
    ("http://192.0.0.8/", REFUSED),
    ("http://192.0.2.1/", REFUSED),
    ("http://192.88.99.1/", REFUSED),
    ("http://224.0.0.1/", REFUSED),
    ("http://240.0.0.1/", REFUSED),
    ("http://255.255.255.255/", REFUSED),
    ("http://[fc00::1]/", REFUSED),
    ("http://[fd12:3456::1]/", REFUSED),
    ("http://[fe80::1]/", REFUSED),
    ("http://[fec0::1]/", REFUSED),
    ("http://[ff02::1]/", REFUSED),
    ("http://[ff0e::1]/", REFUSED),
    ("http://[100::1]/", REFUSED),
    ("http://[2001:db8::1]/", REFUSED),
    ("http://[3fff::1]/", REFUSED),
    ("http://[5f00::1]/", REFUSED),
    # clouds' own hosts
    ("http://169.254.169.254/latest/meta-data/", REFUSED),
    ("http://0xa9fea9fe/", REFUSED),
    ("http://2852039166/", REFUSED),
    ("http://[::ffff:169.254.169.254]/", REFUSED),
    ("http://[fd00:ec2::254]/", REFUSED),
    ("http://168.63.129.16/", REFUSED),
    ("http://100.100.100.200/", REFUSED),
    ("http://192.0.0.192/", REFUSED),
    # what the URL itself shows
    ("http://user:hunter2@127.0.0.1:{port}/", SHOWN),
    ("http://public.example@127.0.0.1:{port}/", SHOWN),
    ("http://public.example%40127.0.0.1:{port}/", UNREADABLE),
    ("http://public.example\\@127.0.0.1:{port}/", SHOWN),
    ("http://127.0.0.1:22/", REFUSED),
    ("http://public.example:6379/", REFUSED),
    ("https://public.example:5432/", REFUSED),
    ("http://93.184.216.34:22/", REFUSED),
    ("https://[2606:4700::1111]:6379/", REFUSED),
    ("http://127.0.0.1:1{port}/", UNREADABLE),
    ("http://127.0.0.1:0/", UNREADABLE),
    ("http://127.0.0.1:{port}:80/", UNREADABLE),
    ("gopher://127.0.0.1:{port}/_INFO", SHOWN),
    ("ftp://127.0.0.1:{port}/", SHOWN),
    ("dict://127.0.0.1:{port}/info", SHOWN),
    ("ws://127.0.0.1:{port}/", SHOWN),
    # what only looks like a host
    ("http://127%2e0%2e0%2e1:{port}/", UNREADABLE),
    ("http://127.0.0.1%00.example:{port}/", UNREADABLE),
    ("http://localhost%09:{port}/", UNREADABLE),
    ("http://127.0.0.1 :{port}/", UNREADABLE),
    ("http://127.0.0.1;.example:{port}/", UNREADABLE),
    ("http://127.0.0.1,public.example:{port}/", UNREADABLE),
    ("http://[fe80::1%1]:{port}/", UNREADABLE),
    ("http://[fe80::1%25lo]:{port}/", UNREADABLE),
    ("http://[::1%25lo]:{port}/", UNREADABLE),
    ("http://[127.0.0.1]:{port}/", UNREADABLE),
    ("http://[::1]127.0.0.1:{port}/", UNREADABLE),
    ("http://[::1:{port}/", UNREADABLE),
    ("http:127.0.0.1:{port}/", UNREADABLE),
    ("http:///127.0.0.1:{port}/", UNREADABLE),
    ("http://:{port}/", UNREADABLE),
    ("http://..:{port}/", REFUSED),
    ("http://127.0.0.1..:{port}/", REFUSED),
    # letters that some program takes for others
    ("http://ｌｏｃａｌｈｏｓｔ:{port}/", UNREADABLE),
    ("http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/", UNREADABLE),
    ("http://loc\N{SOFT HYPHEN}alhost:{port}/", UNREADABLE),
    ("http://127.0.0.1\N{ZERO WIDTH SPACE}:{port}/", UNREADABLE),
    ("http://127\N{ONE DOT LEADER}0.0.1:{port}/", UNREADABLE),
    ("http://127．0．0．1:{port}/", REFUSED),
    ("http://⒈27.0.0.1:{port}/", UNREADABLE),
    ("http://xn--localhost-:{port}/", REFUSED),
    ("http://127.0.0.1:８0/", REFUSED),
    # where the host seems to be another part
    ("http://@127.0.0.1:{port}/", REFUSED),
    ("http://127.0.0.1:{port}?@public.example/", REFUSED),
    ("http://127.0.0.1:{port}#@public.example/", REFUSED),
    ("http:\\\\127.0.0.1:{port}/", UNREADABLE),
    ("http:/\\127.0.0.1:{port}/", UNREADABLE),
    ("//127.0.0.1:{port}/", SHOWN),
    ("http://[::ffff:127.0.0.1%25lo]:{port}/", UNREADABLE),
    ("http://[v1.127.0.0.1]:{port}/", UNREADABLE),
    ("http://[::1]@public.example@127.0.0.1:{port}/", SHOWN),
]

#: Names, and what a hostile or an honest DNS says they are.
NAMES: dict[str, list[str]] = {
    "loopback.example": ["127.0.0.1"],
    "loopback6.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "intranet.example": ["10.0.0.5"],
    "carrier.example": ["100.64.0.5"],
    "unspecified.example": ["0.0.0.0"],
    "nat64.example": ["64:ff9b::10.0.0.5"],
    "scoped.example": ["fe80::1%1"],
    "public-then-private.example": ["93.184.216.34", "127.0.0.1"],
    "private-then-public.example": ["127.0.0.1", "93.184.216.34"],
    "public4-private6.example": ["93.184.216.34", "::1"],
    "public6-private4.example": ["2606:4700::1111", "10.0.0.5"],
    "one-of-many.example": [*(f"93.184.216.{n}" for n in range(1, 200)), "169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "metadata.google.internal.": ["169.254.169.254"],
    "METADATA": ["169.254.169.254"],
    "instance-data.ec2.internal": ["169.254.169.254"],
    "wireserver.example": ["168.63.129.16"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "host.docker.internal": ["192.168.65.254"],
    "nowhere.example": [],
}


# --- What counts ----------------------------------------------------------------------------------

_attempts: list[object] = []
_counting = threading.Event()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and _counting.is_set():
        _attempts.append(arguments[1])


sys.addaudithook(_audit)  # cannot be taken away again: hence the switch


class Inside:
    """Something that listens where nobody may connect to."""

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("::" if both else "0.0.0.0", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=100,
        )
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def connections(self) -> int:
        """How many came since the last time; the kernel holds them without our help."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                count += 1
        return count

    def hang_up_on_one(self) -> None:
        """Wait for a connection and end it, so that who made it need not wait."""
        wait_until(lambda: self.connections() == 1)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def inside() -> Iterator[Inside]:
    listening = Inside()
    _attempts.clear()
    _counting.set()
    yield listening
    _counting.clear()
    listening.close()


@pytest.fixture
def limits(inside: Inside) -> MediaSettings:
    """Only the addresses are in the way: the port is open."""
    return MediaSettings(allowed_ports=(inside.port,), fetch_timeout_seconds=2)


@pytest.fixture(scope="module")
def site() -> Iterator[Server]:
    with running_site() as server:
        yield server


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers with `NAMES`; the names that were looked up, in order."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *arguments: object, **options: object) -> object:
        asked.append(host)
        if host not in NAMES:
            return real(host, port, *arguments, **options)  # type: ignore[arg-type]
        if not NAMES[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, port))
            for address in NAMES[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def failure(uri: str, folder: Path, limits: MediaSettings) -> JobError:
    with pytest.raises(JobError) as caught:
        open_source(Source(uri), folder, limits)
    assert "hunter2" not in caught.value.message
    return caught.value


# --- One URL at a time ----------------------------------------------------------------------------


def test_there_are_enough_of_them() -> None:
    assert len({url for url, _ in URLS}) == len(URLS) >= 120
    assert len(NAMES) >= 20


@pytest.mark.parametrize(("url", "code"), URLS, ids=[url for url, _ in URLS])
def test_no_connection_to_what_the_url_says(
    inside: Inside, limits: MediaSettings, tmp_path: Path, url: str, code: ErrorCode
) -> None:
    error = failure(url.format(port=inside.port), tmp_path, limits)

    assert (inside.connections(), _attempts) == (0, [])
    assert error.code is code, error.message
    assert error.retryable is (code is REFUSED)


@pytest.mark.parametrize(("url", "code"), URLS, ids=[url for url, _ in URLS])
def test_nor_does_a_webhook_make_one(
    inside: Inside, limits: MediaSettings, tmp_path: Path, url: str, code: ErrorCode
) -> None:
    with pytest.raises(JobError) as caught:
        _fetch("post", url.format(port=inside.port), tmp_path, limits, resolve_host)

    assert (inside.connections(), _attempts) == (0, [])
    assert caught.value.code is code
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("name", NAMES)
def test_no_connection_to_what_dns_says(
    inside: Inside, limits: MediaSettings, dns: list[str], tmp_path: Path, name: str
) -> None:
    error = failure(f"http://{name}:{inside.port}/", tmp_path, limits)

    assert (inside.connections(), _attempts) == (0, [])
    assert error.code is REFUSED
    assert dns == [name.lower()] or dns == [name]


@pytest.mark.parametrize(
    "control", ["http://127.0.0.1\t:{port}/", "http://127.0.0.1\n:{port}/", "http://\r127.0.0.1/"]
)
def test_control_characters_are_no_part_of_a_source(control: str) -> None:
    with pytest.raises(JobError, match="control characters"):
        Source(control)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1", "http://0x7f.1", "http://2130706433", "http://0", "http://[::1]",
     "http://[::ffff:127.0.0.1]", "http://loopback.example", "http://private-then-public.example"],
)  # fmt: skip
def test_the_same_are_counted_where_they_are_allowed(
    inside: Inside, dns: list[str], tmp_path: Path, url: str
) -> None:
    """Else zero connections would prove nothing."""
    allowed = MediaSettings(allowed_hosts="0.0.0.0/0:*,[::/0]:*")
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(inside.hang_up_on_one)
        failure(f"{url}:{inside.port}/", tmp_path, allowed)
        counted.result()

    assert (inside.connections(), len(_attempts)) == (0, 1)


@pytest.mark.parametrize("name", ["①②⑦.⓪.⓪.①", "１２７.1", "0177.0.0.1", "0x7f.1", "localhost"])
def test_spellings_that_only_the_resolver_understands(limits: MediaSettings, name: str) -> None:
    """What a more tolerant URL parser would let through ends here."""
    with pytest.raises(PermissionError, match=r"127\.0\.0\.1 is not public|::1 is not public"):
        Guard(limits).resolve(name, 80)


# --- Redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://127.0.0.1:{port}/", REFUSED),
        ("//127.0.0.1:{port}/", REFUSED),
        ("http://0x7f.1:{port}/", REFUSED),
        ("http://[::1]:{port}/", REFUSED),
        ("http://169.254.169.254/latest/meta-data/", REFUSED),
        ("http://metadata.google.internal/", REFUSED),
        ("http://public-then-private.example:{port}/", REFUSED),
        ("http://127.0.0.1:22/", REFUSED),
        ("http://user:hunter2@127.0.0.1:{port}/", SHOWN),
        ("gopher://127.0.0.1:{port}/", SHOWN),
        ("file:///etc/passwd", SHOWN),
    ],
)
def test_redirects_are_checked_again(
    inside: Inside, site: Server, dns: list[str], tmp_path: Path, target: str, code: ErrorCode
) -> None:
    """The site itself is allowed, by its address and port; nothing beside it is."""
    limits = MediaSettings(
        allowed_hosts=f"127.0.0.1:{site.server_port}",
        allowed_ports=(inside.port,),
        fetch_timeout_seconds=2,
    )

    error = failure(f"{site.url}/to?{target.format(port=inside.port)}", tmp_path, limits)

    assert error.code is code, error.message
    assert inside.connections() == 0
    assert _attempts == [("127.0.0.1", site.server_port)]
    assert not (tmp_path / "download").exists()


# --- One look-up ----------------------------------------------------------------------------------


def test_a_name_that_changes_its_mind_is_asked_once(
    site: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: the answer that was checked is the one that is connected to."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])
    real = socket.getaddrinfo
    asked = []

    def look_up(host: str, port: int, *arguments: object, **options: object) -> object:
        asked.append(host)
        if host != "rebinding.example":
            return real(host, port, *arguments, **options)  # type: ignore[arg-type]
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    limits = MediaSettings(allowed_hosts="127.0.0.1:*")
    with socket.create_server(("127.0.0.2", site.server_port)) as inside:
        inside.setblocking(False)
        url = f"http://rebinding.example:{site.server_port}/photo"
        media = open_source(Source(url), tmp_path, limits)

        assert media.path.read_bytes() == PHOTO
        # The second is the system's reading of the checked address, which is no name.
        assert asked == ["rebinding.example", "127.0.0.1"]
        failure(url, tmp_path, limits)
        with pytest.raises(BlockingIOError):
            inside.accept()


def test_a_public_address_is_connected_to_as_it_was_resolved(
    site: Server, dns: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = httpcore.SyncBackend.connect_tcp
    connected = []

    def connect(self: httpcore.SyncBackend, host: str, port: int, *rest: object) -> object:
        connected.append((host, port))
        return real(self, "127.0.0.1", site.server_port)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    monkeypatch.setitem(NAMES, "public.example", ["2606:4700::1111", "::ffff:93.184.216.34"])

    media = open_source(Source("http://public.example/photo"), tmp_path, MediaSettings())

    assert media.path.read_bytes() == PHOTO
    assert connected == [("2606:4700::1111", 80)]
    assert site.requests[-1]["Host"] == "public.example"  # type: ignore[index]


def test_answers_that_are_no_addresses_are_not_looked_up_again(
    inside: Inside, limits: MediaSettings, tmp_path: Path
) -> None:
    for answer in ("localhost", "0x7f.1", "127.1", ""):
        with pytest.raises(JobError) as caught:
            open_http(
                Source(f"http://a.example:{inside.port}/"),
                tmp_path,
                limits,
                look_up=lambda host, port, answer=answer: ["93.184.216.34", answer],  # type: ignore[misc]
            )
        assert caught.value.code is REFUSED
    assert (inside.connections(), _attempts) == (0, [])


# --- What an operator allows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "ports", "host", "port", "addresses", "allowed"),
    [
        ("", (), "a.example", 80, ["93.184.216.34"], True),
        ("", (), "a.example", 443, ["93.184.216.34"], True),
        ("", (), "a.example", 8080, ["93.184.216.34"], False),
        ("", (8080,), "a.example", 8080, ["93.184.216.34"], True),
        ("", (8080,), "a.example", 8080, ["10.0.0.5"], False),
        ("a.example", (), "a.example", 80, ["10.0.0.5"], True),
        ("a.example", (), "A.EXAMPLE.", 80, ["10.0.0.5"], True),
        ("a.example", (), "a.example", 80, ["10.0.0.5", "93.184.216.34"], True),
        ("a.example", (), "b.example", 80, ["10.0.0.5"], False),
        ("a.example", (), "b.a.example", 80, ["10.0.0.5"], False),
        ("a.example", (), "a.example", 8080, ["10.0.0.5"], False),
        ("a.example", (8080,), "a.example", 8080, ["10.0.0.5"], True),
        ("a.example:8080", (), "a.example", 8080, ["10.0.0.5"], True),
        ("a.example:8080", (), "a.example", 8080, ["93.184.216.34"], True),
        ("a.example:8080", (), "a.example", 80, ["10.0.0.5"], False),
        ("a.example:8080", (), "a.example", 80, ["93.184.216.34"], True),
        ("a.example:8080", (), "b.example", 8080, ["93.184.216.34"], False),
        ("a.example:*", (), "a.example", 22, ["10.0.0.5"], True),
        ("10.0.0.0/8", (), "a.example", 80, ["10.0.0.5"], True),
        ("10.0.0.0/8", (), "10.0.0.5", 80, ["10.0.0.5"], True),
        ("10.0.0.0/8", (), "a.example", 80, ["10.0.0.5", "192.168.0.1"], False),
        ("10.0.0.0/8", (), "a.example", 80, ["192.168.0.1", "10.0.0.5"], False),
        ("10.0.0.0/8", (), "a.example", 80, ["::ffff:10.0.0.5"], True),
        ("10.0.0.0/8", (), "a.example", 80, ["64:ff9b::10.0.0.5"], False),
        ("10.0.0.0/8:8080", (), "a.example", 8080, ["10.0.0.5"], True),
        ("10.0.0.0/8:8080", (), "a.example", 8080, ["10.0.0.5", "93.184.216.34"], False),
        ("10.0.0.0/8:8080", (), "a.example", 80, ["10.0.0.5"], False),
        ("10.0.0.0/8,192.168.0.0/16", (), "a.example", 80, ["10.0.0.5", "192.168.0.1"], True),
        ("fd00::/8", (), "a.example", 443, ["fd12::1"], True),
        ("fe80::/10", (), "a.example", 443, ["fe80::1%1"], True),
    ],
)
def test_hosts_and_ports_that_are_allowed(
    hosts: str,
    ports: tuple[int, ...],
    host: str,
    port: int,
    addresses: list[str],
    allowed: bool,
) -> None:
    limits = MediaSettings(allowed_hosts=hosts, allowed_ports=ports)
    guard = Guard(limits, lambda host, port: addresses)
    if allowed:
        found = guard.resolve(host, port)
        assert found == [address.removeprefix("::ffff:") for address in addresses]
    else:
        with pytest.raises(PermissionError):
            guard.resolve(host, port)


@pytest.mark.parametrize(
    "hosts",
    ["", "other.example:6379", "192.168.0.0/16:6379", "10.0.0.0/8", "intranet.example", "[::/0]:*"],
)
def test_what_is_allowed_elsewhere_shows_in_no_error(
    inside: Inside, dns: list[str], tmp_path: Path, hosts: str
) -> None:
    """Were a port that nobody may use told apart from one that is allowed for some, errors would
    tell what is in the list."""
    errors = [
        failure(url, tmp_path, MediaSettings(allowed_hosts=hosts))
        for url in ("http://intranet.example:6379/", "http://10.0.0.5:6379/", "http://[::1]:1/")
        if not (hosts == "[::/0]:*" and "::1" in url)
    ]

    assert {(error.code, error.retryable) for error in errors} == {(REFUSED, True)}
    assert len({error.message.partition(": ")[2] for error in errors}) == 1
    assert "no connection could be made" in errors[0].message
    assert _attempts == []


# --- What is told, and to whom --------------------------------------------------------------------


@pytest.fixture
def full_listener() -> Iterator[int]:
    """A port that lets connections wait: its queue is full, and nobody empties it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def _hang(host: str, port: int) -> list[str]:
    threading.Event().wait(2)
    return []


@pytest.mark.parametrize("call", ["download", "post"])
def test_no_connection_is_one_text_for_every_reason(
    site: Server, dns: list[str], full_listener: int, tmp_path: Path, call: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    limits = MediaSettings(
        allowed_hosts=f"127.0.0.1:{closed},127.0.0.1:{full_listener},127.0.0.1:{site.server_port}",
        fetch_timeout_seconds=0.5,
    )
    told = set()
    for url, look_up in (
        ("http://10.0.0.5/photo", resolve_host),  # refused
        ("http://intranet.example/photo", resolve_host),
        ("http://public-then-private.example/photo", resolve_host),
        ("http://93.184.216.34:6379/photo", resolve_host),  # a port
        ("http://nowhere.example/photo", resolve_host),  # unknown
        (f"http://{'a' * 70}.example/photo", resolve_host),
        ("http://slow.example/photo", _hang),
        (f"http://127.0.0.1:{closed}/photo", resolve_host),  # nobody there
        (f"http://127.0.0.1:{full_listener}/photo", resolve_host),  # nobody answers
        (f"https://127.0.0.1:{site.server_port}/photo", resolve_host),  # speaks no TLS
    ):
        with pytest.raises(JobError) as caught:
            _fetch(call, url, tmp_path, limits, look_up)
        error = caught.value
        told.add((error.code, error.retryable, error.message.partition(": ")[2]))

    ((code, retryable, text),) = told
    assert (code, retryable) == (ErrorCode.FETCH_FAILED, True)
    assert text.startswith("no connection could be made; ")


def _fetch(
    call: str,
    url: str,
    folder: Path,
    limits: MediaSettings,
    look_up: Callable[[str, int], Sequence[str]],
) -> None:
    if call == "download":
        open_http(Source(url), folder, limits, look_up=look_up)
    else:
        post_http(
            url,
            body=b"",
            headers={},
            limits=limits,
            deadline_seconds=limits.fetch_timeout_seconds,
            max_response_bytes=10,
            look_up=look_up,
        )


def test_the_operators_log_says_which_address_and_which_setting(
    dns: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "captioner")
    error = failure("http://intranet.example/secret/path?token=abc", tmp_path, MediaSettings())

    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("no connection to intranet.example port 80: ")
    assert "10.0.0.5 is not public and is not in CAPTIONER_MEDIA__ALLOWED_HOSTS" in line
    assert "secret" not in line
    assert "token" not in line
    assert "10.0.0.5" not in error.message
