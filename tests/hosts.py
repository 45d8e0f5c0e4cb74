"""A web server whose pictures arrive when the test says so: a job that asks for one is running."""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

PATIENCE_SECONDS = 60


class HeldPictures:
    """Serves one picture under every path, once `release` is set; a context manager."""

    def __init__(self, picture: bytes) -> None:
        self.release = threading.Event()
        #: Paths in the order they were asked for.
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        asked, release = self._asked, self.release

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.put(self.path)
                release.wait()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(picture)))
                    self.end_headers()
                    self.wfile.write(picture)
                except OSError:
                    pass  # who asked is gone

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_asked(self) -> str:
        """Wait until somebody asks for a picture; its path."""
        return self._asked.get(timeout=PATIENCE_SECONDS)

    def nobody_asks(self, seconds: float) -> bool:
        """Whether nobody asks for another picture in this time."""
        try:
            self._asked.get(timeout=seconds)
        except queue.Empty:
            return True
        return False
