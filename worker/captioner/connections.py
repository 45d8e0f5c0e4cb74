"""What a process has of an installation: its database and its broker, not shared with a fork."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple
from weakref import WeakSet

from captioner.celery import CaptionerApp, create_app
from captioner.settings import Settings
from captioner.store import Store, open_store


class Opened(NamedTuple):
    """The connections of one process."""

    store: Store
    app: CaptionerApp


class Connections:
    """Opened at once, and anew by each child of a process that forks. Thread-safe.

    Two processes in one connection would read each other's answers, and a child's locks may be held
    by threads that are not there.
    """

    _opening: threading.Lock
    _opened: Opened | None

    def __init__(self, settings: Settings) -> None:
        """Connect as `settings` say.

        Raises:
            SettingsError: a setting cannot be used.
            SchemaError: the database is not of this version.
            StoreUnavailableError: the database cannot be reached.
        """
        self._settings = settings
        self.forget()
        self.opened()
        _all.add(self)

    def opened(self) -> Opened:
        """Those of this process; raises as `__init__` does."""
        with self._opening:
            if self._opened is None:
                store = open_store(self._settings)
                self._opened = Opened(store, create_app(self._settings))
            return self._opened

    def forget(self) -> None:
        """Begin anew, and leave what was opened to the parent."""
        self._opening = threading.Lock()
        self._opened = None

    def close(self) -> None:
        """Give the connections back."""
        if self._opened:
            self._opened.app.close()
            self._opened.store.close()


#: Those that a fork has to tell.
_all: WeakSet[Connections] = WeakSet()


def _after_fork() -> None:
    for each in _all:
        each.forget()


os.register_at_fork(after_in_child=_after_fork)
