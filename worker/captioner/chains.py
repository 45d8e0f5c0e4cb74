"""Threads for work that may hang: what is slow is set aside, and what never comes back left behind.

Nothing can end a thread of Python's. An executor would wait for it, with all that comes after it;
here another thread takes its place.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Chain(Generic[Item, Result]):
    """Items that one thread handles one after the other, until it is stopped or left behind."""

    def __init__(
        self,
        items: Iterable[Item],
        work: Callable[[Item], Result],
        take: Callable[[Item, Result], bool],
        over: Callable[[], None],
    ) -> None:
        """Nothing runs yet.

        Args:
            items: in their order.
            work: handles one; must not raise.
            take: gets each result, unless the chain was left behind; False ends it. Must not wait.
            over: called when the thread is done with the chain, left behind or not.
        """
        self._work = work
        self._take = take
        self._over = over
        self._lock = threading.Lock()
        self._waiting = deque(items)
        self._current: tuple[Item, float] | None = None
        self._begun = False
        self._stopped = False
        self._left = False
        #: Another thread has taken the place of its own.
        self.aside = False
        #: True when the thread is done with it.
        self.returned = False
        #: The thread that has come to it, as `threading.get_ident` has it; 0: none yet.
        self.thread = 0

    @property
    def items(self) -> list[Item]:
        """What is not handled: what it is at, and what waits behind that."""
        with self._lock:
            return [*([self._current[0]] if self._current else []), *self._waiting]

    @property
    def waiting(self) -> list[Item]:
        """What was not begun."""
        with self._lock:
            return list(self._waiting)

    def run(self) -> bool:
        """Handle the items, in a thread; False when another has taken its place meanwhile."""
        self.thread = threading.get_ident()
        while (item := self._next()) and self._finish(item[0], self._work(item[0])):
            pass
        with self._lock:
            self.returned = True
        self._over()
        return not self.aside

    @property
    def begun(self) -> bool:
        """Whether a thread has come to it."""
        with self._lock:
            return self._begun

    def stop(self) -> None:
        """Begin no other item."""
        with self._lock:
            self._stopped = True

    def set_aside(self, after_seconds: float) -> bool:
        """Have another thread in the place of this one if it has been at one item for so long.

        This one goes on with the chain. True asks for `Threads.replace`.
        """
        with self._lock:
            if self.aside or self._current is None:
                return False
            self.aside = time.monotonic() - self._current[1] >= after_seconds
            return self.aside

    def leave(self, after_seconds: float = 0.0) -> tuple[Item, float] | None:
        """Leave the thread to itself if it has been at one item for so long.

        That asks for `Threads.replace`, unless it was set aside before.

        Returns:
            The item, whose result will not be taken any more, and for how many seconds it has been
            at it; None when it is not left.
        """
        with self._lock:
            if self._left or self._current is None:
                return None
            item, since = self._current
            seconds = time.monotonic() - since
            if seconds < after_seconds:
                return None
            self._left = self._stopped = self.aside = True
            return item, seconds

    def _next(self) -> tuple[Item, float] | None:
        with self._lock:
            if self._stopped or not self._waiting:
                return None
            self._begun = True
            self._current = self._waiting.popleft(), time.monotonic()
            return self._current

    def _finish(self, item: Item, result: Result) -> bool:
        with self._lock:
            if self._left:
                return False
            self._current = None
            return self._take(item, result)


class Threads:
    """Daemon threads that run chains; they are started as they are needed, and never waited for."""

    def __init__(self, most: int, name: str) -> None:
        """`most` chains run at once, those set aside or left behind not counted."""
        self._most = most
        self._name = name
        self._chains: SimpleQueue[Chain[object, object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        #: Chains that run or wait for a thread.
        self._busy = 0
        #: Threads that others have replaced and that have not ended.
        self.replaced = 0

    @property
    def free(self) -> int:
        """How many more chains would run at once."""
        return max(0, self._most - self._busy)

    def run(self, chain: Chain[Item, Result]) -> None:
        """Have a chain run as soon as there is a thread for it."""
        with self._lock:
            self._busy += 1
            self._chains.put(chain)  # type: ignore[arg-type]  # all it is asked is to run
            self._start()

    def replace(self) -> None:
        """A chain that ran here was set aside or left behind: go on without its thread."""
        with self._lock:
            self._busy -= 1
            self._threads -= 1
            self.replaced += 1
            self._start()

    def close(self) -> None:
        """Let the threads end as they become free."""
        with self._lock:
            for _ in range(self._threads):
                self._chains.put(None)

    def _start(self) -> None:
        if self._threads < min(self._busy, self._most):
            self._threads += 1
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while (chain := self._chains.get()) is not None:
            own = chain.run()
            with self._lock:
                if not own:
                    self.replaced -= 1
                    return
                self._busy -= 1
