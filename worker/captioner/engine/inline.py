"""An engine in this process: one thread owns the model. For tests and small machines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from captioner.domain import Caption, Lane, ModelInfo
from captioner.engine.api import EngineStats
from captioner.engine.batcher import Batcher, Work
from captioner.engine.running import as_job_error, load_model, run_batch
from captioner.engine.slots import checked_pixels
from captioner.errors import DeviceLostError, ModelLoadError, SettingsError
from captioner.inference.freed_memory import share_heap
from captioner.model import CaptionModel
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLL_SECONDS = 0.1


class InlineEngine:
    """Runs the model in a thread of its own; see `Engine` for the contract."""

    #: Nothing it could survive is lost for good.
    failed = False

    def __init__(self, load: Callable[[], CaptionModel], max_batch: int) -> None:
        """`load` builds the model; it is called in the engine's thread, by `start`."""
        self.max_batch = max_batch
        self._load = load
        self._wake = threading.Event()
        self._batcher = Batcher(max_batch, self._wake.set)
        self._stats = EngineStats()
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
        except (ModelLoadError, SettingsError) as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(model.info)
        while not self._batcher.drained:
            self._wake.wait()
            self._wake.clear()
            while batch := self._batcher.take(idle=True):
                self._caption(model, batch)
        model.close()

    def _caption(self, model: CaptionModel, batch: Sequence[Work]) -> None:
        started = time.monotonic()
        try:
            for results in run_batch(model, [w.pixels for w in batch], [w.options for w in batch]):
                for position, result in results.items():
                    batch[position].settle(result)
        except DeviceLostError as error:  # there is no other process to go on in
            for work in batch:
                if not work.future.done():
                    work.settle(as_job_error(error))
        self._stats = EngineStats(
            batches=self._stats.batches + 1,
            pictures=self._stats.pictures + sum(work.pictures for work in batch),
            busy_seconds=self._stats.busy_seconds + time.monotonic() - started,
        )
