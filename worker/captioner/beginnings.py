"""How the attempts of one message are begun: in which threads, and in whose turn."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeAlias

from captioner.attempts import Attempt
from captioner.domain import Lane
from captioner.pipeline import Pipeline
from captioner.providers import Found

#: How long a message waits for the one before it to have begun.
TURN_SECONDS = 1.0

Ready: TypeAlias = Callable[[Attempt], None]
#: What is to be begun, with its local file where that was found.
_Todo: TypeAlias = deque[tuple[Attempt, Found | None]]


class Beginnings:
    """Begins attempts, those of one message together. Thread-safe."""

    def __init__(
        self,
        pipeline: Pipeline,
        executor: Executor,
        decoders: int,
        stopping: Callable[[], bool],
    ) -> None:
        """Begin nothing yet.

        Args:
            pipeline: the attempts' own.
            executor: has threads beside the caller's.
            decoders: pictures that are decoded at once.
            stopping: tells whether this worker ends; what has not begun is handed back then.
        """
        self._pipeline = pipeline
        self._executor = executor
        self._decoders = decoders
        self._stopping = stopping
        self._turn = threading.Lock()

    def begin(self, attempts: Sequence[Attempt], ready: Ready) -> None:
        """Begin those of one message; `ready` as of `Attempt.begin`."""
        if len(attempts) == 1:
            self._begin_one(attempts[0], None, ready)
        elif all(map(_is_local_picture, attempts)):
            # Cores do only so much at once. Messages that take turns are a quarter faster than ones
            # that compete for them, and for the interpreter.
            # One that hangs, as a plugin may, holds up the others for a moment only.
            mine = self._turn.acquire(timeout=TURN_SECONDS)
            try:
                found = self._pipeline.find([one.job.request for one in attempts])
                todo = deque(zip(attempts, found, strict=True))
                self._begin_in_threads(self._decoders, todo, ready)
            finally:
                if mine:
                    self._turn.release()
        else:
            # What waits for networks, or for the engine's room, waits all at once.
            self._begin_in_threads(len(attempts), deque((one, None) for one in attempts), ready)

    def _begin_in_threads(self, count: int, todo: _Todo, ready: Ready) -> None:
        """In this one, and in as many more as are needed."""
        for _ in range(min(count, len(todo)) - 1):
            self._executor.submit(self._begin_next, todo, ready)
        self._begin_next(todo, ready)

    def _begin_next(self, todo: _Todo, ready: Ready) -> None:
        """Begin those that no other thread has begun."""
        while True:
            try:
                attempt, found = todo.popleft()
            except IndexError:
                return
            self._begin_one(attempt, found, ready)

    def _begin_one(self, attempt: Attempt, found: Found | None, ready: Ready) -> None:
        if self._stopping():
            attempt.hand_back(ready)
        else:
            attempt.begin(ready, found)


def _is_local_picture(attempt: Attempt) -> bool:
    request = attempt.job.request
    return request.source.is_local and request.lane is not Lane.VIDEO
