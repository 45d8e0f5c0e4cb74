"""How many jobs of large messages a worker works on at once."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator


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
        self._lock = threading.Lock()
        # Each waits on an event of its own: one that may enter wakes no other.
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    @contextlib.contextmanager
    def taken(self, jobs: int) -> Iterator[Callable[[int], None]]:
        """Have room for a message's jobs inside the block, if need be after a wait.

        Yields:
            To be called with how many of them need no room any more, before the block ends.
        """
        entered = threading.Event()
        with self._lock:
            self._waiting.append((jobs, entered))
            self._let_in()
        entered.wait()
        inside = jobs

        def leave(count: int) -> None:
            nonlocal inside
            inside -= count
            with self._lock:
                self._inside -= count
                self._let_in()

        try:
            yield leave
        finally:
            leave(inside)

    def stop_waiting(self) -> None:
        """Let everybody in from now on."""
        with self._lock:
            self._size = sys.maxsize
            self._let_in()

    def _let_in(self) -> None:
        """Those at the head of the line, while there is room; the lock must be held."""
        while self._waiting and self._inside < self._size:
            jobs, entered = self._waiting.popleft()
            self._inside += jobs
            entered.set()
