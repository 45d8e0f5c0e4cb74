"""Opening regular files, by their real paths, and nothing that was put in their way meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# O_PATH opens what may be passed through, as a path does, whether or not it may be listed.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: should a FIFO take the file's place just now, nobody waits for its writer.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


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
