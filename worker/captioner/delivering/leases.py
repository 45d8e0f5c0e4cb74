"""Which deliveries this worker may begin: what it has leased in SQL, and for how long it has.

Others take a delivery when its lease has ended. A worker that was stopped, suspended with its
machine, or cut off from the database learns of that from the clock before it begins anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import NamedTuple


class Moment(NamedTuple):
    """A time on both clocks: one stands still while a machine sleeps, the other can be set back."""

    wall: float
    monotonic: float


class Leases:
    """The leases of one worker, as it knows them. `holds` is for any thread, the rest for one."""

    def __init__(
        self,
        seconds: float,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is leased.

        Args:
            seconds: how long a lease lasts.
            wall: the time of day in seconds.
            monotonic: seconds since any moment.
        """
        self.seconds = seconds
        self._wall = wall
        self._monotonic = monotonic
        self._renewed = self.now()
        self._since: dict[int, Moment] = {}

    def now(self) -> Moment:
        """To be taken before SQL is asked for leases: they begin then, or later."""
        return Moment(self._wall(), self._monotonic())

    @property
    def to_be_renewed(self) -> bool:
        """Whether a third of the time is over since that was done."""
        return self._age(self._renewed) > self.seconds / 3

    def add(self, ids: Collection[int], since: Moment) -> None:
        """Deliveries that SQL has leased to this worker."""
        self._since |= dict.fromkeys(ids, since)

    def renewed(self, ids: Collection[int], since: Moment) -> None:
        """Those that SQL says are this worker's still; all others are lost to it, or done with."""
        self._since = dict.fromkeys(ids, since)
        self._renewed = since

    def holds(self, delivery_id: int) -> bool:
        """Whether nobody else can have a delivery: it may be begun."""
        since = self._since.get(delivery_id)
        return since is not None and self._age(since) < self.seconds

    def _age(self, since: Moment) -> float:
        return max(self._wall() - since.wall, self._monotonic() - since.monotonic)
