"""Celery's threads pool, owning the resident model.

The pool, not a bootstep, owns it: a bootstep that requires the pool is stopped before the pool's
threads have drained, and their jobs would wait for a model that is gone.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.concurrency import thread
from celery.worker import state as worker_state

from captioner.celery import CaptionerApp
from captioner.errors import CaptionerError
from captioner.housekeeping import Housekeeping
from captioner.service import CaptionService, open_service

logger = logging.getLogger(__name__)


class TaskPool(thread.TaskPool):
    """Threads that claim, fetch, wait and record, around one model.

    `on_start` returns only when the model is loaded, and Celery takes the first message only
    after that.
    """

    app: CaptionerApp
    _service: CaptionService | None = None
    _housekeeping: Housekeeping | None = None

    def on_start(self) -> None:
        """Check the schema and load the model; exit with 1 and one line when either fails."""
        settings = self.app.settings
        try:
            # maybe_shutdown raises when SIGTERM came meanwhile, which ends the worker with 0.
            self._service = open_service(settings, poll=worker_state.maybe_shutdown)
        except CaptionerError as error:
            logger.critical("%s", error)
            raise SystemExit(1) from None
        self.app.service = self._service
        self._housekeeping = Housekeeping(self.app, self._service.store, self._service.owner)
        self._housekeeping.start()
        super().on_start()

    def on_stop(self) -> None:
        """Drain the threads, then free the model; Celery may call this twice."""
        super().on_stop()
        if self._housekeeping:
            self._housekeeping.stop()
            self._housekeeping = None
        if self._service:
            self._service.close()
            self._service = None

    def on_terminate(self) -> None:
        """Cold shutdown: the same, since threads cannot be killed."""
        self.on_stop()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        if self._service:
            info["model"] = self._service.model.id
        return info
