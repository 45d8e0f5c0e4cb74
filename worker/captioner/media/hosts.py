"""How many downloads may run at once, so that a slow host holds up only its own pictures.

A job that waits occupies a thread, and threads are few. So it waits only where its turn is near;
otherwise it goes back to the queue, to return when the host has worked off those before it.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from captioner.domain import Lane
from captioner.errors import HostBusyError
from captioner.media.slots import Slots
from captioner.media.urls import host_of, parse_url
from captioner.source import Source

#: Longest time in seconds that a job waits in its thread.
PATIENCE_SECONDS = 1.0
#: A job that was given back returns no sooner and no later than this, in seconds.
SOONEST_SECONDS, LATEST_SECONDS = 1.0, 60.0


class HostSlots:
    """Bounds downloads by host and in all, and of both what a lane may have (`slots.SHARES`)."""

    def __init__(
        self, per_host: int, total: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with no download at all.

        Args:
            per_host: downloads from one host at once.
            total: downloads from all hosts together.
            clock: seconds since any moment.
        """
        self._per_host = per_host
        self._total = Slots(total)
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    def hold(self, source: Source, lane: Lane) -> contextlib.AbstractContextManager[None]:
        """Have a slot of the source's host inside the block; what is not downloaded needs none.

        A redirect counts for the host that the source names.

        Raises:
            HostBusyError: there is none, and there will be none soon.
        """
        name = _host_name(source)
        return contextlib.nullcontext() if name is None else self._slot(name, lane)

    @contextlib.contextmanager
    def _slot(self, name: str, lane: Lane) -> Iterator[None]:
        with self._lane(lane), self._host(name) as host, host.turn(lane):
            yield

    @contextlib.contextmanager
    def _lane(self, lane: Lane) -> Iterator[None]:
        if not self._total.acquire(lane, PATIENCE_SECONDS):
            raise HostBusyError(f"{lane} jobs have as many downloads as they may", SOONEST_SECONDS)
        try:
            yield
        finally:
            self._total.release(lane)

    @contextlib.contextmanager
    def _host(self, name: str) -> Iterator[_Host]:
        """What is known of a host; forgotten when nobody uses it, or it would grow for ever."""
        with self._lock:
            if name not in self._hosts:
                self._hosts[name] = _Host(name, self._per_host, self._clock)
            host = self._hosts[name]
            host.users += 1
        try:
            yield host
        finally:
            with self._lock:
                host.users -= 1
                if not host.users:
                    del self._hosts[name]


class _Host:
    """The downloads of one host, and how long they take."""

    def __init__(self, name: str, count: int, clock: Callable[[], float]) -> None:
        self.users = 0
        self._name = name
        self._count = count
        self._clock = clock
        self._slots = Slots(count)
        self._lock = threading.Lock()
        self._waiting = 0
        #: When each running download began, and the seconds that the last ones took.
        self._began: list[float] = []
        self._took: deque[float] = deque(maxlen=2 * count)
        #: When the last job that was given back will have had its turn.
        self._booked_until = 0.0

    @contextlib.contextmanager
    def turn(self, lane: Lane) -> Iterator[None]:
        """Have a slot inside the block; raises `HostBusyError`."""
        self._wait(lane)
        began = self._clock()
        with self._lock:
            self._began.append(began)
        try:
            yield
        finally:
            with self._lock:
                self._began.remove(began)
                self._took.append(self._clock() - began)
            self._slots.release(lane)

    def _wait(self, lane: Lane) -> None:
        if self._slots.acquire(lane, 0):
            return
        with self._lock:
            self._waiting += 1
            near = self._waiting * self._seconds_between_turns() <= PATIENCE_SECONDS
        try:
            if near and self._slots.acquire(lane, PATIENCE_SECONDS):
                return
        finally:
            with self._lock:
                self._waiting -= 1
        raise HostBusyError(
            f"{self._name} has as many downloads as it may "
            f"(CAPTIONER_MEDIA__CONNECTIONS_PER_HOST is {self._count})",
            self._book(),
        )

    def _seconds_between_turns(self) -> float:
        """From the middle one of its downloads, as one straggler does not make a host slow."""
        now = self._clock()
        known = [*self._took, *(now - began for began in self._began)]
        return statistics.median(known) / self._count if known else 0.0

    def _book(self) -> float:
        """Seconds until a job given back now should return: each has a turn of its own."""
        with self._lock:
            now = self._clock()
            self._booked_until = max(now, self._booked_until) + self._seconds_between_turns()
            seconds = self._booked_until - now
        return min(max(seconds, SOONEST_SECONDS), LATEST_SECONDS)


def _host_name(source: Source) -> str | None:
    """The host of a download; None also for a URL that is about to be refused."""
    if source.scheme not in ("http", "https"):
        return None
    try:
        return host_of(parse_url(source.uri))
    except ValueError:
        return None
