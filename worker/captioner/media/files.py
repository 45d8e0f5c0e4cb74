"""Local files, from the folders an operator allows and from nowhere else."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from captioner.domain import Media
from captioner.errors import ErrorCode, InvalidRequestError, JobError
from captioner.media.sizes import check_size, smallest_limit_bytes
from captioner.real_files import Reached
from captioner.source import Source
from captioner.video_containers import PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.settings import MediaSettings

_MISSING = "no such file"
#: What will not change by itself; other errors (a network drive that stumbles) may be tried again.
_FINAL = {
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: _MISSING,
    errno.EACCES: "the worker may not read this file",
    errno.EPERM: "the worker may not read this file",
    errno.ELOOP: "too many symbolic links",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EISDIR: "a folder, not a file",
}
#: Folders that are known at once: each keeps a descriptor.
MOST_FOLDERS = 32
_LOCAL_HOSTS = ("", "localhost")
#: Also what percent-encoding hid from Source: NUL, line ends that would forge log lines, and half
#: characters. Spaces and joiners that are not printable are in ordinary names, as of screenshots.
_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def open_file(source: Source, folder: Path, limits: MediaSettings) -> Media:  # noqa: ARG001 (an opener's signature)
    """Find a local file and check it, reading no more than its beginning; nothing is copied.

    Links are followed once, here. What is opened, now and later, is opened without: whoever may
    write under a root cannot lead out of it between the check and the use.

    Args:
        source: An absolute path or `file:///…`.
        folder: The job's own folder; not used here.
        limits: `allowed_roots` (links in them are resolved at every call), `max_image_bytes`
            and `max_video_bytes`.

    Returns:
        The file by its real path, free of symbolic links, and marked so.

    Raises:
        JobError: `invalid_request` for what is no absolute path, `source_not_allowed` outside the
            roots and for what is no file, `fetch_failed` for what cannot be read (to be tried
            again where nothing at all is in its root), `media_too_large`. Outside the roots the
            answer never depends on what is there.
    """
    return _open(source, _requested_path(source), limits)


def _open(source: Source, asked: str, limits: MediaSettings) -> Media:
    name = source.display
    try:
        reached = Reached(asked)
    except OSError:
        raise _outside(name) from None
    with reached:
        if not _inside(reached.path, limits.allowed_roots):
            raise _outside(name)
        size, head = _measure(reached, name, limits)
    check_size(name, size, head, limits)
    return Media(Path(reached.path), name, real=True)


class LocalFolders:
    """The folders of files that are opened one after the other: each is reached and checked once.

    What `open_file` does for one file takes five system calls; in a folder that is known it takes
    one. Links to a folder are followed when the first of its files is opened, so keep this no
    longer than for what was asked for before. Not safe for threads.
    """

    def __init__(self, limits: MediaSettings) -> None:
        """`limits` as of `open_file`."""
        self._limits = limits
        #: By their paths as they were asked for, with their real ones; None: not inside the roots.
        self._known: dict[str, tuple[Reached, Path] | None] = {}

    def open(self, source: Source) -> Media:
        """As `open_file`, which sees to all that is not simply a file."""
        asked = _requested_path(source)
        parent, _, name = asked.rpartition("/")
        if known := self._reached(parent):
            reached, real = known
            size = reached.size_inside_bytes(name)
            if size is not None and size <= smallest_limit_bytes(self._limits):
                return Media(real / name, source.display, real=True)
        return _open(source, asked, self._limits)

    def _reached(self, folder: str) -> tuple[Reached, Path] | None:
        if folder not in self._known:
            if len(self._known) == MOST_FOLDERS:
                self.close()
            self._known[folder] = self._reach(folder) if folder else None
        return self._known[folder]

    def _reach(self, folder: str) -> tuple[Reached, Path] | None:
        try:
            reached = Reached(folder)
        except OSError:
            return None
        if _inside(reached.path, self._limits.allowed_roots):
            return reached, Path(reached.path)
        reached.close()
        return None

    def close(self) -> None:
        """Let go of all of them; twice does nothing."""
        while self._known:
            _, known = self._known.popitem()
            if known:
                known[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _requested_path(source: Source) -> str:
    if source.uri[:5].lower() == "file:":
        try:
            parts = urlsplit(source.uri)
        except ValueError:
            raise InvalidRequestError("the file: URL cannot be understood") from None
        if parts.netloc.lower() not in _LOCAL_HOSTS:
            raise JobError(
                ErrorCode.SOURCE_NOT_ALLOWED,
                "a file: URL must name no host but this one: file:///absolute/path",
            )
        if parts.query or parts.fragment:
            raise InvalidRequestError("in a file: URL write ? as %3F and # as %23")
    path = source.path
    if not path.isprintable() and _REFUSED.search(path):
        raise InvalidRequestError("a path must not contain control characters")
    if not path.startswith("/"):
        raise InvalidRequestError(
            f"{source.display!r} is a relative path; give an absolute path, a URL, or a data: URL"
        )
    if ".." in path.split("/"):
        raise JobError(
            ErrorCode.SOURCE_NOT_ALLOWED, f"{source.display}: .. is not allowed in a path"
        )
    return path


def _outside(name: str) -> JobError:
    return JobError(
        ErrorCode.SOURCE_NOT_ALLOWED,
        f"{name} is in none of the worker's allowed folders (CAPTIONER_MEDIA__ALLOWED_ROOTS)",
    )


def _nothing_is_there(real: str, roots: Sequence[Path]) -> bool:
    """True where the roots of a path are empty, or not there: so looks a drive that is away."""
    return not any(map(_holds_anything, filter(partial(_is_below, real), roots)))


def _holds_anything(root: Path) -> bool:
    try:
        with os.scandir(root) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _is_below(real: str, root: Path) -> bool:
    return _begins(real, str(root)) or _begins(real, os.path.realpath(root))


def _inside(real: str, roots: Sequence[Path]) -> bool:
    # A path free of links that begins like a root: then that root is free of links, too.
    if any(_begins(real, str(root)) for root in roots):
        return True
    return any(_begins(real, os.path.realpath(root)) for root in roots)


def _begins(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _measure(reached: Reached, name: str, limits: MediaSettings) -> tuple[int, bytes]:
    """Size in bytes of a readable regular file, and its first `PREFIX_BYTES` where they matter."""
    try:
        size = reached.size_bytes()
        if size <= smallest_limit_bytes(limits):
            return size, b""  # small enough, whatever it is
        descriptor = reached.open()
        try:
            return os.fstat(descriptor).st_size, os.read(descriptor, PREFIX_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise JobError(
                ErrorCode.SOURCE_NOT_ALLOWED, f"{name} is a device or a pipe, not a file"
            ) from error
        reason = _FINAL.get(error.errno or 0)
        if reason == _MISSING and _nothing_is_there(reached.path, limits.allowed_roots):
            raise JobError(
                ErrorCode.FETCH_FAILED,
                f"{name}: {_MISSING}, and no other in its allowed folder; is that mounted?",
                retryable=True,
            ) from error
        raise JobError(
            ErrorCode.FETCH_FAILED,
            f"{name}: {reason or error.strerror or 'cannot be read'}",
            retryable=reason is None,
        ) from error
