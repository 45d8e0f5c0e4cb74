"""Where what is fetched for a job is put, and what it means that it cannot be put there.

A worker whose disk is full fails in moments what takes others seconds, and so would take most of
the queue and fail it. So that is no failure of a job: it goes back, and the worker takes its time.
"""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioner.errors import ErrorCode, JobError, NoRoomError, PluginError

logger = logging.getLogger(__name__)

#: When a job's turn is to be expected again.
AGAIN_SECONDS = 10.0
#: How often the log is told.
TOLD_EVERY_SECONDS = 30.0
#: Errors of a disk that is full, or that can only be read since it is broken.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
#: And those that are as much the worker's own, unless a plugin has them, who knows of what.
_OWN = _FULL | {errno.EIO, errno.EMFILE, errno.ENFILE}


class DiskRoom:
    """Makes the folders of jobs. Thread-safe."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._told_at = float("-inf")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder of a job's own, gone afterwards.

        Raises:
            NoRoomError: it cannot be made.
        """
        try:
            own = tempfile.TemporaryDirectory(prefix="captioner-", ignore_cleanup_errors=True)
        except OSError as error:
            raise self._no_room(error) from error
        with own as name:
            yield Path(name)

    @contextmanager
    def filling(self, folder: Path, name: str) -> Iterator[None]:
        """Bring a source into that folder inside the block; `name` is shown of it.

        Raises:
            NoRoomError: the folder cannot be written to.
            JobError: it cannot, and because of this source alone.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in _OWN:
                raise
            raise self._full(folder, name, error) from error
        except PluginError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _FULL:
                raise
            raise self._full(folder, name, cause) from error

    def _full(self, folder: Path, name: str, error: OSError) -> JobError | NoRoomError:
        held_bytes = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
        if held_bytes > shutil.disk_usage(folder).total / 2:
            return JobError(
                ErrorCode.MEDIA_TOO_LARGE,
                f"{name}: {held_bytes} bytes and more are too much for the worker's disk (TMPDIR)",
                retryable=True,  # another worker's may be larger
            )
        return self._no_room(error)

    def _no_room(self, error: OSError) -> NoRoomError:
        why = error.strerror or str(error)
        message = f"downloads cannot be stored: {why}; make room, or set TMPDIR to another folder"
        if time.monotonic() - self._told_at > TOLD_EVERY_SECONDS:
            self._told_at = time.monotonic()
            logger.warning("jobs go back to the queue: %s", message)
        return NoRoomError(message, AGAIN_SECONDS)
