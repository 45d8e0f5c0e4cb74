"""From which queues a worker takes messages now, so that some work leaves room for other.

A video may take hours. Where many wait, every slot would soon have one, and a picture would wait
for hours too. So a worker that has its share of them, a quarter of its slots, takes no other from
the queue, where it stays for whoever has room.

A bulk message may have 64 pictures. A worker that has as many claimed as it can use takes no more
of them, while an editor's picture is taken at once: the engine captions it before all others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

from celery.worker import state as worker_state
from kombu.utils.scheduling import priority_cycle

from captioner.domain import Lane
from captioner.queues import QUEUES

#: One slot of so many is for a video, and one in any case.
SLOTS_PER_VIDEO = 4


class OpenQueues:
    """Knows what this process has taken, and closes queues by it.

    Used by the one thread that takes messages.
    """

    def __init__(self, interactive: str, bulk: str, videos: str) -> None:
        """The names of the queues of the three lanes."""
        self.interactive = interactive
        self.bulk = bulk
        self.videos = videos
        self._videos_taken: weakref.WeakSet[Any] = weakref.WeakSet()
        #: How many messages may be in hand; None: this process is no worker.
        self.slots: Callable[[], int] | None = None
        #: Whether so many jobs are claimed that it should take no more.
        self.has_plenty: Callable[[], bool] = lambda: False

    def take(self, request: Any) -> None:
        """Count one of Celery's requests, if it is of a video."""
        if request.delivery_info.get("routing_key") == self.videos:
            self._videos_taken.add(request)

    def among(self, queues: Collection[str]) -> list[str]:
        """Those of these queues that a message may be taken from now, in their order.

        A worker that takes no pictures may have as many videos as it likes.
        """
        closed = set()
        if self._has_its_videos and not {self.interactive, self.bulk}.isdisjoint(queues):
            closed.add(self.videos)
        if self.bulk_is_closed(queues):
            closed.add(self.bulk)
        return [queue for queue in queues if queue not in closed]

    def bulk_is_closed(self, queues: Collection[str]) -> bool:
        """True while editors' pictures are to be taken from one of these queues, and no others."""
        return self.interactive in queues and self.has_plenty()

    @property
    def _has_its_videos(self) -> bool:
        if not self._videos_taken or self.slots is None:
            return False
        in_hand = sum(one in worker_state.reserved_requests for one in self._videos_taken)
        return in_hand >= max(1, self.slots() // SLOTS_PER_VIDEO)


#: Of this process, as Celery's own state of a worker is.
open_queues = OpenQueues(
    QUEUES[Lane.INTERACTIVE], bulk=QUEUES[Lane.BULK], videos=QUEUES[Lane.VIDEO]
)


class QueueOrder(priority_cycle):
    """The order in which kombu's Redis transport asks queues: as they are given, the open ones."""

    def consume(self, n: int) -> Sequence[str]:
        """At most `n` of them."""
        return open_queues.among(self.items[:n])
