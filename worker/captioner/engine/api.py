"""What every engine offers, wherever its model runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from captioner.domain import Caption, Lane, ModelInfo
from captioner.errors import CaptionerError
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EngineClosedError(CaptionerError):
    """The engine is closing and takes no more work; the job belongs back in the queue."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was started.

    Mean fill is `pictures / batches / max_batch`; the engine's share of a span of time is the
    growth of `busy_seconds` over that span. A batch is counted just after its futures are done.
    """

    #: Batches the model has finished.
    batches: int = 0
    #: Pictures in them, failed ones included.
    pictures: int = 0
    #: Time the model spent on them.
    busy_seconds: float = 0.0
    #: Fresh processes after the first.
    restarts: int = 0


class Engine(Protocol):
    """A resident model that captions pictures of many jobs in shared batches."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model; only after `start`."""
        ...

    @property
    def stats(self) -> EngineStats:
        """What it has done so far."""
        ...

    @property
    def max_batch(self) -> int:
        """Most pictures of one batch, and so of one caption."""
        ...

    @property
    def failed(self) -> bool:
        """True when it is closed because its model is lost for good; the worker should end."""
        ...

    def start(self, poll: Callable[[], None]) -> None:
        """Load the model and return when it can work.

        Args:
            poll: called a few times a second meanwhile; what it raises ends the start, so that a
                worker told to stop need not wait for the load.

        Raises:
            ModelLoadError: the model cannot be loaded.
        """
        ...

    def submit(
        self, pixels: NDArray[np.uint8], options: GenerationOptions, lane: Lane
    ) -> Future[list[Caption]]:
        """Caption one picture, or several together with one caption; the result comes best first.

        Returns at once, however much waits. Pictures to be captioned together are with the model
        together, beside single ones; if it cannot do that, the future raises `JobError`.

        Args:
            pixels: uint8 `[image_size, image_size, 3]`, RGB, or `[pictures, …]` of at most
                `max_batch` and `MAX_JOINT_PICTURES`; not to be changed until the future is done.
            options: this caption's own; a batch mixes them freely.
            lane: interactive pictures go before all others.

        Returns:
            A future that raises `JobError` when this cannot be captioned (`CrashError` when the
            engine died of it alone), and `EngineClosedError` when the engine failed. Canceled
            before its batch is closed, it costs the model nothing.

        Raises:
            ValueError: `pixels` has another shape or type.
            EngineClosedError: the engine is closed, or has failed.
        """
        ...

    def close(self) -> None:
        """Finish what was submitted, then free the model; calling it again does nothing."""
        ...
