"""Where what is fetched for a job is put, and what it means that it cannot be put there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from captioner.errors import ErrorCode, JobError, PluginError, UnfitError

#: Of the folders' names: no other program's, and not those that tests and benches make.
_PREFIX = "captioner-job-"
#: Errors of a disk that is full, or that can only be read since it is broken.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
#: And those that are as much the worker's own, unless a plugin has them, who knows of what.
_OWN = _FULL | {errno.EIO, errno.EMFILE, errno.ENFILE}


@contextmanager
def job_folder() -> Iterator[Path]:
    """A folder of a job's own, gone afterwards.

    Raises:
        UnfitError: it cannot be made.
    """
    with ExitStack() as opened:
        try:
            # What cannot be removed is no reason to fail a job that has its captions.
            name = opened.enter_context(
                tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
            )
        except OSError as error:
            raise _no_room(error) from error
        with suppress(OSError):  # not every network's drive can: nobody removes anything there
            opened.callback(os.close, _locked(Path(name)))
        yield Path(name)


def remove_abandoned() -> int:
    """Remove the folders of jobs whose process was killed, and could not; how many.

    Its disk would be full of them one day: the largest videos are what memory is short for.
    """
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = _locked(folder)
        except OSError:  # in use, somebody else's, or no folder
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        removed += 1
    return removed


def _locked(folder: Path) -> int:
    """A folder that is held; whoever dies lets go of it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


@contextmanager
def filling(folder: Path, name: str) -> Iterator[None]:
    """Bring a source into that folder inside the block; `name` is shown of it.

    Raises:
        UnfitError: the folder cannot be written to.
        JobError: it cannot, and because of this source alone.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OWN:
            raise
        raise _full(folder, name, error) from error
    except PluginError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _FULL:
            raise
        raise _full(folder, name, cause) from error


def _full(folder: Path, name: str, error: OSError) -> JobError | UnfitError:
    held_bytes = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    if held_bytes > shutil.disk_usage(folder).total / 2:
        return JobError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"{name}: {held_bytes} bytes and more are too much for the worker's disk (TMPDIR)",
            retryable=True,  # another worker's may be larger
        )
    return _no_room(error)


def _no_room(error: OSError) -> UnfitError:
    return UnfitError(
        f"downloads cannot be stored: {error.strerror or error}; make room, or set TMPDIR to "
        "another folder"
    )
