"""Messages for queued jobs that have none: never sent, due again, or lost by the broker.

The broker never says that it lost a message, so messages are counted: those that the queued jobs of
a lane are in, against the length of the lane's list. As many as are missing, the oldest, are
published again, and no job more than once in ten minutes; a long honest backlog misses none.

In a lane that never comes to rest the count finds none. Lists are first in, first out: there a job
is of a lost message when others are at work whose messages were sent long after its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from celery.worker import state as worker_state
from kombu.exceptions import KombuError

from captioner.celery import MAX_JOBS_PER_MESSAGE, CaptionerApp, publish
from captioner.domain import Lane
from captioner.errors import BrokerUnavailableError
from captioner.queues import QUEUES
from captioner.store import Store

#: A submitter publishes within moments of its commit; older than this, it did not.
UNDISPATCHED_AFTER = timedelta(seconds=10)
#: A job that was published is not published again before this.
REPUBLISH_AFTER = timedelta(minutes=10)
#: Most jobs published at a time, and in one call.
BATCH = 512
MOST_JOBS = 8 * BATCH
#: Most messages of a call that are sent again because others overtook them. One that was sent again
#: and was not lost is ahead of its stamp, and all others seem to be overtaken.
MOST_OVERTAKEN = 16


class Republisher:
    """Publishes what needs a message; remembers between calls how long the lists were."""

    def __init__(self, app: CaptionerApp, store: Store) -> None:
        """`app` reaches the broker, `store` knows the jobs."""
        self._app = app
        self._store = store
        self._seen: tuple[datetime, Mapping[Lane, int]] | None = None

    def publish_undispatched(self, now: datetime) -> int:
        """Publish queued jobs that have no message and need one now, oldest first; how many.

        Raises:
            BrokerUnavailableError: the broker is away; what it has taken is stamped.
        """
        self._store.release_due(MOST_JOBS, now=now)
        published = 0
        while published < MOST_JOBS:
            found = self._store.undispatched(now - UNDISPATCHED_AFTER, BATCH)
            for lane in QUEUES:
                self._publish(lane, [job_id for job_id, its in found if its is lane], now)
            published += len(found)
            if len(found) < BATCH:
                break
        return published

    def publish_lost(self, now: datetime) -> int:
        """Publish again as many jobs as messages are missing, the oldest; how many jobs.

        The lists are as long as they were at the last call. What a worker had taken then it has
        claimed since, and what was sent since then is left out, so that no message is missed that
        is only under way. What was claimed since makes up for lost ones: with an empty list those
        are found at once, and with one that is long and moves when others have overtaken them.

        Raises:
            BrokerUnavailableError: the broker is away; what it has taken is stamped.
        """
        seen, self._seen = self._seen, (now, queue_lengths(self._app))
        if seen is None:
            return 0
        then, lengths = seen
        published = 0
        for lane, length in lengths.items():
            missing, sent_before = self._store.count_dispatches(lane, then) - length, now
            if missing <= 0:
                newest = self._store.newest_at_work(lane)
                if newest is None:
                    continue
                missing, sent_before = MOST_OVERTAKEN, min(now, newest)
            oldest = self._store.oldest_dispatches(lane, sent_before - REPUBLISH_AFTER, MOST_JOBS)
            lost = list(itertools.chain(*itertools.islice(oldest.values(), missing)))
            self._publish(lane, lost, now)
            published += len(lost)
        return published

    def _publish(self, lane: Lane, job_ids: Sequence[UUID], now: datetime) -> None:
        # A worker takes all jobs of a message at once: a long video must not hold others up.
        size = 1 if lane is Lane.VIDEO else MAX_JOBS_PER_MESSAGE
        sent: list[Sequence[UUID]] = []
        try:
            for first in range(0, len(job_ids), size):
                message = job_ids[first : first + size]
                publish(self._app, message, lane)
                sent.append(message)
        finally:
            self._store.mark_dispatched(sent, now=now)


def queue_lengths(app: CaptionerApp) -> Mapping[Lane, int]:
    """How many messages wait for each lane.

    Those that this worker has taken but not begun count for every lane: the embedded broker hands
    out as many as there are threads. What other workers have taken from that one is not known.

    Raises:
        BrokerUnavailableError: the broker cannot be reached.
    """
    taken = max(0, len(worker_state.reserved_requests) - len(worker_state.active_requests))
    with app.connection_or_acquire() as connection:
        try:
            connection.ensure_connection(max_retries=1)
            channel = connection.default_channel
            return {
                # Declaring a queue that is there changes nothing and tells its length.
                lane: taken + channel.queue_declare(queue=queue).message_count
                for lane, queue in QUEUES.items()
            }
        except (*connection.connection_errors, KombuError, OSError) as error:
            raise BrokerUnavailableError.because_of(error) from error
