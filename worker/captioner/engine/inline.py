"""An engine in this process: one thread owns the model. For tests and small machines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Protocol

from captioner.domain import Caption, Lane, ModelInfo
from captioner.engine.batcher import Batcher, Work
from captioner.errors import ErrorCode, JobError, ModelLoadError, describe
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


class Generated(Protocol):
    """One generated caption, as `captioner.inference` returns it."""

    @property
    def text(self) -> str: ...  # noqa: D102  # explained in captioner.inference
    @property
    def continuation(self) -> str: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def beam_score(self) -> float | None: ...  # noqa: D102


class CaptionModel(Protocol):
    """What the engine needs of a model, as `captioner.inference` and the fake one have it."""

    @property
    def info(self) -> ModelInfo:
        """Which model this is."""
        ...

    def check(self, options: GenerationOptions) -> None:
        """Raise `JobError` if these options can never work with this model."""
        ...

    def generate(
        self, images: Sequence[NDArray[np.uint8]], options: Sequence[GenerationOptions]
    ) -> Sequence[Sequence[Generated]]:
        """Captions of each image, best first."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class InlineEngine:
    """Runs the model in a thread of its own; see `Engine` for the contract."""

    def __init__(self, load: Callable[[], CaptionModel], max_batch: int) -> None:
        """`load` builds the model; it is called in the engine's thread, by `start`."""
        self._load = load
        self._batcher = Batcher(max_batch)
        self._ready: Future[ModelInfo] = Future()
        # A daemon: a load that nobody waits for any more must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._ready.result(timeout=0)

    def start(self, poll: Callable[[], None] = lambda: None) -> None:
        """Load the model; see `Engine.start`."""
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
        """Caption one picture; see `Engine.submit`."""
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
            model = self._load()
        except ModelLoadError as error:
            self._ready.set_exception(error)
            return
        except Exception as error:
            logger.debug("model load failed", exc_info=True)
            self._ready.set_exception(
                ModelLoadError(f"the model cannot be loaded: {describe(error)}")
            )
            return
        self._ready.set_result(model.info)
        while batch := self._batcher.take():
            run_batch(model, batch)
        model.close()


def run_batch(model: CaptionModel, batch: Sequence[Work]) -> None:
    """Caption a batch and resolve exactly its futures, whatever happens.

    A batch that fails is run again one by one, so that only the picture at fault fails.
    """
    valid = [work for work in batch if _check(model, work)]
    if not valid:
        return
    try:
        results = model.generate([w.pixels for w in valid], [w.options for w in valid])
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends in these futures
        if len(valid) == 1:
            valid[0].future.set_exception(_as_job_error(error))
            return
        logger.warning(
            "a batch of %d failed and is run again one by one: %s", len(valid), describe(error)
        )
        for work in valid:
            run_batch(model, [work])
        return
    for work, captions in zip(valid, results, strict=True):
        work.future.set_result(_captions(captions))


def _check(model: CaptionModel, work: Work) -> bool:
    try:
        model.check(work.options)
    except Exception as error:  # noqa: BLE001  # as above
        work.future.set_exception(_as_job_error(error))
        return False
    return True


def _captions(generated: Sequence[Generated]) -> list[Caption]:
    return [
        Caption(
            rank=rank,
            text=one.text,
            continuation=one.continuation,
            score=one.score,
            beam_score=one.beam_score,
        )
        for rank, one in enumerate(generated)
    ]


def _as_job_error(error: Exception) -> JobError:
    if isinstance(error, JobError):
        return error
    if isinstance(error, MemoryError):
        return JobError(ErrorCode.OUT_OF_MEMORY, "the picture does not fit into memory")
    logger.error("the model failed", exc_info=error)
    return JobError(ErrorCode.INTERNAL, f"the model failed: {describe(error)}")
