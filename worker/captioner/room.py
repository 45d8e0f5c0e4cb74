"""How many jobs of large messages a worker works on at once."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterator


class Room:
    """Lets messages in, first come first served, while fewer jobs than its size are inside.

    Every thread of a worker may have a message of 64 jobs. All their pictures at once would fill
    the memory, and threads that compete for the interpreter are slow (measured: four take half as
    long again for the same work as one). Thread-safe.
    """

    def __init__(self, size: int) -> None:
        """`size` is in jobs; the last message let in may exceed it."""
        self._size = size
        self._inside = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, jobs: int) -> Iterator[None]:
        """Have room for a message's jobs inside the block, if need be after a wait."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._inside < self._size)
            self._waiting.popleft()
            self._inside += jobs
            self._changed.notify_all()  # there may be room for the next one, too
        try:
            yield
        finally:
            with self._changed:
                self._inside -= jobs
                self._changed.notify_all()

    def stop_waiting(self) -> None:
        """Let everybody in from now on."""
        with self._changed:
            self._size = sys.maxsize
            self._changed.notify_all()
