"""An engine whose model lives in a process of its own, which may die without harm."""

from __future__ import annotations

import dataclasses
import logging
import selectors
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

from captioner.domain import Caption, Lane, ModelInfo
from captioner.engine.api import EngineClosedError, EngineStats
from captioner.engine.batcher import Batcher, Work
from captioner.engine.child import Begun, Finished, Results
from captioner.engine.slots import BUFFERS, checked_pixels
from captioner.engine.supervisor import Supervisor
from captioner.engine.workload import Workload
from captioner.errors import ErrorCode, ModelLoadError, describe
from captioner.model import CaptionModel
from captioner.options import GenerationOptions
from captioner.settings import EngineSettings, LogSettings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class ProcessEngine:
    """Runs the model in a supervised child; see `Engine` for the contract.

    One thread here feeds the child, listens to it, and replaces it when it dies, hangs or takes too
    much memory; `Workload` says what then becomes of the pictures. What waits stays in the callers'
    own arrays: `submit` never blocks, and what bounds the memory is how many pictures the callers
    have in hand.
    """

    def __init__(
        self,
        load: Callable[..., CaptionModel],
        arguments: tuple[object, ...],
        settings: EngineSettings,
        log: LogSettings | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            load: a function of a module, called in the child, where it builds the model.
            arguments: for `load`; what pickle can carry.
            settings: sizes, and what the child may take.
            log: how the child logs; None: as a process that configures nothing.
        """
        self.max_batch = settings.max_batch
        self._hang_seconds = settings.hang_seconds
        self._max_memory_bytes = settings.max_memory_bytes
        self._supervisor = Supervisor(load, arguments, settings, log)
        self._wakes, waker = Pipe(duplex=False)
        self._batcher = Batcher(
            settings.max_batch, lambda: waker.send_bytes(b"!"), settings.linger_seconds
        )
        self._failed = False
        self._starting = threading.RLock()
        # A daemon: an engine that nobody closes must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Below: written by that thread alone.
        self._workload = Workload(self._batcher)
        self._stats = EngineStats()
        self._buffer = 0
        self._deadline = 0.0
        self._retiring = False
        self._selector = selectors.PollSelector()
        self._listened_to: Connection[Any, Any] | None = None

    @property
    def info(self) -> ModelInfo:
        """The loaded model; only after `start`."""
        return self._supervisor.info

    @property
    def stats(self) -> EngineStats:
        """What it has done so far."""
        return dataclasses.replace(self._stats, restarts=self._supervisor.restarts)

    @property
    def failed(self) -> bool:
        """True when the child cannot be brought back."""
        return self._failed

    def start(self, poll: Callable[[], None] = lambda: None) -> None:
        """Start the child and wait until it is warm; see `Engine.start`.

        Raises:
            ModelLoadError: the model cannot be loaded, or not in time.
            EngineClosedError: `close` was called meanwhile.
        """

        def poll_or_stop() -> None:
            if self._batcher.closed:
                raise EngineClosedError("the engine was closed while it loaded the model")
            poll()

        with self._starting:
            self._supervisor.start(poll_or_stop)
            self._thread.start()

    def submit(
        self, pixels: NDArray[np.uint8], options: GenerationOptions, lane: Lane = Lane.INTERACTIVE
    ) -> Future[list[Caption]]:
        """Caption one picture, or several together; see `Engine.submit`."""
        pixels = checked_pixels(pixels, self.info.image_size, self.max_batch)
        work = Work(pixels, options, lane)
        self._batcher.put(work)
        return work.future

    def close(self) -> None:
        """Finish what was submitted, then end the child."""
        self._batcher.close()
        with self._starting:
            if self._thread.is_alive():
                self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._feed()  # which drops what is not wanted any more: it may be done with that
                if self._workload.done:
                    return
                self._attend()
        except EngineClosedError:
            pass  # with nothing left to do, while a child was coming back
        except ModelLoadError as error:
            self._fail(str(error))
        except Exception as error:
            logger.exception("the engine's own thread failed")
            self._fail(describe(error))
        finally:
            self._supervisor.end()
            self._selector.close()

    def _fail(self, why: str) -> None:
        reason = f"the engine has failed: {why}"
        logger.critical(reason)
        self._failed = True
        self._workload.give_up(reason)

    def _feed(self) -> None:
        """Give the child what it may have now."""
        while not self._retiring:
            was_idle = self._workload.idle
            batch = self._workload.next_batch()
            if not batch:
                return
            if was_idle:
                self._renew_deadline()
            # As many buffers as batches with the child, and those end in order: this one is free.
            self._buffer = (self._buffer + 1) % BUFFERS
            self._supervisor.slots.write(self._buffer, [work.pixels for work in batch])
            wanted = [(work.pictures, work.options) for work in batch]
            self._supervisor.process.send(self._buffer, wanted)

    def _attend(self) -> None:
        """Wait for the child, for pictures, for a batch to be due, or for the child's time to end.

        What the child has said counts, however late: this process may have been stopped meanwhile.
        """
        connection = self._supervisor.process.connection
        if self._workload.idle:
            timeout = self._batcher.due_seconds()
        else:
            timeout = max(0.0, self._deadline - time.monotonic())
        ready = self._ready(connection, timeout)
        if self._wakes in ready:
            self._wakes.recv_bytes()
        if connection in ready:
            self._listen()
        elif not self._workload.idle and time.monotonic() >= self._deadline:
            self._supervisor.process.kill()
            self._replace(f"hung for {self._hang_seconds:g} s", ErrorCode.WORKER_LOST)

    def _ready(self, connection: Connection[Any, Any], timeout: float | None) -> list[object]:
        """Those of the child's connection and `_wakes` that have something, after a wait for it.

        As `multiprocessing.connection.wait`, which would prepare itself anew for each wait. Not by
        epoll: where this process was stopped meanwhile, it does not say what the child has said.
        """
        if connection is not self._listened_to:
            self._selector.close()
            self._selector = selectors.PollSelector()
            self._selector.register(connection, selectors.EVENT_READ)
            self._selector.register(self._wakes, selectors.EVENT_READ)
            self._listened_to = connection
        return [key.fileobj for key, _ in self._selector.select(timeout)]

    def _listen(self) -> None:
        message = self._supervisor.process.receive()
        if message is None:
            self._replace(*self._supervisor.process.cause_of_death())
            return
        self._supervisor.worked()
        self._renew_deadline()
        if isinstance(message, Begun):
            self._workload.begin()
        elif isinstance(message, Results):
            self._workload.settle(message.by_place)
        else:
            self._workload.settle(message.by_place)
            self._count(self._workload.finish(), message.busy_seconds)
            self._watch_memory(message)

    def _count(self, pictures: int, busy_seconds: float) -> None:
        self._stats = EngineStats(
            batches=self._stats.batches + 1,
            pictures=self._stats.pictures + pictures,
            busy_seconds=self._stats.busy_seconds + busy_seconds,
        )

    def _watch_memory(self, finished: Finished) -> None:
        """Replace a child that has grown too large, once it has finished what it was given."""
        most, taken = self._max_memory_bytes, finished.memory_bytes
        if most is not None and taken > most:
            self._retiring = True
        if self._retiring and self._workload.idle:
            logger.warning("the engine takes %d bytes of at most %s: restarting it", taken, most)
            self._supervisor.process.end()
            self._restart()

    def _replace(self, how: str, code: ErrorCode) -> None:
        """The child is dead; `how` and `code` as of `Workload.sort_after`."""
        self._workload.sort_after(how, code)
        self._restart()

    def _restart(self) -> None:
        self._retiring = False
        self._supervisor.restart(self._stop_when_done)

    def _stop_when_done(self) -> None:
        if self._workload.done:
            raise EngineClosedError("the engine is closed")

    def _renew_deadline(self) -> None:
        self._deadline = time.monotonic() + self._hang_seconds
