"""What runs in the engine's process: load, warm up, then one batch after the other."""

from __future__ import annotations

import logging
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from captioner.domain import ModelInfo
from captioner.engine.running import Result, load_model, run_batch
from captioner.engine.slots import receive_slots
from captioner.errors import DeviceLostError, JobError, ModelLoadError, SettingsError
from captioner.logs import configure_logging
from captioner.model import CaptionModel
from captioner.options import GenerationOptions
from captioner.settings import LogSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

#: Exit status of a process that cannot use its device any more (EX_UNAVAILABLE of sysexits.h).
DEVICE_LOST_STATUS = 69


@dataclass(frozen=True, slots=True)
class Batch:
    """To the child: caption what lies in one of the two buffers."""

    buffer: int
    #: For each caption how many slots in a row, and its options.
    wanted: list[tuple[int, GenerationOptions]]


@dataclass(frozen=True, slots=True)
class Ready:
    """From the child: the model is loaded and has worked once."""

    info: ModelInfo
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """From the child: the model cannot be loaded; it ends."""

    message: str


@dataclass(frozen=True, slots=True)
class Begun:
    """From the child: from now on it is the fault of its oldest batch if the child breaks."""


@dataclass(frozen=True, slots=True)
class Results:
    """From the child: some captions of its oldest batch, by their place in it."""

    by_place: dict[int, Result]


@dataclass(frozen=True, slots=True)
class Finished:
    """From the child: with these captions nothing is missing of its oldest batch."""

    by_place: dict[int, Result]
    busy_seconds: float
    memory_bytes: int


#: Once it is ready.
Progress: TypeAlias = Begun | Results | Finished


def run_model(
    connection: Connection[Any, Any],
    load: Callable[..., CaptionModel],
    arguments: tuple[object, ...],
    max_batch: int,
    log: LogSettings | None,
) -> None:
    """The engine's process, from its start to the end of the connection.

    Says `Ready` or `LoadFailed`; after `Ready` it expects the slots, then batches. Each is answered
    by `Begun`, by `Results` where they come one after the other, and by `Finished`.
    """
    if log:
        configure_logging(log)
    try:
        model = load_model(load, *arguments)
        _warm_up(model, max_batch)
    except (ModelLoadError, SettingsError, DeviceLostError) as error:
        connection.send(LoadFailed(str(error)))
        return
    connection.send(Ready(model.info, memory_bytes()))
    try:
        pixels = receive_slots(connection, max_batch, model.info.image_size)
    except EOFError:
        return
    inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    while batch := inbox.get():
        connection.send(Begun())
        started = time.monotonic()
        images = _images(pixels[batch.buffer], [pictures for pictures, _ in batch.wanted])
        missing = len(images)
        try:
            for results in run_batch(model, images, [options for _, options in batch.wanted]):
                missing -= len(results)
                if missing:
                    connection.send(Results(results))
                else:
                    busy_seconds = time.monotonic() - started
                    connection.send(Finished(results, busy_seconds, memory_bytes()))
        except DeviceLostError as error:
            logger.error("%s", error)  # noqa: TRY400  # its traceback is of no use to operators
            os._exit(DEVICE_LOST_STATUS)  # not the usual way: what tidies up would use the device
    model.close()


def _images(slots: NDArray[np.uint8], sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """For each caption its picture, or its pictures together."""
    starts = accumulate(sizes, initial=0)
    return [
        slots[start] if size == 1 else slots[start : start + size]
        for start, size in zip(starts, sizes, strict=False)
    ]


def _warm_up(model: CaptionModel, max_batch: int) -> None:
    """Caption noise, so that the first real batch is neither the slowest nor the first to fail."""
    info = model.info
    # A GPU claims its memory and chooses kernels by the size of the batch; a CPU only takes time.
    count = 1 if info.device == "cpu" else max_batch
    shape = (info.image_size, info.image_size, 3)
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, shape, np.uint8) for _ in range(count)]
    for results in run_batch(model, images, [GenerationOptions()] * count):
        for result in results.values():
            if isinstance(result, JobError):
                raise ModelLoadError(f"the model is loaded, but cannot caption: {result.message}")


def _read(connection: Connection[Any, Any], inbox: queue.SimpleQueue[Batch | None]) -> None:
    """Take batches off the pipe at once: a parent that waits to send one could not read results."""
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            inbox.put(None)
            return


def memory_bytes() -> int:
    """Resident memory of this process; where the system does not tell, the most there ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()
