"""What every worker does beside its jobs: say that it lives, and sweep when it is elected."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from captioner.celery import CaptionerApp
from captioner.errors import CaptionerError
from captioner.store import Store
from captioner.sweeper import Sweeper

#: Connections to the database, one a thread: those of jobs may all be waiting for somebody's lock.
CONNECTIONS = 2
#: A sweep that hangs on the broker does not hold up the end of a worker for longer.
STOP_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Housekeeping:
    """Three threads that wake every heartbeat until they are stopped.

    A worker whose heartbeat is late loses its jobs, and whatever else is done may be held up: by a
    broker that hangs, or by somebody's lock on the table of jobs.
    """

    def __init__(
        self, app: CaptionerApp, store: Store, owner: str, look_after: Callable[[], None]
    ) -> None:
        """Start nothing yet.

        Args:
            app: what the sweeper publishes through.
            store: the database, for this alone: closed at the end.
            owner: this worker's id there.
            look_after: called as often; the service's view of its jobs.
        """
        self._store = store
        self._owner = owner
        self._sweeper = Sweeper(app, store, owner)
        self._interval_seconds = app.settings.worker.heartbeat_seconds
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True)
            for name, work in (
                ("heartbeat", self._beat),
                ("jobs in hand", look_after),
                ("sweeper", self._sweep),
            )
        ]

    def start(self) -> None:
        """Begin; the first rounds run at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the rounds in progress, and let another worker sweep."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        self._sweeper.release()
        self._store.close()

    def _repeat(self, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except CaptionerError as error:
                logger.warning("housekeeping will try again: %s", error)
            except Exception:
                logger.exception("housekeeping failed and will try again")
            if self._stopping.wait(self._interval_seconds):
                return

    def _beat(self) -> None:
        if self._store.heartbeat(self._owner):
            return
        name, _, _ = self._owner.rpartition("/")
        self._store.register_worker(name, worker_id=self._owner)
        logger.warning("this worker was silent for too long; jobs it had were given to others")

    def _sweep(self) -> None:
        # After a pause of the whole process, this thread may be the first to run again.
        self._beat()
        self._sweeper.sweep()
