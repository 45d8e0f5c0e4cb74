"""What a worker says of itself: to its observers, and to SQL what its plugins did wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from captioner.errors import CaptionerError
from captioner.observers import READY_SECONDS, STOP_SECONDS, Observers
from captioner.plugins import Plugins
from captioner.settings import Settings
from captioner.stats import WorkerStats
from captioner.store import Store

#: Waiting jobs are counted up to this, as a longer queue would cost the database too much.
MOST_JOBS_COUNTED = 10_000


class Reports:
    """The observers of one worker process, and what it counts."""

    def __init__(self, store: Store, plugins: Plugins) -> None:
        """Tell nobody anything yet."""
        self.observers = Observers(plugins)
        self._store = store
        self._plugins = plugins
        self._parts: list[Callable[[WorkerStats], WorkerStats]] = []

    def include(self, part: Callable[[WorkerStats], WorkerStats]) -> None:
        """Have `part` fill in what it knows of the stats, from now on."""
        self._parts.append(part)

    def begin(self, settings: Settings) -> None:
        """Tell the observers that the worker is ready; who is slow is waited for 5 s."""
        self.observers.tell_and_wait("worker_ready", READY_SECONDS, settings=settings)

    def send(self) -> None:
        """Tell how it goes; to be called at every heartbeat.

        Raises:
            StoreUnavailableError: the database cannot be reached; nothing is forgotten.
        """
        self.observers.report_hung()
        if self._plugins.implement("worker_stats"):
            self.observers.tell("worker_stats", stats=self._stats())
        self._write_errors()

    def end(self) -> None:
        """Tell the observers that the worker ends; who is slow is waited for 5 s. Never raises."""
        self.observers.stop(STOP_SECONDS)
        with contextlib.suppress(CaptionerError):  # what failed was logged
            self._write_errors()

    def _stats(self) -> WorkerStats:
        stats = WorkerStats(
            plugin_errors=self._plugins.errors.totals(),
            unfinished_jobs={
                state.value: count
                for state, count in self._store.count_unfinished(MOST_JOBS_COUNTED).items()
            },
        )
        for part in self._parts:
            stats = part(stats)
        return stats

    def _write_errors(self) -> None:
        counts = self._plugins.errors.take()
        try:
            self._store.count_plugin_errors(counts)
        except BaseException:
            self._plugins.errors.put_back(counts)
            raise
