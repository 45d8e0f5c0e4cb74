"""Celery's threads pool, owning the parts of the worker: the resident model, if it has one.

The pool, not a bootstep, owns them: a bootstep that requires the pool is stopped before the pool's
threads have drained, and their jobs would wait for a model that is gone.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
from typing import Any

from celery.apps import worker as celery_worker
from celery.concurrency import thread
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop

from captioner.broker.open_queues import open_queues
from captioner.celery import CaptionerApp
from captioner.errors import CaptionerError, SettingsError
from captioner.housekeeping import CONNECTIONS, Housekeeping
from captioner.shutdown import ImmediateEnd, say
from captioner.store import open_store
from captioner.worker_parts import WorkerParts, open_parts

#: Containers made and not freed before Python looks for cycles among them; its default is 700.
COLLECT_AFTER = 20_000
#: How soon a worker whose engine cannot go on begins to end.
WATCH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class TaskPool(thread.TaskPool):
    """Threads that claim, fetch, wait and record, around one model; or none, for events alone.

    `on_start` returns only when the model is loaded, and Celery takes the first message only
    after that.
    """

    app: CaptionerApp
    #: Threads, and so messages in hand.
    limit: int
    _parts: WorkerParts | None = None
    _housekeeping: Housekeeping | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Celery's; nothing is started yet."""
        super().__init__(*arguments, **options)
        self._stopped = threading.Event()
        #: True when Celery was told that no more messages may be in hand, and waits.
        self._was_full = False

    def on_start(self) -> None:
        """Check the schema and load the model; exit with one line when either fails.

        With 2 because of a setting, else with 1.
        """
        ImmediateEnd(self._hand_back).install()
        celery_worker.safe_say = say
        try:
            heart = open_store(self.app.settings, pool_size=CONNECTIONS)
            # maybe_shutdown raises when SIGTERM came meanwhile, which ends the worker with 0.
            parts = open_parts(
                self.app.settings,
                list(self.app.amqp.queues.consume_from),
                poll=worker_state.maybe_shutdown,
            )
        except CaptionerError as error:
            logger.critical("%s", error)
            raise SystemExit(2 if isinstance(error, SettingsError) else 1) from None
        self._parts = parts
        self.app.service, self.app.deliveries = parts.captions, parts.deliveries
        self.app.store = parts.store
        self._housekeeping = Housekeeping(self.app, heart, parts.owner, parts.look_after)
        self._housekeeping.start()
        open_queues.slots = lambda: self.limit
        if parts.captions:
            open_queues.has_plenty = parts.captions.has_plenty
            threading.Thread(target=self._watch, name="watch-engine", daemon=True).start()
        _spare_the_collector()
        super().on_start()

    def on_close(self) -> None:
        """Shutdown has begun: what runs is finished, the rest of a message is handed back."""
        # From here on Celery gives all new sockets a timeout. Jobs that still run make sockets too,
        # and a plugin may count on one that waits.
        socket.setdefaulttimeout(None)
        if self._parts:
            self._parts.stop_taking()

    def on_stop(self) -> None:
        """Drain the threads, then free the model; Celery may call this twice."""
        # Celery drops what waits for a thread, and Redis has no copy of it. Run now, it is handed
        # back in SQL; lost, it would be published again in ten minutes.
        self.executor.shutdown()
        super().on_stop()
        self._stopped.set()
        if self._housekeeping:
            self._housekeeping.stop()
            self._housekeeping = None
        if self._parts:
            self._parts.close()
            self._parts = None

    def on_terminate(self) -> None:
        """Cold shutdown: the same, since threads cannot be killed."""
        self.on_stop()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing: threads cannot be killed, and revoking has canceled the job in the service."""

    @property
    def num_processes(self) -> int:
        """How many messages may be in hand: Celery asks before it takes another."""
        self._was_full = True  # before the look: a message may end at any time
        limit = 0 if open_queues.has_plenty() and not self._takes_interactive else self.limit
        self._was_full = len(worker_state.reserved_requests) >= limit
        return limit

    @property
    def _takes_interactive(self) -> bool:
        """True when there is a queue of which a worker takes messages however much it has."""
        return open_queues.interactive in self.app.amqp.queues.consume_from

    def on_apply(self, *arguments: Any, **options: Any) -> Any:
        """Run a message in a thread; afterwards Celery's loop may have to be told of it."""
        result = super().on_apply(*arguments, **options)
        result.f.add_done_callback(self._take_more)
        return result

    def _take_more(self, _: object) -> None:
        """Wake the loop that waits for room: by itself it looks only when a timer is due.

        Which was four times a second (2026-11): 8 threads did 44 jobs a second instead of 336.
        """
        hub = get_event_loop()
        if self._was_full and hub:
            self._was_full = False
            hub.call_soon(_nothing)

    def grow(self, n: int = 1) -> None:
        """Let `n` more messages be in hand."""
        self.limit += n
        self.executor._max_workers = self.limit  # noqa: SLF001  # it starts threads by need

    def shrink(self, n: int = 1) -> None:
        """Take fewer messages, at least one; threads that have nothing to do cost nothing."""
        self.limit = max(1, self.limit - n)

    def _watch(self) -> None:
        """Shut the worker down, with exit code 1, once it is beyond repair."""
        while not self._stopped.wait(WATCH_SECONDS):
            if self._parts and self._parts.captions and self._parts.captions.failed:
                logger.critical(
                    "this worker ends: the engine cannot go on, or plugins hang in too many threads"
                )
                worker_state.should_stop = 1
                return

    def _hand_back(self) -> None:
        if self._parts:
            self._parts.hand_back()
        if self._housekeeping:
            self._housekeeping.stop()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        if self._parts and self._parts.captions:
            info["model"] = self._parts.captions.model.id
        return info


def _nothing() -> None:
    """To be called by a loop that was woken."""


def _spare_the_collector() -> None:
    """Let Python's cycle collector pass over what stays until the end, and look less often.

    It took an eighth of a busy worker's time (perf, 2026-11): what jobs leave behind is freed by
    its reference counts, and modules and models never are.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
