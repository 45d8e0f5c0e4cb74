"""Folders and files that are their owner's alone, whatever the umask: sources may hold tokens."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Create a folder, and those above it; one that is there already stays as it is.

    Raises:
        OSError: it cannot be created.
    """
    if path.is_dir():
        return
    make_private_folder(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return  # another process was first
    path.chmod(0o700)  # a umask may have taken too much


def make_private_file(path: Path) -> None:
    """Create an empty file; one that is there already stays as it is.

    Raises:
        OSError: it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        # Private from its first moment; a umask may take even more.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        path.chmod(0o600)
