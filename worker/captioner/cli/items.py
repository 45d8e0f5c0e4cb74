"""Where bulk submissions come from: files of JSON lines, and folders of pictures.

Both are read as they are submitted: a million of them need no more memory than a hundred.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from captioner.cli.folders import pictures_below
from captioner.cli.local_paths import from_root, one_line, why
from captioner.cli.requests import parse_source
from captioner.domain import CaptionRequest, Lane
from captioner.errors import InvalidRequestError
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions, options_mapping
from captioner.request_json import request_from_item
from captioner.source import Source

#: A longer line is refused; an inline picture of 256 KiB fits.
MAX_LINE_BYTES = 2**20

#: Where an item stands, for people, and its request or why it has none.
Item = tuple[str, CaptionRequest | InvalidRequestError]


def items_of_file(
    name: str,
    defaults: Mapping[str, Any],
    metadata: Mapping[str, Any],
    webhook_url: str | None = None,
) -> Iterator[Item]:
    """The items of a file of JSON lines, or of standard input for `-`; blank lines are skipped.

    Args:
        name: of the file.
        defaults: generation options of items that name none.
        metadata: of items that have none.
        webhook_url: of items that have none.

    Raises:
        InvalidRequestError: the file cannot be read.
    """
    with _opened(name) as file:
        for number, line in enumerate(_lines(file), 1):
            if line is not None and not line.strip():
                continue
            try:
                request = _request(line, defaults)
                yield (
                    f"line {number}",
                    replace(
                        request,
                        metadata=request.metadata or metadata,
                        webhook_url=request.webhook_url or webhook_url,
                    ),
                )
            except InvalidRequestError as error:
                yield f"line {number}", error


def count_lines(name: str) -> int | None:
    """How many lines a file has; None when that cannot be known beforehand."""
    try:
        if not Path(name).is_file():
            return None
        with Path(name).open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    except OSError:  # who reads the items says why
        return None


def items_of_folder(
    folder: Path,
    options: GenerationOptions,
    alt_text: AltTextOptions,
    video: VideoOptions,
    metadata: Mapping[str, Any],
    webhook_url: str | None = None,
) -> Iterator[Item]:
    """The pictures below a folder, in the order of their names, and folders that cannot be read.

    Each has a client key that stands for the file as it is, and for the options: submitted again,
    only what is new, changed or to be captioned otherwise makes a job.
    """
    for path, problem in pictures_below(from_root(folder)):
        try:
            if problem:
                raise problem
            request = CaptionRequest(
                source=Source(str(path)),
                options=options,
                alt_text=alt_text,
                video=video,
                metadata=metadata,
                webhook_url=webhook_url,
                lane=Lane.BULK,
                client_key=_client_key(path, options_mapping(options, alt_text, video)),
            )
        except InvalidRequestError as error:
            yield one_line(path), error
        except OSError as error:
            yield one_line(path), InvalidRequestError(why(error))
        else:
            yield str(path), request


def _client_key(path: Path, options: Mapping[str, Any]) -> str:
    status = path.stat()
    told = [str(path), status.st_size, status.st_mtime_ns, options]
    return f"file:{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:40]}"


@contextlib.contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        if not sys.stdin:
            raise InvalidRequestError("--from -: standard input is closed")
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115  # closed below; only the opening may fail so
    except OSError as error:
        raise InvalidRequestError(f"{Source(name).display}: {error.strerror}") from None
    with file:
        yield file


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        too_long = len(line) > MAX_LINE_BYTES
        while too_long and not line.endswith(b"\n") and line:
            line = file.readline(MAX_LINE_BYTES)
        yield None if too_long else line


def _request(line: bytes | None, defaults: Mapping[str, Any]) -> CaptionRequest:
    if line is None:
        raise InvalidRequestError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        fields = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        raise InvalidRequestError("not JSON in UTF-8") from None
    request = request_from_item(fields, defaults)
    return replace(request, source=parse_source(request.source.uri))
