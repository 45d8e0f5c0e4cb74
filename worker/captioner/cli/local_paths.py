"""What a person names on this machine: looked at without a fall, and told in one line."""

from __future__ import annotations

import os
import re
import stat
from enum import Enum, auto
from pathlib import Path

import typer

from captioner.errors import InvalidRequestError
from captioner.redaction import shown_path

#: What would make another line of one, steer a terminal, or not be encoded at all.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


class Kind(Enum):
    """What is at a path."""

    FILE = auto()
    FOLDER = auto()
    NOTHING = auto()


def kind_of(path: Path) -> Kind:
    """What is there.

    Raises:
        InvalidRequestError: that cannot be known: the name is too long, or a folder is closed.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Kind.NOTHING
    except OSError as error:
        raise InvalidRequestError(f"{shown(path)}: {why(error)}") from None
    except ValueError:  # NUL, or half a character
        return Kind.NOTHING
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.FILE


def from_root(path: Path) -> Path:
    """The same path from the root, and without `..`, which sources may not have.

    What `..` leads to depends on links, so that those before it are followed; others stay.
    """
    path = path.absolute()
    if ".." not in path.parts:
        return path
    up = len(path.parts) - path.parts[::-1].index("..")
    return Path(os.path.realpath(Path(*path.parts[:up])), *path.parts[up:])


def is_folder(text: str) -> bool:
    """True for a folder; what cannot be known is told where it is used as a file."""
    return _is(Kind.FOLDER, text)


def is_file(text: str) -> bool:
    """True for a file; what cannot be known is none."""
    return _is(Kind.FILE, text)


def _is(kind: Kind, text: str) -> bool:
    try:
        return kind_of(Path(text)) is kind
    except InvalidRequestError:
        return False


def why(error: OSError) -> str:
    """What the system says, without the path."""
    return error.strerror or "cannot be read"


def shown(path: str | Path) -> str:
    """A path as one line; somebody may have typed a URL, with credentials in it."""
    return one_line(shown_path(str(path)))


def one_line(path: str | Path) -> str:
    """The path of a file that is there, as one line."""
    return _ODD.sub(lambda found: ascii(found[0])[1:-1], str(path))


def writable(path: Path | None) -> Path | None:
    """An option's file, to be written after minutes of work: say now that it cannot be.

    Raises:
        typer.BadParameter: there is no folder for it, or no leave.
    """
    if path is None:
        return None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {one_line(folder)}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise typer.BadParameter(f"{one_line(path)} may not be written")
    return path
