"""What every engine offers, wherever its model runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from captioner.domain import Caption, Lane, ModelInfo
from captioner.errors import CaptionerError
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EngineClosedError(CaptionerError):
    """The engine is closing and takes no more work; the job belongs back in the queue."""


class Engine(Protocol):
    """A resident model that captions pictures of many jobs in shared batches."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model; only after `start`."""
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
        """Caption one picture; the result comes best first.

        Args:
            pixels: uint8 `[image_size, image_size, 3]`, RGB.
            options: this picture's own; a batch mixes them freely.
            lane: interactive pictures go before bulk ones.

        The future raises `JobError` when this picture cannot be captioned.
        """
        ...

    def close(self) -> None:
        """Finish what was submitted, then free the model; calling it again does nothing."""
        ...
