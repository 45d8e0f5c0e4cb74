"""Models that need no weights."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.domain import ModelInfo
from captioner.errors import DeviceLostError, ErrorCode, JobError
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FakeCaption:
    """One caption of the fake model."""

    text: str
    continuation: str
    score: float
    beam_score: float | None = None


class FakeCaptionModel:
    """Captions a picture with its mean colour, so that mixed-up pictures are found out.

    Several pictures together it captions with how many they are and the mean colour of all. `hold`
    makes it wait for `release`, and `batches` remembers the pictures of every batch. It fails on a
    picture that is black all over, alone or in a batch, as a broken kernel would.
    """

    def __init__(self, image_size: int = 8, *, hold: bool = False) -> None:
        """`image_size` is the height and width of its pictures in pixels."""
        self.info = ModelInfo(
            id="fake",
            revision="fake",
            dtype="float32",
            device="cpu",
            backend="fake",
            image_size=image_size,
        )
        self.batches: list[int] = []
        self.closed = False
        #: Set when a batch has arrived.
        self.busy = threading.Event()
        self.release = threading.Event()
        if not hold:
            self.release.set()

    def check(self, options: GenerationOptions) -> None:
        """Refuse prompts of more than 100 characters, as a real model refuses long ones."""
        if options.prompt and len(options.prompt) > 100:
            raise JobError(ErrorCode.PROMPT_TOO_LONG, "the prompt is longer than 100 characters")

    def generate(
        self, images: Sequence[NDArray[np.uint8]], options: Sequence[GenerationOptions]
    ) -> list[list[FakeCaption]]:
        """One list of captions an image, best first."""
        return self.generate_joint([[image] for image in images], options)

    def generate_joint(
        self, groups: Sequence[Sequence[NDArray[np.uint8]]], options: Sequence[GenerationOptions]
    ) -> list[list[FakeCaption]]:
        """One list of captions a group, best first."""
        self.busy.set()
        self.release.wait()
        self.batches.append(sum(map(len, groups)))
        return [self._caption(*pair) for pair in zip(groups, options, strict=True)]

    def _caption(
        self, group: Sequence[NDArray[np.uint8]], options: GenerationOptions
    ) -> list[FakeCaption]:
        if not all(pixels.any() for pixels in group):
            raise RuntimeError("the fake model cannot see in the dark")
        means = [pixels.mean(axis=(0, 1)) for pixels in group]
        red, green, blue = (
            round(float(sum(values)) / len(group)) for values in zip(*means, strict=True)
        )
        words = f"mean colour {red} {green} {blue}"
        if len(group) > 1:
            words = f"{len(group)} pictures of {words}"
        prefix = f"{options.prompt.strip()} " if options.prompt and options.conditional else ""
        return [
            FakeCaption(f"{prefix}{words}", words, -0.1 * (rank + 1))
            for rank in range(options.num_return_sequences)
        ]

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class FaultyCaptionModel(FakeCaptionModel):
    """Breaks on pictures of certain colours, so that they do what broken kernels and leaks do.

    Red ends its process by a segmentation fault, green hangs for ever, blue raises `MemoryError`,
    magenta loses the device, and yellow takes memory that is never given back. A picture is of a
    colour when its mean colour nearly is, so that it may have been a JPEG.
    """

    def __init__(
        self,
        image_size: int = 8,
        *,
        seconds_per_batch: float = 0.0,
        leak_bytes: int = 2**26,
        notes: Path | None = None,
    ) -> None:
        """Break in the ways that were asked for.

        Args:
            image_size: height and width of its pictures in pixels.
            seconds_per_batch: how long each batch takes at least.
            leak_bytes: what each yellow picture takes.
            notes: a file that every best caption is appended to, a line each: what was captioned,
                and how often, though processes die.
        """
        super().__init__(image_size)
        self._notes = notes
        self._seconds_per_batch = seconds_per_batch
        self._leak_bytes = leak_bytes
        self._leaked: list[bytes] = []

    def generate_joint(
        self, groups: Sequence[Sequence[NDArray[np.uint8]]], options: Sequence[GenerationOptions]
    ) -> list[list[FakeCaption]]:
        """One list of captions a group, unless the colour of one picture prevents it."""
        if self._seconds_per_batch:
            threading.Event().wait(self._seconds_per_batch)
        for pixels in itertools.chain.from_iterable(groups):
            match tuple(bool(value > 192) for value in pixels.mean(axis=(0, 1))):
                case (True, False, False):
                    os.kill(os.getpid(), signal.SIGSEGV)
                case (False, True, False):
                    threading.Event().wait()
                case (False, False, True):
                    raise MemoryError
                case (True, False, True):
                    raise DeviceLostError("the fake device cannot go on")
                case (True, True, False):
                    self._leaked.append(b"\1" * self._leak_bytes)
        captions = super().generate_joint(groups, options)
        if self._notes:
            with self._notes.open("a") as file:
                file.write("".join(f"{best.text}\n" for best, *_ in captions))
        return captions


def load_faulty_model(
    image_size: int = 8,
    seconds_per_batch: float = 0.0,
    leak_bytes: int = 2**26,
    notes: Path | None = None,
) -> FaultyCaptionModel:
    """A loader for `ProcessEngine`; the arguments are those of `FaultyCaptionModel`."""
    return FaultyCaptionModel(
        image_size, seconds_per_batch=seconds_per_batch, leak_bytes=leak_bytes, notes=notes
    )
