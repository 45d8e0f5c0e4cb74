"""A receiver of webhooks that answers as a test says, and remembers what it got."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import standardwebhooks

from processes import wait_until


@dataclass(frozen=True)
class Answer:
    """What the receiver says."""

    status: int = 204
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    #: Names in lower case.
    headers: dict[str, str]
    body: bytes
    #: What was answered.
    status: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300

    def verified_by(self, secret: str) -> bool:
        """By the published library, not by ours."""
        try:
            standardwebhooks.Webhook(secret).verify(self.body, self.headers)
        except standardwebhooks.webhooks.WebhookVerificationError:
            return False
        return True


class Receiver:
    """A web server on this machine; a context manager.

    `answer` is asked with the path and how many requests came for it before, or `by_id` with the
    `webhook-id` and how often that came.
    """

    def __init__(
        self, answer: Callable[[str, int], Answer] = lambda *_: Answer(), *, by_id: bool = False
    ) -> None:
        self.received: list[Received] = []
        #: Requests that came, answered or not, by path or id.
        self.asked: Counter[str] = Counter()
        received, keys, lock = self.received, self.asked, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                key = headers["webhook-id"] if by_id else self.path
                with lock:
                    before = keys[key]
                    keys[key] += 1
                said = answer(key, before)
                with lock:
                    received.append(Received(self.path, headers, body, said.status))
                with contextlib.suppress(OSError):  # who asked may have given up
                    self.send_response(said.status)
                    for header in said.headers:
                        self.send_header(*header)
                    self.send_header("Content-Length", str(len(said.body)))
                    self.end_headers()
                    self.wfile.write(said.body)

            def do_GET(self) -> None:
                raise AssertionError("a redirect was followed")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def at(self, path: str) -> list[Received]:
        """The requests for a path, in their order."""
        return [one for one in self.received if one.path == path]

    def wait_for(self, count: int, path: str | None = None, seconds: float = 60) -> None:
        """Wait until so many requests have come."""
        wait_until(lambda: len(self.received if path is None else self.at(path)) >= count, seconds)


def in_turn(*answers: Answer) -> Callable[[str, int], Answer]:
    """These answers for each path or id, and then 204."""
    return lambda _, before: answers[before] if before < len(answers) else Answer()
