"""What one worker does for all: put right what died, was lost, came due, or is over."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from captioner.broker.embedded import delete_delivered
from captioner.celery import CaptionerApp
from captioner.errors import CaptionerError, StoreUnavailableError
from captioner.republishing import Republisher
from captioner.store import Ended, Store

LEASE = "sweeper"
#: Most rows of one transaction, and most transactions of one step: what is left waits for the next
#: round, so that no step keeps the others waiting.
BATCH = 500
MOST_BATCHES = 20

logger = logging.getLogger(__name__)

Counts = Iterator[tuple[str, int]]


class Sweeper:
    """Sweeps while it holds the lease; of all workers one does, and another when that one ends."""

    def __init__(self, app: CaptionerApp, store: Store, owner: str) -> None:
        """`owner` is this worker's id in `store`."""
        self._store = store
        self._owner = owner
        self._settings = app.settings
        self._republisher = Republisher(app, store)
        self._lease = timedelta(seconds=app.settings.worker.lease_seconds)
        #: Until then silence is no sign of death.
        self._forgiving_until = datetime.min.replace(tzinfo=UTC)
        self._swept_at: datetime | None = None
        #: The last old job that was asked about. What must stay is not asked about again before all
        #: others were: with nobody to deliver events that is every job there is.
        self._looked_at: Ended | None = None

    def sweep(self, now: datetime | None = None) -> Counter[str]:
        """One round, if this worker is the one elected: each step, whatever became of the others.

        Returns:
            What was done, such as `{"jobs expired": 2}`; also logged, in one line.
        """
        counts: Counter[str] = Counter()
        self._excuse_absence(now or self._store.now())
        steps = (self._take_back, self._expire, self._publish, self._delete_old, self._forget)
        for step in steps:
            moment = now or self._store.now()
            try:
                # Renewed before every step, because a broker that hangs can hold one up.
                if not self._store.try_acquire(LEASE, self._owner, self._lease, now=moment):
                    break
            except StoreUnavailableError as error:
                # A database that was away has heard nobody; the living speak up first.
                self._forgiving_until = moment + self._lease
                logger.warning("sweeping will be tried again: %s", error)
                break
            try:
                for what, count in step(moment):
                    counts[what] += count
            except CaptionerError as error:
                logger.warning("sweeping goes on, a step of it later: %s", error)
            except Exception:
                logger.exception("a step of the sweeper failed and will be tried again")
        counts = +counts
        if counts:
            logger.info("swept: %s", ", ".join(f"{n} {what}" for what, n in counts.items()))
        return counts

    def _excuse_absence(self, moment: datetime) -> None:
        """Who was not there for long cannot tell who is: all were paused, or the clock was set."""
        last, self._swept_at = self._swept_at, moment
        if last and moment - last > self._lease:
            self._forgiving_until = moment + self._lease

    def release(self) -> None:
        """Let another worker sweep at once."""
        try:
            self._store.release(LEASE, self._owner)
        except CaptionerError as error:
            logger.warning("the sweeper's lease ends by itself: %s", error)

    def _take_back(self, now: datetime) -> Counts:
        if now < self._forgiving_until:
            return
        workers = requeued = failed = 0
        for _ in range(MOST_BATCHES):
            lost = self._store.expire_workers(
                self._lease, BATCH, max_losses=self._settings.retry.max_losses, now=now
            )
            workers, requeued = workers + lost.workers, requeued + lost.requeued
            failed += lost.failed
            if max(lost.requeued, lost.failed) < BATCH:
                break
        yield "workers expired", workers
        yield "jobs taken back", requeued
        yield "jobs given up", failed

    def _expire(self, now: datetime) -> Counts:
        yield "jobs expired", _batches(lambda: len(self._store.expire_overdue(BATCH, now=now)))

    def _publish(self, now: datetime) -> Counts:
        yield "jobs published", self._republisher.publish_undispatched(now)
        yield "jobs of lost messages published", self._republisher.publish_lost(now)

    def _delete_old(self, now: datetime) -> Counts:
        days = self._settings.retention.finished_days
        deleted = 0
        for _ in range(MOST_BATCHES if days else 0):
            before = now - timedelta(days=days)
            old = self._store.ended(before, BATCH, after=self._looked_at)
            deleted += self._store.delete_over([job.id for job in old])
            self._looked_at = old[-1] if len(old) == BATCH else None
            if self._looked_at is None:
                break
        yield "old jobs deleted", deleted

    def _forget(self, _: datetime) -> Counts:
        url = self._settings.broker_url
        yield "delivered messages deleted", _batches(lambda: delete_delivered(url, BATCH))


def _batches(step: Callable[[], int]) -> int:
    """Repeat a step that handles at most `BATCH` while there is more; how many it handled."""
    total = 0
    for _ in range(MOST_BATCHES):
        handled = step()
        total += handled
        if handled < BATCH:
            break
    return total
