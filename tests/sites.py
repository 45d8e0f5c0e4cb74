"""A web server for downloads and posts, honest and otherwise: every path behaves in its own way."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from pictures import jpeg

PHOTO = jpeg()
#: More than any allowance there is.
MUCH = PHOTO * (4 * 2**20 // len(PHOTO))


class Site(http.server.BaseHTTPRequestHandler):
    """Every path behaves in its own way."""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/").replace("-", "_").split("/")[0]
        with contextlib.suppress(OSError):  # clients that cut us off are the point
            getattr(self, f"send_{name}")()

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        self.server.requests.append(self.headers)  # type: ignore[attr-defined]

    def answer(self, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, location: str, status: int = 302) -> None:
        self.answer(status, ("Location", location), ("Content-Length", "0"))

    def send_photo(self) -> None:
        self.answer(200, ("Content-Length", str(len(PHOTO))), body=PHOTO)

    def send_no_length(self) -> None:
        self.answer(200, body=PHOTO)

    def send_chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        chunks = [PHOTO[at : at + 100] for at in range(0, len(PHOTO), 100)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        self.answer(200, ("Transfer-Encoding", "chunked"), body=body)

    def send_chunks(self) -> None:
        """`MUCH` in chunks of so many bytes; of 0, one of a byte after the other without end."""
        self.protocol_version = "HTTP/1.1"
        self.answer(200, ("Transfer-Encoding", "chunked"))
        size = int(self.path.split("/")[2])
        while not size:
            self.wfile.write(b"1\r\nx\r\n" * 1000)
        parts = [MUCH[at : at + size] for at in range(0, len(MUCH), size)]
        self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts))
        self.wfile.write(b"0\r\n\r\n")

    def send_bytewise(self) -> None:
        self.protocol_version = "HTTP/1.1"
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in PHOTO)
        self.answer(200, ("Transfer-Encoding", "chunked"), body=body + b"0\r\n\r\n")

    def send_claims_too_much(self) -> None:
        self.answer(200, ("Content-Length", str(10**12)), body=b"x")

    def send_claims_too_little(self) -> None:
        self.answer(200, ("Content-Length", "50"), body=PHOTO)

    def send_claims_twice(self) -> None:
        self.answer(200, ("Content-Length", "50"), ("Content-Length", "60"), body=PHOTO)

    def send_claims_less_than_nothing(self) -> None:
        self.answer(200, ("Content-Length", "-1"), body=PHOTO)

    def send_claims_no_number(self) -> None:
        self.answer(200, ("Content-Length", "1e3"), body=PHOTO)

    def send_claims_a_long_number(self) -> None:
        self.answer(200, ("Content-Length", "9" * 5000), body=PHOTO)

    def send_endless_chunk(self) -> None:
        self.answer(200, ("Transfer-Encoding", "chunked"), body=b"f" * 15 + b"\r\n")
        while True:
            self.wfile.write(bytes(10_000))

    def send_endless_header(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            self.wfile.write(b"x" * 10_000)

    def send_endless_hints(self) -> None:
        while not self.server.closing.is_set():  # type: ignore[attr-defined]
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)

    def send_drip_hints(self) -> None:
        while not self.server.closing.wait(0.05):  # type: ignore[attr-defined]
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")

    def send_many_hints(self) -> None:
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        self.send_photo()

    def send_switch(self) -> None:
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        self.send_endless()

    def send_framed(self) -> None:
        """Chunks of one byte, in frames of sixteen thousand."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self.wfile.write(b"1;" + b"x" * 16_000 + b"\r\nx\r\n")

    def send_endless(self) -> None:
        self.answer(200)
        while True:
            self.wfile.write(bytes(10_000))

    def send_cut_short(self) -> None:
        self.answer(200, ("Content-Length", str(len(PHOTO))), body=PHOTO[:50])

    def send_reset(self) -> None:
        self.answer(200, ("Content-Length", str(len(PHOTO))), body=PHOTO[:50])
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def send_garbage(self) -> None:
        self.wfile.write(b"\x00\x01 this is not HTTP, and the password is hunter2\r\n\r\n")

    def send_drip_body(self) -> None:
        self.answer(200)
        self.drip(b"x" * 1000)

    def send_drip_headers(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)

    def send_silence(self) -> None:
        self.server.closing.wait(20)  # type: ignore[attr-defined]

    def send_gzip(self) -> None:
        self.answer(200, ("Content-Encoding", "gzip"), body=gzip.compress(PHOTO))

    def send_gzip_twice(self) -> None:
        encodings = (("Content-Encoding", "gzip"), ("Content-Encoding", "identity"))
        self.answer(200, *encodings, body=gzip.compress(PHOTO))

    def send_gzip_bomb(self) -> None:
        bomb = gzip.compress(bytes(50 * 2**20))  # a thousandth of that
        self.answer(
            200, ("Content-Encoding", "gzip"), ("Content-Length", str(len(bomb))), body=bomb
        )

    def send_gzip_transfer(self) -> None:
        body = gzip.compress(PHOTO)
        self.answer(
            200,
            ("Transfer-Encoding", "gzip, chunked"),
            body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        )

    def send_identity(self) -> None:
        self.answer(200, ("Content-Encoding", "Identity"), body=PHOTO)

    def send_empty(self) -> None:
        self.answer(200, ("Content-Length", "0"))

    def send_status(self) -> None:
        self.answer(
            int(self.path.partition("?")[0].split("/")[2]), body=b"internal: password is hunter2"
        )

    def send_hops(self) -> None:
        left = int(self.path.split("/")[2])
        self.redirect(f"/hops/{left - 1}" if left > 1 else "../photo", 307 if left % 2 else 301)

    def send_loop(self) -> None:
        self.redirect("/loop")

    def send_slow_loop(self) -> None:
        time.sleep(0.2)
        self.redirect("/slow-loop")

    def send_to(self) -> None:
        self.redirect(unquote(self.path.partition("?")[2]))

    def send_nowhere(self) -> None:
        self.answer(302)

    def drip(self, data: bytes) -> None:
        for byte in data:
            if self.server.closing.wait(0.05):  # type: ignore[attr-defined]
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.requests: list[object] = []
        self.bodies: list[bytes] = []
        self.closing = threading.Event()
        self.connections = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_site() -> Iterator[Server]:
    """A server of this machine, until the block ends."""
    with Server() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield site
        finally:
            site.closing.set()
            site.shutdown()
            thread.join()
