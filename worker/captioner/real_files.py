"""Opening regular files, by their real paths, and nothing that was put in their way meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Self

# O_PATH opens what may be passed through, as a path does, whether or not it may be listed.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: should a FIFO take the file's place just now, nobody waits for its writer.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Linux: to reach a file without opening it, and to ask where that is.
_REACH = getattr(os, "O_PATH", 0) | os.O_CLOEXEC
_DESCRIPTORS = "/proc/self/fd"
#: Readable whoever asks.
_READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
#: To ask for who this process acts as, where the system can be asked that.
_EFFECTIVE = os.access in os.supports_effective_ids


class Reached:
    """Where a path leads to, followed once, and not yet opened: that alone may block, or act.

    What is opened later is the very file that was reached, wherever the path leads by then.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str | Path) -> None:
        """Follow `path`, links included, whether or not something is there.

        Raises:
            OSError: a link was exchanged meanwhile; nobody knows where the path leads.
        """
        #: Linux: a descriptor that can only be asked. None: there is nothing, or no such system.
        self._descriptor = _reach(path)
        told = _path_of(self._descriptor)
        if told is None:  # also where /proc is not mounted: what was reached could not be opened
            self.close()
        #: Absolute, and free of symbolic links.
        self.path = os.path.realpath(path) if told is None else told

    def size_bytes(self) -> int:
        """How large a file is that can be opened; raises as `open_real` does."""
        here = f"{_DESCRIPTORS}/{self._descriptor}"
        if self._descriptor is not None and os.access(here, os.R_OK, effective_ids=_EFFECTIVE):
            return self._file_status(self._descriptor).st_size
        descriptor = self.open()
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def open(self) -> int:
        """Open it for reading; raises as `open_real` does.

        Returns:
            A descriptor, to be closed by who called.
        """
        if self._descriptor is None:
            return _open_step_by_step(Path(self.path))
        self._file_status(self._descriptor)
        return os.open(f"{_DESCRIPTORS}/{self._descriptor}", _FILE & ~os.O_NOFOLLOW)

    def _file_status(self, descriptor: int) -> os.stat_result:
        status = os.fstat(descriptor)
        _check_kind(status.st_mode)
        return status

    def size_inside_bytes(self, name: str) -> int | None:
        """How large a file in this folder is, where that takes no more than one look.

        Args:
            name: of one entry, without `/`.

        Returns:
            None for whatever is not simply a file that everybody may read, such as a link.
        """
        if self._descriptor is None:
            return None
        try:
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return None
        simple = stat.S_ISREG(status.st_mode) and status.st_mode & _READABLE == _READABLE
        return status.st_size if simple else None

    def close(self) -> None:
        """Let go of it; twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_real(path: Path) -> int:
    """Open a regular file for reading, by a path in which no link is followed.

    A path that `realpath` gave, and that was found to be inside some folder, may lead elsewhere a
    moment later, for whoever may write to that folder. Opened like this it is inside, or an error.

    Args:
        path: absolute, without `..`, and without symbolic links.

    Returns:
        A descriptor, to be closed by who called.

    Raises:
        IsADirectoryError: it is a folder.
        OSError: with `ENODEV` for a device, a pipe or a socket, which is not opened: that alone may
            block, or act. `ENOTDIR` or `ELOOP`: there is a link now. Or it cannot be read.
    """
    with Reached(path) as reached:
        if reached.path == str(path):
            return reached.open()
    return _open_step_by_step(path)


def _open_step_by_step(path: Path) -> int:
    """For systems that do not tell where a file is, and for what is not where it was."""
    folder = os.open(path.anchor, _FOLDER)
    try:
        for name in path.parts[1:-1]:
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        _check_kind(os.stat(path.name or ".", dir_fd=folder, follow_symlinks=False).st_mode)
        descriptor = os.open(path.name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    return _checked(descriptor)


def _reach(path: str | Path) -> int | None:
    """A descriptor that can only be asked; to get it neither waits nor acts. None: there is none.

    Symbolic links are followed.
    """
    if _REACH == os.O_CLOEXEC:
        return None
    try:
        return os.open(path, _REACH)
    except OSError:
        return None


def _path_of(descriptor: int | None) -> str | None:
    """The real path of what was reached; None: the system does not tell."""
    if descriptor is None:
        return None
    try:
        return os.readlink(f"{_DESCRIPTORS}/{descriptor}")  # noqa: PTH115 (asked for every job)
    except OSError:
        return None


def open_regular(path: Path) -> int:
    """Open a regular file for reading, wherever its path leads; raises as `open_real` does."""
    return _checked(os.open(path, _FILE & ~os.O_NOFOLLOW))


def _checked(descriptor: int) -> int:
    try:
        _check_kind(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
