"""How many videos a worker has in hand: a quarter of its slots, so that pictures find room.

A video may take hours. Where many wait, every slot would soon have one, and a picture would wait
for hours too. So a worker that has its share of them takes no other from the queue, where it stays
for whoever has room.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

from celery.worker import state as worker_state
from kombu.utils.scheduling import priority_cycle

#: One slot of so many is for a video, and one in any case.
SLOTS_PER_VIDEO = 4


class VideoQuota:
    """Counts the messages of videos that this process has taken and not yet done with.

    Taken and asked by the one thread that takes messages.
    """

    def __init__(self, videos: str, pictures: Collection[str]) -> None:
        """The names of the queue of videos, and of those that it is to leave room for."""
        self.videos = videos
        self.pictures = frozenset(pictures)
        self._taken: weakref.WeakSet[Any] = weakref.WeakSet()
        #: How many messages may be in hand; None: this process is no worker.
        self.slots: Callable[[], int] | None = None

    def take(self, request: Any) -> None:
        """Count one of Celery's requests, if it is of a video."""
        if request.delivery_info.get("routing_key") == self.videos:
            self._taken.add(request)

    def open_queues(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that a message may be taken from now, in their order.

        A worker that takes no pictures may have as many videos as it likes.
        """
        if self._full and not self.pictures.isdisjoint(queues):
            return [queue for queue in queues if queue != self.videos]
        return list(queues)

    @property
    def _full(self) -> bool:
        if not self._taken or self.slots is None:
            return False
        in_hand = sum(one in worker_state.reserved_requests for one in self._taken)
        return in_hand >= max(1, self.slots() // SLOTS_PER_VIDEO)


#: Of this process, as Celery's own state of a worker is.
quota = VideoQuota("videos", ["captions", "captions.bulk"])


class OpenQueues(priority_cycle):
    """The order in which kombu's Redis transport asks queues: as they are given, the open ones."""

    def consume(self, n: int) -> list[str]:
        """At most `n` of them."""
        return quota.open_queues(self.items[:n])
