"""One model process after another: a fresh one whenever the last has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from captioner.domain import ModelInfo
from captioner.engine.model_process import ModelProcess
from captioner.engine.slots import Slots
from captioner.errors import ModelLoadError
from captioner.model import CaptionModel
from captioner.settings import EngineSettings, LogSettings

#: After so many starts in a row of which nothing came there is no point in another.
MOST_FUTILE_STARTS = 3
#: Pause after the first of them; doubled after each.
BACKOFF_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Supervisor:
    """Owns the process that is there now, and the slots that all of them read in turn."""

    #: The present one; only after `start`.
    process: ModelProcess
    slots: Slots
    #: Of the model, the same in every process.
    info: ModelInfo

    def __init__(
        self,
        load: Callable[..., CaptionModel],
        arguments: tuple[object, ...],
        settings: EngineSettings,
        log: LogSettings | None,
    ) -> None:
        """See `ProcessEngine`."""
        self.restarts = 0
        self._load = load
        self._arguments = arguments
        self._settings = settings
        self._log = log
        self._futile_starts = 0

    def start(self, poll: Callable[[], None]) -> None:
        """The first process; tried once.

        Raises:
            ModelLoadError: see `ModelProcess.wait_until_ready`.
        """
        process, self.info = self._ready_process(poll)
        self.slots = Slots(self._settings.max_batch, self.info.image_size)
        self._use(process)

    def restart(self, poll: Callable[[], None]) -> None:
        """The next one; the present one has ended.

        Args:
            poll: called before every try and a few times a second; what it raises ends the restart.

        Raises:
            ModelLoadError: too many starts in a row came to nothing.
        """
        failure = ModelLoadError("its process died again and again before it captioned anything")
        while self._futile_starts < MOST_FUTILE_STARTS:
            poll()
            if self._futile_starts:
                time.sleep(BACKOFF_SECONDS * 2 ** (self._futile_starts - 1))
            self.restarts += 1
            try:
                process, info = self._ready_process(poll)
                if info == self.info:
                    self._use(process)
                    return
                process.end()
                # Results are stamped with what was loaded first.
                failure = ModelLoadError(f"the model is now {info}, and was {self.info}")
            except ModelLoadError as error:
                failure = error
            logger.error("the engine did not come back: %s", failure)
        raise failure

    def worked(self) -> None:
        """Something came of the last start: a result, or a culprit."""
        self._futile_starts = 0

    def end(self) -> None:
        """End the process and give the shared memory back."""
        self.process.end()
        self.slots.close()

    def _ready_process(self, poll: Callable[[], None]) -> tuple[ModelProcess, ModelInfo]:
        self._futile_starts += 1  # until `worked`
        process = ModelProcess(self._load, self._arguments, self._settings, self._log)
        return process, process.wait_until_ready(poll)

    def _use(self, process: ModelProcess) -> None:
        process.share(self.slots)
        self.process = process
