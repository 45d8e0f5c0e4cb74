"""Pictures and videos on their way to the model."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from captioner.errors import ErrorCode, JobError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Media:
    """A source brought to this machine, not yet decoded."""

    #: A regular file: the local source itself, or a copy in the job's own folder.
    path: Path
    #: The source as it may be shown (`Source.display`).
    name: str
    #: The path was checked, free of symbolic links; it is not opened when it has some by now.
    real: bool = False

    def open(self, *, buffering: int = -1) -> BinaryIO:
        """Open the file for reading; better than by its path, which may lead elsewhere by now.

        Raises:
            JobError: it cannot be read, or has become something else than a file.
        """
        from captioner.real_files import open_real, open_regular  # POSIX: where jobs are worked on

        try:
            descriptor = open_real(self.path) if self.real else open_regular(self.path)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise JobError(ErrorCode.SOURCE_NOT_ALLOWED, f"{self.name} is not a file") from None
            raise self.unreadable(error) from error
        return open(descriptor, "rb", buffering=buffering)  # noqa: PTH123 (it has no path)

    def unreadable(self, error: OSError) -> JobError:
        """What to raise when reading the file fails: the job is tried again later."""
        return JobError(
            ErrorCode.FETCH_FAILED, f"{self.name}: {error.strerror or 'cannot be read'}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture ready for the model, and when it was seen."""

    #: uint8 `[height, width, 3]`, RGB, already of the model's size.
    pixels: NDArray[np.uint8] = field(repr=False)
    #: Seconds from the start of the media; None for a still image.
    time_seconds: float | None = None
    #: How many the media will give in all, this one included, when that is known.
    expected_frames: int | None = None
    #: How long the media lasts, when that is known.
    media_seconds: float | None = None
    #: Looks like the one before it, whose captions it gets: the model is not asked.
    repeated: bool = False
    #: Width over height of the picture as it is seen, before it was squared.
    aspect_ratio: float | None = None
