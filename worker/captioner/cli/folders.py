"""The pictures below a folder, told by their suffixes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from captioner.cli.local_paths import shown, why
from captioner.errors import InvalidRequestError

#: How a picture's file is told from others, before anything has opened it.
SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
}  # fmt: skip


def pictures_below(folder: Path) -> Iterator[tuple[Path, InvalidRequestError | None]]:
    """The pictures in the order of their names, and each folder that cannot be read, with why.

    Raises:
        InvalidRequestError: there is nothing of either.
    """
    nothing = True
    closed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=closed.append):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES:
                nothing = False
                yield path, None
    for error in closed:
        nothing = False
        yield Path(error.filename), InvalidRequestError(why(error))
    if nothing:
        raise InvalidRequestError(f"{shown(folder)} holds no pictures")
