"""What time it is for all who use a database, whatever the clocks of their machines say.

Leases, heartbeats, retries and deadlines are times that one machine writes and another compares
with its own: one whose clock is ahead would take the work of all others for abandoned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

from captioner.errors import StoreUnavailableError

#: A server is asked again after so long.
FRESH_SECONDS = 10.0


class Clock(Protocol):
    """Tells the time, in UTC. Thread-safe."""

    def now(self) -> datetime:
        """The time, without waiting for anything where it was told before."""

    def asked_now(self) -> datetime:
        """The time; this may take as long as what else is asked of the database."""


class HostClock:
    """This machine's, for SQLite: all its users are here."""

    def now(self) -> datetime:
        """What this machine's clock says."""
        return datetime.now(UTC)

    asked_now = now


class _Answer(NamedTuple):
    time: datetime
    #: When it was given, in seconds since any moment.
    at: float


class ServerClock:
    """The clock of a database's server, counted on between questions by one that nobody sets."""

    def __init__(
        self, ask: Callable[[], datetime], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Ask nothing yet.

        Args:
            ask: asks the server; it may raise `StoreUnavailableError`.
            clock: seconds since any moment.
        """
        self._ask = ask
        self._clock = clock
        self._answer: _Answer | None = None
        self._asking = threading.Lock()

    def now(self) -> datetime:
        """As of the last answer; this machine's clock counts where there never was one."""
        answer = self._answer
        return self._counted_on(answer) if answer else self.asked_now()

    def asked_now(self) -> datetime:
        """The server is asked where that was `FRESH_SECONDS` ago, by one thread at a time."""
        answer = self._answer
        fresh = answer is not None and self._clock() - answer.at < FRESH_SECONDS
        if not fresh and self._asking.acquire(blocking=answer is None):
            try:
                answer = self._answer = self._asked()
            except StoreUnavailableError:  # who uses it next says so
                pass
            finally:
                self._asking.release()
        return self._counted_on(answer) if answer else datetime.now(UTC)

    def _asked(self) -> _Answer:
        began = self._clock()
        said = self._ask().astimezone(UTC)
        return _Answer(said, (began + self._clock()) / 2)  # half-way between question and answer

    def _counted_on(self, answer: _Answer) -> datetime:
        return answer.time + timedelta(seconds=self._clock() - answer.at)
