"""What Celery and kombu do to the whole process for a moment: new sockets get a timeout."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def new_sockets_time_out() -> Iterator[None]:
    """As while a lost connection is cleared away (`kombu.Connection.collect`), in all threads."""
    socket.setdefaulttimeout(5.0)
    try:
        yield
    finally:
        socket.setdefaulttimeout(None)
