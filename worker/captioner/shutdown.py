"""Ending at once: at SIGQUIT, at the second SIGTERM or Ctrl-C, and where plugins' threads go on.

The first of those is Celery's warm shutdown: it finishes what runs. Somebody who asks again does
not want to wait, but nothing may be left behind as `processing` either: what runs is handed back in
SQL, and then the process ends without waiting for anything.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from captioner.logs import log_from_signal

#: A database that does not answer must not hold up an end that was asked for twice.
PATIENCE_SECONDS = 5.0
EXIT_CODE = 1
#: How long threads that are no daemons may take to end when the worker has.
LEAVE_SECONDS = 5.0

logger = logging.getLogger(__name__)


def say(message: str, _stream: object = None) -> None:
    """Celery's `safe_say`, by which its signal handlers speak: as lines of the log."""
    log_from_signal(logger, message)


class ImmediateEnd:
    """Stands before Celery's signal handlers; in the main thread only."""

    def __init__(self, hand_back: Callable[[], None]) -> None:
        """`hand_back` is called once, in a thread of its own."""
        self._hand_back = hand_back
        self._warm = False
        # Its `put` may interrupt another one: just what a signal handler needs.
        self._asked: SimpleQueue[int] = SimpleQueue()

    def install(self) -> None:
        """Pass the first SIGTERM or Ctrl-C on to Celery, whose handlers must be there by now."""
        threading.Thread(target=self._run, name="immediate-end", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, functools.partial(self._pass_on, signal.getsignal(number)))
        signal.signal(signal.SIGQUIT, self._ask)

    def _pass_on(self, celery: Any, number: int, frame: object) -> None:
        if self._warm:
            self._ask(number, frame)
            return
        self._warm = True
        celery(number, frame)
        signal.signal(number, self._ask)  # Celery has put another of its own there

    def _ask(self, number: int, _frame: object) -> None:
        self._asked.put(number)

    def _run(self) -> None:
        number = self._asked.get()
        logger.warning("%s: ending now; what runs is handed back", signal.Signals(number).name)
        threading.Timer(PATIENCE_SECONDS, os._exit, [EXIT_CODE]).start()
        try:
            self._hand_back()
        except Exception:
            logger.exception("jobs stay claimed until this worker expires")
        os._exit(EXIT_CODE)


def leave(code: int) -> None:
    """End the process soon, with this exit code, though threads go on that Python waits for.

    To be called last. A plugin may have begun some, or what it uses: they would keep a worker that
    has ended for ever.
    """
    main = threading.current_thread()
    others = [one for one in threading.enumerate() if one is not main and not one.daemon]
    if others:
        threading.Thread(target=_end_without, args=(others, code), daemon=True).start()


def _end_without(threads: Sequence[threading.Thread], code: int) -> None:
    until = time.monotonic() + LEAVE_SECONDS
    for one in threads:
        one.join(max(0.0, until - time.monotonic()))
    if left := [one.name for one in threads if one.is_alive()]:
        logger.warning("the worker ends without threads that go on: %s", ", ".join(left))
        os._exit(code)
