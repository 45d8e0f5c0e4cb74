"""Where in the order of what is due the next claim begins.

A dead receiver's deliveries stay first in that order, and to pass over them at every claim costs
the more the longer it is dead. So a claim goes on where the last one ended, and begins anew now and
then, or when a target that was passed over has room and got nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from captioner.deliveries import Delivery, Position, Target

#: How often it begins anew at least, unless that takes more than a twentieth of the time.
ANEW_SECONDS = 1.0
SHARE = 20
#: What becomes due later than that is not overlooked.
LATE = timedelta(seconds=2)


class Place:
    """The place of one dispatcher. For one thread."""

    def __init__(
        self, now: Callable[[], datetime], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """At the beginning. `now` is the database's; `clock` gives seconds since any moment."""
        self._now = now
        self._clock = clock
        self._after: Position | None = None
        #: When the last claim began, the last one from the beginning, and when the next may.
        self._began_at = 0.0
        self._anew_at = 0.0
        #: Targets that may have deliveries before this place.
        self._passed: set[Target] = set()
        #: One of these has room and got nothing.
        self.starving = False

    def begin(self) -> Position | None:
        """Where a claim is to begin; None: at the first of all that is due."""
        self._began_at = self._clock()
        if self.starving or self._began_at >= self._anew_at:
            self._after = None
            self._passed.clear()
        return self._after

    def end(
        self,
        claimed: Sequence[Delivery],
        room: Mapping[Target, int],
        default_room: int,
        failing: Collection[Target],
    ) -> None:
        """Remember where a claim ended.

        Args:
            claimed: what it gave, in order.
            room: how many each target could have taken.
            default_room: and how many each that is not among them.
            failing: targets that can wait until it begins anew.
        """
        now = self._clock()
        if self._after is None:
            self._anew_at = now + max(ANEW_SECONDS, SHARE * (now - self._began_at))
        given = Counter(delivery.key for delivery in claimed)
        self.starving = any(
            room.get(key, default_room) and not given[key]
            for key in self._passed.difference(failing)
        )
        full = {key for key, free in room.items() if not free}
        self._passed |= full | {
            key for key, count in given.items() if count >= room.get(key, default_room)
        }
        if claimed:
            self._after = claimed[-1].due_at, claimed[-1].id
        elif self._passed:
            # Nothing else is left, unless its commit is late.
            self._after = self._now() - LATE, 0
        else:
            self._after = None
