"""Calls that may hang, in threads of their own: whoever made one goes on without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from captioner.chains import Chain, Threads
from captioner.media.slots import LOOK_SECONDS

Result = TypeVar("Result")
#: What a call gave, and what it raised.
_Outcome: TypeAlias = tuple[Any, BaseException | None]


class HangingError(Exception):
    """A call was left behind; `thread` is where."""

    def __init__(self, thread: int) -> None:
        """`thread` as `threading.get_ident` has it."""
        super().__init__(thread)
        self.thread = thread


class BoundedCalls:
    """Makes calls for many threads at once."""

    def __init__(self, name: str) -> None:
        """`name` is that of the threads; there is none yet."""
        # As many as there are callers.
        self._threads = Threads(sys.maxsize, name)

    @property
    def hanging(self) -> int:
        """Calls that were left behind and have not returned."""
        return self._threads.replaced

    def call(self, work: Callable[[], Result], look: Callable[[], None], seconds: float) -> Result:
        """What `work` gives or raises.

        Args:
            work: is left behind when it takes too long, or is not wanted any more.
            look: called now and then meanwhile; what it raises ends the wait.
            seconds: for so long; counted by looks, not by a clock: in a process that was paused,
                `work` was too.

        Raises:
            HangingError: it took longer.
        """
        outcomes: SimpleQueue[_Outcome] = SimpleQueue()

        def take(_: object, outcome: _Outcome) -> bool:
            outcomes.put(outcome)
            return False

        chain = Chain([partial(copy_context().run, work)], _outcome, take=take, over=_nothing)
        self._threads.run(chain)
        try:
            result, error = _waited_for(outcomes, look, seconds)
        except BaseException:
            self._leave(chain)
            raise
        if result is _TOO_LATE:
            if self._leave(chain):
                raise HangingError(chain.thread)
            result, error = outcomes.get()  # it came just now
        try:
            if error:
                raise error
            return result  # type: ignore[no-any-return]  # as `work` has made it
        finally:
            del error  # which knows this frame: both would be left to the cycle collector

    def _leave(self, chain: Chain[Any, _Outcome]) -> bool:
        """False when it has returned."""
        chain.stop()
        left = chain.leave() is not None
        if left:
            self._threads.replace()
        return left

    def close(self) -> None:
        """Let the threads end that have nothing to do."""
        self._threads.close()


_TOO_LATE = object()


def _waited_for(
    outcomes: SimpleQueue[_Outcome], look: Callable[[], None], seconds: float
) -> _Outcome:
    waited_seconds = 0.0
    while waited_seconds <= seconds:
        try:
            return outcomes.get(timeout=LOOK_SECONDS)
        except Empty:
            waited_seconds += LOOK_SECONDS
        look()
    return _TOO_LATE, None


def _outcome(work: Callable[[], Any]) -> _Outcome:
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
        return None, error


def _nothing() -> None:
    pass
