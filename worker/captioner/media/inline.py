"""`data:` sources: the picture travels inside the request."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from captioner.domain import Media
from captioner.errors import ErrorCode, InvalidRequestError, JobError
from captioner.source import Source

if TYPE_CHECKING:
    from pathlib import Path

    from captioner.settings import MediaSettings

#: Larger pictures travel by reference: every byte here passes through SQL.
MAX_INLINE_BYTES = 256 * 1024

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BASE64_MARK = re.compile(r"; *base64$", re.IGNORECASE)
_WHITE_SPACE = b" \t\r\n\f"


def open_inline(source: Source, folder: Path, limits: MediaSettings) -> Media:
    """Decode a `data:` URL into the job's folder.

    Args:
        source: `data:[media type][;base64],…`. The media type is not believed; the content counts.
        folder: The job's own folder, which exists.
        limits: `max_image_bytes`, beside the fixed `MAX_INLINE_BYTES`.

    Raises:
        JobError: `invalid_request` when the text is malformed or empty, `media_too_large`.
    """
    header, comma, payload = source.uri.partition(":")[2].partition(",")
    if not comma:
        raise InvalidRequestError("a data: URL needs a comma before its data")
    data = _decode(payload, is_base64=_BASE64_MARK.search(header) is not None)
    if not data:
        raise InvalidRequestError("the data: URL holds no data")
    limit = min(MAX_INLINE_BYTES, limits.max_image_bytes)
    if len(data) > limit:
        raise JobError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"data: URL of {len(data)} bytes, at most {limit}; send larger pictures by reference",
        )
    path = folder / "inline"
    path.write_bytes(data)
    return Media(path, source.display)


def _decode(payload: str, *, is_base64: bool) -> bytes:
    if not payload.isascii() or _BROKEN_ESCAPE.search(payload):
        raise InvalidRequestError("the data: URL is not properly percent-encoded")
    data = unquote_to_bytes(payload)
    if not is_base64:
        return data
    # As browsers do it: white space and missing padding are forgiven, nothing else is.
    digits = data.translate(None, _WHITE_SPACE).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error:
        raise InvalidRequestError("the data: URL is not proper base64") from None
