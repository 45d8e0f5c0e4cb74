"""The part of a worker that brings events to plugins: two threads that decide, and their end."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from captioner.delivering.dispatcher import Dispatcher
from captioner.delivering.expander import Expander
from captioner.errors import CaptionerError
from captioner.plugins import Plugins
from captioner.settings import EventSettings, Settings
from captioner.stats import WorkerStats
from captioner.store import Store

#: How soon a database that is away is asked again.
RETRY_SECONDS = 1.0
#: An attempt that is running when the worker is told to stop may take this long to end.
STOP_SECONDS = 20.0

logger = logging.getLogger(__name__)


class DeliveryService:
    """Expands events and makes deliveries until it is stopped. Thread-safe."""

    def __init__(
        self,
        store: Store,
        plugins: Plugins,
        owner: str,
        settings: EventSettings,
        *,
        processes: Settings | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            store: the database.
            plugins: of this process.
            owner: this worker's id in `store`.
            settings: how events are delivered.
            processes: of the processes for deliveries whose worker was lost; None: these are made
                in this one, too.
        """
        self._store = store
        self._owner = owner
        self._poll_seconds = settings.poll_seconds
        self._expander = Expander(store, plugins, owner, settings)
        self._dispatcher = Dispatcher(store, plugins, owner, settings, processes)
        self._stopping = threading.Event()
        self._look = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True)
            for name, work in (("expander", self._expand), ("dispatcher", self._dispatcher.step))
        ]

    def start(self) -> None:
        """Begin with what is there."""
        for thread in self._threads:
            thread.start()

    def look_now(self) -> None:
        """Look for events and deliveries at once, and not at the next poll."""
        self._look.set()
        self._dispatcher.wake()

    def stop_taking(self) -> None:
        """From now on nothing is expanded or claimed; what runs goes on."""
        self._stopping.set()
        self._look.set()
        self._dispatcher.stop_taking()

    def stop(self) -> None:
        """Wait for what is being tried, give the rest back, and end; twice does nothing more.

        What a plugin does not return from within 20 s is given back, too, and made again by
        another worker.
        """
        self.stop_taking()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            logger.warning("the database does not answer: the leases of deliveries end by time")
            return
        try:
            self._dispatcher.finish(max(0.0, deadline - time.monotonic()))
            self._expander.release()
        except CaptionerError as error:
            logger.warning("the leases of deliveries end by time: %s", error)

    def hand_back(self) -> None:
        """Give back everything at once, also what is being tried: this process is about to end."""
        self.stop_taking()
        self._store.release_leases(self._owner, self._dispatcher.in_hand)

    def add_stats(self, stats: WorkerStats) -> WorkerStats:
        """What this worker has delivered, added to what it says of itself."""
        return dataclasses.replace(stats, deliveries=dict(self._dispatcher.totals))

    def _expand(self) -> None:
        expanded = self._expander.expand()
        if expanded:
            self._dispatcher.wake()
            return
        self._look.wait(self._poll_seconds)
        self._look.clear()

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                work()
                continue
            except CaptionerError as error:
                logger.warning("deliveries will be tried again: %s", error)
            except Exception:
                logger.exception("the %s failed and goes on", threading.current_thread().name)
            self._stopping.wait(RETRY_SECONDS)
