"""What Celery, kombu and plugins may do to the whole process: new sockets get a timeout."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def new_sockets_time_out() -> Iterator[None]:
    """As `kombu.Connection.collect` does for a moment unless the transport prevents it."""
    socket.setdefaulttimeout(5.0)
    try:
        yield
    finally:
        socket.setdefaulttimeout(None)
