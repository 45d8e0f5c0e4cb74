"""One process with a loaded model, seen from outside, from its start to its end."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from captioner.children import Child, socket_of
from captioner.domain import ModelInfo
from captioner.engine.child import (
    DEVICE_LOST_STATUS,
    Batch,
    LoadFailed,
    Progress,
    Ready,
    run_model,
)
from captioner.engine.slots import Slots
from captioner.errors import ErrorCode, ModelLoadError
from captioner.model import CaptionModel
from captioner.options import GenerationOptions
from captioner.settings import EngineSettings, LogSettings

POLL_SECONDS = 0.2
#: How long a process that has nothing more to do may take to end.
END_SECONDS = 10.0
#: The same for one whose pipe has broken, which is about to end by itself.
DEATH_SECONDS = 1.0


class ModelProcess:
    """Loads a model in a child and carries batches to it and results back. Decides nothing."""

    def __init__(
        self,
        load: Callable[..., CaptionModel],
        arguments: tuple[object, ...],
        settings: EngineSettings,
        log: LogSettings | None,
    ) -> None:
        """Start the process; `load(*arguments)` builds the model there."""
        self._settings = settings
        self._oom_kills = _oom_kills()
        self._child = Child("engine", run_model, load, arguments, settings.max_batch, log)
        self._give_up_sending_after(settings.hang_seconds)

    @property
    def connection(self) -> Connection[Any, Any]:
        """To wait for, until `receive` has something."""
        return self._child.connection

    def wait_until_ready(self, poll: Callable[[], None]) -> ModelInfo:
        """Wait for the model; whatever this raises, the process has ended.

        Args:
            poll: called a few times a second, and before the first wait.

        Raises:
            ModelLoadError: it cannot be loaded, or takes too much memory or too long.
        """
        try:
            return self._model_of(self._first_message(poll))
        except BaseException:
            self._child.kill()
            raise

    def _model_of(self, message: Ready | LoadFailed) -> ModelInfo:
        if isinstance(message, LoadFailed):
            raise ModelLoadError(message.message)
        most = self._settings.max_memory_bytes
        if most is not None and message.memory_bytes > most:
            raise ModelLoadError(
                f"the model alone takes {message.memory_bytes} bytes of memory; "
                "raise CAPTIONER_ENGINE__MAX_MEMORY_BYTES"
            )
        return message.info

    def _first_message(self, poll: Callable[[], None]) -> Ready | LoadFailed:
        patience_seconds = self._settings.load_timeout_seconds
        deadline = time.monotonic() + patience_seconds
        poll()
        while not self.connection.poll(POLL_SECONDS):
            poll()
            if time.monotonic() > deadline:
                raise ModelLoadError(
                    f"the model was not loaded in {patience_seconds:g} s; "
                    "raise CAPTIONER_ENGINE__LOAD_TIMEOUT_SECONDS"
                )
        try:
            message: Ready | LoadFailed = self.connection.recv()
        except (EOFError, OSError):
            how, _ = self.cause_of_death()
            raise ModelLoadError(f"the engine {how} while it loaded the model") from None
        return message

    def share(self, slots: Slots) -> None:
        """Let it read the slots; once, before the first batch."""
        with contextlib.suppress(OSError):  # that it has died shows in `receive`
            slots.send(self.connection)

    def send(self, buffer: int, wanted: list[tuple[int, GenerationOptions]]) -> None:
        """Have a batch captioned whose pixels lie in one of the two buffers; see `Batch`."""
        with contextlib.suppress(OSError):  # as above; that it hangs shows, too
            self.connection.send(Batch(buffer, wanted))

    def receive(self) -> Progress | None:
        """The next message, as soon as there is one; None: there will be no more."""
        try:
            message: Progress = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def end(self) -> None:
        """Let it free the model and end, or kill it if it does not; twice does nothing."""
        self._child.end(END_SECONDS)

    def kill(self) -> None:
        """End it now."""
        self._child.kill()

    def cause_of_death(self) -> tuple[str, ErrorCode]:
        """After its pipe broke: how it ended, in words, and the code for the job that did it."""
        exit_code = self._child.end(DEATH_SECONDS)
        if exit_code == DEVICE_LOST_STATUS:
            return "lost its device", ErrorCode.WORKER_LOST
        if exit_code >= 0:
            return f"ended with exit code {exit_code}", ErrorCode.WORKER_LOST
        if exit_code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return "was killed for want of memory", ErrorCode.OUT_OF_MEMORY
        return f"was killed by {signal.Signals(-exit_code).name}", ErrorCode.WORKER_LOST

    def _give_up_sending_after(self, seconds: float) -> None:
        """A stopped process reads nothing, and a full pipe would block its writer for ever."""
        fraction, whole = math.modf(seconds)
        timeval = struct.pack("@ll", int(whole), int(fraction * 1e6))
        with socket_of(self.connection) as channel:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _oom_kills() -> int:
    """How many processes Linux has killed for want of memory, by any limit; 0 elsewhere."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:  # noqa: PTH123
            return next((int(v) for k, v in map(str.split, lines) if k == "oom_kill"), 0)
    except OSError:
        return 0
