"""Gathering pictures into batches: full, or whatever waits when the engine becomes free."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from captioner.domain import Caption, Lane
from captioner.engine.api import EngineClosedError
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One picture waiting for the model."""

    #: uint8 `[image_size, image_size, 3]`.
    pixels: NDArray[np.uint8] = field(repr=False)
    options: GenerationOptions
    lane: Lane
    future: Future[list[Caption]] = field(default_factory=Future, repr=False)


class Batcher:
    """A queue whose reader takes a batch at a time and never polls.

    While the engine is busy pictures gather; when it comes back for more it takes all that wait,
    at most `max_batch`. So batches are small when there is little to do, and latency is low, and
    full when there is much, without a timer.
    """

    def __init__(self, max_batch: int) -> None:
        """`max_batch` is the most pictures of one batch, at least 1."""
        self._max_batch = max_batch
        self._lanes: dict[Lane, deque[Work]] = {lane: deque() for lane in Lane}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, work: Work) -> None:
        """Add a picture.

        Raises:
            EngineClosedError: `close` was called.
        """
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            self._lanes[work.lane].append(work)
            self._changed.notify()

    def take(self) -> list[Work]:
        """Wait for work; interactive pictures first, each lane in order of arrival.

        Canceled futures are left out. An empty list means closed and drained.
        """
        with self._changed:
            while True:
                batch = self._gather()
                if batch or (self._closed and not any(self._lanes.values())):
                    return batch
                self._changed.wait()

    def _gather(self) -> list[Work]:
        batch: list[Work] = []
        for lane in (Lane.INTERACTIVE, Lane.BULK):
            waiting = self._lanes[lane]
            while waiting and len(batch) < self._max_batch:
                work = waiting.popleft()
                if work.future.set_running_or_notify_cancel():
                    batch.append(work)
        return batch

    def close(self) -> None:
        """Take no more; what waits is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
