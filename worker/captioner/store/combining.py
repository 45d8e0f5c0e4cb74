"""Calls of many threads made one: what each would do alone is done once for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class Combiner(Generic[Item, Result]):
    """A function of one item that waits for the items of other threads and handles all at once.

    No thread of its own: the first caller leads, and whoever came while it was busy is led by the
    first of them. A caller that is alone runs at once, in its own thread.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        linger_seconds: float,
        expects: Callable[[], bool],
        at_fault: Callable[[BaseException], bool],
        enough: Callable[[Item], bool] = lambda _: False,
        most: int = 256,
    ) -> None:
        """What is combined, and how long it is waited for.

        Args:
            run: handles items together; their results in the same order.
            linger_seconds: how long the first caller waits for others, when there are any.
            expects: whether others may call soon; who makes that false calls `hurry`.
            at_fault: whether an error may be the fault of one item; then each is tried alone.
            enough: whether an item is worth a call, and neither it nor who waits already lingers.
            most: items handled together at most.
        """
        self._run = run
        self._linger_seconds = linger_seconds
        self._expects = expects
        self._at_fault = at_fault
        self._enough = enough
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Call[Item, Result]] = []
        self._led = False
        #: True while an item waits that is enough.
        self._has_enough = False
        #: Set when there is nothing to linger for: a leader that looked now and then woke up eight
        #: times for each job that came alone (measured, 2026-11).
        self._hurry = threading.Event()

    def __call__(self, item: Item) -> Result:
        """Handle `item`, with others or alone; raises what `run` raised for it."""
        call = _Call[Item, Result](item)
        with self._lock:
            self._waiting.append(call)
            self._has_enough = self._has_enough or self._enough(item)
            leads, self._led = not self._led, True
        if not leads:
            if not self._lingers:
                self._hurry.set()
            call.turn.wait()
        if not call.done:
            self._lead(call)
        if call.error is not None:
            raise call.error
        return cast(Result, call.result)

    def hurry(self) -> None:
        """Have the call that lingers go on, if there is one: nobody else is expected."""
        self._hurry.set()

    def _lead(self, first: _Call[Item, Result]) -> None:
        self._linger(first.arrived_at + self._linger_seconds)
        with self._lock:
            calls, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._has_enough = any(self._enough(call.item) for call in self._waiting)
        try:
            self._handle(calls)
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting[0].turn.set()
                else:
                    self._led = False
            for call in calls:
                call.turn.set()

    def _linger(self, until: float) -> None:
        # Cleared before the look: who ends the reason to wait after it sets it again.
        self._hurry.clear()
        remaining = until - time.monotonic()
        if remaining > 0 and self._lingers:
            self._hurry.wait(remaining)

    @property
    def _lingers(self) -> bool:
        """Whether there is a reason to: others are expected, and there is room for them."""
        return not self._has_enough and len(self._waiting) < self._most and self._expects()

    def _handle(self, calls: Sequence[_Call[Item, Result]]) -> None:
        try:
            answered = list(zip(calls, self._run([call.item for call in calls]), strict=True))
        except BaseException as error:  # noqa: BLE001  # whatever it is, each caller raises it
            if len(calls) > 1 and self._at_fault(error):
                for call in calls:
                    self._handle([call])
                return
            for call in calls:
                call.done, call.error = True, error
            return
        for call, result in answered:
            call.done, call.result = True, result


class _Call(Generic[Item, Result]):
    """One caller: what it brought, and what it gets."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.arrived_at = time.monotonic()
        #: Set when the call is done, or when it is its turn to lead.
        self.turn = threading.Event()
        self.done = False
        self.result: Result | None = None
        self.error: BaseException | None = None
