"""Attempts in processes of their own, for deliveries that a worker was lost with.

Nobody knows which of what a lost worker had in hand has ended it. Made here, the next one that does
ends a process that has nothing else in hand, and that is an attempt that failed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID

from captioner.children import Child
from captioner.deliveries import AttemptEnd, Delivery
from captioner.delivering.attempts import Attempts, Started, hook_of
from captioner.domain import Job
from captioner.errors import DeliveryError, describe
from captioner.logs import configure_logging
from captioner.plugin_errors import PluginErrorCount, PluginErrors
from captioner.plugins import load_plugins
from captioner.settings import Settings
from captioner.store import Store, engine_from_settings

#: At once. To start one takes seconds of a core, and most deliveries are quick.
MOST_PROCESSES = 2
#: It has loaded the plugins by then, and ends when it has had nothing to do for so long.
START_SECONDS = 60.0
IDLE_SECONDS = 10.0
#: How long a process that has closed its pipe may take to end.
END_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Apart:
    """Makes attempts in processes, one at a time in each. Thread-safe."""

    def __init__(self, settings: Settings, errors: PluginErrors, attempts: Attempts) -> None:
        """Start no process yet.

        Args:
            settings: of this process; theirs are the same.
            errors: what plugins do wrong there is counted here.
            attempts: what says how one goes on whose process died.
        """
        self._settings = settings
        self._errors = errors
        self._attempts = attempts
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._busy: list[Child] = []
        self._used_at = 0.0
        self._closed = False

    def make(self, delivery: Delivery, jobs: Mapping[UUID, Job]) -> AttemptEnd | None:
        """Make one attempt, as `Attempts.make` does; None: there is no process to make it in."""
        try:
            child = self._take()
        except (EOFError, OSError) as error:
            logger.warning("no process to make deliveries in: %s", describe(error))
            return None
        started = self._attempts.start()
        job = jobs.get(delivery.event.job_id)
        timeout_seconds = self._settings.events.attempt_timeout_seconds
        try:
            child.connection.send((delivery, {} if job is None else {job.id: job}))
            if not child.connection.poll(timeout_seconds):
                child.kill()
                return self._died(delivery, started, f"did not return within {timeout_seconds:g} s")
            end, counts = child.connection.recv()
        except (EOFError, OSError):
            how = _how(child.end(END_SECONDS))
            return self._died(delivery, started, f"ended its process: {how}")
        finally:
            self._put_back(child)
        self._errors.add(counts)
        ended: AttemptEnd = end
        return ended

    def rest(self) -> None:
        """End processes that nobody needs any more; to be called now and then."""
        with self._lock:
            if time.monotonic() - self._used_at < IDLE_SECONDS:
                return
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()

    def close(self) -> None:
        """End all processes, whatever they are at."""
        with self._lock:
            self._closed = True
            children, self._idle = [*self._idle, *self._busy], []
        for child in children:
            child.kill()

    def _take(self) -> Child:
        child = self._idle_one() or self._start()
        with self._lock:
            self._busy.append(child)
        return child

    def _idle_one(self) -> Child | None:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                # It has nothing to say then: what can be read is the end of the pipe.
                if not child.connection.poll(0):
                    return child
                child.kill()
        return None

    def _start(self) -> Child:
        child = Child("delivery", deliver_apart, self._settings)
        try:
            if not child.connection.poll(START_SECONDS):
                raise TimeoutError(f"it is not ready after {START_SECONDS:g} s")  # noqa: TRY301 (the child is to be ended, too)
            child.connection.recv()
        except BaseException:
            child.kill()
            raise
        return child

    def _put_back(self, child: Child) -> None:
        with self._lock:
            self._busy.remove(child)
            self._used_at = time.monotonic()
            if not self._closed and not child.connection.closed:
                self._idle.append(child)
                return
        child.kill()

    def _died(self, delivery: Delivery, started: Started, what: str) -> AttemptEnd | None:
        if self._closed:
            return None  # it was ended here
        self._errors.report(delivery.plugin, hook_of(delivery), what)
        error = DeliveryError(f"the plugin {what}")
        return self._attempts.failed(delivery, started, error, apart=True)


def _how(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"


def deliver_apart(connection: Connection[Any, Any], settings: Settings) -> None:
    """The life of such a process: take deliveries from the pipe and send how each ended."""
    configure_logging(settings.log)
    plugins = load_plugins(settings.plugins)
    # Its schema is what the worker has seen it to be.
    with Store(engine_from_settings(settings)) as store:
        attempts = Attempts(store, plugins, settings.events.delays_seconds)
        connection.send(None)
        while True:
            try:
                delivery, jobs = connection.recv()
            except (EOFError, OSError):
                return
            end = attempts.make(delivery, jobs)
            counts: list[PluginErrorCount] = plugins.errors.take()
            connection.send((end, counts))
