"""Gathering pictures into batches: full, or whatever waits when the engine has nothing to do."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from captioner.domain import Caption, Lane
from captioner.engine.api import EngineClosedError
from captioner.engine.running import Result
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Work:
    """What is waiting for the model to make one caption of; not to be changed."""

    #: uint8 `[image_size, image_size, 3]`, or `[pictures, image_size, image_size, 3]`.
    pixels: NDArray[np.uint8] = field(repr=False)
    options: GenerationOptions
    lane: Lane
    future: Future[list[Caption]] = field(default_factory=Future, repr=False)
    #: Of the monotonic clock.
    arrived: float = field(default_factory=time.monotonic)

    @property
    def pictures(self) -> int:
        """How many of a batch's pictures it is."""
        return 1 if self.pixels.ndim == 3 else len(self.pixels)

    def settle(self, result: Result) -> None:
        """Tell who waits for it."""
        if isinstance(result, list):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)

    def start(self) -> bool:
        """False when nobody wants it any more; from now on it cannot be canceled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()


class Batcher:
    """A queue that is emptied a batch at a time, by one reader that is told when to look.

    While the engine is busy pictures gather; when it has nothing to do it gets all that wait, at
    most `max_batch`. So batches are small when there is little to do, and latency is low, and full
    when there is much. A picture that comes to an idle engine waits `linger_seconds` for company.

    Pictures that are captioned together are never parted. Where a batch has no room for all of
    them, they come first in the next one, whatever else is in a hurry: a few interactive pictures
    in every batch would else keep them waiting for ever.
    """

    def __init__(
        self, max_batch: int, notify: Callable[[], None], linger_seconds: float = 0.0
    ) -> None:
        """`max_batch` is the most pictures of one batch, at least 1.

        `notify` is called, under the lock, when the first work waits, when a batch is full and
        at `close`; between these a reader has nothing to do.
        """
        self._max_batch = max_batch
        self._notify = notify
        self._linger_seconds = linger_seconds
        #: At most one, for which there was no room.
        self._passed_over: deque[Work] = deque()
        self._interactive: deque[Work] = deque()
        # All else in one line: what is here is in hand already, and none of it may starve.
        self._others: deque[Work] = deque()
        self._pictures = 0  # in all three
        self._lock = threading.Lock()
        self._closed: str | None = None

    def put(self, work: Work) -> None:
        """Add a work, of at most `max_batch` pictures.

        Raises:
            EngineClosedError: `close` was called.
        """
        with self._lock:
            if self._closed is not None:
                raise EngineClosedError(self._closed)
            before = self._pictures
            self._queue(work).append(work)
            self._pictures += work.pictures
            if not before or before < self._max_batch <= self._pictures:
                self._notify()

    def put_back(self, batch: Sequence[Work]) -> None:
        """Return a batch that was taken but not begun to where it was; called by the reader."""
        with self._lock:
            for work in reversed(batch):
                self._queue(work).appendleft(work)
                self._pictures += work.pictures

    def take(self, *, idle: bool) -> list[Work]:
        """The next batch if it is due: interactive works first, else in order of arrival.

        Canceled ones are left out.

        Args:
            idle: the engine has nothing to do, so that a batch need not be full.
        """
        with self._lock:
            if self._pictures >= self._max_batch or (idle and self._due_seconds() == 0):
                return self._gather()
            return []

    def due_seconds(self) -> float | None:
        """Time until an idle engine should take what waits; None when nothing waits."""
        with self._lock:
            return self._due_seconds()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed is not None

    @property
    def drained(self) -> bool:
        """True when it is closed and nothing waits."""
        with self._lock:
            return self.closed and not self._pictures

    def close(self, reason: str = "the engine is closed") -> None:
        """Take no more, and tell everybody who tries why; what waits is still handed out."""
        with self._lock:
            if self._closed is None:
                self._closed = reason
                self._notify()

    def _queue(self, work: Work) -> deque[Work]:
        return self._interactive if work.lane is Lane.INTERACTIVE else self._others

    @property
    def _queues(self) -> tuple[deque[Work], ...]:
        """In the order in which they are emptied."""
        return self._passed_over, self._interactive, self._others

    def _due_seconds(self) -> float | None:
        oldest = min((queue[0].arrived for queue in self._queues if queue), default=None)
        if oldest is None:
            return None
        if self.closed:
            return 0  # nobody else will come
        return max(0, oldest + self._linger_seconds - time.monotonic())

    def _gather(self) -> list[Work]:
        batch: list[Work] = []
        room = self._max_batch
        passed_over: list[Work] = []
        for queue in self._queues:
            while queue and room:
                if queue[0].pictures > room:
                    if passed_over:
                        break  # one is enough: behind it the others keep their order
                    passed_over.append(queue.popleft())
                    continue
                work = queue.popleft()
                self._pictures -= work.pictures
                if work.start():
                    batch.append(work)
                    room -= work.pictures
        self._passed_over.extend(passed_over)
        return batch
