"""Pixels of two batches in memory that two processes share."""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from captioner.children import socket_of
from captioner.model import MAX_JOINT_PICTURES

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

#: One batch runs while the next lies ready.
BUFFERS = 2


def checked_pixels(pixels: NDArray[np.uint8], image_size: int, max_batch: int) -> NDArray[np.uint8]:
    """One picture, or several to be captioned together; a group of one becomes a picture.

    Raises:
        ValueError: they are neither, or more than `max_batch` or than a caption may be made of.
    """
    square = (image_size, image_size, 3)
    most = min(max_batch, MAX_JOINT_PICTURES)
    several = pixels.ndim == 4 and 1 <= len(pixels) <= most
    if pixels.dtype != np.uint8 or pixels.shape[several:] != square:
        raise ValueError(
            f"pixels must be uint8 {list(square)}, or 1 to {most} of these, "
            f"not {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels[0] if several and len(pixels) == 1 else pixels


class Slots:
    """The parent's side: it alone writes.

    The memory has no name, only file descriptors, so it ends with the last process that has one,
    however that ends. It is none of /dev/shm, which containers make small.
    """

    def __init__(self, max_batch: int, image_size: int) -> None:
        """Make room for two batches; nothing is used up before it is written."""
        shape = (BUFFERS, max_batch, image_size, image_size, 3)
        size_bytes = int(np.prod(shape))
        self._file = _anonymous_file()
        os.ftruncate(self._file.fileno(), size_bytes)
        memory = mmap.mmap(self._file.fileno(), size_bytes)
        self._pixels = np.frombuffer(memory, np.uint8).reshape(shape)

    def write(self, buffer: int, images: Sequence[NDArray[np.uint8]]) -> None:
        """Fill one of the two buffers, from its first slot on; several pictures take as many."""
        start = 0
        for image in images:
            stop = start + (1 if image.ndim == 3 else len(image))
            np.copyto(self._pixels[buffer, start:stop], image)
            start = stop

    def send(self, connection: Connection[Any, Any]) -> None:
        """Let the process at the other end read them: it must call `receive_slots` now."""
        with socket_of(connection) as channel:
            socket.send_fds(channel, [b"\0"], [self._file.fileno()])

    def close(self) -> None:
        """Give the memory back as soon as no array refers to it."""
        self._file.close()


def receive_slots(
    connection: Connection[Any, Any], max_batch: int, image_size: int
) -> NDArray[np.uint8]:
    """The child's side, read only.

    Returns:
        uint8 `[2, max_batch, image_size, image_size, 3]`.

    Raises:
        EOFError: the parent has closed the connection.
    """
    with socket_of(connection) as channel:
        _, files, _, _ = socket.recv_fds(channel, 1, 1)
    if not files:
        raise EOFError
    try:
        memory = mmap.mmap(files[0], 0, prot=mmap.PROT_READ)
    finally:
        os.close(files[0])
    return np.frombuffer(memory, np.uint8).reshape(BUFFERS, max_batch, image_size, image_size, 3)


def _anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("captioner-pixels"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)  # not on Linux: deleted already, and cached at least
