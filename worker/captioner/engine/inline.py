"""An engine in this process: one thread owns the model. For tests and small machines."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from captioner.domain import Caption, Lane, ModelInfo
from captioner.engine.api import EngineClosedError, EngineStats
from captioner.engine.batcher import Batcher, Work
from captioner.engine.running import as_job_error, load_model, run_batch
from captioner.engine.slots import checked_pixels
from captioner.errors import describe
from captioner.inference.freed_memory import share_heap
from captioner.model import CaptionModel
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


class InlineEngine:
    """Runs the model in a thread of its own; see `Engine` for the contract."""

    def __init__(self, load: Callable[[], CaptionModel], max_batch: int) -> None:
        """`load` builds the model; it is called in the engine's thread, by `start`."""
        self.max_batch = max_batch
        self._load = load
        self._wake = threading.Event()
        self._batcher = Batcher(max_batch, self._wake.set)
        self._stats = EngineStats()
        self._failed = False
        self._ready: Future[ModelInfo] = Future()
        # A daemon: a load that nobody waits for any more must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._ready.result(timeout=0)

    @property
    def stats(self) -> EngineStats:
        """What it has done so far."""
        return self._stats

    @property
    def failed(self) -> bool:
        """True when its thread has ended by what nothing here survives."""
        return self._failed

    def start(self, poll: Callable[[], None] = lambda: None) -> None:
        """Load the model; see `Engine.start`."""
        share_heap()
        self._thread.start()
        while True:
            try:
                self._ready.result(timeout=POLL_SECONDS)
            except FutureTimeoutError:
                poll()
            else:
                return

    def submit(
        self, pixels: NDArray[np.uint8], options: GenerationOptions, lane: Lane = Lane.INTERACTIVE
    ) -> Future[list[Caption]]:
        """Caption one picture, or several together; see `Engine.submit`."""
        pixels = checked_pixels(pixels, self.info.image_size, self.max_batch)
        work = Work(pixels, options, lane)
        self._batcher.put(work)
        return work.future

    def close(self) -> None:
        """Finish what was submitted, then free the model."""
        self._batcher.close()
        # While the model still loads nothing was submitted, and a load cannot be interrupted.
        if self._thread.is_alive() and self._ready.done():
            self._thread.join()

    def _run(self) -> None:
        try:
            model = load_model(self._load)
            info = model.info
        except BaseException as error:  # noqa: BLE001  # `start` waits, and raises it where it counts
            self._ready.set_exception(error)
            return
        self._ready.set_result(info)
        try:
            self._serve(model)
        except BaseException as error:
            logger.exception("the engine's own thread failed")
            self._fail(describe(error))
        model.close()

    def _serve(self, model: CaptionModel) -> None:
        while not self._batcher.drained:
            self._wake.wait()
            self._wake.clear()
            while batch := self._batcher.take(idle=True):
                self._caption(model, batch)

    def _fail(self, why: str) -> None:
        """Nobody will work on what waits, nor on what might come: say so to who waits for it."""
        reason = f"the engine has failed: {why}"
        self._failed = True
        self._batcher.close(reason)
        while batch := self._batcher.take(idle=True):
            for work in batch:
                work.future.set_exception(EngineClosedError(reason))

    def _caption(self, model: CaptionModel, batch: Sequence[Work]) -> None:
        started = time.monotonic()
        try:
            for results in run_batch(model, [w.pixels for w in batch], [w.options for w in batch]):
                for position, result in results.items():
                    batch[position].settle(result)
        except BaseException as error:  # noqa: BLE001  # there is no other process to go on in
            # Also SystemExit: a model that raises it ends this batch, and not the thread that all
            # others wait for.
            for work in batch:
                if not work.future.done():
                    work.settle(as_job_error(error))
        self._stats = EngineStats(
            batches=self._stats.batches + 1,
            pictures=self._stats.pictures + sum(work.pictures for work in batch),
            busy_seconds=self._stats.busy_seconds + time.monotonic() - started,
        )
