"""Telling observers, each in a thread of its own: none holds up a worker, nor another observer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from captioner.plugins import Plugins

#: What may wait for one plugin; what comes then is dropped, and counted as its error.
CAPACITY = 1_000
#: How long a worker waits for its plugins when it begins, and when it ends.
READY_SECONDS = 5.0
STOP_SECONDS = 5.0
HUNG_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Observers:
    """The observing plugins of one process. Thread-safe.

    One plugin's hooks are called one after the other, in the order of what happened.
    """

    def __init__(
        self, plugins: Plugins, *, capacity: int = CAPACITY, hung_seconds: float = HUNG_SECONDS
    ) -> None:
        """Start no thread yet: a plugin gets one with the first thing it is told.

        Args:
            plugins: who is told; those registered later, too.
            capacity: how much may wait for each of them.
            hung_seconds: after which a call has taken too long.
        """
        self._plugins = plugins
        self._capacity = capacity
        self._hung_seconds = hung_seconds
        self._lock = threading.Lock()
        self._listeners: dict[str, _Listener] = {}

    def tell(self, hook: str, **arguments: Any) -> None:
        """Have every observer of `hook` called soon; returns at once."""
        for name, call in self._plugins.observers(hook, **arguments):
            if not self._listener(name).put(hook, call, self._capacity):
                self._plugins.errors.report(
                    name, hook, f"{self._capacity} calls wait for it: this one was dropped"
                )

    def tell_and_wait(self, hook: str, seconds: float, **arguments: Any) -> None:
        """Tell every observer, whatever waits already, and give them so long to be done with it."""
        deadline = time.monotonic() + seconds
        done = {}
        for name, call in self._plugins.observers(hook, **arguments):
            done[name] = self._listener(name).put_last(hook, call)
        for name, event in done.items():
            if not event.wait(max(0.0, deadline - time.monotonic())):
                self._plugins.errors.report(
                    name, hook, f"not done after {seconds:g} s: it is not waited for any more"
                )

    def report_hung(self) -> None:
        """Count, once a call, those that have taken too long; to be called now and then."""
        for name, listener in self._all():
            if hook := listener.hung_in(self._hung_seconds):
                self._plugins.errors.report(
                    name, hook, f"has taken longer than {self._hung_seconds:g} s"
                )

    def stop(self, seconds: float) -> None:
        """Tell every observer that the worker ends, and give them so long to hear what waits."""
        deadline = time.monotonic() + seconds
        for name, call in self._plugins.observers("worker_stopping"):
            self._listener(name).put_last("worker_stopping", call)
        stopping = self._all()
        for _, listener in stopping:
            listener.close()
        for name, listener in stopping:
            if not listener.join(max(0.0, deadline - time.monotonic())):
                self._plugins.errors.report(
                    name, listener.hook, "busy with it when the worker ended, and left behind"
                )

    def _all(self) -> list[tuple[str, _Listener]]:
        with self._lock:
            return list(self._listeners.items())

    def _listener(self, name: str) -> _Listener:
        with self._lock:
            if name not in self._listeners:
                self._listeners[name] = _Listener(name)
            return self._listeners[name]


class _Listener:
    """One plugin's thread and what waits for it."""

    def __init__(self, name: str) -> None:
        self._waiting: deque[tuple[str, Callable[[], None]] | None] = deque()
        self._changed = threading.Condition()
        #: The hook it is in; empty: none.
        self.hook = ""
        #: When it began that, on the monotonic clock; None: it has been reported.
        self._since: float | None = None
        # A daemon: one that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"plugin-{name}", daemon=True)
        self._thread.start()

    def put(self, hook: str, call: Callable[[], None], capacity: int) -> bool:
        """Add a call; False when too many wait."""
        with self._changed:
            if len(self._waiting) >= capacity:
                return False
            self._waiting.append((hook, call))
            self._changed.notify()
            return True

    def put_last(self, hook: str, call: Callable[[], None]) -> threading.Event:
        """Add a call however many wait; the event is set when it has returned."""
        done = threading.Event()

        def and_tell() -> None:
            call()
            done.set()

        with self._changed:
            self._waiting.append((hook, and_tell))
            self._changed.notify()
        return done

    def hung_in(self, seconds: float) -> str:
        """The hook it has been in for longer than that; empty: none, or it was said before."""
        with self._changed:
            if self._since is None or time.monotonic() - self._since <= seconds:
                return ""
            self._since = None
            return self.hook

    def close(self) -> None:
        """End once all that waits was told."""
        with self._changed:
            self._waiting.append(None)
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Wait for its end; False when it has not come by then."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                item = self._waiting.popleft()
            if item is None:
                return
            hook, call = item
            with self._changed:
                self.hook, self._since = hook, time.monotonic()
            call()
            with self._changed:
                self.hook, self._since = "", None
