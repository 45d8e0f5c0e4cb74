"""A counted resource that many threads share, by lane: interactive jobs come first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from captioner.domain import Lane

#: The part of all slots that a lane may hold at once, so that it leaves some to the others.
SHARES: Mapping[Lane, float] = MappingProxyType({Lane.BULK: 3 / 4, Lane.VIDEO: 1 / 4})

#: How often who waits for something looks around.
LOOK_SECONDS = 0.25


class Slots:
    """Like a semaphore, but who waits is served by lane, and in order of arrival within one."""

    def __init__(self, count: int, shares: Mapping[Lane, float] = SHARES) -> None:
        """Begin with all of them free.

        Args:
            count: slots in all, at least 1.
            shares: the part of them that a lane may hold, of at least one slot; a lane that is
                not named may hold all.
        """
        self._count = count
        self._limits = {lane: max(1, int(count * shares.get(lane, 1))) for lane in Lane}
        self._held = dict.fromkeys(Lane, 0)
        self._taken = 0
        self._waiting: dict[Lane, deque[threading.Event]] = {lane: deque() for lane in Lane}
        self._lock = threading.Lock()

    def acquire(
        self,
        lane: Lane,
        timeout_seconds: float | None = None,
        look: Callable[[], None] | None = None,
    ) -> bool:
        """Take a slot, waiting for it if need be; False when the time was up first.

        Without a limit of time `look` is called now and then; what it raises ends the wait.
        """
        with self._lock:
            if self._take(lane):
                return True
            if timeout_seconds == 0:
                return False
            turn = threading.Event()
            self._waiting[lane].append(turn)
        try:
            while not turn.wait(LOOK_SECONDS if look else timeout_seconds):
                if look is None:
                    return self._late(lane, turn)
                look()
        except BaseException:
            if self._late(lane, turn):
                self.release(lane)
            raise
        return True

    def release(self, lane: Lane) -> None:
        """Give back a slot of this lane; it is handed to the first who waits and may have it."""
        with self._lock:
            self._held[lane] -= 1
            self._taken -= 1
            for waiting_lane, turns in self._waiting.items():  # in the order of `Lane`
                if turns and self._take(waiting_lane):
                    turns.popleft().set()
                    return

    def _late(self, lane: Lane, turn: threading.Event) -> bool:
        """Wait no longer; True when the slot was handed over just now."""
        with self._lock:
            if not turn.is_set():
                self._waiting[lane].remove(turn)
            return turn.is_set()

    def _take(self, lane: Lane) -> bool:
        if self._taken == self._count or self._held[lane] == self._limits[lane]:
            return False
        self._held[lane] += 1
        self._taken += 1
        return True
