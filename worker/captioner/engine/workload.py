"""All works in hand of an engine whose model may die: which go next, and which was to blame."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence

from captioner.engine.api import EngineClosedError
from captioner.engine.batcher import Batcher, Work
from captioner.engine.running import Result
from captioner.engine.slots import BUFFERS
from captioner.errors import CrashError, ErrorCode

logger = logging.getLogger(__name__)


class _Flight:
    """A batch that was sent, and what is still missing of it, by its place there."""

    def __init__(self, works: Sequence[Work], *, suspect: bool) -> None:
        self.size = len(works)
        self.pictures = sum(work.pictures for work in works)
        self.missing = dict(enumerate(works))
        self.suspect = suspect
        self.begun = False


class Workload:
    """Works that wait, that are with the model, and that must be run alone.

    At most two batches are with the model: the one it runs and the next, which goes early only when
    it is full. When the model breaks, the works it was running are run again one by one, and those
    that only waited go on as before. So a work is blamed only when it was alone.
    """

    def __init__(self, batcher: Batcher) -> None:
        """`batcher` holds what waits."""
        self._batcher = batcher
        self._in_flight: deque[_Flight] = deque()
        # Of a batch that broke the model.
        self._suspects: deque[Work] = deque()

    @property
    def idle(self) -> bool:
        """True when nothing is with the model."""
        return not self._in_flight

    @property
    def done(self) -> bool:
        """True when nothing is left and nothing will come."""
        return self._batcher.drained and not self._in_flight and not self._suspects

    def next_batch(self) -> list[Work]:
        """What the model should get now, counted as sent; empty when there is nothing for it."""
        if len(self._in_flight) == BUFFERS:
            return []
        suspect = bool(self._suspects)
        if not suspect:
            works = self._batcher.take(idle=self.idle)
        else:
            works = [self._suspects.popleft()] if self.idle else []
        if works:
            self._in_flight.append(_Flight(works, suspect=suspect))
        return works

    def begin(self) -> None:
        """The model has begun the oldest batch it has."""
        self._in_flight[0].begun = True

    def settle(self, by_place: Mapping[int, Result]) -> None:
        """Results of the oldest batch with the model."""
        for place, result in by_place.items():
            self._in_flight[0].missing.pop(place).settle(result)

    def finish(self) -> int:
        """The oldest batch is done.

        Returns:
            How many pictures it had.
        """
        return self._in_flight.popleft().pictures

    def sort_after(self, how: str, code: ErrorCode) -> None:
        """The model has broken: settle the culprit, if there is one, and prepare the rest to go on.

        Args:
            how: what happened to it, to follow "the engine".
            code: `worker_lost` or `out_of_memory`.
        """
        logger.error("the engine %s", how)
        if self._in_flight and self._in_flight[0].begun:
            self._accuse(self._in_flight.popleft(), how, code)
        while self._in_flight:
            flight = self._in_flight.pop()
            works = list(flight.missing.values())
            if flight.suspect:
                self._suspects.extendleft(works)
            else:
                self._batcher.put_back(works)

    def _accuse(self, flight: _Flight, how: str, code: ErrorCode) -> None:
        works = list(flight.missing.values())
        if flight.size > 1:
            logger.warning("%d captions it was making are tried again one by one", len(works))
            self._suspects.extend(works)
            return
        for work in works:
            work.settle(CrashError(code, f"the engine {how} while it made this caption alone"))

    def give_up(self, reason: str) -> None:
        """Nobody will work on any of it, nor on what might come."""
        self._batcher.close(reason)
        works = [work for flight in self._in_flight for work in flight.missing.values()]
        works += self._suspects
        while batch := self._batcher.take(idle=True):
            works += batch
        self._in_flight.clear()
        self._suspects.clear()
        for work in works:
            work.future.set_exception(EngineClosedError(reason))
