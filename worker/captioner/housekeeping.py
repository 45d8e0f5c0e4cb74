"""What every worker does beside its jobs: say that it lives, and publish what never was.

The sweeper (expired owners, due retries, lost messages, retention) has its place here.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from captioner.celery import MAX_JOBS_PER_MESSAGE, CaptionerApp, publish
from captioner.domain import Lane
from captioner.errors import BrokerUnavailableError, CaptionerError

if TYPE_CHECKING:
    from uuid import UUID

    from captioner.store import Store

#: A submitter publishes within moments of its commit; older than this, it did not.
UNDISPATCHED_AFTER = timedelta(seconds=10)
#: Most jobs published by one round.
ROUND_LIMIT = 1_000

logger = logging.getLogger(__name__)


class Housekeeping:
    """A thread that wakes every heartbeat until it is stopped."""

    def __init__(self, app: CaptionerApp, store: Store, owner: str) -> None:
        """`owner` is this worker's id in SQL."""
        self._app = app
        self._store = store
        self._owner = owner
        self._interval_seconds = app.settings.worker.heartbeat_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin; the first round runs at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round in progress."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._store.heartbeat(self._owner)
                published = publish_undispatched(self._app, self._store)
                if published:
                    logger.info("published %d jobs whose message was never sent", published)
            except CaptionerError as error:
                logger.warning("housekeeping will try again: %s", error)
            except Exception:
                logger.exception("housekeeping failed and will try again")
            if self._stopping.wait(self._interval_seconds):
                return


def publish_undispatched(app: CaptionerApp, store: Store, *, now: datetime | None = None) -> int:
    """Publish queued jobs that have no message, oldest first; returns how many.

    Two workers may publish the same job: the second message finds it claimed and ends.
    """
    created_before = (now or datetime.now(UTC)) - UNDISPATCHED_AFTER
    waiting: dict[Lane, list[UUID]] = {lane: [] for lane in Lane}
    for job_id, lane in store.undispatched(created_before, ROUND_LIMIT):
        waiting[lane].append(job_id)
    published = 0
    for lane, job_ids in waiting.items():
        for first in range(0, len(job_ids), MAX_JOBS_PER_MESSAGE):
            chunk = job_ids[first : first + MAX_JOBS_PER_MESSAGE]
            try:
                publish(app, chunk, lane)
            except BrokerUnavailableError as error:
                logger.warning("%s; %d jobs wait in SQL", error, len(job_ids) - first)
                return published
            store.mark_dispatched(chunk)
            published += len(chunk)
    return published
